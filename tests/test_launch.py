"""Many runs: the same bits however many at once, resumed when interrupted, thrown away when foreign."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from pmd.experiments.launch import Job, run_all
from pmd.files import ROOT, fingerprint, read_json, write_json, write_jsonl
from pmd.harness.config import identity, train_config
from pmd.harness.run_folder import remove_other
from tests.test_loop import COMMITTED, PROBLEMS, SMALL


@pytest.fixture
def stage(tiny_dir, tmp_path, server):
    for name in ("rl", "val"):
        write_jsonl(tmp_path / "data" / f"{name}.jsonl", PROBLEMS)
    jobs = [Job(config(steps=2, seed=seed), f"m/seed-{seed}", {"axis": "tau"}) for seed in (1, 2)]
    return jobs, tiny_dir, tmp_path / "data", ["val"], tmp_path / "out"


def config(**changes):
    seed = changes.pop("seed", 1)
    return train_config("pmd-mean", seed, COMMITTED, **(SMALL | changes))


def test_runs_side_by_side_equal_runs_one_by_one(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("PMD_WORKERS", "2")
    results = run_all(*stage)
    assert len(results) == 2
    monkeypatch.setenv("PMD_WORKERS", "1")
    alone = (*stage[:4], tmp_path / "alone")
    assert run_all(*alone) == results
    for seed in (1, 2):
        for name in ("log.jsonl", "eval.jsonl", "run.json", "last/model.safetensors"):
            path = f"m/seed-{seed}/{name}"
            assert (tmp_path / "out" / path).read_bytes() == (tmp_path / "alone" / path).read_bytes()
    assert read_json(tmp_path / "out" / "m" / "seed-1" / "run.json")["axis"] == "tau"
    assert not list(tmp_path.rglob("checkpoint-*"))
    assert not (tmp_path / "out-work").exists()


def test_a_failure_keeps_what_is_done_and_foreign_work_is_thrown_away(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("PMD_WORKERS", "1")
    jobs, base, data, sets, out = stage
    run_all(jobs[:1], base, data, sets, out)
    mark = fingerprint(base / "model.safetensors", data)
    work = out.with_name("out-work")
    shutil.copytree(out / "m" / "seed-1", work / "m" / "seed-1")  # finished, by this code
    shutil.copytree(out / "m" / "seed-1", work / "m" / "seed-2")  # another run's
    stamp = (work / "m" / "seed-1" / "log.jsonl").stat().st_mtime_ns
    assert read_json(work / "m" / "seed-1" / "run.json")["fingerprint"] == mark
    run_all(jobs, base, data, sets, out)
    assert (out / "m" / "seed-1" / "log.jsonl").stat().st_mtime_ns == stamp
    assert read_json(out / "m" / "seed-2" / "run.json")["seed"] == 2


def test_work_of_another_base_model_does_not_count(tmp_path):
    write_json(tmp_path / "a" / "run.json", identity(config(), {"fingerprint": "old"}))
    remove_other(tmp_path / "a", identity(config(), {"fingerprint": "old"}))
    assert (tmp_path / "a").exists()
    remove_other(tmp_path / "a", identity(config(), {"fingerprint": "new"}))
    assert not (tmp_path / "a").exists()


def test_an_error_in_a_run_reaches_the_caller(stage, monkeypatch):
    monkeypatch.setenv("PMD_WORKERS", "1")
    jobs, base, data, sets, out = stage
    (base / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"not a model directory, it lacks tokenizer\.json"):
        run_all(jobs, base, data, sets, out)
    assert not out.exists()


def test_a_missing_problem_set_is_found_before_any_run(stage):
    jobs, base, data, sets, out = stage
    (data / "val.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"val\.jsonl: the problem set is empty"):
        run_all(jobs, base, data, sets, out)


ALONE = """
import sys
from pathlib import Path

from pmd import params
from pmd.evaluators import evaluate
from pmd.experiments import ablations, launch, tuning
from pmd.harness.config import train_config
from pmd.paper import claims, figures, logs, report, tables, typeset

if __name__ == "__main__":  # a worker that does not fork imports this file
    base, data, out = map(Path, sys.argv[1:])
    values = params.load()
    ablations.jobs(values["ablate"], values["train"], values["methods"])
    small = {"steps": 1, "prompts": 2, "group_size": 2, "minibatches": 1, "probe": 1, "eval_k": 1, "eval_prompts": 1}
    job = launch.Job(train_config("pmd-mean", 1, values, **small), "m/seed-1")
    launch.run_all([job], base, data, ["val"], out)
    loaded = {"torch", "transformers"} & set(sys.modules)
    sys.exit(f"the parent loaded {loaded}" if loaded else 0)
"""


def test_the_parent_of_the_runs_loads_no_torch_and_neither_do_tables_and_tuning(stage, tmp_path):
    _, base, data, _, out = stage
    (tmp_path / "alone.py").write_text(ALONE)
    environment = os.environ | {"PMD_WORKERS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, tmp_path / "alone.py", base, data, out]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (out / "m" / "seed-1" / "result.json").exists()
