"""Executing notebooks: only declared parameters, errors in one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core import paths

from pmd import notebook, population_update
from pmd.__main__ import main
from pmd.files import ROOT, fingerprint

TRAIN = ROOT / "notebooks" / "3-training.ipynb"


def test_declared_namespaces_are_injected_and_others_are_not():
    values = notebook.values_for(TRAIN, {"data": "mine"}, {"train": {"steps": 1}, "base": {}, "methods": {}})
    assert values == {"train": {"steps": 1}, "methods": {}, "data": "mine"}


def test_a_parameter_that_papermill_would_ignore_is_an_error():
    with pytest.raises(
        ValueError, match=r"3-training\.ipynb -p metods: got 'metods', must be one of its parameters: .*methods"
    ):
        notebook.values_for(TRAIN, {"metods": "grpo"}, {})


def test_a_dotted_name_changes_one_setting_of_a_namespace():
    namespaces = {"train": {"steps": 1, "tau": 0.5}, "grid": {}, "base": {"lr": 1.0}}
    given = {"train.tau": 0.1, "data": "mine"}
    found = notebook.changed(namespaces, given)
    assert found == {"train": {"steps": 1, "tau": 0.1}, "grid": {}, "base": {"lr": 1.0}}
    assert namespaces["train"]["tau"] == 0.5
    assert notebook.values_for(TRAIN, given, found) == {"train": found["train"], "grid": {}, "data": "mine"}
    for name, message in {
        "train.tua": r"^-p train\.tua: got 1, must be one of the settings there: .*; did you mean tau\?$",
        "trian.tau": r"^-p trian\.tau: trian: got None, must be a mapping$",
    }.items():
        with pytest.raises(ValueError, match=message):
            notebook.changed(namespaces, {name: 1})
    with pytest.raises(ValueError, match=r"^3-training\.ipynb -p base: got 'base', must be one of its parameters"):
        notebook.values_for(TRAIN, {"base.lr": 1}, namespaces)


def test_what_jupyterlab_saves_into_a_notebook_changes_nothing_that_a_stage_depends_on(tmp_path):
    """Outputs, counts, metadata and prose; code and the tag by which parameters are found do count."""
    books = tmp_path / "notebooks"
    shutil.copytree(ROOT / "notebooks", books, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    assert "the code of 9 notebooks" in notebook.write_sources(books, tmp_path / "before")
    for path in books.glob("*.ipynb"):
        book = nbformat.read(path, as_version=4)
        book.metadata = {"kernelspec": {"name": "other", "display_name": "Other"}, "language_info": {"version": "9"}}
        for number, cell in enumerate(book.cells):
            cell.metadata["collapsed"] = True
            if cell.cell_type == "code":
                cell.execution_count = number
                cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="hello")]
        book.cells.insert(0, nbformat.v4.new_markdown_cell("A note."))
        nbformat.write(book, path)
    notebook.write_sources(books, tmp_path / "after")
    digests = {name: fingerprint(tmp_path / name, code=False) for name in ("before", "after")}
    assert digests["before"] == digests["after"]
    book = nbformat.read(books / "3-training.ipynb", as_version=4)
    book.cells[-1].source += "\n1"
    nbformat.write(book, books / "3-training.ipynb")
    notebook.write_sources(books, tmp_path / "changed")
    differ = [
        p.stem for p in (tmp_path / "after").iterdir() if p.read_text() != (tmp_path / "changed" / p.name).read_text()
    ]
    assert differ == ["3-training"]
    assert '# %% ["parameters"]\npreset = "quick"' in (tmp_path / "after" / "3-training.py").read_text()


def test_a_kernel_says_nothing_of_its_transport_and_a_bar_is_no_error(tmp_path, monkeypatch, capfd):
    book = nbformat.v4.new_notebook()
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book.cells = [
        nbformat.v4.new_code_cell("preset = 'none'", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "from pmd.bar import progress_bar\nlist(progress_bar(iterable=range(3), desc='three'))\n"
            "import subprocess, sys\n"
            "worker = 'from pmd.bar import progress_bar; list(progress_bar(iterable=range(2), desc=\"worker\"))'\n"
            "subprocess.run([sys.executable, '-c', worker], check=True);"
        ),
    ]
    nbformat.write(book, tmp_path / "good.ipynb")
    monkeypatch.setattr(notebook, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    main(["notebook", str(tmp_path / "good.ipynb"), "-p", "preset=x"])
    seen = capfd.readouterr()
    assert "three: 100%" in seen.out
    assert "worker: 100%" in seen.out
    assert "TCP" not in seen.err
    executed = nbformat.read(tmp_path / "runs" / "x" / "notebooks" / "good.ipynb", as_version=4)
    assert {output.name for output in executed.cells[-1].outputs if output.output_type == "stream"} == {"stdout"}


def test_a_stopped_command_says_in_one_line_how_to_go_on(monkeypatch, capsys):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(notebook, "execute", stopped)
    with pytest.raises(SystemExit) as caught:
        main(["notebook", "x.ipynb"])
    assert caught.value.code == 130
    assert capsys.readouterr().err.strip() == "stopped; the same command goes on with what is finished"


def cell(name: str, holding: str) -> str:
    """The one code cell of a notebook that holds a text."""
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4).cells
    [found] = [one.source for one in cells if one.cell_type == "code" and holding in one.source]
    return found


def test_the_ideal_step_by_hand_does_not_overflow_at_a_small_tau():
    used = {"np": np, "pd": pd, "population_update": population_update, "tau": 1e-4}
    with np.errstate(all="raise", under="ignore"):
        exec(cell("0-theory", "by_hand"), used)
    assert used["by_hand"].tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize(("first", "last", "fine"), [(0.81, 1.0, True), (0.2, 0.6, True), (0.2, 0.25, False)])
def test_a_reward_that_was_high_from_the_start_is_no_error_of_the_own_task(first, last, fine):
    """And the cell stands after all pictures and answers, which a student's short run shows too."""
    text = cell("8-own-task", "assert last")
    assert text.count("\n") == 0
    if fine:
        exec(text, {"first": first, "last": last})
    else:
        with pytest.raises(AssertionError, match="more steps help, or fewer digits"):
            exec(text, {"first": first, "last": last})


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
