"""Many runs side by side: each in a process of its own, as many at once as the machine has cores for.

A finished run stays where it is, so an interrupted stage goes on where it stopped, and a changed setting trains again
only the runs that it changes. Work that other code, other data or another base model began is thrown away.

The process that launches the runs loads no torch, which takes seconds; its workers do.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from pmd.bar import progress_bar
from pmd.evaluators.evaluate import Evaluate, evaluate
from pmd.files import fingerprint, write_jsonl
from pmd.harness.config import Train, identity
from pmd.harness.progress import show
from pmd.harness.run_folder import ADJUSTABLE, difference
from pmd.problems.reader import read_problems
from pmd.processes import processes, workers
from pmd.scale.engines import engine_for

POLL = 5.0
"""Seconds between two looks at the logs of all runs, which together cost the cores that train some time."""


@dataclass(frozen=True)
class Job:
    """One run: its configuration, the base model that it starts from, its folder, and what else run.json says of it."""

    config: Train
    base: Path
    name: str
    tags: dict[str, Any] = field(default_factory=dict)


def run_all(
    jobs: list[Job], data: Path, final: Evaluate, out: Path, seconds: float = math.inf, keep: Collection[str] = ()
) -> list[Job]:
    """Train every job from its base model on data/rl.jsonl, below `out`; what other runs left there is removed.

    keep: names of runs whose folders stay all the same, if they are there.

    While it trains, a run is evaluated on the first `eval_prompts` problems of each set that `final` names; at its end
    on all of them, as `final` says, which is its final.jsonl. After the first run that fails no other begins, and its
    error is raised once those under way have ended; what was done is kept for the next call. After so many `seconds` no
    further run begins. Returns the jobs that are finished. ValueError or FileNotFoundError before any run if a problem
    set is missing or empty.
    """
    for name in ("rl", *final.sets):
        read_problems(data / f"{name}.jsonl", 1)
    jobs = [identified(job, data, final) for job in jobs]
    wanted = {out / job.name: identity(job.config, job.tags) for job in jobs}
    for folder in {path.parent for path in out.rglob("run.json")} - {out / name for name in keep}:
        if folder not in wanted or difference(folder, wanted[folder]):
            shutil.rmtree(folder)
    todo = [job for job in jobs if not _finished(job, out)]
    if todo:
        first = todo[0].config
        count = min(len(todo), workers(first.threads, first.device))
        with processes(count, first.device) as pool:
            _follow(
                lambda job: pool.submit(run_one, job, data, final, out / job.name),
                *(todo, count, out, time.monotonic() + seconds),
            )
    return [job for job in jobs if _finished(job, out)]


def _finished(job: Job, out: Path) -> bool:
    return (out / job.name / "final.jsonl").exists()


def identified(job: Job, data: Path, final: Evaluate) -> Job:
    """The job with everything among its tags that its result depends on, so that its folder can be told from others."""
    content = fingerprint(job.base / "model.safetensors", data)
    return replace(job, tags={**job.tags, "final": final.model_dump(), "fingerprint": content})


def settings(jobs: list[Job], data: Path, final: Evaluate) -> dict[str, str]:
    """By run, the JSON of all that its rows depend on besides code: settings, base model, problems and evaluation.

    Left out is what changes only rounding, such as the number of threads (`run_folder.ADJUSTABLE`); how often a run is
    evaluated counts, since rows say it.
    """
    free, sets = set(ADJUSTABLE) - {"eval_every"}, [data / f"{name}.jsonl" for name in ("rl", *final.sets)]
    bases = {job.base for job in jobs}
    content = {base: fingerprint(base / "model.safetensors", *sets, code=False) for base in bases}
    found = {}
    for job in jobs:
        tags = {f"evaluate.{key}": value for key, value in final.model_dump().items()}
        whole = identity(job.config, job.tags | tags | {"content": content[job.base]})
        found[job.name] = json.dumps({key: value for key, value in whole.items() if key not in free})
    return found


def run_one(job: Job, data: Path, final: Evaluate, out: Path) -> None:
    """Train one job in this process, then evaluate its last policy; of its models only `last/` stays."""
    from pmd.trainer.loop import train  # only here, in the worker: the parent loads no torch

    sets = {name: read_problems(data / f"{name}.jsonl") for name in final.sets}
    curves = {name: problems[: job.config.eval_prompts] for name, problems in sets.items()}
    problems, engine = read_problems(data / "rl.jsonl"), engine_for(job.config)
    result = train(job.config, job.base, problems, curves, out, engine, progress=False, tags=job.tags)
    rows = [{"step": result["last_step"], **row} for row in _summaries(final, out / "last", sets)]
    for folder in [out / "best", *out.glob("checkpoint-*")]:
        shutil.rmtree(folder, ignore_errors=True)
    write_jsonl(out / "final.jsonl", rows)


def _follow(begin: Callable[[Job], Future], jobs: list[Job], count: int, out: Path, until: float) -> None:
    """Keep `count` runs under way until all are done or one fails, and show their progress; at `until` begin no more.

    The pool gets no more runs than it works on, for what it holds it would begin even after a failure.
    """
    waiting, pending = list(jobs), set()
    folders, total = [(out / job.name, job.config.steps) for job in jobs], sum(job.config.steps for job in jobs)
    with progress_bar(total=total, desc=f"{len(jobs)} runs", unit="step", mininterval=5) as bar:
        while True:
            while waiting and len(pending) < count and time.monotonic() < until:
                pending.add(begin(waiting.pop(0)))
            show(bar, folders)
            if not pending:
                return
            done, pending = wait(pending, timeout=POLL, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()


def evaluate_bases(models: dict[int, Path], data: Path, final: Evaluate) -> pd.DataFrame:
    """Each base model as `final` evaluates the runs: a row a base model and set, with k, correct and majority."""
    with processes(min(len(models), workers(1, final.device)), final.device) as pool:
        futures = [pool.submit(_evaluate_base, number, model, data, final) for number, model in models.items()]
        return pd.DataFrame([row for future in futures for row in future.result()])


def _evaluate_base(number: int, model: Path, data: Path, final: Evaluate) -> list[dict[str, Any]]:
    sets = {name: read_problems(data / f"{name}.jsonl") for name in final.sets}
    return [{"base": number, **row} for row in _summaries(final, model, sets)]


def _summaries(final: Evaluate, model: Path, sets: dict[str, list[dict]]) -> list[dict[str, Any]]:
    """A summary (pmd/sampling/accuracy.py) of each set, by the policy in a model folder."""
    from pmd.sampling.scoring import summarise_by_rule  # only here, in the worker: the parent loads no torch

    samples = evaluate(final, model, sets)
    return [
        {"set": name, **summarise_by_rule(part, _asked(sets[name], part))}
        for name, part in samples.groupby("set", sort=False)
    ]


def _asked(problems: list[dict], samples: pd.DataFrame) -> list[dict]:
    """The problems that were answered: those beyond the model's context were left out."""
    ids = set(samples["prompt_id"])
    return [problem for problem in problems if problem["id"] in ids]
