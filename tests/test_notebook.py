"""Executing notebooks: only declared parameters, errors in one line."""

from __future__ import annotations

import os
import subprocess
import sys

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core import paths

from pmd import notebook
from pmd.__main__ import main
from pmd.files import ROOT

TRAIN = ROOT / "notebooks" / "3-training.ipynb"


def test_declared_namespaces_are_injected_and_others_are_not():
    values = notebook.values_for(TRAIN, {"data": "mine"}, {"train": {"steps": 1}, "base": {}, "methods": {}})
    assert values == {"train": {"steps": 1}, "methods": {}, "data": "mine"}


def test_a_parameter_that_papermill_would_ignore_is_an_error():
    with pytest.raises(
        ValueError, match=r"3-training\.ipynb -p metods: got 'grpo', must be one of its parameters: .*methods"
    ):
        notebook.values_for(TRAIN, {"metods": "grpo"}, {})


def test_arguments_are_yaml():
    assert notebook.parse(["a=1", "b=[1, 2]", "c=pmd-mean"]) == {"a": 1, "b": [1, 2], "c": "pmd-mean"}
    with pytest.raises(ValueError, match="-p: got 'a', must be name=value"):
        notebook.parse(["a"])
    with pytest.raises(ValueError, match=r"^-p a: got '\[', must be YAML \(.*\)$"):
        notebook.parse(["a=["])


def test_a_notebook_without_parameters_is_refused(tmp_path):
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "empty.ipynb")
    with pytest.raises(ValueError, match="no cell tagged 'parameters'"):
        notebook.declared(tmp_path / "empty.ipynb")


def test_an_error_in_a_cell_is_one_line_and_exit_not_zero(tmp_path, monkeypatch):
    book = nbformat.v4.new_notebook()
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book.cells = [
        nbformat.v4.new_code_cell("preset = 'none'", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("raise ValueError('train.tau: got -1, must be > 0')"),
    ]
    nbformat.write(book, tmp_path / "bad.ipynb")
    monkeypatch.setattr(notebook, "ROOT", tmp_path)
    with pytest.raises(
        SystemExit, match=r"^bad: ValueError: train\.tau: got -1, must be > 0 \(executed as far as it got: .*bad"
    ):
        main(["notebook", str(tmp_path / "bad.ipynb"), "-p", "preset=x"])
    assert not (tmp_path / "runs" / "x" / "stages" / "bad.json").exists()


def test_a_users_own_kernel_does_not_shadow_the_environments(tmp_path, monkeypatch):
    """`python3` in the home folder is another Python; a stage prefers this one's."""
    mine = tmp_path / "data" / "kernels" / "python3"
    mine.mkdir(parents=True)
    (mine / "kernel.json").write_text('{"argv": ["other"], "display_name": "Mine", "language": "python"}')
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(notebook, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "prefer_environment_over_user", lambda: os.environ.get("JUPYTER_PREFER_ENV_PATH") == "1")
    monkeypatch.delenv("JUPYTER_PREFER_ENV_PATH", raising=False)
    assert KernelSpecManager().get_kernel_spec("python3").argv == ["other"]
    found = []
    monkeypatch.setattr(
        notebook.papermill,
        "execute_notebook",
        lambda *_, **__: found.append(KernelSpecManager().get_kernel_spec("python3").argv),
    )
    notebook.execute(TRAIN, "x", {"preset": "x"})
    monkeypatch.delenv("JUPYTER_PREFER_ENV_PATH")
    assert "ipykernel_launcher" in found[0]


def test_in_any_kernel_threads_sleep_soon_once_pmd_is_imported():
    command = [sys.executable, "-c", "import os, pmd; print(os.environ['GOMP_SPINCOUNT'])"]
    for given, seen in (({}, notebook.SPIN), ({"GOMP_SPINCOUNT": "77"}, "77")):
        clean = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
        done = subprocess.run(command, env=clean | given, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == seen


def test_cost_names_the_machine():
    cost = notebook.cost("base", 1.234)
    assert cost["seconds"] == 1.2
    assert set(cost["machine"]) == {"cpu", "cores", "system", "python"}


@pytest.mark.parametrize(("given", "seen"), [(None, notebook.SPIN), ("77", "77")])
def test_a_stages_threads_sleep_soon_unless_told_otherwise(tmp_path, monkeypatch, given, seen):
    monkeypatch.setattr(notebook, "ROOT", tmp_path)
    monkeypatch.setenv("GOMP_SPINCOUNT", given or "")
    if given is None:
        monkeypatch.delenv("GOMP_SPINCOUNT")
    found = []
    monkeypatch.setattr(
        notebook.papermill, "execute_notebook", lambda *_, **__: found.append(os.environ["GOMP_SPINCOUNT"])
    )
    notebook.execute(TRAIN, "x", {"preset": "x"})
    assert found == [seen]
