"""What a machine cannot do is said in one line: the reasons are given facts, since no test machine has them all."""

from __future__ import annotations

import contextlib
import weakref
from dataclasses import replace

import pytest
import torch

from pmd.model import device
from pmd.model.device import GIB, Cuda, check_device, check_memory, held, refusal, spare
from pmd.model.loading import load_policy

A100 = Cuda("2.13.0+cu130", "13.0", (13, 0), 2, "NVIDIA A100", (8, 0))
V100 = replace(A100, name="Tesla V100", capability=(7, 0))


@pytest.mark.parametrize("where", ["cuda", "cuda:1"])
@pytest.mark.parametrize("facts", [A100, replace(A100, build="13.2"), replace(A100, driver=(14, 1))])
def test_a_card_that_can_compute_is_not_refused(where, facts):
    assert refusal(where, "bfloat16", facts) is None
    assert refusal(where, "float32", replace(facts, capability=(7, 0))) is None


@pytest.mark.parametrize(
    ("where", "facts", "line"),
    [
        ("cuda", Cuda("2.13.0+cpu", None, None, 0), r"device: got 'cuda', but PyTorch .* sees 0 CUDA devices; .*"),
        (
            "cuda",
            replace(A100, driver=None, devices=0),
            "device: got 'cuda', but .* sees 0 CUDA devices; .* nvidia-smi",
        ),
        ("cuda:2", A100, r"device: got 'cuda:2', but PyTorch .* sees 2 CUDA devices; choose cpu, .*"),
        (
            "cuda",
            replace(A100, driver=(12, 4), devices=0),
            r"device: got 'cuda', but the driver of this machine supports CUDA 12\.4 and PyTorch 2\.13\.0\+cu130 needs "
            r"13\.0 or newer; update the driver, choose cpu, or install a PyTorch built for CUDA 12",
        ),
        (
            "cuda:1",
            V100,
            r"dtype: got 'bfloat16', must be float32 on cuda:1, a Tesla V100 of compute capability 7\.0: .* takes 8\.0",
        ),
    ],
)
def test_a_card_that_cannot_is_refused_in_one_line(where, facts, line, monkeypatch):
    monkeypatch.setattr(device, "_cuda", lambda _: facts)
    with pytest.raises(ValueError, match=f"^{line}$") as caught:
        check_device(where, "bfloat16")
    assert "\n" not in str(caught.value)


def test_the_facts_of_this_machine_are_read():
    facts = device._cuda("cuda:99")
    assert (facts.torch, facts.build, facts.name) == (torch.__version__, torch.version.cuda, "")
    check_device("cpu", "bfloat16")
    with pytest.raises(ValueError, match=r"^device: got 'cuda:99', but "):
        check_device("cuda:99")


def test_what_other_processes_hold_is_said_but_not_this_ones_own_context():
    assert held(79.2 * GIB, 80 * GIB) is None
    assert held(29 * GIB, 80 * GIB) == "other processes hold 50.0 of its 80.0 GiB"


def test_a_reserve_is_left_whatever_others_hold():
    assert spare(79.5 * GIB, 80 * GIB) == pytest.approx(72 * GIB)
    assert spare(29 * GIB, 80 * GIB) == pytest.approx((72 - 50) * GIB)


@pytest.fixture
def card(monkeypatch):
    """A CUDA device of 24 GiB that is not there; how much of it is free is set by calling it."""

    def holds(free: float, reserved: float = 0.0) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda where: (free * GIB, 24 * GIB))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda where: reserved * GIB)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda where: 0)

    monkeypatch.setattr(device, "_cuda", lambda where: A100)
    return holds


def test_memory_that_is_lacking_is_named_in_one_line(card):
    card(8.0)
    check_memory("cuda:1", 6.5 * GIB, "a model", "take less")
    line = (
        r"device: a model takes 7\.0 GiB at least, and cuda:1 has 6\.6 of its 24\.0 to spare: 0\.4 too much; take less"
    )
    with pytest.raises(ValueError, match=f"^{line}$"):
        check_memory("cuda:1", 7 * GIB, "a model", "take less")
    check_memory("cpu", 7 * GIB, "a model", "take less")
    card(1.0, reserved=7.0)  # what PyTorch keeps for later is not lost
    check_memory("cuda:1", 6.5 * GIB, "a model", "take less")


def test_a_policy_that_is_garbage_does_not_count_as_taken(card, monkeypatch):
    """A worker trains run after run, and FSDP2's modules and their states refer to one another."""
    policy = torch.nn.Module()
    vars(policy)["itself"], alive = policy, weakref.ref(policy)
    card(1.0, reserved=7.0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda where: 7 * GIB if alive() else 0)
    del policy
    check_memory("cuda:1", 6.5 * GIB, "a model", "take less")


@pytest.mark.parametrize(
    ("dtype", "divided", "factor"), [("float32", False, 4), ("bfloat16", False, 2), ("float32", True, 16)]
)
def test_a_model_that_a_card_has_no_room_for_is_refused_before_it_is_read(
    card, tiny, tiny_dir, monkeypatch, dtype, divided, factor
):
    """In the type of its weights; one that is trained with its gradients and moments."""

    class Read(Exception):
        pass

    def reads(*arguments, **options):
        raise Read

    monkeypatch.setattr("pmd.model.loading.AutoConfig.from_pretrained", reads)
    monkeypatch.setattr("pmd.model.loading._explained", contextlib.nullcontext)
    need = factor * tiny[0].num_parameters() / GIB
    card(0.1 * 24 - 1 + 0.99 * need)
    with pytest.raises(ValueError, match=r"^device: (training )?a model of 0\.00 B parameters takes .* cuda:1 has"):
        load_policy(tiny_dir, "cuda:1", dtype, divided=divided)
    card(0.1 * 24 - 1 + 1.01 * need)
    with pytest.raises(Read):
        load_policy(tiny_dir, "cuda:1", dtype, divided=divided)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="Apple's GPU is here")
def test_a_missing_gpu_of_apples_is_one_line():
    with pytest.raises(ValueError, match=r"^device: got .mps., but PyTorch sees no GPU of Apple.s; choose cpu"):
        check_device("mps")
