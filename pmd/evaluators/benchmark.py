"""Any model on any problem set: samples that survive an interruption, metrics with intervals, a page of examples."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from pmd.bar import progress_bar
from pmd.evaluators.entry import Benchmark
from pmd.evaluators.examples import page
from pmd.evaluators.intervals import problem_interval
from pmd.files import ROOT, atomic, fingerprint, read_jsonl, write_json, write_text
from pmd.model.loading import load_policy
from pmd.params import require
from pmd.problems.prompts import fit
from pmd.problems.reader import read_problems
from pmd.problems.reward import Reward, read_reward, try_out
from pmd.sampling.accuracy import in_order, pass_at_k, resampled_best_at_k
from pmd.sampling.engine import MakeEngine, Sampling, context
from pmd.sampling.scoring import COLUMNS, VERDICT, respond, summarise_by_rule, verdicts
from pmd.sampling.seeds import derive
from pmd.sampling.torch_engine import sampler

BLOCK = 512
"""Responses that are sampled between two writes to disk, and so the most that an interruption can lose."""

MODEL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.safetensors")
"""The files of a model folder that decide its answers."""

SAMPLING_CODE = {
    "torch": ("pmd/model", "pmd/sampling", "pmd/problems/prompts.py"),
    "vllm": ("pmd/model", "pmd/sampling", "pmd/problems/prompts.py", "pmd/scale/vllm_engine.py"),
}
"""For each engine the code that decides the text that it samples; if it changes, everything is sampled again.

The rules that judge the text are not among it, because verdicts are made anew each time.
"""


# --- sampling ------------------------------------------------------------------------------------------------------


def run(config: Benchmark, samples_dir: Path, results: Path, work: Path, engine: MakeEngine | None = None) -> dict:
    """Sample, score and describe one entry; returns what results/metrics.json holds.

    Writes samples_dir/model.parquet (and against.parquet), results/metrics.json and results/examples.md. Blocks of
    finished prompts stay below `work`, shared by all entries, and are not sampled again. `engine` makes what samples,
    of the kind that `config.engine` names; None is PyTorch's. ValueError or FileNotFoundError in one line, before any
    work, if a model folder or the problem file is missing or malformed, if the engine is not handed in, or if the
    entry's reward cannot be called.
    """
    key, named = f"benchmark.{config.name}.engine", config.engine
    require(engine is not None or named == "torch", key, named, "torch where no other engine is handed in")
    problems = read_problems(ROOT / config.problems, config.limit)
    models = {"model": config.model} | ({"against": config.against} if config.against != config.model else {})
    for role, model in models.items():
        if not (ROOT / model / "config.json").is_file():
            raise ValueError(f"benchmark.{config.name}.{role}: {model} is not a model folder (it has no config.json)")
    own = read_reward(config.reward, config.trusted)
    try_out(own, problems)
    make = engine or sampler
    judged = {role: sample(config, ROOT / model, problems, work, make) for role, model in models.items()}
    partial = own is not None and not all(samples["reward"].isin([0, 1]).all() for samples, _ in judged.values())
    scores, metrics = {}, {"problems": config.problems} | ({"reward": own.identity} if own else {})
    for role, (samples, kept) in judged.items():
        scores[role] = per_problem(samples, kept, own, partial)
        atomic(samples_dir / f"{role}.parquet", lambda file, frame=samples: frame.to_parquet(file, index=False))
        counts = {"path": models[role], "too_long": len(problems) - len(kept)}
        metrics[role] = counts | metrics_of(samples, scores[role])
    write_text(results / "examples.md", page(*judged["model"], f"{config.name}: {config.model}", own is not None))
    if "against" in scores:
        metrics["difference"] = compare(scores["model"], scores["against"])
    write_json(results / "metrics.json", metrics)
    return metrics


def sample(
    config: Benchmark, model_dir: Path, problems: list[dict], work: Path, make: MakeEngine = sampler
) -> tuple[pd.DataFrame, list[dict]]:
    """k scored responses of a model to each problem whose prompt is short enough, and those problems.

    Prompts are sampled in blocks, each from a seed of its own and kept on disk below `work` under a hash of all that
    decides its text, so neither an interruption nor a larger `limit` changes or repeats what is there. The verdicts
    are made anew from the text, by the entry's reward where it has one, so that a block stays of use after a change of
    what judges it.
    """
    reward = read_reward(config.reward, config.trusted)
    model, tokenizer = load_policy(model_dir, config.device, config.dtype)
    engine = make(model, tokenizer.eos_token_id)
    most = context(engine.model.config)
    try:
        problems, _ = fit(tokenizer, problems, config.max_prompt_tokens, most and most - config.max_tokens)
    except ValueError as error:
        raise ValueError(f"benchmark.{config.name}.max_prompt_tokens: {error}") from None
    sampling, mark, size = _sampling(config), _model_hash(model_dir), max(1, BLOCK // config.k)
    frames, tokens, start = [], 0, time.perf_counter()
    with progress_bar(
        total=len(problems), desc=f"{config.name}: {model_dir.name}", unit="prompt", mininterval=1
    ) as bar:
        for block in (problems[i : i + size] for i in range(0, len(problems), size)):
            seed = derive(config.seed, 0, f"benchmark/{block[0]['id']}")
            path = work / f"{_block_hash(config, mark, seed, block)}.parquet"
            if not path.exists():
                frame = respond(engine, tokenizer, block, config.k, sampling, seed)
                tokens += int(frame["tokens"].sum())
                atomic(path, lambda file, frame=frame: frame.to_parquet(file, index=False))
            frames.append(pd.read_parquet(path))
            right = sum(int(frame["correct"].sum()) for frame in frames) / sum(map(len, frames))
            bar.update(len(block))
            speed = f"{tokens / (time.perf_counter() - start):,.0f} tokens/s"
            bar.set_postfix_str(speed if reward else f"accuracy {right:.3f}, {speed}", refresh=False)
    return rescore(pd.concat(frames, ignore_index=True), problems, reward), problems


def _sampling(config: Benchmark) -> Sampling:
    return Sampling(config.max_tokens, config.temperature, config.top_p)


def _model_hash(model_dir: Path) -> str:
    """MD5 over the names and bytes of a model folder's files."""
    digest = hashlib.md5()
    for path in sorted(path for pattern in MODEL_FILES for path in model_dir.glob(pattern)):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "md5").digest())
    return digest.hexdigest()


def sampling_code(engine: str) -> list[Path]:
    """The Python files named by SAMPLING_CODE; no bytecode, which changes with each import of a new file."""
    paths = [ROOT / path for path in SAMPLING_CODE[engine]]
    return [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]


def _block_hash(config: Benchmark, model: str, seed: int, block: list[dict]) -> str:
    """MD5 of all that a block's text depends on: weights, code, engine, sampling, seed and prompts."""
    code = fingerprint(*sampling_code(config.engine), code=False)
    how = [config.engine, config.device, config.dtype, config.k, asdict(_sampling(config))]
    what = [(problem["id"], problem["prompt"]) for problem in block]
    return hashlib.md5(json.dumps([model, code, how, seed, what]).encode()).hexdigest()


# --- from samples to numbers, without a model ----------------------------------------------------------------------


def rescore(samples: pd.DataFrame, problems: list[dict], reward: Reward | None = None) -> pd.DataFrame:
    """The same samples with fresh verdicts, by each problem's rule or by a reward, problems in the given order.

    samples: at least prompt_id, sample, response and truncated. ValueError if an id is unknown, or if a problem has no
    samples or not as many as the first problem: the mean over whichever were answered is not the mean of the set.
    """
    order = {problem["id"]: i for i, problem in enumerate(problems)}
    unknown = samples.loc[~samples["prompt_id"].isin(order), "prompt_id"]
    if len(unknown):
        raise ValueError(f"prompt_id {unknown.iloc[0]!r}: not an id of the problem set, as {next(iter(order))!r} is")
    counts = samples["prompt_id"].value_counts()
    for name in order:
        if counts.get(name, 0) != counts.get(next(iter(order)), 0) or name not in counts:
            expected = counts.get(next(iter(order)), 0) or "at least 1"
            raise ValueError(f"prompt_id {name!r}: has {counts.get(name, 0)} responses, must have {expected}")
    samples = in_order(samples, list(order)).drop(columns=VERDICT, errors="ignore").reset_index(drop=True)
    judged = pd.DataFrame(verdicts(samples.to_dict("records"), problems, reward), columns=VERDICT)
    return pd.concat([samples, judged], axis=1)[COLUMNS]


def per_problem(
    samples: pd.DataFrame, problems: list[dict], reward: Reward | None = None, partial: bool = False
) -> pd.DataFrame:
    """The scores of each problem (index: its id), one column for each metric, whose value is the mean of its column.

    Metrics: avg@k, unbiased pass@j for j = 2, 4, … and k, "resampled best@k" (drawn with replacement, as the reference
    code has it), maj@k over answers that the verifier calls equal, truncated, and length in tokens if it is known. A
    reward of your own finds no answers that could vote, so there is no maj@k. partial: its values are not 0 and 1
    alone; then its mean, `reward`, stands in place of all that counts right answers.
    """
    summary, ids = summarise_by_rule(samples, problems, reward), [problem["id"] for problem in problems]
    k, correct = summary["k"], np.array(summary["correct"])
    means = samples.groupby("prompt_id")[["reward", "truncated"]].mean().loc[ids]
    if partial:
        columns = {"reward": means["reward"].to_numpy()}
    else:
        columns = {f"avg@{k}": correct / k}
        sizes = sorted({2**i for i in range(1, k.bit_length())} | {k})
        columns |= {f"pass@{j}": pass_at_k(correct, k, j) for j in sizes}
        columns[f"resampled best@{k}"] = resampled_best_at_k(correct, k, k)
    if reward is None:
        columns[f"maj@{k}"] = np.array(summary["majority"], dtype=float)
    columns["truncated"] = means["truncated"].to_numpy()
    if samples["tokens"].notna().all():
        columns["length"] = np.array(summary["length"])
    return pd.DataFrame(columns, index=ids)


def metrics_of(samples: pd.DataFrame, scores: pd.DataFrame) -> dict:
    """Counts of problems, responses and killed verifications, and each metric with its 95 % interval."""
    counts = {"problems": len(scores), "responses": len(samples), "killed": int(samples["killed"].sum())}
    return counts | {"metrics": _intervals(scores, 0.0)}


def compare(a: pd.DataFrame, b: pd.DataFrame) -> dict:
    """The metrics of a minus those of b, paired by problem; a, b: `per_problem` of two policies on the same set.

    Only problems that both have are compared. ValueError if there is none, or if the metrics differ (another k).
    """
    common = a.index.intersection(b.index, sort=False)
    if len(common) == 0 or set(a.columns) ^ set(b.columns):
        raise ValueError(
            f"no paired comparison: {len(common)} common problems; metrics {', '.join(a)} and {', '.join(b)}"
        )
    return {"problems": len(common), "metrics": _intervals(a.loc[common] - b.loc[common, a.columns], -1.0)}


def _intervals(scores: pd.DataFrame, least: float) -> dict:
    """{metric: {estimate, low, high}}, clustered by problem; `least`: the lowest share there can be, 1 the highest."""
    found = {}
    for name, column in scores.items():
        bounds = (-np.inf, np.inf) if name in ("length", "reward") else (least, 1.0)
        generator = np.random.default_rng(derive(0, 0, f"interval/{name}"))
        interval = problem_interval(column.to_numpy(), bounds, generator)
        found[name] = {end: round(value, 6) for end, value in interval._asdict().items()}
    return found


# --- responses sampled elsewhere -----------------------------------------------------------------------------------


def read_responses(path: str | Path) -> pd.DataFrame:
    """A JSONL file of responses as sample rows without verdicts; ValueError naming file, row and column.

    A line is a JSON object with `prompt_id` and `response`, optionally `truncated` (false if left out) and `tokens`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of responses")
    rows, seen = [], {}
    for number, row in enumerate(read_jsonl(path), start=1):
        for column, kind in (("prompt_id", str), ("response", str), ("truncated", bool), ("tokens", int)):
            value = row.get(column, {"truncated": False, "tokens": 0}.get(column))
            if type(value) is not kind:
                raise ValueError(f"{path}:{number}: column {column!r} must be a {kind.__name__}, got {value!r}")
        seen[row["prompt_id"]] = seen.get(row["prompt_id"], -1) + 1
        text = row["response"].encode("utf-8", "replace").decode()  # JSON may hold lone surrogates, parquet may not
        rows.append(
            {
                "prompt_id": row["prompt_id"],
                "sample": seen[row["prompt_id"]],
                "response": text,
                "tokens": row.get("tokens"),
                "truncated": row.get("truncated", False),
                "seed": None,
            }
        )
    if not rows:
        raise ValueError(f"{path}: no responses in it")
    return pd.DataFrame(rows).astype({"tokens": float, "seed": float})  # null is NaN


def score_file(responses: str | Path, problems: str | Path, out: str | Path) -> dict:
    """Score a file of responses: writes out/samples.parquet, metrics.json and examples.md; returns the metrics."""
    asked = read_problems(problems)
    samples = read_responses(responses)
    samples["prompt"] = samples["prompt_id"].map({problem["id"]: problem["prompt"] for problem in asked})
    try:
        samples = rescore(samples, asked)
    except ValueError as error:
        raise ValueError(f"{responses}: {error}") from None
    metrics = metrics_of(samples, per_problem(samples, asked))
    atomic(Path(out) / "samples.parquet", lambda file: samples.to_parquet(file, index=False))
    write_text(Path(out) / "examples.md", page(samples, asked, str(responses)))
    write_json(Path(out) / "metrics.json", metrics)
    return metrics


def metrics_table(metrics: dict) -> pd.DataFrame:
    """The metrics of a policy, or differences, one row a metric: estimate, low, high."""
    return pd.DataFrame(metrics["metrics"]).T
