"""The experiments of a preset in one call, without notebooks and DVC: `pmd experiment`.

For the study, which takes hours and is run in parts; and for a GPU machine that has little more than PyTorch. Runs
whose rows results/<preset>/evidence holds already are not made again: new ones join them. The stages of the pipeline
make the same files from the same settings.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pmd import params
from pmd.evaluators.evaluate import Evaluate
from pmd.experiments import evidence, finite, launch, law, training_map
from pmd.experiments.bases import base_folder, write_digests
from pmd.experiments.train_bases import train_bases
from pmd.files import ROOT
from pmd.problems.arithmetic import Task, generate
from pmd.processes import machine

PARTS = ("law", "finite", "train")


def run(preset: str, parts: Sequence[str] = PARTS, seconds: float = math.inf, root: Path = ROOT) -> list[str]:
    """Run these parts of a preset's experiments, and before them what they lack: its problem sets, its base models.

    Writes runs/<preset> and results/<preset>/evidence; returns a line of what each part took. After so many `seconds`
    no further training run begins.
    """
    until, values = time.monotonic() + seconds, params.of_preset(preset, root)
    data, bases, out = root / values["data"], root / values["bases"], root / "runs" / preset
    for part in parts:
        params.require(part in PARTS, "experiment", part, f"one of {', '.join(PARTS)}")
    for task in values["tasks"]:
        if not (root / "runs" / "tasks" / task / "README.md").exists():
            generate(root / "runs" / "tasks" / task, params.read_entry(Task, "tasks", values["tasks"], task))
    if values["train_bases"]:
        train_bases(values["base"], data, bases)
        write_digests(values["base"]["seeds"], bases)
    return [_part(part, values, data, bases, out, root / "results" / preset / "evidence", until) for part in parts]


def _part(part: str, values: dict[str, Any], data: Path, bases: Path, out: Path, results: Path, until: float) -> str:
    began = time.perf_counter()
    if part == "law":
        rows = law.run_law(values["law"], values["train"], values["methods"], data, out / "law", bases)
        evidence.write({"law": rows}, results)
    elif part == "finite":
        rows = finite.run_finite(values["finite"], data, out / "finite", bases)
        evidence.write({"finite": rows}, results)
    else:
        final = params.read(Evaluate, "evaluate", values["evaluate"])
        bases_of_grid = {number: base_folder(number, bases) for number in values["grid"]["bases"]}
        evidence.write(evidence.of_bases(launch.evaluate_bases(bases_of_grid, data, final)), results)
        jobs = training_map.jobs(values["grid"], values["train"], values["methods"], bases)
        known = evidence.known_runs(results, {job.name: job.config for job in jobs})
        todo = [job for job in jobs if job.name not in known]
        if done := launch.run_all(todo, data, final, out / "train", until - time.monotonic()):
            frames = evidence.collect([job.name for job in done], out / "train", machine()["cpu"])
            evidence.write(evidence.joined(frames, results), results)
        return f"train: {len(known) + len(done)} of {len(jobs)} runs, {time.perf_counter() - began:.0f} s, {results}"
    return f"{part}: {time.perf_counter() - began:.0f} s, {results}"
