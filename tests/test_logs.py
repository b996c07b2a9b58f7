"""Run directories read into frames: values against the files, and one clear line for each broken file."""

import json

import numpy as np
import pandas as pd
import pytest

from pmd.paper import logs
from tests.synthetic import write_preset, write_responses, write_run


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "toy"
    write_preset(directory, ["pmd-mean", "grpo"], seeds=2, steps=4, every=2, problems=6, stale=(8, 16))
    return directory


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "toy/train/grpo/seed-0"
    write_run(path, "grpo", 0, steps=4, every=2, problems=6, stale=(8, 16))
    return path


def test_every_run_is_found_with_its_axis_and_settings(preset):
    runs = logs.load(preset).runs.set_index("run")
    assert len(runs) == 2 * 2 + (6 + 6 + 10) * 2
    assert runs.loc["train/grpo/seed-1", ["axis", "seed", "minibatches", "last_step"]].tolist() == [
        "main",
        1,
        8,
        4,
    ]
    assert runs.loc["ablate/stale/rloo-16/seed-0", ["axis", "method", "minibatches"]].tolist() == [
        "stale",
        "rloo",
        16,
    ]
    assert runs.loc["ablate/stale/grpo-unclipped-16/seed-1", "method"] == "grpo-unclipped"
    assert runs.loc["ablate/stale/grpo-16/seed-1", "method"] == "grpo"


def test_steps_join_the_log_with_its_timing(preset):
    steps = logs.load(preset).steps
    mine = steps[steps.run == "train/pmd-mean/seed-1"]
    log = [json.loads(line) for line in (preset / "train/pmd-mean/seed-1/log.jsonl").read_text().splitlines()]
    timing = [json.loads(line) for line in (preset / "train/pmd-mean/seed-1/timing.jsonl").read_text().splitlines()]
    assert mine["lambda"].tolist() == [row["lambda"] for row in log]
    assert mine["wall_s"].tolist() == [row["wall_s"] for row in timing]
    assert steps[steps.method == "grpo"].lambda_theory.isna().all()
    assert steps.lambda_theory.dtype == float


def test_overall_pools_the_prompts_of_both_sets(preset):
    evals = logs.load(preset).evals
    rows = evals[(evals.run == "train/grpo/seed-0") & (evals.step == 4)].set_index("set")
    assert set(rows.index) == {"val", "test", "ood", "overall"}
    assert rows.correct["overall"] == rows.correct["test"] + rows.correct["ood"]
    assert rows.avg["test"] == pytest.approx(np.mean(rows.correct["test"]) / 32)
    assert rows.avg["overall"] == pytest.approx((rows.avg["test"] + rows.avg["ood"]) / 2)
    assert rows.best["ood"] == pytest.approx(np.mean([1 - (1 - c / 32) ** 32 for c in rows.correct["ood"]]))
    assert rows.maj["val"] == pytest.approx(np.mean(rows.majority["val"]))


def test_last_keeps_each_runs_last_evaluation(preset):
    final = logs.last(logs.load(preset).evals)
    assert set(final.step) == {2, 4}
    assert set(final[final.run.str.contains("stale/.*-16/")].step) == {2}
    assert not final.duplicated(["run", "set"]).any()


def test_responses_become_counts_majorities_and_lengths(tmp_path):
    rows = [
        ("test", "b", 0, "5", 1.0, 4, False),
        ("test", "b", 1, "6", 0.0, 6, True),
        ("test", "a", 1, "7", 0.0, 8, False),
        ("test", "a", 0, None, 0.0, 2, False),
        ("ood", "c", 0, "1", 0.0, 1, False),
        ("ood", "c", 1, "2", 1.0, 3, False),
    ]
    path = tmp_path / "evaluate/grpo/seed-3/last.parquet"
    path.parent.mkdir(parents=True)
    pd.DataFrame(rows, columns=logs._RESPONSE_KEYS).to_parquet(path)
    frame = logs.evaluated(tmp_path).set_index("set")
    assert frame.loc["test", ["method", "seed", "checkpoint", "k", "truncated"]].tolist() == [
        "grpo",
        3,
        "last",
        2,
        0.25,
    ]
    assert frame.correct["test"] == [0, 1]  # prompts in the order of their ids: a, b
    assert frame.majority["test"] == [0, 1]  # None never wins; a tie goes to the first sample
    assert frame.majority["ood"] == [0]
    assert frame.lengths["overall"] == [5.0, 5.0, 2.0]
    assert frame.avg["overall"] == pytest.approx(1 / 3)


def test_the_matrix_has_seeds_by_prompts_in_order(preset):
    rows = logs.evaluated(preset)
    rows = rows[(rows.method == "pmd-mean") & (rows.checkpoint == "last") & (rows.set == "test")]
    scores = logs.matrix(rows[::-1], "avg")
    assert scores.shape == (2, 6)
    assert scores[1].tolist() == [c / 32 for c in rows[rows.seed == 1].correct.iloc[0]]
    assert (logs.matrix(rows, "pass@8") >= scores).all()
    with pytest.raises(ValueError, match="metric: 'mean' is not one of avg"):
        logs.matrix(rows, "mean")
    with pytest.raises(ValueError, match="one row a seed"):
        logs.matrix(pd.concat([rows, rows]), "avg")


def test_runs_under_way_are_passed_over(run):
    moved = run.parents[1] / "rloo-work" / "seed-0"
    write_run(moved, "rloo", 0, steps=4, every=2, problems=6)
    (moved / "result.json").unlink()
    assert logs.load(run.parents[2]).runs.run.tolist() == ["train/grpo/seed-0"]


def test_stages_are_listed_and_may_be_absent(preset, tmp_path):
    assert logs.stages(preset).set_index("stage").seconds["train/grpo"] == 180.0
    assert logs.stages(tmp_path).empty


def test_no_runs_says_what_to_execute(tmp_path):
    with pytest.raises(ValueError, match=r"toy/train: no training runs here; first execute the notebooks"):
        logs.load(tmp_path / "toy")
    with pytest.raises(ValueError, match=r"evaluate: no evaluated checkpoints here"):
        logs.evaluated(tmp_path / "toy")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("result.json", None, r"result\.json: missing \(an unfinished run\?"),
        ("timing.jsonl", None, r"timing\.jsonl: missing"),
        ("eval.jsonl", "", r"eval\.jsonl: empty"),
        ("log.jsonl", '{"step": 1}\n', r"log\.jsonl:1: has no field 'reward'"),
        ("log.jsonl", "{\n", r"log\.jsonl:1: not valid JSON"),
        ("run.json", '{"method": "grpo"}', r"run\.json: has no field 'seed'"),
        ("timing.jsonl", '{"step": 1, "wall_s": 1, "peak_memory_mb": 1}\n', "lacks steps that log.jsonl has"),
    ],
)
def test_a_broken_file_is_named(run, name, content, message):
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        logs.load(run.parents[2])
    assert "\n" not in str(error.value)


def test_responses_that_cannot_be_compared_are_refused(tmp_path):
    one, two = (tmp_path / f"evaluate/grpo/seed-{seed}/last.parquet" for seed in (0, 1))
    write_responses(one, 0.5, 1, problems=3)
    write_responses(two, 0.5, 1, problems=4)
    with pytest.raises(ValueError, match=r"seed-1/last\.parquet: set 'ood' has other prompts"):
        logs.evaluated(tmp_path)
    two.write_bytes(b"not parquet")
    with pytest.raises(ValueError, match=r"seed-1/last\.parquet: not a table of responses"):
        logs.evaluated(tmp_path)
    table = pd.read_parquet(one)
    two.unlink()
    table[1:].to_parquet(one)
    with pytest.raises(ValueError, match="different numbers of samples"):
        logs.evaluated(tmp_path)
