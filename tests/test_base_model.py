"""The base model's training: it lowers the loss, resumes to the same bits, and follows its schedule."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from pmd.experiments import base_model
from pmd.experiments.base_model import learning_rate, train_base
from pmd.files import read_jsonl
from pmd.model.settings import read_bases
from pmd.params import load

TRACES = [{"id": f"t{i}", "prompt": f"{i}+{i}=", "ground_truth": str(2 * i), "response": str(2 * i)} for i in range(40)]
CONFIG = read_bases(
    load()["base"]
    | {
        "seeds": [0],
        "layers": 1,
        "width": 32,
        "heads": 2,
        "feedforward": 64,
        "steps": 60,
        "batch": 16,
        "warmup": 5,
        "threads": 1,
    },
)[0]


def test_it_learns_and_logs(tmp_path):
    train_base(CONFIG, TRACES, tmp_path / "base", progress=False)
    log = read_jsonl(tmp_path / "base" / "log.jsonl")
    assert [row["step"] for row in log] == [20, 40, 60]
    assert log[-1]["loss"] < 0.85 * log[0]["loss"]


def test_it_learns_in_bfloat16_and_keeps_its_weights_in_float32(tmp_path):
    train_base(CONFIG.model_copy(update={"dtype": "bfloat16"}), TRACES, tmp_path / "half", progress=False)
    train_base(CONFIG, TRACES, tmp_path / "exact", progress=False)
    half, exact = (load_file(tmp_path / name / "model.safetensors") for name in ("half", "exact"))
    assert {weight.dtype for weight in half.values()} == {torch.float32}
    assert any(not torch.equal(half[name], exact[name]) for name in half)
    losses = [read_jsonl(tmp_path / name / "log.jsonl")[-1]["loss"] for name in ("half", "exact")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(base_model, "CHECKPOINT_EVERY", 25)
    train_base(CONFIG, TRACES, tmp_path / "whole", progress=False)
    original = base_model._step

    def stop(config, step, *rest):
        if step == 40:
            raise KeyboardInterrupt
        return original(config, step, *rest)

    monkeypatch.setattr(base_model, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        train_base(CONFIG, TRACES, tmp_path / "cut", progress=False)
    monkeypatch.setattr(base_model, "_step", original)
    train_base(CONFIG, TRACES, tmp_path / "cut", progress=False)
    for name in ("model.safetensors", "log.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(tmp_path.glob("*-work"))


@pytest.mark.parametrize("changed", ["parameters", "traces", "code"])
def test_what_another_run_began_is_not_gone_on_with(changed, tmp_path, monkeypatch):
    monkeypatch.setattr(base_model, "CHECKPOINT_EVERY", 20)
    config = CONFIG.model_copy(update={"steps": 20})
    save = base_model.save_policy

    def stop(*_):
        raise KeyboardInterrupt  # all is trained, nothing is saved but the checkpoint

    monkeypatch.setattr(base_model, "save_policy", stop)
    with pytest.raises(KeyboardInterrupt):
        train_base(config, TRACES, tmp_path / "base", progress=False)
    monkeypatch.setattr(base_model, "save_policy", save)
    traces = TRACES[::-1] if changed == "traces" else TRACES
    if changed == "parameters":
        config = config.model_copy(update={"lr": config.lr / 2})
    if changed == "code":
        monkeypatch.setattr(base_model, "fingerprint", lambda: "other")
    steps = []
    original = base_model._step
    monkeypatch.setattr(
        base_model, "_step", lambda config, step, *rest: steps.append(step) or original(config, step, *rest)
    )
    train_base(config, traces, tmp_path / "base", progress=False)
    assert steps == list(range(1, 21))


def test_schedule():
    rates = [learning_rate(CONFIG, step) for step in range(1, 61)]
    assert rates[0] == pytest.approx(CONFIG.lr / 5)
    assert rates[4] == pytest.approx(CONFIG.lr)
    assert rates[-1] == pytest.approx(CONFIG.lr / 10)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_a_trace_without_a_response_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"trace 2 \(id 't1'\): column 'response'"):
        train_base(CONFIG, [TRACES[0], TRACES[1] | {"response": ""}], tmp_path / "base")
    assert not (tmp_path / "base").exists()
