"""Many runs side by side: each in a process of its own, as many at once as the machine has cores for.

Runs work in a folder beside the stage's output, which is moved to its place when all are done, so that an interrupted
stage goes on where it stopped. Work that other code, other data or another base model began is thrown away.

The process that launches the runs loads no torch, which takes seconds; its workers do.
"""

from __future__ import annotations

import shutil
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pmd.files import fingerprint
from pmd.harness.config import Train, identity
from pmd.harness.progress import show
from pmd.harness.run_folder import remove_other
from pmd.problems.reader import read_problems
from pmd.processes import processes, workers
from pmd.scale.engines import engine_for


@dataclass(frozen=True)
class Job:
    """One run: its configuration, its folder below that of the stage, and further entries for its run.json."""

    config: Train
    name: str
    tags: dict[str, Any] = field(default_factory=dict)


def run_all(jobs: list[Job], base: Path, data: Path, sets: list[str], out: Path) -> list[dict]:
    """Train every job from the model folder `base` on data/rl.jsonl, evaluating on data/<set>.jsonl.

    The folder `out` is replaced when all runs are done. Returns their results in the order of `jobs`. The first run
    that fails stops the others and its error is raised; finished steps are kept for the next call. ValueError or
    FileNotFoundError before any run if a problem set is missing or empty.
    """
    for name in ("rl", *sets):
        read_problems(data / f"{name}.jsonl", 1)
    work = out.with_name(f"{out.name}-work")
    mark = fingerprint(base / "model.safetensors", data)
    jobs = [Job(job.config, job.name, {**job.tags, "fingerprint": mark}) for job in jobs]
    for job in jobs:
        remove_other(work / job.name, identity(job.config, job.tags))
    first = jobs[0].config
    with processes(min(len(jobs), workers(first.threads, first.device)), first.device) as pool:
        futures = [pool.submit(_run, job, base, data, sets, work / job.name) for job in jobs]
        _follow(futures, jobs, work)
        results = [future.result() for future in futures]
    shutil.rmtree(out, ignore_errors=True)
    for checkpoint in work.rglob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    work.rename(out)
    return results


def _run(job: Job, base: Path, data: Path, sets: list[str], out: Path) -> dict:
    from pmd.trainer.loop import train  # only here, in the worker: the parent loads no torch

    problems = read_problems(data / "rl.jsonl")
    evaluation = {name: read_problems(data / f"{name}.jsonl", job.config.eval_prompts) for name in sets}
    return train(job.config, base, problems, evaluation, out, engine_for(job.config), progress=False, tags=job.tags)


def _follow(futures: list[Future], jobs: list[Job], work: Path) -> None:
    """Show the progress of all runs together until all are done or one fails."""
    with tqdm(total=sum(job.config.steps for job in jobs), desc=f"{len(jobs)} runs", unit="step", mininterval=5) as bar:
        pending: set[Future] = set(futures)
        while pending and not any(future.done() and future.exception() for future in futures):
            _, pending = wait(pending, timeout=1, return_when=FIRST_EXCEPTION)
            show(bar, [(work / job.name, job.config.steps) for job in jobs])
