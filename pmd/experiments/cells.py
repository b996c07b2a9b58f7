"""Many cells of an experiment side by side: each a call in a process of its own, its rows a file.

A finished cell stays where it is, so an experiment that was stopped goes on where it stopped. The name of its file says
what the rows depend on: settings, base model, problems and code. Files of other cells are removed.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import pandas as pd

from pmd.bar import progress_bar
from pmd.experiments.bases import BASES, base_folder
from pmd.files import ROOT, digest, fingerprint, write_frame
from pmd.model.threads import use_threads
from pmd.processes import processes, workers
from pmd.sampling.seeds import prompt_order

ROOMS = ("problems", "model", "sampling", "theory", "harness", "trainer", "experiments")
CODE = [ROOT / "pmd" / "methods.py", *(ROOT / "pmd" / room for room in ROOMS)]
"""The code that the rows of a cell depend on."""

Work = Callable[..., pd.DataFrame]
"""The rows of one cell, made from `folder`, that of its base model, the file `problems`, and its settings."""


def run_cells(
    name: str,
    work: Work,
    cells: list[dict[str, Any]],
    problems: Path,
    out: Path,
    threads: int,
    device: str,
    bases: Path = BASES,
) -> pd.DataFrame:
    """The rows of all cells, in their order; a file a cell below `out`.

    name: of the experiment, for the progress bar. work: a function of a module. cells: the settings of each, with
    `base`, the number of its base model. problems: the problem set that cells read. The first cell that fails stops the
    others and its error is raised; finished cells are kept for the next call.
    """
    folders = {number: base_folder(number, bases) for number in sorted({cell["base"] for cell in cells})}
    marks = {
        number: fingerprint(folder / "model.safetensors", problems, *CODE, code=False)
        for number, folder in folders.items()
    }
    files = [out / f"{digest([cell, marks[cell['base']]])}.parquet" for cell in cells]
    for other in set(out.glob("*.parquet")) - set(files):
        other.unlink()
    todo = [i for i, file in enumerate(files) if not file.exists()]
    with progress_bar(total=len(cells), initial=len(cells) - len(todo), desc=name, unit="cell", mininterval=5) as bar:
        if todo:
            with processes(min(len(todo), workers(threads, device)), device) as pool:
                jobs = [
                    pool.submit(
                        _run,
                        work,
                        {"folder": folders[cells[i]["base"]], "problems": problems, **cells[i]},
                        files[i],
                        threads,
                    )
                    for i in todo
                ]
                for done in as_completed(jobs):
                    done.result()
                    bar.update()
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)


def _run(work: Work, settings: dict[str, Any], file: Path, threads: int) -> None:
    use_threads(threads)
    write_frame(file, work(**settings))


def choose(problems: list[dict], seed: int, count: int) -> list[dict]:
    """The `count` problems that a seed chooses."""
    return [problems[i] for i in prompt_order(seed, 1, count, len(problems))]
