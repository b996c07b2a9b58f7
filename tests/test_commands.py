"""The `pmd` command: quick to start, help that can be read, a mistake in one line; nothing documented runs a module."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import tomllib
from importlib import import_module

import click
import pytest

from pmd.__main__ import cli, main
from pmd.files import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def commands(group: click.Group = cli, *path: str) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        found += commands(command, *path, name) if isinstance(command, click.Group) else [(*path, name)]
    return found


def test_the_installed_command_is_this_one():
    module, _, function = PROJECT["scripts"]["pmd"].partition(":")
    assert getattr(import_module(module), function) is main
    assert {path[0] for path in commands()} == {
        "notebook", "sources", "check", "preset", "problems", "sets", "overlap", "score", "plan", "scale", "experiment",
        "study", "verdicts",
    }  # fmt: skip


def test_help_takes_less_than_half_a_second_and_loads_nothing_heavy():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "pmd", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    for name in cli.commands:
        assert re.search(rf"^  {name} +\w.*[^.]\.$", done.stdout, re.M), name  # a line each
    assert done.stderr == ""


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_every_command_has_help_without_loading_what_it_runs(path, capsys):
    main([*path, "--help"])
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: pmd {' '.join(path)}")
    assert len(out.splitlines()) > 5


@pytest.mark.parametrize(
    ("arguments", "line", "status"),
    [
        (["preset", "huge"], r"preset: got 'huge', must be one of .*smoke.*", 1),
        (["overlap", "none.jsonl", "none.jsonl"], r"none\.jsonl: no such problem set .*", 1),
        (["scale", "no-such"], r"scale: got 'no-such', must be one of its entries: .*", 1),
        (["plam", "x"], r"pmd: No such command 'plam'\..*\(see `pmd --help`\)", 2),
        (["verdicts", "none.csv", "none.csv"], r"T1\.csv: got 'none\.csv', must be a table of claims .*", 1),
        (["plan"], r"pmd plan: Missing argument 'NAME'\. \(see `pmd plan --help`\)", 2),
        (["plan", "x", "--gpus", "two"], r"pmd plan: Invalid value for '--gpus': .* \(see `pmd plan --help`\)", 2),
    ],
)
def test_a_mistake_is_one_line_and_no_traceback(arguments, line, status):
    done = subprocess.run([sys.executable, "-m", "pmd", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, "")
    assert re.fullmatch(line + "\n", done.stderr), done.stderr


def test_no_document_runs_a_module_of_ours():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    names = [name for name in tracked.split("\0") if name and (ROOT / name).is_file()]
    internal = {"pmd/problems/limited_pool.py", "dvc.lock"}  # it starts its workers so; a record of what was run
    found = {
        name
        for name in names
        if name not in internal and re.search(r"-m pmd\.\w", (ROOT / name).read_text(encoding="utf-8", errors="ignore"))
    }
    assert not found
