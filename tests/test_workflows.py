"""The workflows for GitHub Actions, which do not run here: their structure, their pins; what they call exists."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec

import pytest
from ruamel.yaml import YAML

from pmd.__main__ import cli
from pmd.files import ROOT

PATHS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WORKFLOWS = {path.stem: YAML(typ="safe").load(path.read_text()) for path in PATHS}
STEPS = {
    f"{name}/{job}/{i}": step
    for name, workflow in WORKFLOWS.items()
    for job, body in workflow["jobs"].items()
    for i, step in enumerate(body["steps"])
}


@pytest.mark.skipif(find_spec("check_jsonschema") is None, reason="check-jsonschema is in .venv-page: make test-page")
def test_they_are_valid_by_the_schema_of_github():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*command, *map(str, PATHS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_only_read_and_every_job_ends(name):
    workflow = WORKFLOWS[name]
    assert set(workflow) == {"name", "on", "permissions", "concurrency", "jobs"}
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert 0 < job["timeout-minutes"] <= 180
        assert set(job.get("needs", "").split()) <= set(workflow["jobs"])
        writes = {key for key, value in job.get("permissions", {}).items() if value == "write"}
        assert writes in (set(), {"pages", "id-token"})


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_actions_are_githubs_own_pinned_to_a_commit_with_its_version_beside(path):
    used = re.findall(r"uses: (.*)", path.read_text())
    assert used
    for action in used:
        assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_what_a_step_calls_exists(step):
    assert ("run" in step) != ("uses" in step)
    for line in step.get("run", "").splitlines():
        command, *arguments = shlex.split(line)
        if command == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
            assert set(arguments) <= set(targets), line
        elif command == ".venv/bin/pmd":
            assert arguments[0] in cli.commands, line
        else:
            assert shutil.which(command), line


def test_the_tests_run_on_every_supported_python_and_both_systems():
    matrix = WORKFLOWS["test"]["jobs"]["test"]["strategy"]["matrix"]
    named = re.search(r"Python ([\d., or]+), and `make`", (ROOT / "README.md").read_text())[1]
    assert matrix["python"] == re.findall(r"3\.\d+", named)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.14"
    assert {re.match("[a-z]+", name)[0] for name in matrix["os"]} == {"ubuntu", "macos"}
    assert [step["run"] for step in WORKFLOWS["test"]["jobs"]["test"]["steps"] if "run" in step] == ["make test"]


def test_the_weekly_run_keeps_the_committed_verdicts_before_it_makes_its_own_and_compares_last():
    workflow = WORKFLOWS["default"]
    _, _, day, month, weekday = workflow["on"]["schedule"][0]["cron"].split()
    assert (day, month) == ("*", "*")
    assert weekday.isdigit()
    commands = [step["run"] for step in workflow["jobs"]["run"]["steps"] if "run" in step]
    assert commands == [
        'cp results/default/tables/T1.csv "$RUNNER_TEMP/committed.csv"',
        "make repro",
        "make page",
        '.venv/bin/pmd verdicts "$RUNNER_TEMP/committed.csv" results/default',
    ]
    assert "run" in workflow["jobs"]["run"]["steps"][-1]
    assert (ROOT / "results" / "default" / "tables" / "T1.csv").is_file()


def test_the_page_is_published_from_where_make_page_writes_it():
    jobs = WORKFLOWS["default"]["jobs"]
    [upload] = [step for step in jobs["run"]["steps"] if "upload-pages-artifact" in step.get("uses", "")]
    assert f" {upload['with']['path']}\n" in (ROOT / "Makefile").read_text()
    assert jobs["run"]["outputs"]["page"] == f"${{{{ steps.{upload['id']}.outcome }}}}"
    assert jobs["publish"]["needs"] == "run"
    assert set(jobs["publish"]["permissions"]) == {"pages", "id-token"}
