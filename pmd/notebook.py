"""Execute a parameterized notebook by papermill, as a stage of the pipeline (`pmd notebook`).

The notebook's cell `parameters` declares names. A name that is a namespace of params.yaml receives that namespace
whole, and values given with `-p` replace the declared ones; `-p train.tau=0.1` changes one setting of a namespace. A
value for a name that the cell does not declare is an error here, where papermill would only warn. The settings of all
namespaces are checked before the notebook starts.

No stage depends on a notebook's file, because JupyterLab writes outputs and metadata into it whenever it saves. The
stages depend on `runs/sources`, where `write_sources` puts what is executed.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import papermill
from ruamel.yaml import YAML

from pmd import SPIN, params
from pmd.files import ROOT, read_json, write_json, write_text
from pmd.processes import machine, peak_memory_mb
from pmd.settings import check


def declared(notebook: Path) -> list[str]:
    """The parameter names of a notebook; ValueError if it has no `parameters` cell."""
    names = list(papermill.inspect_notebook(str(notebook)))
    if not names:
        raise ValueError(f"{notebook}: no cell tagged 'parameters' declares any parameter")
    return names


def values_for(notebook: Path, given: dict[str, Any], namespaces: dict[str, Any]) -> dict[str, Any]:
    """The parameters to inject into a notebook: namespaces that it declares, then the given values.

    ValueError if a given name, or what stands before its dot, is not one that the notebook declares.
    """
    names = declared(notebook)
    for name in (name.partition(".")[0] for name in given):
        params.require(
            name in names,
            f"{notebook.name} -p {name}",
            name,
            f"one of its parameters: {params.listed(names, name)}",
        )
    whole = {name: value for name, value in given.items() if "." not in name}
    return {name: namespaces[name] for name in names if name in namespaces} | whole


def changed(namespaces: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The namespaces with each setting that a dotted name gives, such as `train.tau`; they themselves stay as they are.

    ValueError for a setting that is not there: new entries are written into params.yaml.
    """
    namespaces = copy.deepcopy(namespaces)
    for name, value in given.items():
        *path, last = name.split(".")
        here = namespaces
        for key in path:
            here = params.mapping(here, key, f"-p {name}: ")
        known = f"one of the settings there: {params.listed(here, last)}"
        params.require(not path or last in here, f"-p {name}", value, known)
        here |= {last: value} if path else {}
    return namespaces


def execute(notebook: Path, stage: str, given: dict[str, Any]) -> None:
    """Run a notebook as a stage of the pipeline.

    Writes the executed copy to runs/<preset>/notebooks/<stage>.ipynb and, if it succeeds, what the stage cost to
    runs/<preset>/stages/<stage>.json. ValueError in one line for an error in a cell.
    """
    namespaces = changed(params.load(), given)
    check(namespaces)
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
            extra_arguments=["--log-level=ERROR"],  # else each kernel warns that it talks over a local port
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        raise ValueError(f"{stage}: {error.ename}: {error.evalue} (executed as far as it got: {copy})") from None
    write_json(folder / "stages" / f"{stage}.json", cost(stage, time.perf_counter() - start))


def source(notebook: Path) -> str:
    """What is executed of a notebook: its code cells with their tags. Neither prose nor outputs nor metadata."""
    cells = [cell for cell in read_json(notebook)["cells"] if cell["cell_type"] == "code"]
    parts = ["".join([f"# %% {json.dumps(cell['metadata'].get('tags', []))}\n", *cell["source"]]) for cell in cells]
    return "\n\n".join(parts) + "\n"


def write_sources(notebooks: Path, out: Path) -> str:
    """Write `source` of each notebook of a folder into a Python file of its name in `out`; returns what was done."""
    found = sorted(notebooks.glob("*.ipynb"))
    for notebook in found:
        write_text(out / f"{notebook.stem}.py", source(notebook))
    return f"{out}: the code of {len(found)} notebooks, on which the stages depend"


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
