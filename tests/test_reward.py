"""Rewards of one's own: what they are given and may return, limits, identity, training and the theory for them."""

from __future__ import annotations

import logging
import sys
import time

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import lambertw

from pmd.files import read_json, read_jsonl
from pmd.problems.reward import read_reward, rewards, shown, try_out
from pmd.sampling.accuracy import accuracy
from pmd.sampling.scoring import verdicts
from pmd.trainer.loop import train
from pmd.trainer.measurements import predicted
from rewards import marks
from tests import rewards as own
from tests.test_loop import PROBLEMS, SETS, config

PROBLEM = {"id": "a", "prompt": "1+1=", "ground_truth": "2", "rule": "exact", "colour": 2}


def rows(*texts, **columns):
    return [shown(PROBLEM | columns, text, False) for text in texts]


def named(name, trusted=False):
    return read_reward(f"tests.rewards:{name}", trusted)


# --- what it is given and what it returns --------------------------------------------------------------------------


@pytest.mark.parametrize("trusted", [False, True])
def test_partial_rewards_come_in_order_from_workers_and_from_this_process(trusted):
    found = rewards(named("closeness", trusted), rows(*map(str, range(40)), "x"))
    assert found == [1 / (1 + abs(i - 2)) for i in range(40)] + [-3.0]
    assert rewards(named("array", trusted), rows("abc", "")) == [0.75, 0]
    assert not trusted or rewards(named("tensors", trusted), rows("abc", "")) == [0.75, 0]
    assert rewards(named("closeness", trusted), []) == []


@pytest.mark.parametrize("trusted", [False, True])
def test_it_gets_the_columns_that_it_names_or_all(trusted):
    given = [shown(PROBLEM, "abc", True), shown({"prompt": "1+1+1=", "id": "b"}, "", False)]
    assert rewards(named("seen", trusted), given) == [2134, 7006]
    assert rewards(named("everything", trusted), rows("a")) == [7.0]


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("one_too_many", r"returned 2 rewards for 1 completions, must be one each.*"),
        ("nothing", r"returned the reward None, must be a finite number.*"),
        ("nan", r"returned the reward nan, must be a finite number.*"),
        ("infinite", r"returned the reward -inf, must be a finite number.*"),
        ("huge", r"returned the reward 10+, must be a finite number.*"),
        ("words", r"returned the reward '0\.5', must be a finite number.*"),
        ("a_number", r"returned 0\.5, must be a list of numbers.*"),
        ("raises", r"raised IndexError: list index out of range.*"),
        ("other_arguments", r"cannot be called \(missing a required argument: 'answers'\), must take arguments by "
         r"name, of id, ground_truth, rule, colour, prompts, completions, truncated"),
        ("by_position", r"cannot be called \(.*positional.*\), must take arguments by name, of .*"),
    ],
)  # fmt: skip
def test_what_no_reward_is_is_refused_before_any_work_in_one_line(trusted, name, line):
    with pytest.raises(ValueError, match=rf"^reward: tests\.rewards:{name} {line}$") as refused:
        try_out(named(name, trusted), [PROBLEM])
    assert "\n" not in str(refused.value)


def test_an_error_at_a_text_names_the_text():
    with pytest.raises(ValueError, match=r"raises raised ValueError: could not .*; the completion is '1 x'$"):
        rewards(named("raises"), rows("1 2", "1 x"))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("closeness", "reward: got 'closeness', must be module:function, such as rewards.marks:reward"),
        ("__main__:f", "reward: got '__main__:f', must be module:function, such as .*"),
        ("tests.no_such:f", r"reward: got 'tests.no_such:f', must be .*, and tests.no_such cannot be imported "
         r"\(ModuleNotFoundError: No module named 'tests.no_such'\)"),
        ("tests.rewards:closenes", "reward: got .*, must be a function of tests.rewards: .*did you mean closeness.*"),
        ("tests.rewards:np", "reward: got 'tests.rewards:np', must be a function of tests.rewards: closeness, .*"),
        (3, "reward: got 3, must be a function, or its name module:function"),
    ],
)  # fmt: skip
def test_a_name_that_leads_nowhere_is_refused_in_one_line(given, line):
    with pytest.raises(ValueError, match=f"^{line}$"):
        read_reward(given)


# --- limits --------------------------------------------------------------------------------------------------------


def test_a_text_that_hangs_a_reward_costs_it_the_lowest_reward_and_nobody_else(caplog):
    texts = ["a", "spin", "abcd", "fill", "deep", ""]
    start = time.monotonic()
    given = [{"prompt_id": "a", "prompt": "1+1=", "response": text, "truncated": False} for text in texts]
    with caplog.at_level(logging.WARNING):
        judged = verdicts(given, [PROBLEM], named("hangs"))
    assert time.monotonic() - start < 60
    assert [one["reward"] for one in judged] == [-0.5, -2, -2, -2, -2, 0]
    assert [one["killed"] for one in judged] == [False, True, False, True, True, False]
    assert [record.getMessage() for record in caplog.records] == [
        "killed after 2 s of CPU time, gets the reward -2: 'spin'",
        "killed after MemoryError, gets the reward -2: 'fill'",
        "killed after RecursionError, gets the reward -2: 'deep'",
    ]


def test_a_reward_that_no_worker_can_bear_is_refused_before_any_work():
    line = r"^reward: tests\.rewards:always_hangs was ended in its worker \(2 s of CPU time\) for an empty completion, "
    with pytest.raises(ValueError, match=line):
        try_out(named("always_hangs"), [PROBLEM])


# --- which reward it is --------------------------------------------------------------------------------------------


def test_a_function_is_known_by_its_module_and_one_of_a_notebook_by_its_text():
    assert read_reward(own.closeness).identity == named("closeness").identity == named("closeness", True).identity
    assert read_reward(own.array).identity != named("closeness").identity

    def local(completions):
        return [0.5] * len(completions)

    with pytest.raises(ValueError, match=r"^reward: got '.*local', must be trusted \(trusted=True\), or "):
        read_reward(local)
    first = read_reward(local, trusted=True)
    assert rewards(first, rows("a", "b")) == [0.5, 0.5]

    def local(completions):
        return [0.25] * len(completions)

    assert read_reward(local, trusted=True).identity != first.identity


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that a test may edit: what writes it anew."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"mine_{tmp_path.name}".replace("-", "_")

    def write(value):
        (tmp_path / f"{name}.py").write_text(f"def f(completions): return [{value} for text in completions]\n")
        return f"{name}:f"

    yield write
    sys.modules.pop(name, None)


@pytest.mark.parametrize("trusted", [False, True])
def test_an_edited_file_is_another_reward_at_once(module, trusted):
    first = read_reward(module("0.5"), trusted)
    assert rewards(first, rows("ab")) == [0.5]
    second = read_reward(module("len(text)"), trusted)
    assert second.identity != first.identity
    assert rewards(second, rows("ab")) == [2]


def test_a_changed_reward_does_not_go_on_with_an_old_run(tiny_dir, tmp_path, module):
    def run(reward, problems=PROBLEMS):
        how = {"progress": False, "trusted": True, "reward": reward}
        return train(config(steps=1, eval_every=1), tiny_dir, problems, SETS, tmp_path / "a", **how)

    result = run(module("0.5"))
    stamp = (tmp_path / "a" / "log.jsonl").stat().st_mtime_ns
    assert run(module("0.5")) == result
    assert (tmp_path / "a" / "log.jsonl").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match=r"a: holds a run with problems_md5 = "):
        run(module("0.5"), [problem | {"difficulty": 3} for problem in PROBLEMS])
    name = module("0.25 * len(text)")
    with pytest.raises(ValueError, match=rf"a: holds a run with reward = '{name} \w+', not '{name} \w+'; delete it"):
        run(name)
    with pytest.raises(ValueError, match=rf"a: holds a run with reward = '{name} \w+', not None; delete it"):
        run(None)


# --- training ------------------------------------------------------------------------------------------------------


def test_training_learns_a_share_and_its_evaluations_have_the_mean_reward(tiny_dir, tmp_path):
    changes = {"steps": 25, "lr": 3e-3, "group_size": 8, "tau": 0.2, "eval_every": 5, "eval_k": 4, "probe": 4}
    result = train(config(**changes), tiny_dir, PROBLEMS, SETS, tmp_path / "a", progress=False, reward=own.sevens)
    log, evals = (read_jsonl(tmp_path / "a" / f"{name}.jsonl") for name in ("log", "eval"))
    share = [row["reward"] for row in log]
    assert 0 < np.mean(share[:3]) < 0.3
    assert np.mean(share[-3:]) > 0.7
    assert any(0 < row["reward"] < 1 and row["successes"] != [0] * 8 for row in log)
    assert [row["lambda_theory"] > 0 for row in log] == [row["signal"] > 0 for row in log]
    assert [set(row) for row in evals] == [{"step", "set", "k", "correct", "length", "truncated", "reward"}] * 6
    assert all(row["reward"] >= accuracy(row) for row in evals)  # full marks are a part of all marks
    assert any(row["reward"] > accuracy(row) for row in evals)
    best = max(evals, key=lambda row: row["reward"])
    assert (result["best_step"], result["val_best"]) == (best["step"], best["reward"])
    assert result["val_last"] == evals[-1]["reward"]


def test_the_best_policy_is_kept_also_where_every_reward_is_far_below_zero(tiny_dir, tmp_path, module):
    name, changes = module("-5.0 - len(text)"), {"steps": 2, "eval_every": 1}
    result = train(config(**changes), tiny_dir, PROBLEMS, SETS, tmp_path / "a", progress=False, reward=name)
    evals = read_jsonl(tmp_path / "a" / "eval.jsonl")
    assert result["val_best"] == max(row["reward"] for row in evals) < -5
    assert (tmp_path / "a" / "best" / "model.safetensors").exists()
    assert {row["correct"][0] for row in evals} == {0}


def test_without_a_reward_nothing_is_new_but_a_null(tiny_dir, tmp_path):
    train(config(steps=1), tiny_dir, PROBLEMS, SETS, tmp_path / "a", progress=False)
    assert read_json(tmp_path / "a" / "run.json")["reward"] is None
    keys = {"step", "set", "k", "correct", "majority", "length", "truncated"}
    assert [set(row) for row in read_jsonl(tmp_path / "a" / "eval.jsonl")] == [keys] * 2


@pytest.mark.parametrize("reward", ["tests.rewards:nan", "tests.rewards:nosuch"])
def test_training_refuses_a_bad_reward_before_any_work(tiny_dir, tmp_path, reward):
    with pytest.raises(ValueError, match=r"^reward: "):
        train(config(), tiny_dir, PROBLEMS, SETS, tmp_path / "a", progress=False, reward=reward)
    assert not (tmp_path / "a").exists()


# --- theory --------------------------------------------------------------------------------------------------------


def solution(lam, a):
    """s = a − λ exp(s)."""
    return a - lambertw(lam * np.exp(a)).real


def excess(lam, a):
    """E exp(s) − 1, which is 0 at the right λ."""
    return np.exp(solution(lam, a)).mean() - 1


@pytest.mark.parametrize(("method", "stretch"), [("pmd-mean", 3 / 4), ("kimi", 1)])
def test_theory_predicts_for_rewards_that_are_not_0_or_1(method, stretch):
    """By Lambert's W and bisection, for each group."""
    groups = torch.tensor([[0.0, 0.25, 0.5, 1.0], [-3.0, 0.1, 0.7, 0.7], [0.4, 0.4, 0.4, 0.4]])
    tau = 0.3
    wanted = []
    for group in groups.double().numpy():
        a = (group - group.mean()) / (tau * stretch)
        lam = brentq(excess, 0, 1e3, a, xtol=1e-13) if np.ptp(a) else 0.0
        s = solution(lam, a)
        assert lam == pytest.approx(-s.mean(), abs=1e-9)
        wanted.append([lam, (np.exp(s) * s).mean(), (np.expm1(s) ** 2).mean()])
    found = predicted(config(method, tau=tau), groups)
    assert list(found.values()) == pytest.approx(np.mean(wanted, axis=0), rel=1e-6)
    binary = predicted(config(method, tau=tau), (groups > 0.3).float())
    assert binary["lambda_theory"] != pytest.approx(found["lambda_theory"], rel=0.1)
    assert set(predicted(config("rloo"), groups).values()) == {None}  # the same baseline, but no τ


# --- the example ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "completion", "answer", "cut", "mark"),
    [
        ("47+38-13=", "85-13=72", "72", False, 1.0),
        ("47+38-13=", "85-13=71", "72", False, 0.5),
        ("47+38-13=", "75-13=62", "72", False, 0.0),
        ("47+38-13=", "75-13=72", "72", False, 0.5),
        ("47+38-13=", "72", "72", False, 0.0),  # the first step has an operation left
        ("47+38-13=", "85-13=85-13", "72", False, 0.5),  # a step again is no step
        ("47+38-13=", "85-13=72=72=72", "72", False, 0.5),
        ("47+38-13=", "85-13=72", "72", True, 0.0),
        ("47+38-13=", "-=+", "72", False, 0.0),
        ("1+1=", "9" * 5000, "2", False, 0.0),
        ("1+1=", "", "2", False, 0.0),
    ],
)
def test_marks_are_the_share_of_right_steps(prompt, completion, answer, cut, mark):
    assert marks.reward([prompt], [completion], [answer], [cut], colour=[1]) == [mark]
