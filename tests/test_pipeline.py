"""dvc.yaml: stages depend on what they read, write where nothing else does, and hold what tuning chose."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

from pmd import params, tuning
from pmd.files import ROOT
from pmd.style import method_style

STAGES = {
    name: stage.get("do", stage)  # of a foreach stage the template
    for name, stage in YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"].items()
}
NOTEBOOKS = {"theory": "0-theory", "base": "1-base", "train": "2-train", "evaluate": "3-evaluate",
             "ablations": "4-ablations", "figures": "5-figures", "tables": "6-tables",
             "benchmark": "8-benchmark", "scale": "9-scale"}  # fmt: skip
PLUMBING = {"files", "params", "processes", "notebook", "style"}
"""Read by nearly all, without a say in their numbers: a change there should not retrain anything."""

ENGINE = {"vllm_engine"}
"""Read only by a run whose engine is vLLM, which those of the paper's own stages never is."""


def imported(source: str) -> set[str]:
    """Modules of pmd that a source imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.replace("%matplotlib", "#"))):
        if isinstance(node, ast.ImportFrom) and node.module == "pmd":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pmd."):
            found.add(node.module.removeprefix("pmd."))
    return found


def closure(name: str) -> set[str]:
    """All modules of pmd that a notebook ends up reading, not looking for them behind the plumbing."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    return behind(imported("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")))


def behind(todo: set[str]) -> set[str]:
    """These modules of pmd and all that they import."""
    seen: set[str] = set()
    while todo:
        module = todo.pop()
        if module not in seen | PLUMBING:
            seen.add(module)
            todo |= imported((ROOT / "pmd" / f"{module}.py").read_text())
    return seen


@pytest.mark.parametrize(("stage", "name"), NOTEBOOKS.items())
def test_a_stage_depends_on_the_code_it_reads_and_no_other(stage, name):
    deps = STAGES[stage]["deps"]
    assert f"notebooks/{name}.ipynb" in deps
    code = {Path(dep).stem for dep in deps if dep.startswith("pmd/")}
    assert code - PLUMBING == closure(name) - (ENGINE if stage in ("train", "ablations") else set())


@pytest.mark.parametrize("stage", ["sets", "hub-sets"])
def test_the_loaders_depend_on_their_code(stage):
    code = {Path(dep).stem for dep in STAGES[stage]["deps"] if dep.startswith("pmd/")}
    assert code == behind({"problem_sets"})


def test_the_paper_does_not_depend_on_benchmarks_and_foreign_sets():
    later = {"benchmark", "examples", "problem_sets"}
    code = {name: {Path(dep).stem for dep in stage["deps"]} for name, stage in STAGES.items()}
    assert {name for name in code if code[name] & later} == {"benchmark", "sets", "hub-sets"}
    assert STAGES["benchmark"]["params"] == ["benchmark.${key}"]


def test_no_stage_depends_on_an_executed_notebook_and_none_writes_into_data():
    for stage in STAGES.values():
        outs = [
            next(iter(out)) if isinstance(out, dict) else out for out in [*stage["outs"], *stage.get("metrics", [])]
        ]
        assert not [dep for dep in stage["deps"] if dep.startswith("runs/") and "notebooks" in dep]
        assert not [out for out in outs if out.startswith("data/") or "notebooks" in out]


def test_metrics_of_the_policies_are_rows_of_one_table():
    results = ROOT / "results" / "default"
    found = {path.stem: json.loads(path.read_text()) for path in (results / "metrics" / "policies").glob("*.json")}
    assert set(found) == {"base", *params.load()["compare"]}
    names = {f"{part}_{metric}@32" for part in ("overall", "test", "ood") for metric in ("avg", "best", "maj")}
    assert all(set(row) == names for row in found.values())
    table = pd.read_csv(results / "tables" / "T1.csv").query("checkpoint == 'last'").set_index(["method", "set"])
    for name, row in found.items():
        label = "base model" if name == "base" else method_style(name)["label"]
        for part in ("overall", "test", "ood"):
            assert row[f"{part}_avg@32"] == pytest.approx(table.loc[(label, part), "avg@32"] / 100, abs=1e-6)


def test_train_reruns_only_for_its_own_method():
    assert STAGES["train"]["params"] == ["train", "methods.${item.method}"]
    assert STAGES["train"]["matrix"] == {"method": "${compare}"}


def test_the_committed_settings_are_what_tuning_chose():
    chosen = pd.read_csv(ROOT / "results" / "tuning" / "tuning.csv").query("chosen").set_index("method")
    values = params.load()
    assert set(chosen.index) == set(values["methods"])
    for method, row in chosen[list(tuning.TUNED)].iterrows():
        used = params.train(values["train"], values["methods"], method, seed=1)
        assert {name: getattr(used, name) for name in row.dropna().index} == row.dropna().to_dict()
