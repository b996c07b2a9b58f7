"""Execute a parameterized notebook by papermill, as a stage of the pipeline (`pmd notebook`).

The notebook's cell `parameters` declares names. A name that is a namespace of params.yaml receives that namespace
whole, and values given with `-p` replace the declared ones. A value for a name that the cell does not declare is an
error here, where papermill would only warn.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import papermill
from ruamel.yaml import YAML

from pmd import SPIN, params
from pmd.files import ROOT, write_json
from pmd.processes import machine, peak_memory_mb


def declared(notebook: Path) -> list[str]:
    """The parameter names of a notebook; ValueError if it has no `parameters` cell."""
    names = list(papermill.inspect_notebook(str(notebook)))
    if not names:
        raise ValueError(f"{notebook}: no cell tagged 'parameters' declares any parameter")
    return names


def values_for(notebook: Path, given: dict[str, Any], namespaces: dict[str, Any]) -> dict[str, Any]:
    """The parameters to inject into a notebook: namespaces that it declares, then the given values.

    ValueError if a given name is not one that the notebook declares.
    """
    names = declared(notebook)
    for name in given:
        params.require(
            name in names,
            f"{notebook.name} -p {name}",
            given[name],
            f"one of its parameters: {params.listed(names, name)}",
        )
    return {name: namespaces[name] for name in names if name in namespaces} | given


def execute(notebook: Path, stage: str, given: dict[str, Any]) -> None:
    """Run a notebook as a stage of the pipeline.

    Writes the executed copy to runs/<preset>/notebooks/<stage>.ipynb and, if it succeeds, what the stage cost to
    runs/<preset>/stages/<stage>.json. ValueError in one line for an error in a cell.
    """
    namespaces = params.load()
    values = values_for(notebook, given, namespaces)
    folder = ROOT / "runs" / str(values.get("preset", namespaces["preset"]))
    copy = folder / "notebooks" / f"{stage}.ipynb"
    copy.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # a kernel "python3" in the user's home is another Python
    start = time.perf_counter()
    try:
        papermill.execute_notebook(
            str(notebook), str(copy), values, kernel_name="python3", cwd=str(ROOT), progress_bar=False,
            stdout_file=sys.stdout, stderr_file=sys.stderr, shutdown_kernel="immediate",
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        raise ValueError(f"{stage}: {error.ename}: {error.evalue} (executed as far as it got: {copy})") from None
    write_json(folder / "stages" / f"{stage}.json", cost(stage, time.perf_counter() - start))


def cost(stage: str, seconds: float) -> dict[str, Any]:
    """Seconds, peak memory of the largest process [MB] and the machine of a stage."""
    return {
        "stage": stage,
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(peak_memory_mb(children=True), 1),
        "machine": machine(),
    }


def parse(pairs: Iterable[str]) -> dict[str, Any]:
    """`name=value` arguments, the values read as YAML; ValueError for one without `=` or with other text."""
    values = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        params.require(bool(equals and name), "-p", pair, "name=value")
        try:
            values[name] = YAML(typ="safe").load(value)
        except Exception as error:  # ruamel's own
            raise ValueError(f"-p {name}: got {value!r}, must be YAML ({' '.join(str(error).split())})") from None
    return values
