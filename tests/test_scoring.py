"""Samples and their summary, by hand; and the same from saved files without the model."""

from __future__ import annotations

import pytest
import torch

from pmd import params
from pmd.evaluators.evaluate import Evaluate, evaluate
from pmd.files import write_json, write_jsonl
from pmd.model import loading
from pmd.model.loading import load_policy, save_policy
from pmd.sampling.accuracy import accuracy
from pmd.sampling.engine import Sampling
from pmd.sampling.scoring import COLUMNS, merge, respond, score, summarise_by_rule
from tests.rewards import sevens

PROBLEMS = [
    {"id": "a", "prompt": "1+1=", "ground_truth": "2", "difficulty": 2},
    {"id": "b", "prompt": "2+3=", "ground_truth": "5", "difficulty": 2},
]


class Scripted:
    """An engine that answers from a script."""

    def __init__(self, tokenizer, script):
        self.script = [
            [[*tokenizer.encode(r.rstrip("|")), *([1] if r.endswith("|") else [])] for r in g] for g in script
        ]

    def sample(self, prompts, n, sampling, seed, first=0):
        assert all(len(group) == n for group in self.script)
        return self.script


def test_summary_by_hand(tiny):
    script = [["2|", "1=2|", "3|", "2"], ["4|", "4|", "5|", "=|"]]  # `|` ends a response
    samples = respond(Scripted(tiny[1], script), tiny[1], PROBLEMS, 4, Sampling(8), 0)
    assert list(samples) == COLUMNS
    assert samples["reward"].tolist() == samples["correct"].tolist() == [1, 1, 0, 0, 0, 0, 1, 0]
    assert samples["prompt"].tolist() == ["1+1="] * 4 + ["2+3="] * 4
    assert samples["seed"].tolist() == [0] * 8
    assert samples["answer"].tolist()[:3] == ["2", "2", "3"]
    assert samples["answer"].isna().tolist() == [False, False, False, True, False, False, False, True]
    summary = summarise_by_rule(samples, PROBLEMS)
    assert summary == {
        "k": 4,
        "correct": [2, 1],
        "majority": [1, 0],
        "length": [(2 + 4 + 2 + 1) / 4, (2 + 2 + 2 + 2) / 4],
        "truncated": 1 / 8,
    }
    assert accuracy(summary) == 3 / 8
    shuffled = samples.sample(frac=1, random_state=0).sort_values("prompt_id", ascending=False)
    assert summarise_by_rule(shuffled, PROBLEMS)["correct"] == [2, 1]


def test_a_response_cut_off_has_no_answer(tiny):
    (row,) = score(PROBLEMS[:1], [[tiny[1].encode("1=2")]], tiny[1])
    assert (row["answer"], row["reward"], row["truncated"], row["response"]) == (None, 0.0, True, "1=2")


def test_each_row_is_judged_by_its_problems_rule(tiny):
    """dapo wants `Answer:`, which the tiny tokenizer cannot say: −1 each, yet 0 right, not −2."""
    problems = [PROBLEMS[0], PROBLEMS[1] | {"rule": "dapo"}]
    samples = respond(Scripted(tiny[1], [["2|", "3|"], ["5|", "5|"]]), tiny[1], problems, 2, Sampling(8), 0)
    assert samples["reward"].tolist() == [1, 0, -1, -1]
    assert summarise_by_rule(samples, problems)["correct"] == [1, 0]


def test_equal_answers_vote_together(monkeypatch):
    """Under a rule that calls neighbours equal, which is not transitive: the first of those left stands for others."""
    rounds = []

    def neighbours(rule, pairs):
        rounds.append((rule, pairs))
        return [abs(int(gold) - int(answer)) <= 1 for gold, answer in pairs]

    monkeypatch.setattr("pmd.sampling.scoring.equivalent", neighbours)
    answers = [["2", "3", None, "1", "4", "3"], ["5", "5.0"], ["7", "9", "8"]]
    assert merge(answers, ["math", "exact", "math"]) == [["2", "2", None, "2", "4", "2"], ["5", "5.0"], ["7", "9", "7"]]
    assert rounds == [("math", [("2", "3"), ("2", "1"), ("2", "4"), ("7", "9"), ("7", "8")])]


@pytest.fixture
def run(tiny, tmp_path, monkeypatch, server):
    monkeypatch.setenv("PMD_WORKERS", "1")
    for name in ("base", "train/kimi/seed-1/last", "train/kimi/seed-1/best"):
        save_policy(*tiny, tmp_path / "run" / name)
    write_json(tmp_path / "run" / "train" / "kimi" / "seed-1" / "result.json", {"best_step": 2, "last_step": 4})
    for name in ("test", "ood"):
        write_jsonl(tmp_path / "data" / f"{name}.jsonl", PROBLEMS)
    return tmp_path


def test_the_policy_is_evaluated_in_the_type_asked_for(run, monkeypatch):
    policies = []
    monkeypatch.setattr(loading, "load_policy", lambda *asked: policies.append(load_policy(*asked)) or policies[-1])
    asked = params.load()["evaluate"] | {"k": 2, "max_tokens": 4}
    for dtype in ("float32", "bfloat16"):
        config = params.read(Evaluate, "evaluate", asked | {"dtype": dtype})
        evaluate(config, run / "run" / "base", {"test": PROBLEMS})
    assert [model.dtype for model, _ in policies] == [torch.float32, torch.bfloat16]


def test_a_policy_is_evaluated_by_a_reward_of_ones_own(run, monkeypatch):
    config = params.read(Evaluate, "evaluate", params.load()["evaluate"] | {"k": 3, "max_tokens": 4})
    for name, trusted in (("tests.rewards:sevens", False), (lambda completions: sevens(completions), True)):
        found = evaluate(config, run / "run" / "base", {"test": PROBLEMS}, name, trusted)
        assert found["reward"].tolist() == sevens(found["response"])
        assert 0 < found["reward"].max() < 1, "nothing is partial"
        assert found["correct"].tolist() == [reward == 1 for reward in found["reward"]]
    monkeypatch.setattr(loading, "load_policy", None)  # refused before any work
    for name, line in (("tests.rewards:nan", "returned the reward nan"), ("tests.rewards:seven", "a function of")):
        with pytest.raises(ValueError, match=f"^reward: .*{line}") as refused:
            evaluate(config, run / "run" / "base", {"test": PROBLEMS}, name)
        assert "\n" not in str(refused.value)


def test_what_cannot_be_evaluated_is_left_out_and_counted_or_refused(run, caplog):
    config = params.read(Evaluate, "evaluate", params.load()["evaluate"] | {"k": 2, "max_tokens": 4})
    with pytest.raises(ValueError, match=r"^sets\.ood: got \[\], must be at least one problem$"):
        evaluate(config, run / "run" / "base", {"test": PROBLEMS, "ood": []})
    with pytest.raises(ValueError, match=r"^sets: got \{\}, must be a mapping of names to problem sets, one at least$"):
        evaluate(config, run / "run" / "base", {})
    other = PROBLEMS[0] | {"id": PROBLEMS[1]["id"]}  # its answers would be judged by another problem's ground truth
    with pytest.raises(
        ValueError, match=r"^sets\.test\[\d+\]\.id: got .*, must be its own, but sets\.test\[1\] has it"
    ):
        evaluate(config, run / "run" / "base", {"test": [*PROBLEMS, other]})
    long = {"id": "long", "prompt": "1" * 5000 + "=", "ground_truth": "1"}
    found = evaluate(config, run / "run" / "base", {"test": [long, *PROBLEMS]})
    assert set(found["prompt_id"]) == {problem["id"] for problem in PROBLEMS}
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"sets.test: 1 of {len(PROBLEMS) + 1} prompts left out")
