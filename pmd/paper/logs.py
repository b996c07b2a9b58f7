"""Read the folders of finished runs into tidy pandas frames, from which figures, tables and claims are made.

The folders that are read here:

runs/<preset>/train/<method>/seed-<s>/             the main matrix: every method with the same budget
runs/<preset>/ablate/<axis>/<variant>/seed-<s>/    ablations along the axes tau, group and stale
runs/<preset>/evaluate/<method>/seed-<s>/          responses of the last and of the validation-best checkpoint
runs/<preset>/stages/**.json                       what each executed notebook took
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pmd.files import read_json, read_jsonl
from pmd.methods import METHODS
from pmd.sampling.accuracy import accuracy, avg_at_k, pass_at_k, resampled_best_at_k, summarise

SETS = ("test", "ood")
"""The sets that are reported: in-distribution and longer problems. Pooled they are "overall"."""

_RUN_KEYS = ("method", "seed", "tau", "lr", "group_size", "prompts", "minibatches", "steps")
_LOG_KEYS = (
    "step",
    "reward",
    "length",
    "entropy",
    "lambda",
    "kl",
    "chi2",
    "lambda_theory",
    "tokens",
    "rollouts",
)
_TIMING_KEYS = ("step", "wall_s", "peak_memory_mb")
_EVAL_KEYS = ("step", "set", "k", "correct", "majority", "length", "truncated")
_RESPONSE_KEYS = ["set", "prompt_id", "sample", "answer", "correct", "tokens", "truncated"]


@dataclass(frozen=True)
class Logs:
    """What the training runs of one preset wrote, as three frames.

    runs: one row for each run, with run (its path), axis ("main", "tau", "group" or "stale"), variant, method, seed,
        the fields of run.json, best_step and last_step.
    steps: one row for each training step of each run, with run, axis, variant, method, seed and the fields of log.jsonl
        and timing.jsonl.
    evals: one row for each run, evaluation step and set (val, test, ood, and overall, which pools test and ood), with
        k, the lists correct, majority and lengths, which have an entry for each problem, and their means avg, best
        (resampled), maj and length.
    """

    runs: pd.DataFrame
    steps: pd.DataFrame
    evals: pd.DataFrame


def load(directory: str | Path) -> Logs:
    """Read every finished run below runs/<preset>.

    Folders named *-work, in which runs are still under way, are passed over. ValueError in one line if there is no run
    at all, if a run is unfinished, or if a file or a field is missing or malformed.
    """
    directory = Path(directory)
    found = [
        path
        for pattern in ("train/*/seed-*/run.json", "ablate/*/*/seed-*/run.json")
        for path in sorted(directory.glob(pattern))
        if not path.parents[1].name.endswith("-work")
    ]
    if not any(path.is_relative_to(directory / "train") for path in found):
        raise ValueError(
            f"{directory / 'train'}: no training runs here; first execute the notebooks with lower numbers "
            "(base model, train, evaluate, ablations) for this preset, or run `dvc repro`"
        )
    runs, steps, evals = [], [], []
    for path in found:
        run = _run(path.parent, directory)
        runs.append(run)
        identity = {key: run[key] for key in ("run", "axis", "variant", "method", "seed")}
        steps.append(_steps(path.parent).assign(**identity))
        evals.append(_evals(path.parent / "eval.jsonl").assign(**identity))
    return Logs(pd.DataFrame(runs), _concat(steps), _concat(evals))


def evaluated(directory: str | Path) -> pd.DataFrame:
    """Read the responses below runs/<preset>/evaluate: one row for each method, seed, checkpoint and set.

    The columns are those of `Logs.evals` with checkpoint ("last" or "best") in place of step; the base model is method
    "base", seed 0, checkpoint "last". Problems are in the order of their ids and the same in every row of a set.
    ValueError in one line if there is no file, or if one is malformed or holds other problems than the rest.
    """
    directory = Path(directory) / "evaluate"
    files = sorted(directory.glob("base/last.parquet")) + sorted(directory.glob("*/seed-*/*.parquet"))
    if not files:
        raise ValueError(
            f"{directory}: no evaluated checkpoints here; execute the evaluate notebook for this preset first"
        )
    prompts: dict[str, list[str]] = {}
    frames = []
    for path in files:
        base = path.parent.name == "base"
        method = "base" if base else path.parent.parent.name
        seed = 0 if base else int(path.parent.name.removeprefix("seed-"))
        rows = _responses(path, prompts)
        frames.append(_summarised(rows).assign(method=method, seed=seed, checkpoint=path.stem))
    return _concat(frames)


def stages(directory: str | Path) -> pd.DataFrame:
    """Read runs/<preset>/stages: stage, seconds, peak_memory_mb and machine; empty if there is none."""
    rows = [
        {key: _field(record, key, path) for key in ("stage", "seconds", "peak_memory_mb", "machine")}
        for path in sorted((Path(directory) / "stages").rglob("*.json"))
        for record in [_read(path)]
    ]
    return pd.DataFrame(rows, columns=["stage", "seconds", "peak_memory_mb", "machine"])


def matrix(rows: pd.DataFrame, metric: str) -> NDArray[np.float64]:
    """The scores [seeds, prompts] of one set, one checkpoint and one method, in ascending order of seeds.

    rows: rows of `Logs.evals` or `evaluated`, one for each seed. metric: "avg", "best" (resampled best@k), "maj",
    "length", or "pass@J" (unbiased). ValueError if seeds repeat or saw different numbers of prompts.
    """
    rows = rows.sort_values("seed")
    if rows.seed.duplicated().any() or rows.correct.map(len).nunique() != 1:
        raise ValueError(
            f"scores: need one row a seed, all of equally many prompts; got seeds {rows.seed.tolist()} "
            f"with {rows.correct.map(len).tolist()} prompts"
        )
    return np.stack([_scores(row._asdict(), metric) for row in rows.itertuples()])


def ordered(methods: Iterable[str]) -> list[str]:
    """The methods that occur, each once, in the order of pmd/methods.py; "base", the base model, is none.

    ValueError naming a method that is not listed there: it would be missing from figures and tables unnoticed.
    """
    found = set(methods) - {"base"}
    if unknown := sorted(found - set(METHODS)):
        raise ValueError(f"method: got {unknown[0]!r}, must be one of pmd/methods.py: {', '.join(METHODS)}")
    return [method for method in METHODS if method in found]


def last(evals: pd.DataFrame) -> pd.DataFrame:
    """The rows of each run's last evaluation step."""
    return evals[evals.step == evals.groupby("run").step.transform("max")]


def regimes(logs: Logs) -> dict[str, pd.DataFrame]:
    """The runs of the main matrix and, if there are any, those of the `stale` ablation with the most minibatches.

    K is the number of minibatches that the samples of a step are split into, and so the number of updates made with
    samples of one policy: small in the main matrix, large in the ablation. A whole run has as many samples and updates
    in both. Keys are labels such as "K = 8", in that order; values are rows of `Logs.runs`.
    """
    main, stale = logs.runs[logs.runs.axis == "main"], logs.runs[logs.runs.axis == "stale"]
    largest = max(stale.minibatches.max(), main.minibatches.max() + 1) if len(stale) else None
    chosen = [main, stale[stale.minibatches == largest]]
    return {f"K = {rows.minibatches.max():g}": rows for rows in chosen if len(rows)}


def ablation(logs: Logs, axis: str) -> pd.DataFrame:
    """The runs along one axis of the ablations, with the varied setting in column x.

    axis: "tau" (x = τ), "group" (x = n) or "stale" (x = K). A run of the main matrix belongs to the axis too if it
    differs from the ablation's runs of the same method in x alone, and if the ablation has no run with that x.
    """
    field = {"tau": "tau", "group": "group_size", "stale": "minibatches"}[axis]
    samples = logs.runs.prompts * logs.runs.group_size * logs.runs.steps
    runs = logs.runs.assign(x=logs.runs[field].astype(float), samples=samples)
    fixed = ["tau", "lr", "group_size", "minibatches", "samples", "steps"]
    fixed = [name for name in fixed if name != field and (axis, name) != ("stale", "steps")]
    varied = runs[runs.axis == axis]
    known = set(varied[["method", *fixed]].itertuples(index=False, name=None))
    taken = set(varied[["method", "x"]].itertuples(index=False, name=None))
    main = runs[runs.axis == "main"]
    joins = [
        row in known and point not in taken
        for row, point in zip(
            main[["method", *fixed]].itertuples(index=False, name=None),
            main[["method", "x"]].itertuples(index=False, name=None),
            strict=True,
        )
    ]
    return pd.concat([varied, main[joins]], ignore_index=True)


def clock(logs: Logs) -> pd.DataFrame:
    """`Logs.evals` with two more columns: the seconds of training and the tokens generated before each evaluation.

    Both are 0 at step 0. Evaluation and checkpoints are not counted as training.
    """
    cost = logs.steps[["run", "step", "wall_s", "tokens"]].rename(columns={"wall_s": "seconds"})
    merged = logs.evals.merge(cost, on=["run", "step"], how="left")
    merged.loc[merged.step == 0, ["seconds", "tokens"]] = 0.0
    return merged


def _scores(row: dict, metric: str) -> NDArray[np.float64]:
    if metric == "avg":
        return avg_at_k(row["correct"], row["k"])
    if metric == "best":
        return resampled_best_at_k(row["correct"], row["k"], row["k"])
    if metric in ("maj", "length"):
        return np.asarray(row["majority" if metric == "maj" else "lengths"], dtype=np.float64)
    if metric.startswith("pass@"):
        return pass_at_k(row["correct"], row["k"], int(metric.removeprefix("pass@")))
    raise ValueError(f"metric: {metric!r} is not one of avg, best, maj, length, pass@J")


def _read(path: Path) -> dict:
    if not path.is_file():
        raise ValueError(f"{path}: missing (an unfinished run? start its notebook again, it resumes)")
    return read_json(path)


def _field(record: dict, key: str, path: Path) -> object:
    if not isinstance(record, dict) or key not in record:
        raise ValueError(f"{path}: has no field {key!r}")
    return record[key]


def _run(path: Path, directory: Path) -> dict:
    config, result = _read(path / "run.json"), _read(path / "result.json")
    for key in _RUN_KEYS:
        _field(config, key, path / "run.json")
    parts = path.relative_to(directory).parts
    ablation = parts[0] == "ablate"
    return config | {
        "run": "/".join(parts),
        "axis": parts[1] if ablation else "main",
        "variant": parts[2] if ablation else "main",
        "best_step": _field(result, "best_step", path / "result.json"),
        "last_step": _field(result, "last_step", path / "result.json"),
    }


def _table(path: Path, keys: Iterable[str]) -> pd.DataFrame:
    if not path.is_file():
        raise ValueError(f"{path}: missing (an unfinished run? start its notebook again, it resumes)")
    rows = read_jsonl(path)
    if not rows:
        raise ValueError(f"{path}: empty")
    for number, row in enumerate(rows, start=1):
        for key in keys:
            if key not in row:
                raise ValueError(f"{path}:{number}: has no field {key!r}")
    return pd.DataFrame(rows)


def _steps(path: Path) -> pd.DataFrame:
    log, timing = _table(path / "log.jsonl", _LOG_KEYS), _table(path / "timing.jsonl", _TIMING_KEYS)
    if not set(log.step) <= set(timing.step):
        raise ValueError(f"{path / 'timing.jsonl'}: lacks steps that log.jsonl has")
    log["lambda_theory"] = log["lambda_theory"].astype(float)  # None, for methods without a theory, becomes NaN
    return log.drop(columns="successes", errors="ignore").merge(timing, on="step")


def _evals(path: Path) -> pd.DataFrame:
    rows = _table(path, _EVAL_KEYS).rename(columns={"length": "lengths"})
    return _concat([_summarised(part).assign(step=step) for step, part in rows.groupby("step")])


def _responses(path: Path, prompts: dict[str, list[str]]) -> pd.DataFrame:
    """One row for each set, from a file with one row a response.

    prompts: the ids of each set in the files read before, to which those of a new set are added. ValueError if this
    file's differ from them, or if a problem has more samples than another.
    """
    try:
        table = pd.read_parquet(path, columns=_RESPONSE_KEYS)
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors and OSErrors
        raise ValueError(f"{path}: not a table of responses ({str(error).splitlines()[0]})") from error
    rows = []
    for name, part in table.sort_values(["prompt_id", "sample"], kind="stable").groupby("set"):
        ids, counts = np.unique(part.prompt_id.to_numpy(dtype=str), return_counts=True)
        if prompts.setdefault(name, ids.tolist()) != ids.tolist():
            raise ValueError(f"{path}: set {name!r} has other prompts than the files read before it")
        if len(set(counts)) != 1:
            raise ValueError(f"{path}: set {name!r} has prompts with different numbers of samples")
        rows.append({"set": name} | summarise(part, ids.tolist()))
    return pd.DataFrame(rows).rename(columns={"length": "lengths"})


def _summarised(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` (one a set) and their pooled "overall" row, each with the means of its per-prompt scores."""
    records = rows.to_dict("records")
    reported = [record for name in SETS for record in records if record["set"] == name]
    if reported:
        pooled = {
            key: [value for record in reported for value in record[key]] for key in ("correct", "majority", "lengths")
        }
        weights = [len(record["correct"]) for record in reported]
        truncated = float(np.average([record["truncated"] for record in reported], weights=weights))
        records.append({"set": "overall", "k": reported[0]["k"], "truncated": truncated} | pooled)
    for record in records:
        record["avg"] = accuracy(record)
        for metric in ("best", "maj", "length"):
            record[metric] = float(_scores(record, metric).mean())
    return pd.DataFrame(records)


def _concat(frames: list[pd.DataFrame]) -> pd.DataFrame:
    # a column that is all None in one run (clip_fraction without a clip) must not decide the dtype of all
    return pd.concat([frame.astype(object) for frame in frames], ignore_index=True).infer_objects()
