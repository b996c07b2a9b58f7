"""dvc.yaml: stages depend on what they read and write where nothing else does; which room imports which."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import pmd
from pmd.files import ROOT

STAGES = {
    name: stage.get("do", stage)  # of a foreach stage the template
    for name, stage in YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"].items()
}
NOTEBOOKS = {"theory": "0-theory", "law": "1-law", "finite": "2-finite-samples", "train": "3-training",
             "results": "4-results", "bases": "5-bases", "benchmark": "6-benchmark", "scale": "7-scale"}  # fmt: skip
PLUMBING = {"__init__", "__main__", "extras", "files", "params", "settings", "processes", "notebook", "bar"}
"""Files beside the rooms, read by nearly all, without a say in their numbers: a change there retrains nothing."""

LOOKS = {"paper/style.py", "paper/law_figures.py", "paper/finite_figures.py"}
"""How a notebook's own pictures look: no file that a stage of training writes depends on it."""

MAY_IMPORT = {
    "theory": set(),
    "problems": set(),
    "model": set(),
    "foreign_sets": {"problems"},
    "sampling": {"problems", "model"},
    "harness": {"problems", "model", "sampling"},
    "trainer": {"problems", "model", "sampling", "theory", "harness"},
    "evaluators": {"problems", "model", "sampling"},
    "scale": {"problems", "model", "sampling", "harness", "trainer"},
    "experiments": {"theory", "problems", "model", "sampling", "harness", "trainer", "evaluators", "scale"},
    "paper": {"theory", "sampling", "evaluators"},
}
"""Which rooms a room may import. Every one may import the plumbing."""

PLUGINS = {"any_loop.py", "trl.py", "verl.py", "prime_rl.py"}
"""Files beside the rooms that other people's trainers load: they need torch alone beside their stack."""


def imported(source: str) -> set[str]:
    """The files of pmd that a source imports, such as "trainer/loop.py"."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.replace("%matplotlib", "#"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pmd":
            names = [alias.name for alias in node.names]
            public = [pmd._MODULES[name] for name in names if node.module == "pmd" and name in pmd._MODULES]
            for name in [node.module, *(f"{node.module}.{name}" for name in names), *public]:
                path = Path(*name.split(".")[1:]).with_suffix(".py") if "." in name else Path("none")
                if (ROOT / "pmd" / path).is_file():
                    found.add(str(path))
    return found


def behind(todo: set[str]) -> set[str]:
    """These files of pmd and all that they import, but neither the plumbing nor the looks of pictures."""
    seen: set[str] = set()
    while todo:
        path = todo.pop()
        if path not in seen | LOOKS and Path(path).stem not in PLUMBING:
            seen.add(path)
            todo |= imported((ROOT / "pmd" / path).read_text())
    return seen


def closure(name: str) -> set[str]:
    """All files of pmd that a notebook ends up reading."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    return behind(imported("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")))


def missed(stage: str, read: set[str]) -> set[str]:
    """The files that a stage reads and does not depend on."""
    deps = [Path(dep).relative_to("pmd") for dep in STAGES[stage]["deps"] if dep.startswith("pmd/")]
    return {path for path in read if not any(Path(path).is_relative_to(dep) for dep in deps)}


@pytest.mark.parametrize(("stage", "name"), NOTEBOOKS.items())
def test_a_stage_depends_on_the_code_it_reads(stage, name):
    assert f"runs/sources/{name}.py" in STAGES[stage]["deps"]
    # the paper's own stages never sample with vLLM, which alone the trainer would read there
    assert {Path(path).parts[0] for path in missed(stage, closure(name))} <= ({"scale"} if stage == "train" else set())


@pytest.mark.parametrize("stage", ["sets", "hub-sets"])
def test_the_loaders_depend_on_their_code(stage):
    assert not missed(stage, behind({"foreign_sets/cleaning.py"}))


def test_a_room_imports_only_rooms_below_it():
    files = [path.relative_to(ROOT / "pmd") for path in (ROOT / "pmd").glob("*/*.py")]
    assert {path.parts[0] for path in files} == set(MAY_IMPORT)
    rooms = {
        (path.parts[0], Path(other).parts[0], str(path))
        for path in files
        for other in imported((ROOT / "pmd" / path).read_text())
        if len(Path(other).parts) > 1
    }
    assert not [(room, other, path) for room, other, path in sorted(rooms) if other not in {room, *MAY_IMPORT[room]}]


def test_a_plug_in_needs_the_objective_and_the_theory_alone():
    assert {path.name for path in (ROOT / "pmd").glob("*.py")} == {f"{name}.py" for name in PLUMBING} | {
        "methods.py",
        *PLUGINS,
    }
    assert behind(set(PLUGINS)) == PLUGINS | {
        "methods.py", "trainer/objectives.py", "theory/population.py",
    }  # fmt: skip


def test_no_files_import_each_other_in_a_circle():
    files = {str(path.relative_to(ROOT / "pmd")) for path in (ROOT / "pmd").rglob("*.py")}
    above = {path: imported((ROOT / "pmd" / path).read_text()) - {path} for path in files}
    while free := {path for path, others in above.items() if not others & set(above)}:
        above = {path: others for path, others in above.items() if path not in free}
    assert not above


def test_the_algorithm_is_one_sitting():
    assert sum(len(path.read_text().splitlines()) for path in (ROOT / "pmd" / "trainer").glob("*.py")) < 800


def test_no_file_is_too_long_and_code_dependencies_are_few():
    lines = {str(path): len(path.read_text().splitlines()) for path in (ROOT / "pmd").rglob("*.py")}
    assert not {path: count for path, count in lines.items() if count > 350}
    assert sum(dep.startswith("pmd/") for stage in STAGES.values() for dep in stage["deps"]) <= 56


def test_what_takes_a_reward_of_ones_own_depends_on_the_rewards_and_nothing_else_does():
    assert [name for name, stage in STAGES.items() if "rewards" in stage["deps"]] == ["benchmark", "scale"]
    assert (ROOT / "rewards" / "marks.py").is_file()


def test_the_paper_depends_on_no_scale_and_no_foreign_sets_and_its_pictures_retrain_nothing():
    code = {name: {dep for dep in stage["deps"] if dep.startswith("pmd/")} for name, stage in STAGES.items()}
    assert {name for name in code if "pmd/scale" in code[name]} == {"benchmark", "scale"}
    assert {name for name in code if "pmd/foreign_sets" in code[name]} == {"sets", "hub-sets"}
    assert {name for name in code if "pmd/paper" in code[name]} == {"theory", "results"}
    assert STAGES["benchmark"]["params"] == ["benchmark.${key}"]


def test_no_stage_depends_on_an_executed_notebook_and_none_writes_into_data():
    for stage in STAGES.values():
        outs = [
            next(iter(out)) if isinstance(out, dict) else out for out in [*stage["outs"], *stage.get("metrics", [])]
        ]
        assert not [dep for dep in stage["deps"] if dep.startswith("runs/") and "notebooks" in dep]
        assert not [out for out in outs if out.startswith("data/") or "notebooks" in out]
