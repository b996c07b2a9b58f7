"""Start a run of any size on this machine, follow it, and report what it did: notebooks/7-scale.ipynb.

A single process on a CPU is this one. Anything else is started by torchrun; the launcher itself then loads no torch,
the ranks (pmd/scale/run.py) do.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pmd.bar import progress_bar
from pmd.files import ROOT, read_json, read_jsonl, write_json
from pmd.harness.config import Train, identity
from pmd.harness.progress import last_row, show
from pmd.harness.run_folder import ADJUSTABLE, difference
from pmd.scale import torchrun
from pmd.scale.entry import Scale, folder, read_scale, read_sets, tags, work_folder
from pmd.scale.run import train_entry


def launch(values: dict[str, Any], name: str) -> dict:
    """Train one entry on this machine, following its progress; returns its metrics (see `run_metrics`).

    values: the namespaces preset, scale, train and methods. The finished run is moved to runs/<preset>/scale/NAME, its
    checkpoints left out, and the metrics are written to results/<preset>/scale/NAME/metrics.json. An entry of several
    nodes must have been trained already, by the command that the ValueError names. ValueError or OSError before any
    work for a bad entry; RuntimeError in one line, naming the rank that failed first, if the job does not finish.
    """
    entry, config = read_scale(values, name)
    read_sets(entry)
    out = folder(values, name)
    if entry.nodes == entry.ranks == 1 and not config.device.startswith("cuda"):
        train_entry(values, name)
    elif entry.nodes == 1:
        _run(values, entry, config, work_folder(out))
    else:
        _trained_elsewhere(entry, config, out)
    if work_folder(out).exists():
        shutil.rmtree(out, ignore_errors=True)
        for checkpoint in work_folder(out).glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        work_folder(out).rename(out)
    metrics = run_metrics(out)
    write_json(ROOT / "results" / str(values["preset"]) / "scale" / name / "metrics.json", metrics)
    return metrics


def _run(values: dict[str, Any], entry: Scale, config: Train, work: Path) -> None:
    """Train by torchrun until result.json is there; RuntimeError if a rank fails."""
    given, log = work / "params.json", work / "torchrun.log"
    write_json(given, values)
    done = last_row(work)["step"]
    with progress_bar(total=config.steps, desc=entry.name, unit="step", initial=done, mininterval=5) as bar:
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
    done = next((path for path in (work_folder(out), out) if (path / "result.json").exists()), None)
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
    if found := difference(done, identity(config, tags(entry)), ADJUSTABLE):
        raise ValueError(f"{done}: holds a run with {found}; delete it or name the entry anew")


def run_metrics(out: Path) -> dict:
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
