"""Many runs: the same bits however many at once, resumed when interrupted, thrown away when foreign."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from pmd.evaluators.evaluate import Evaluate
from pmd.experiments import evidence
from pmd.experiments.launch import Job, run_all, settings
from pmd.files import ROOT, read_json, read_jsonl, write_jsonl
from pmd.harness.config import train_config
from tests.test_loop import COMMITTED, PROBLEMS, SMALL

FINAL = Evaluate(sets=["val"], k=2, temperature=1.0, top_p=0.7, max_tokens=6, seed=0, device="cpu")


@pytest.fixture
def stage(tiny_dir, tmp_path, server):
    for name in ("rl", "val"):
        write_jsonl(tmp_path / "data" / f"{name}.jsonl", PROBLEMS)
    jobs = [Job(config(steps=2, seed=seed), tiny_dir, f"m/seed-{seed}", TAGS) for seed in (1, 2)]
    return jobs, tmp_path / "data", FINAL, tmp_path / "out"


TAGS = {"variant": "pmd-mean", "base": 7}


def config(**changes):
    seed = changes.pop("seed", 1)
    return train_config("pmd-mean", seed, COMMITTED, **(SMALL | changes))


def stamps(out):
    return {path: path.stat().st_mtime_ns for path in out.rglob("log.jsonl")}


def test_runs_side_by_side_equal_runs_one_by_one(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("PMD_WORKERS", "2")
    assert run_all(*stage) != []
    monkeypatch.setenv("PMD_WORKERS", "1")
    run_all(*stage[:3], tmp_path / "alone")
    for seed in (1, 2):
        for name in ("log.jsonl", "eval.jsonl", "final.jsonl", "run.json", "last/model.safetensors"):
            path = f"m/seed-{seed}/{name}"
            assert (tmp_path / "out" / path).read_bytes() == (tmp_path / "alone" / path).read_bytes()
    assert read_json(tmp_path / "out" / "m" / "seed-1" / "run.json")["variant"] == "pmd-mean"
    assert not [*tmp_path.rglob("checkpoint-*"), *tmp_path.rglob("best")]


def test_a_run_is_evaluated_at_its_end_on_the_whole_set(stage, monkeypatch):
    monkeypatch.setenv("PMD_WORKERS", "1")
    jobs, *rest, out = stage
    run_all(jobs[:1], *rest, out)
    (row,) = read_jsonl(out / "m" / "seed-1" / "final.jsonl")
    assert (row["set"], row["step"], row["k"], len(row["correct"])) == ("val", 2, 2, len(PROBLEMS))
    frames = evidence.collect({jobs[0].name: "{}"}, out, "a processor")
    assert frames["runs"][["run", "variant", "base", "seed", "cpu"]].values.tolist() == [
        ["m/seed-1", "pmd-mean", 7, 1, "a processor"]
    ]
    last = read_jsonl(out / "m/seed-1/log.jsonl")[-1]["tokens"], read_jsonl(out / "m/seed-1/timing.jsonl")[-1]["wall_s"]
    assert frames["runs"][["tokens", "seconds"]].values.tolist() == [[*last]]
    assert frames["evals"]["final"].tolist().count(True) == 1
    assert frames["evals"].query("final")["correct"].item().tolist() == row["correct"]
    assert frames["steps"]["seconds"].tolist() == [t["wall_s"] for t in read_jsonl(out / "m/seed-1/timing.jsonl")][-2:]


def test_what_is_finished_stays_and_what_is_changed_or_foreign_goes(stage, monkeypatch):
    monkeypatch.setenv("PMD_WORKERS", "1")
    jobs, *rest, out = stage
    run_all(jobs, *rest, out)
    before = stamps(out)
    run_all(jobs, *rest, out)
    assert stamps(out) == before
    changed = Job(config(steps=2, seed=2, tau=0.9), jobs[1].base, jobs[1].name, TAGS)
    run_all([jobs[0], changed], *rest, out)
    after = stamps(out)
    assert {path.parent.name for path in after if after[path] != before[path]} == {"seed-2"}
    run_all(jobs[:1], *rest, out, keep=[jobs[1].name])
    assert stamps(out) == after
    run_all(jobs[:1], *rest, out)
    assert [path.parent.name for path in stamps(out)] == ["seed-1"]
    (rest[0] / "rl.jsonl").write_text((rest[0] / "rl.jsonl").read_text() + "\n")  # other data
    run_all(jobs[:1], *rest, out)
    assert stamps(out) != {path: stamp for path, stamp in before.items() if path.parent.name == "seed-1"}


def test_when_time_is_up_no_further_run_begins_and_the_rest_goes_on_later(stage, monkeypatch):
    monkeypatch.setenv("PMD_WORKERS", "1")
    jobs, *rest, out = stage
    jobs += [Job(config(steps=2, seed=seed), jobs[0].base, f"m/seed-{seed}", TAGS) for seed in (3, 4, 5)]
    first = run_all(jobs, *rest, out, seconds=0.0)
    assert len(first) < len(jobs)
    assert [job.name for job in run_all(jobs, *rest, out)] == [job.name for job in jobs]


def test_an_error_in_a_run_reaches_the_caller(stage, monkeypatch):
    monkeypatch.setenv("PMD_WORKERS", "1")
    jobs, *rest, out = stage
    (jobs[0].base / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"not a model directory, it lacks tokenizer\.json"):
        run_all(jobs, *rest, out)
    assert not out.exists()


def test_the_first_failure_stops_the_runs_that_have_not_begun(stage, tmp_path, monkeypatch):
    """One of two workers is at a long run when the other's fails."""
    monkeypatch.setenv("PMD_WORKERS", "2")
    jobs, *rest, out = stage
    broken = tmp_path / "broken"
    shutil.copytree(jobs[0].base, broken)
    (broken / "tokenizer.json").unlink()
    starts = [(60, jobs[0].base), (2, broken), (2, jobs[0].base)]
    many = [Job(config(steps=n, seed=s), base, f"m/seed-{s}", TAGS) for s, (n, base) in enumerate(starts)]
    with pytest.raises(ValueError, match=r"not a model directory, it lacks tokenizer\.json"):
        run_all(many, *rest, out)
    assert [path.parent.name for path in stamps(out)] == ["seed-0"]


def test_a_missing_problem_set_is_found_before_any_run(stage):
    jobs, data, final, out = stage
    (data / "val.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"val\.jsonl: the problem set is empty"):
        run_all(jobs, data, final, out)


def test_rows_join_those_of_other_runs_and_replace_their_own(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("PMD_WORKERS", "1")
    jobs, data, final, out = stage
    run_all(*stage)
    folder, said = tmp_path / "evidence", settings(jobs, data, final)
    first, second = ({job.name: said[job.name]} for job in jobs)
    evidence.write(evidence.collect(first, out, "old"), folder)
    assert evidence.known_runs(folder, said) == {"m/seed-1"}
    assert evidence.known_runs(folder / "none", said) == set()
    joined = evidence.joined(evidence.collect(second, out, "new"), folder, said)
    assert joined["runs"]["cpu"].tolist() == ["old", "new"]
    evidence.write(joined, folder)
    again = evidence.joined(evidence.collect(first, out, "again"), folder, said)
    assert sorted(again["runs"]["cpu"]) == ["again", "new"]
    assert len(again["steps"]) == len(joined["steps"])
    alone = evidence.joined(evidence.collect(first, out, "again"), folder, ["m/seed-1"])
    assert {name: set(rows["run"]) for name, rows in alone.items()} == {name: {"m/seed-1"} for name in alone}
    joined["runs"].drop(columns="settings").to_parquet(folder / "runs.parquet")
    with pytest.raises(ValueError, match=r"runs\.parquet: of another schema, it has no column settings"):
        evidence.known_runs(folder, said)


@pytest.mark.parametrize(
    ("change", "known"),
    [({"clip_low": 0.03}, False), ({"beta2": 0.5}, False), ({"max_tokens": 5}, False), ({"eval_every": 9}, False),
     ({"tau": 0.06}, False), ({"threads": 3}, True), ({"checkpoint_every": 1}, True), ({"microbatch_tokens": 9}, True)],
)  # fmt: skip
def test_a_run_is_known_by_every_setting_that_is_not_rounding(stage, change, known):
    jobs, data, final, _ = stage
    was, job = settings(jobs[:1], data, final)["m/seed-1"], jobs[0]
    other = Job(config(steps=2, seed=1, **change), job.base, job.name, TAGS)
    assert evidence.same(was, settings([other], data, final)["m/seed-1"]) == known


def test_a_run_is_known_by_its_base_model_its_problems_and_its_evaluation(stage, tmp_path):
    (job, _), data, final, _ = stage
    was = settings([job], data, final)[job.name]
    longer = final.model_copy(update={"max_tokens": 7})
    assert not evidence.same(was, settings([job], data, longer)[job.name])
    (data / "README.md").write_text("A card.")
    assert evidence.same(was, settings([job], data, final)[job.name])
    (data / "val.jsonl").write_text((data / "val.jsonl").read_text() + "\n")
    assert not evidence.same(was, settings([job], data, final)[job.name])
    write_jsonl(data / "val.jsonl", PROBLEMS)
    weights = job.base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert not evidence.same(was, settings([job], data, final)[job.name])


def test_a_setting_that_did_not_exist_when_a_run_was_made_does_not_count():
    assert evidence.same('{"lr": 1, "gone": 2}', '{"lr": 1, "new": 3}')
    assert not evidence.same('{"lr": 1}', '{"lr": 2, "new": 3}')


ALONE = """
import sys
from pathlib import Path

from pmd import params
from pmd.evaluators.evaluate import Evaluate
from pmd.experiments import evidence, launch, training_map
from pmd.harness.config import train_config
from pmd.paper import report, typeset

if __name__ == "__main__":  # a worker that does not fork imports this file
    base, data, out = map(Path, sys.argv[1:])
    values = params.load()
    training_map.jobs(values["grid"] | {"bases": [1]}, values["train"], values["methods"])
    small = {"steps": 1, "prompts": 2, "group_size": 2, "minibatches": 1, "probe": 1, "eval_k": 1, "eval_prompts": 1}
    job = launch.Job(train_config("pmd-mean", 1, values, **small), base, "m/seed-1", {"variant": "pmd-mean", "base": 1})
    final = params.read(Evaluate, "evaluate", values["evaluate"] | {"sets": ["val"], "k": 1})
    launch.run_all([job], data, final, out)
    evidence.collect({job.name: "{}"}, out, "cpu")
    loaded = {"torch", "transformers"} & set(sys.modules)
    sys.exit(f"the parent loaded {loaded}" if loaded else 0)
"""


def test_the_parent_of_the_runs_loads_no_torch(stage, tmp_path):
    jobs, data, _, out = stage
    (tmp_path / "alone.py").write_text(ALONE)
    environment = os.environ | {"PMD_WORKERS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, tmp_path / "alone.py", jobs[0].base, data, out]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (out / "m" / "seed-1" / "final.jsonl").exists()
