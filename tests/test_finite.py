"""Finite samples: every baseline learns from the same rollouts, each left out of its own baseline."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from pmd import params
from pmd.experiments import cells, finite
from pmd.experiments.bases import write_digests
from pmd.experiments.finite import run_finite
from pmd.experiments.settings import Finite, temperature
from pmd.experiments.solve import draw, freeze, log_ratios, solve
from pmd.files import write_jsonl
from pmd.model.loading import load_policy, save_policy
from pmd.problems.reader import read_problems
from pmd.sampling.seeds import derive
from pmd.trainer.objectives import Hyper
from pmd.trainer.rollouts import Rollouts

SETTINGS = {"bases": [1], "device": "cpu", "seeds": [2], "n": [3], "tau": [0.5], "tau_b": ["tau", "inf"],
            "prompts": 3, "others": 2,
            "same_k": 4, "other_k": 2, "normalise": "length", "max_tokens": 5, "lr": 1e-2, "steps": 3,
            "threads": 1}  # fmt: skip
FIXED = {key: SETTINGS[key] for key in ("prompts", "others", "same_k", "other_k", "max_tokens")}


@pytest.fixture
def folders(tiny, tmp_path):
    """(data, bases)."""
    write_jsonl(
        tmp_path / "data" / "rl.jsonl",
        [{"id": f"rl-{i}", "prompt": f"{i}+1=", "ground_truth": "1", "rule": "exact"} for i in range(9)],
    )
    save_policy(*tiny, tmp_path / "bases" / "base-1")
    write_digests([1], tmp_path / "bases")
    return tmp_path / "data", tmp_path / "bases"


@pytest.fixture
def even(monkeypatch):
    """Reward even first tokens, since the untrained policy solves nothing."""

    def judge(problems, prompts, responses, tokenizer, ends):
        rewards = torch.tensor([[float(response[0] % 2 == 0) for response in group] for group in responses])
        return Rollouts(prompts, responses, rewards, 0.0)

    monkeypatch.setattr("pmd.experiments.solve.judge", judge)


@pytest.mark.parametrize("tau_b", [0.5, -0.4, math.inf])
def test_a_cell_solves_the_leave_one_out_targets_and_counts_fresh_responses(folders, even, tau_b):
    data, bases = folders
    update = {"n": 3, "tau": 0.5, "tau_b": str(tau_b), "lr": 1e-2, "steps": 3, "normalise": "length"}
    frame = finite.cell(bases / "base-1", 1, 2, problems=data / "rl.jsonl", **FIXED, **update)
    model, tokenizer = load_policy(bases / "base-1")
    chosen = cells.choose(read_problems(data / "rl.jsonl"), derive(2, 1, "finite"), 5)
    batch = draw(model, tokenizer, chosen[:3], 3, 5, derive(2, 1, "finite/3"))
    rewards = batch.rewards.tolist()
    advantage = [
        [r - baseline([x for j, x in enumerate(group) if j != i], tau_b) for i, r in enumerate(group)]
        for group in rewards
    ]
    assert len({tuple(sorted(group)) for group in rewards}) > 1
    frozen = freeze(model, batch)
    list(solve(model, frozen, torch.tensor(advantage), Hyper(0.5, normalise="length"), 5, 1e-2, 3))
    assert frame["lam"].to_list() == pytest.approx([-log_ratios(model, frozen).mean().item()] * 5, abs=1e-6)
    fresh = draw(model, tokenizer, chosen[:3], 4, 5, derive(2, 1, "finite/same"))
    same = frame[frame["set"] == "same"]
    assert same["after"].to_list() == fresh.rewards.sum(1).tolist()
    np.testing.assert_allclose(same["p"], batch.rewards.mean(1))
    assert same["prompt"].to_list() == [problem["id"] for problem in chosen[:3]]
    other = frame[frame["set"] == "other"]
    assert other["prompt"].to_list() == [problem["id"] for problem in chosen[3:]]
    assert set(other["samples"]) == {2}


def baseline(others: list[float], tau_b: float) -> float:
    mean = sum(others) / len(others)
    return mean if math.isinf(tau_b) else tau_b * math.log(sum(math.exp(x / tau_b) for x in others) / len(others))


def test_every_row_stands_beside_the_base_model_of_its_own_prompt(folders, tmp_path, server):
    data, bases = folders
    frame = run_finite(SETTINGS | {"seeds": [2, 5]}, data, tmp_path / "out", bases)
    assert len(frame) == 2 * 2 * (3 + 2)
    assert set(frame["tau_b"]) == {0.5, math.inf}
    for seed in (2, 5):
        untouched = finite.cell(bases / "base-1", 1, seed, problems=data / "rl.jsonl", **FIXED)
        known = {(row.set, row.prompt): row.after for row in untouched.itertuples()}
        rows = frame[frame["seed"] == seed]
        assert all(row.before == known[row.set, row.prompt] for row in rows.itertuples())
    again = run_finite(SETTINGS | {"seeds": [2, 5]}, data, tmp_path / "again", bases)
    pd.testing.assert_frame_equal(frame, again, check_exact=True)


def test_words_for_baselines():
    assert [temperature(x, 0.3) for x in ("tau", "inf", -1, 0.2)] == [0.3, math.inf, -1.0, 0.2]
    with pytest.raises(ValueError, match=r"^finite\.tau_b: got 0, must be a number other than 0, tau or inf$"):
        temperature(0, 0.3)
    assert params.read(Finite, "finite", params.load()["finite"]).n
