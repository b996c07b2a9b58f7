"""The experiments of a preset in one call, without notebooks and DVC: `pmd experiment`.

For the study, which takes hours and is run in parts; and for a GPU machine that has little more than PyTorch. Runs
whose rows results/<preset>/evidence holds already are not made again: new ones join them. The stages of the pipeline
make the same files from the same settings.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pmd import params
from pmd.evaluators.evaluate import Evaluate
from pmd.experiments import evidence, finite, launch, law, training_map
from pmd.experiments.bases import base_folder, write_digests
from pmd.experiments.train_bases import train_bases
from pmd.extras import missing
from pmd.files import ROOT
from pmd.model.device import check_device
from pmd.model.settings import read_bases
from pmd.problems.arithmetic import Task, generate
from pmd.processes import machine, workers
from pmd.scale.gpu import check_gpu
from pmd.scale.plan import LOWER, of_base, regressions, room_for_prompt

PARTS = ("law", "finite", "train")


def run(preset: str, parts: Sequence[str] = PARTS, seconds: float = math.inf, root: Path = ROOT) -> list[str]:
    """Run these parts of a preset's experiments, and before them what they lack: its problem sets, its base models.

    Writes runs/<preset> and results/<preset>/evidence; returns a line of what each part took. After so many `seconds`
    no further training run begins. ValueError in one line, before any work, if pyarrow is not installed.
    """
    try:
        import pyarrow  # noqa: F401  pandas looks for it only when the rows of the first cell are to be written
    except ModuleNotFoundError as error:
        raise ValueError(str(missing("pmd experiment", error))) from None
    until, values = time.monotonic() + seconds, params.of_preset(preset, root)
    data, bases, out = root / values["data"], root / values["bases"], root / "runs" / preset
    for part in parts:
        params.require(part in PARTS, "experiment", part, f"one of {', '.join(PARTS)}")
    for line in gpu_users(values, parts):
        print(line, file=sys.stderr, flush=True)
    for task in values["tasks"]:
        if not (root / "runs" / "tasks" / task / "README.md").exists():
            generate(root / "runs" / "tasks" / task, params.read_entry(Task, "tasks", values["tasks"], task))
    if values["train_bases"]:
        train_bases(values["base"], data, bases)
        write_digests(values["base"]["seeds"], bases)
    return [_part(part, values, data, bases, out, root / "results" / preset / "evidence", until) for part in parts]


def gpu_users(values: dict[str, Any], parts: Sequence[str]) -> list[str]:
    """What other processes hold of the GPUs that these parts will use, in words: nothing on CPUs.

    ValueError in one line, before any work, if PyTorch cannot compute there, or if a part does not fit beside as many
    processes like it as run at once (pmd/processes.py).
    """
    if values["train_bases"]:
        base = read_bases(values["base"])[0]
        check_device(base.device, base.dtype)
    if "train" in parts:
        final = params.read(Evaluate, "evaluate", values["evaluate"])
        check_device(final.device, final.dtype)
    config, law_, finite_ = of_base(values), values["law"], values["finite"]
    runs = training_map.runs(values["grid"], values["train"], values["methods"])
    largest = max((run for run, _, _ in runs), key=lambda run: (run.prompts, run.max_tokens))
    cells = {
        "law": math.prod(len(law_[axis]) for axis in ("bases", "seeds", "tau", "normalise")),
        "finite": math.prod(len(finite_[axis]) for axis in ("bases", "seeds", "n", "tau", "tau_b")),
        "train": len(runs),
    }
    said = set()
    for part, run in (regressions(values) | {"train": largest}).items():
        if part in parts and run.device != "cpu":
            together = min(cells[part], workers(run.threads, run.device))
            said.add(check_gpu(config, run, room_for_prompt(config, run), together, part, LOWER.get(part, "")))
    return sorted(filter(None, said))


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
        settings = launch.settings(jobs, data, final)
        known = evidence.known_runs(results, settings)
        todo = [job for job in jobs if job.name not in known]
        if done := launch.run_all(todo, data, final, out / "train", until - time.monotonic(), known):
            made = {job.name: settings[job.name] for job in done}
            frames = evidence.collect(made, out / "train", machine()["cpu"])
            evidence.write(evidence.joined(frames, results, known), results)
        return f"train: {len(known) + len(done)} of {len(jobs)} runs, {time.perf_counter() - began:.0f} s, {results}"
    return f"{part}: {time.perf_counter() - began:.0f} s, {results}"
