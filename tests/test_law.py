"""The law's cells: what is measured belongs to its prompt, its set and its step, beside the right prediction."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist

from pmd import params
from pmd.experiments import cells, law
from pmd.experiments.bases import write_digests
from pmd.experiments.law import run_law, theory
from pmd.experiments.settings import Law
from pmd.experiments.solve import draw, freeze, log_ratios, solve
from pmd.files import write_jsonl
from pmd.harness.clock import Clock
from pmd.harness.config import train_config
from pmd.harness.policy import make_policy
from pmd.model.loading import load_policy, save_policy
from pmd.problems.reader import read_problems
from pmd.sampling.seeds import derive
from pmd.trainer.objectives import Hyper, group_mean
from pmd.trainer.rollouts import Rollouts
from pmd.trainer.update import learn

VALUES = params.load()
TRAIN, METHODS = VALUES["train"] | {"minibatches": 2}, VALUES["methods"]
SETTINGS = {"bases": [1], "device": "cpu", "seeds": [3], "tau": [0.5], "normalise": ["constant"],
            "prompts": 4, "rollouts": 6,
            "held_out": 5, "max_tokens": 6, "lr": 1e-3, "steps": 4, "measure": [1, 2], "threads": 1}  # fmt: skip


def rewarded(rewards: list[list[float]], lengths: list[list[int]]) -> Rollouts:
    responses = [[[7] * n for n in group] for group in lengths]
    return Rollouts([[1]] * len(rewards), responses, torch.tensor(rewards), 0.0)


@pytest.fixture
def folders(tiny, tmp_path):
    """(data, bases): problems of which the untrained policy solves some, since every answer's first digit counts."""
    problems = [{"id": f"rl-{i}", "prompt": f"{i}+1=", "ground_truth": "1", "rule": "exact"} for i in range(9)]
    write_jsonl(tmp_path / "data" / "rl.jsonl", problems)
    save_policy(*tiny, tmp_path / "bases" / "base-1")
    write_digests([1], tmp_path / "bases")
    return tmp_path / "data", tmp_path / "bases"


def test_the_prediction_is_the_reference_value_of_its_success_rate():
    """λ(τ = 0.1, p = 0.3) = 1.80654747, λ(0.1, 0.05) = 0.624133441 of the theory; nothing where all are alike."""
    rewards = [[1.0] * 6 + [0.0] * 14, [0.0] * 19 + [1.0], [0.0] * 20, [1.0] * 20]
    found = theory(rewarded(rewards, [[3] * 20] * 4), 0.1, "constant")
    np.testing.assert_allclose(found["p"], [0.3, 0.05, 0, 1])
    np.testing.assert_allclose(found["lam"], [1.80654747, 0.624133441, 0, 0], atol=1e-8)
    p_after = 0.3 * np.exp(found["s1"][0])
    assert p_after == pytest.approx(0.967918339, abs=1e-8)
    assert 0.7 * np.exp(found["s0"][0]) == pytest.approx(1 - 0.967918339, abs=1e-8)
    assert np.isnan(found["s1"][2])
    assert np.isnan(found["s0"][3])


def test_what_is_measured_is_of_its_own_set():
    one = rewarded([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]], [[2, 4, 6], [1, 1, 4]])
    got = law.rows(one, torch.tensor([0.1, -0.4, 0.5, -1.0, -2.0, 0.6], dtype=torch.float64))
    expected = {"n": [3, 3], "successes": [2, 0], "length": [4.0, 2.0], "s_success": [0.3, np.nan],
                "s_failure": [-0.4, -0.8], "minus_mean_s": [-0.2 / 3, 0.8]}  # fmt: skip
    pd.testing.assert_frame_equal(got, pd.DataFrame(expected))


def half(problems, prompts, responses, tokenizer, ends):
    """Rewards for even first tokens, because the untrained policy solves nothing."""
    rewards = torch.tensor([[float(response[0] % 2 == 0) for response in group] for group in responses])
    return Rollouts(prompts, responses, rewards, 0.0)


def test_a_cell_is_the_solved_update_of_its_own_rollouts(folders, monkeypatch):
    """The last step's rows by hand; a copy with other rewards would show another baseline or pairing."""
    data, bases = folders
    fixed = {
        key: value
        for key, value in SETTINGS.items()
        if key not in ("bases", "seeds", "tau", "normalise", "threads", "device")
    }

    monkeypatch.setattr("pmd.experiments.solve.judge", half)
    frame = law.cell(
        bases / "base-1", 1, 3, 0.5, "length", problems=data / "rl.jsonl", train=TRAIN, methods=METHODS, **fixed
    )
    assert frame.groupby(["how", "step", "set"]).size().to_dict() == {
        (how, step, name): 4
        for how, step in (("practice", 2), ("solved", 1), ("solved", 2), ("solved", 4))
        for name in ("batch", "held out")
    }
    model, tokenizer = load_policy(bases / "base-1")
    chosen = cells.choose(read_problems(data / "rl.jsonl"), derive(3, 1, "law"), 4)
    batch = draw(model, tokenizer, chosen, 6, 6, derive(3, 1, "law/batch"))
    other = draw(model, tokenizer, chosen, 5, 6, derive(3, 1, "law/held out"))
    assert len({tuple(group) for group in batch.rewards.tolist()}) > 2
    seen, unseen = freeze(model, batch), freeze(model, other)
    list(solve(model, seen, group_mean(batch.rewards.double(), 0), Hyper(0.5, normalise="length"), 6, 1e-3, 4))
    last = frame[frame["step"] == 4]
    assert list(last["prompt"]) == [problem["id"] for problem in chosen] * 2
    for name, rollouts, frozen in (("batch", batch, seen), ("held out", other, unseen)):
        found, s = last[last["set"] == name], log_ratios(model, frozen).reshape(4, -1).numpy()
        right = rollouts.rewards.numpy() == 1
        np.testing.assert_allclose(found["minus_mean_s"], -s.mean(1), atol=1e-9)
        np.testing.assert_allclose(
            found["s_success"], [row[r].mean() if r.any() else np.nan for row, r in zip(s, right, strict=True)]
        )
        np.testing.assert_allclose(found["p"], (batch.rewards == 1).double().mean(1))
    assert last["minus_mean_s"].abs().max() > 1e-3
    asked = {"prompts": 4, "group_size": 6, "tau": 0.5, "normalise": "length", "max_tokens": 6}
    config = train_config("kimi", 3, {"train": TRAIN, "methods": METHODS}, **asked)
    policy = make_policy(config, bases / "base-1", "cpu")
    learn(config, 1, policy.model, policy.optimizer, batch, Clock({}))  # the trainer's one pass, of two minibatches
    practised = frame[(frame["how"] == "practice") & (frame["set"] == "batch")]
    expected = -log_ratios(policy.model, freeze(load_policy(bases / "base-1")[0], batch)).reshape(4, -1).numpy().mean(1)
    np.testing.assert_allclose(practised["minus_mean_s"], expected, atol=1e-9)
    assert np.abs(expected).max() > 1e-4


def test_a_cell_of_a_sharded_policy_is_that_of_a_policy_in_one_piece(folders, monkeypatch):
    """On CUDA one rank is sharded too, and a process without torchrun must make a group for itself; here of gloo."""
    data, bases = folders
    axes = ("bases", "seeds", "tau", "normalise", "threads", "device")
    fixed = {key: value for key, value in SETTINGS.items() if key not in axes}

    def made() -> pd.DataFrame:
        return law.cell(
            bases / "base-1", 1, 3, 0.5, "length", problems=data / "rl.jsonl", train=TRAIN, methods=METHODS, **fixed
        )

    def start(device):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        return device

    monkeypatch.setattr("pmd.experiments.solve.judge", half)
    whole = made()
    monkeypatch.setattr("pmd.harness.policy.trained_sharded", lambda device: True)
    monkeypatch.setattr("pmd.model.distributed.start", start)
    try:
        divided = made()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    pd.testing.assert_frame_equal(divided, whole, check_exact=True)
    assert whole["minus_mean_s"].abs().max() > 1e-3


def test_a_stopped_experiment_goes_on_with_the_same_bits(folders, tmp_path, server):
    data, bases = folders
    settings = SETTINGS | {"tau": [0.1, 0.5]}
    whole = run_law(settings, TRAIN, METHODS, data, tmp_path / "whole", bases)
    parts = tmp_path / "parts"
    run_law(SETTINGS, TRAIN, METHODS, data, parts, bases)
    kept = {file.name: file.stat().st_mtime_ns for file in parts.glob("*.parquet")}
    pd.testing.assert_frame_equal(run_law(settings, TRAIN, METHODS, data, parts, bases), whole, check_exact=True)
    assert list(whole["tau"].unique()) == [0.1, 0.5]
    files = {file.name: file.stat().st_mtime_ns for file in parts.glob("*.parquet")}
    assert len(kept) == 1
    assert kept.items() < files.items()
    run_law(SETTINGS | {"lr": 2e-3}, TRAIN, METHODS, data, parts, bases)
    assert len(list(parts.glob("*.parquet"))) == 1


def test_the_committed_settings_are_read():
    law_settings = params.read(Law, "law", VALUES["law"])
    assert max(law_settings.measure) < law_settings.steps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tau": [0.0]}, r"law\.tau: got \[0\.0\], must be"),
        ({"bases": [9]}, r"bases: got 9, must be one of the base models in bases/: 1"),
        ({"rollouts": 1}, r"law\.rollouts: got 1, must be at least 2"),
        ({"step": 1}, r"law\.step: got 1, must be left out"),
    ],
)
def test_bad_settings_are_refused_in_one_line(folders, tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as refusal:
        run_law(SETTINGS | change, TRAIN, METHODS, *folders[:1], tmp_path / "out", folders[1])
    assert "\n" not in str(refusal.value)
