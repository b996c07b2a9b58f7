"""A run of any size: an entry of `scale:` in params.yaml, trained by torchrun.

    pmd scale NAME                                                # one process
    torchrun --standalone --nproc-per-node 8 -m pmd scale NAME    # eight GPUs of one machine
    sbatch --nodes 4 scripts/train.slurm NAME                     # four machines

The run is made in runs/<preset>/scale/NAME-work, where a later call goes on from the last checkpoint, on as many ranks
as it has. notebooks/9-scale.ipynb starts torchrun itself (`launch`) and moves what is finished to
runs/<preset>/scale/NAME.
"""

from __future__ import annotations

import os
import shutil
import traceback
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pmd import params
from pmd.experiments.launch import last_row, show
from pmd.files import ROOT, fingerprint, read_json, read_jsonl, write_json
from pmd.harness.config import Train, identity
from pmd.params import Scale
from pmd.problems.arithmetic import read_problems
from pmd.scale import torchrun


def folder(values: dict[str, Any], name: str) -> Path:
    """Where the finished run goes; values: the namespaces of params.yaml."""
    return ROOT / "runs" / str(values["preset"]) / "scale" / name


def working(out: Path) -> Path:
    """Where the run is made."""
    return out.with_name(f"{out.name}-work")


def read(entry: Scale) -> tuple[list[dict], dict[str, list[dict]]]:
    """The entry's problem sets, to train on and to evaluate on; FileNotFoundError or ValueError as `read_problems`."""
    sets = {name: read_problems(ROOT / path) for name, path in entry.sets.items()}
    return read_problems(ROOT / entry.problems), sets


def model_path(entry: Scale) -> str:
    """The model's directory, or its name on the hub."""
    return str(ROOT / entry.model) if (ROOT / entry.model).exists() else entry.model


def tags(entry: Scale) -> dict[str, Any]:
    """What makes two runs one besides their parameters: the model, the problem sets, their bytes.

    Neither ranks nor nodes, which may change from one launch to the next, nor the code: a run of days outlives the
    correction of a comment.
    """
    files = [ROOT / path for path in (entry.model, entry.problems, *entry.sets.values()) if (ROOT / path).exists()]
    what = {key: getattr(entry, key) for key in ("model", "problems", "sets", "max_prompt_tokens")}
    return what | {"fingerprint": fingerprint(*files, code=False)}


# --- a rank --------------------------------------------------------------------------------------------------------


def work(values: dict[str, Any], name: str, progress: bool = True) -> dict:
    """Train one entry as the rank of a torchrun job that this process is, or alone; returns result.json's content.

    ValueError or OSError in one line, before any work, for a bad entry, missing files or prompts none of which fits.
    """
    entry, config = params.scale(values, name)
    problems, sets = read(entry)

    from pmd.problems.prompts import fit  # only here: the launcher needs no torch, which takes seconds to load
    from pmd.sampling.torch_engine import context
    from pmd.trainer.loop import train

    architecture = _architecture(model_path(entry))
    if config.device.startswith("cuda"):
        _fits(architecture, entry, config)
    tokenizer, most, counts = _tokenizer(model_path(entry)), context(architecture), {}
    room = most and most - max(config.max_tokens, config.eval_max_tokens)
    for file, rows in [(entry.problems, problems), *((entry.sets[part], rows) for part, rows in sets.items())]:
        try:
            rows[:], dropped = fit(tokenizer, rows, entry.max_prompt_tokens, room)
        except ValueError as error:
            raise ValueError(f"scale.{name}.max_prompt_tokens: {file}: {error}") from None
        counts[file] = {"prompts": len(rows), "too_long": dropped}
    out = working(folder(values, name))
    ranks, local = (int(os.environ.get(key, "1")) for key in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if int(os.environ.get("RANK", "0")) == 0:
        write_json(out / "job.json", {"nodes": ranks // local, "ranks": local, "problem_sets": counts})
    evaluation = {part: rows[: config.eval_prompts] for part, rows in sets.items()}
    return train(config, model_path(entry), problems, evaluation, out, progress=progress, tags=tags(entry))


def _fits(architecture: Any, entry: Scale, config: Train) -> None:
    """ValueError in one line, before the model is read, if the run does not fit on this rank's GPU."""
    import torch

    from pmd.model.loading import check_device
    from pmd.scale.plan import check_fit

    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    check_device(device)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    check_fit(architecture, config, entry.max_prompt_tokens, ranks, *torch.cuda.mem_get_info(device))


def _architecture(model: str) -> Any:
    from transformers import AutoConfig

    return _read(AutoConfig, model, "configuration")


def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    return _read(AutoTokenizer, model, "tokenizer")


def _read(kind: Any, model: str, name: str) -> Any:
    from pmd.model.loading import directory

    path = directory(model)
    try:
        return kind.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers and transformers each raise their own
        raise ValueError(f"{path}: the {name} cannot be loaded ({' '.join(str(error).split())[:200]})") from error


def run_rank(name: str, file: Path | None = None) -> None:
    """Train one entry of `scale:` in params.yaml (or `file`); a failure ends the process in one line."""
    torchrun.tether()
    try:
        work(params.load(file or ROOT / "params.yaml"), name, progress=torchrun.TETHER not in os.environ)
    except (ValueError, OSError, FloatingPointError) as error:
        torchrun.fail(" ".join(str(error).split()))
    except Exception as error:
        traceback.print_exc()
        torchrun.fail(f"{type(error).__name__}: {' '.join(str(error).split())}"[:500])


# --- the notebook --------------------------------------------------------------------------------------------------


def launch(values: dict[str, Any], name: str) -> dict:
    """Train one entry by torchrun on this machine, following its progress; returns its metrics (see `measure`).

    values: the namespaces preset, scale, train and methods. The finished run is moved to runs/<preset>/scale/NAME, its
    checkpoints left out, and the metrics are written to results/<preset>/scale/NAME/metrics.json. An entry of several
    nodes must have been trained already, by the command that the ValueError names. ValueError or OSError before any
    work for a bad entry; RuntimeError in one line, naming the rank that failed first, if the job does not finish.
    """
    entry, config = params.scale(values, name)
    read(entry)
    out = folder(values, name)
    if entry.nodes == 1:
        _run(values, entry, config, working(out))
    else:
        _trained_elsewhere(entry, config, out)
    if working(out).exists():
        shutil.rmtree(out, ignore_errors=True)
        for checkpoint in working(out).glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        working(out).rename(out)
    metrics = measure(out)
    write_json(ROOT / "results" / str(values["preset"]) / "scale" / name / "metrics.json", metrics)
    return metrics


def _run(values: dict[str, Any], entry: Scale, config: Train, work: Path) -> None:
    """Train by torchrun until result.json is there; RuntimeError if a rank fails."""
    given, log = work / "params.json", work / "torchrun.log"
    write_json(given, values)
    done = last_row(work)["step"]
    with tqdm(total=config.steps, desc=entry.name, unit="step", initial=done, mininterval=5) as bar:
        failed = torchrun.run(
            ["pmd", "scale", entry.name, "--params", str(given)],
            entry.ranks,
            config.threads,
            log,
            watch=lambda: show(bar, [(work, config.steps)]),
        )
    if failed:
        step, kept = last_row(work)["step"], sorted(work.glob("checkpoint-*"))
        where = f" in step {step + 1}" if step else ""
        again = f"; the checkpoint of step {int(kept[-1].name[11:])} is kept, run again to go on" if kept else ""
        raise RuntimeError(f"scale.{entry.name}: {failed}{where}{again}; log: {log}")


def _trained_elsewhere(entry: Scale, config: Train, out: Path) -> None:
    """ValueError, with the command, unless an entry of several nodes has been trained."""
    done = next((path for path in (working(out), out) if (path / "result.json").exists()), None)
    if done is None:
        command = (
            f"torchrun --nnodes {entry.nodes} --nproc-per-node {entry.ranks} --rdzv-backend c10d "
            f"--rdzv-id {entry.name} --rdzv-endpoint HEAD:29500 -m pmd scale {entry.name}"
        )
        raise ValueError(
            f"scale.{entry.name}.nodes: got {entry.nodes}, and a notebook starts processes on its own machine only; "
            f"run `{command}` on every node, HEAD being the first one's name, or once "
            f"`sbatch --nodes {entry.nodes} scripts/train.slurm {entry.name}`, and this again when it has finished"
        )
    if read_json(done / "run.json") != identity(config, tags(entry)):
        raise ValueError(f"{done}: holds a run with other parameters, model or data; delete it or name the entry anew")


def measure(out: Path) -> dict:
    """What a finished run did: validation accuracy, steps, tokens, seconds by phase, tokens/s, peak memory, ranks.

    tokens: sampled; tokens_per_s: of the time that training needs, evaluation and checkpoints left out; memory and
    seconds are rank 0's; nodes and ranks (of a node) the last launch's.
    """
    result, job = read_json(out / "result.json"), read_json(out / "job.json")
    log, timing = (read_jsonl(out / name) if (out / name).exists() else [] for name in ("log.jsonl", "timing.jsonl"))
    tokens, wall = (log[-1]["tokens"], timing[-1]["wall_s"]) if log else (0, 0.0)
    phases = [
        key for key in (timing[-1] if timing else {}) if key.endswith("_s") and key not in ("wall_s", "tokens_per_s")
    ]
    return {
        **{key: result[key] for key in ("val_last", "val_best", "best_step")},
        "steps": result["last_step"],
        "tokens": tokens,
        "tokens_per_s": tokens / wall if wall else None,
        "seconds": {phase[:-2]: sum(row[phase] for row in timing) for phase in phases},
        "peak_memory_mb": max((row["peak_memory_mb"] for row in timing), default=None),
        **job,
    }
