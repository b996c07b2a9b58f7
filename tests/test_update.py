"""One step on a batch: what is on-policy, how a minibatch is cut and dealt, and that its pieces have its gradient."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pmd.harness.clock import Clock
from pmd.harness.passes import fill_passes, make_pass, own_passes, passes_of_rank, share_by_rank, split
from pmd.harness.policy import Policy
from pmd.methods import METHODS
from pmd.model.forward import frozen_log_probs, log_probs
from pmd.model.loading import load_policy
from pmd.sampling.torch_engine import TorchEngine
from pmd.scale.vllm_engine import Drift
from pmd.trainer import measurements, update
from pmd.trainer.objectives import OBJECTIVES
from pmd.trainer.rollouts import Rollouts, sample
from pmd.trainer.staleness import from_tensors, to_tensors
from tests.test_loop import PROBLEMS, config


def test_the_first_minibatch_is_on_policy_and_later_ones_are_not(tiny_dir):
    """Old log-probabilities are the trainer's own: at θ_t the log-ratio is 0 to the last bit."""
    model, _ = load_policy(tiny_dir)
    rollouts = Rollouts([[3, 15], [4, 15]], [[[4, 1], [5, 6, 1]], [[7, 1], [1]]], torch.zeros(2, 2), 0.0)
    advantages = torch.tensor([[1.0, -1.0], [0.5, -0.5]])
    [batch], [later] = parts = [own_passes(rollouts, [g], None, advantages, "cpu") for g in (0, 1)]
    forward, [old, other], entropy = update.freeze(config(), model, rollouts, parts)
    assert not old.requires_grad  # else its gradient would cancel that of log π_θ, which is the same pass
    assert torch.equal(old, log_probs(model, batch.packed)[0].detach())
    torch.testing.assert_close(other, log_probs(model, later.packed)[0].detach(), atol=1e-6, rtol=0)
    both = torch.cat([log_probs(model, b.packed)[1] for b in (batch, later)]).double().mean().item()
    assert entropy == pytest.approx(both, abs=1e-6)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    update.update(config(), 2, model, optimizer, [(batch, old, None)], (2, 5), forward)
    assert forward == []
    assert not torch.equal(old, log_probs(model, batch.packed)[0].detach())


def test_rollouts_that_waited_keep_the_log_probabilities_of_the_policy_that_sampled_them(tiny):
    known = [[torch.rand(len(response)) for response in group] for group in MIXED.responses]
    parts = [own_passes(MIXED, [g], None, torch.zeros(3, 3), "cpu") for g in (2, 0)]
    first, old, entropy = update.freeze(config(), tiny[0], replace(MIXED, old=known, entropy=1.25), parts)
    assert (first, entropy) == ([], 1.25)
    assert [x.tolist() for x in old] == [torch.cat(known[g]).tolist() for g in (2, 0)]


def test_the_learning_rate_grows_by_equal_steps_and_is_full_after_the_warmup(tiny):
    model, rates = copy.deepcopy(tiny[0]), []
    optimizer = torch.optim.AdamW(model.parameters())
    [batch] = own_passes(MIXED, [0, 1, 2], None, torch.zeros(3, 3), "cpu")
    old, _ = frozen_log_probs(model, batch.packed)
    for step in (1, 2, 3, 4, 9):
        update.update(config(warmup=3, lr=4e-4), step, model, optimizer, [(batch, old, None)], (9, 24), [])
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-4, 2e-4, 3e-4, 4e-4, 4e-4])


def test_a_step_logs_the_mean_of_its_updates_and_predicts_for_the_groups_that_are_probed(tiny, monkeypatch):
    """The first group has no signal and is left out, the second is probed, the third is not."""
    rewards, original, done = torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, 1, 1]]), update.update, []

    def noted(*given):
        done.append((given[5], original(*given)))
        return done[-1][1]

    monkeypatch.setattr(update, "update", noted)
    how = config(group_size=3, minibatches=2, probe=1, filter_low=0.0, filter_high=1.0, tau=0.5)
    model = copy.deepcopy(tiny[0])
    optimizer = torch.optim.AdamW(model.parameters())
    row = update.learn(how, 1, model, optimizer, replace(MIXED, rewards=rewards), Clock({}))
    assert row["kept"] == 2 / 3
    assert [size for size, _ in done] == [(3, 7), (3, 11)]  # responses and tokens of the minibatch
    for key in ("loss", "grad_norm"):
        assert done[0][1][key] != done[1][1][key]
        assert row[key] == pytest.approx((done[0][1][key] + done[1][1][key]) / 2)
    expected = measurements.predicted(how, rewards[1:2])
    assert {key: row[key] for key in expected} == expected
    assert expected["lambda_theory"] != pytest.approx(measurements.predicted(how, rewards[1:])["lambda_theory"])


def test_minibatches_are_whole_groups_as_equal_as_can_be():
    assert split([0, 1, 2, 3, 4, 5, 6, 7], 4) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert split([3, 5, 6], 2) == [[3], [5, 6]]
    assert split([2], 4) == [[2]]


# --- microbatches --------------------------------------------------------------------------------------------------

MIXED = Rollouts(
    [[3, 15], [5, 13, 6, 7, 15], [9, 15]],
    [[[4, 1], [5, 6, 1], [1]], [[7, 8, 9, 1], [8], [4, 4]], [[3, 1], [3, 4, 5, 6, 7, 8, 1], [9, 1]]],
    torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 1]]),
    0.0,
)
"""Three groups of three responses of 1 to 7 tokens."""


def every(*groups: int) -> list[tuple[int, int]]:
    return [(g, i) for g in groups for i in range(3)]


def test_a_minibatch_is_cut_at_the_budget_into_whole_responses():
    found = fill_passes(MIXED, every(0, 1, 2), 8)
    # prompt + all but each last token: (2+1+2+0), (5+3+0), (5+1), (2+1), (2+6), (2+1); one more would make 9 or more
    assert found == [{0: [0, 1, 2]}, {1: [0, 1]}, {1: [2]}, {2: [0]}, {2: [1]}, {2: [2]}]
    assert fill_passes(MIXED, every(0, 2), 9) == [{0: [0, 1, 2], 2: [0]}, {2: [1, 2]}]
    assert fill_passes(MIXED, every(1, 2), 1) == [{g: [i]} for g in (1, 2) for i in range(3)]
    assert fill_passes(MIXED, every(0, 2), None) == [{0: [0, 1, 2], 2: [0, 1, 2]}]


@pytest.mark.parametrize("budget", [1, 8, 12, 20, 40])
def test_packed_microbatches_stay_within_the_budget_and_lose_nothing(budget):
    advantages = torch.arange(9.0).view(3, 3)
    batches = own_passes(MIXED, [0, 1, 2], budget, advantages, "cpu")
    for batch in batches:
        assert batch.packed.ids.shape[1] <= budget or len(batch.packed.lengths) == 1
    assert torch.cat([b.advantage for b in batches]).tolist() == list(range(9))
    assert torch.cat([b.packed.target for b in batches]).tolist() == [t for g in MIXED.responses for r in g for t in r]
    assert torch.cat([b.packed.lengths for b in batches]).tolist() == [len(r) for g in MIXED.responses for r in g]


def gradient(model, method: str, budget: int | None, weights: torch.Tensor | None = None) -> tuple[dict, torch.Tensor]:
    """What `update` reports and the gradient it computed, away from θ_t, so that the clips bite.

    weights: the importance weights of MIXED's responses, [9].
    """
    run_config = config(method, microbatch_tokens=budget, grad_clip=1e9, clip_low=0.05, clip_high=0.05)
    advantages = OBJECTIVES[method].advantage(MIXED.rewards.double(), run_config.tau).float()
    batches = own_passes(MIXED, [0, 1, 2], budget, advantages, "cpu")
    noise = 0.2 * torch.randn(24, generator=torch.Generator().manual_seed(0))
    old = torch.cat([frozen_log_probs(model, batch.packed)[0] for batch in batches]) + noise
    known = old.split([len(batch.packed.target) for batch in batches])
    of_pass = [None] * len(batches)
    if weights is not None:
        of_pass = weights.split([len(batch.packed.lengths) for batch in batches])
    triples = list(zip(batches, known, of_pass, strict=True))
    model = copy.deepcopy(model)
    done = update.update(run_config, 1, model, torch.optim.AdamW(model.parameters(), 1e-3), triples, (9, 24), [])
    return done, torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("method", sorted(OBJECTIVES))
def test_microbatches_have_the_gradient_of_the_minibatch(tiny, method):
    whole, expected = gradient(tiny[0], method, None)
    for budget in (1, 8, 20):
        done, found = gradient(tiny[0], method, budget)
        assert (found - expected).norm() <= 1e-5 * expected.norm()
        torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
        assert done["loss"] == pytest.approx(whole["loss"], rel=1e-5)
        assert done["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-5)
        assert done["clip_fraction"] == whole["clip_fraction"]
    if "clip_low" in METHODS[method].uses:
        assert 0 < whole["clip_fraction"] < 1


@pytest.mark.parametrize("method", sorted(OBJECTIVES))
def test_an_importance_weight_multiplies_the_term_of_its_response(tiny, method):
    """Losses and gradients with a weight of 1 for one response and 0 for the others add up to the unweighted ones."""
    whole, expected = gradient(tiny[0], method, 8)
    each = [gradient(tiny[0], method, 8, torch.eye(9)[i]) for i in range(9)]
    assert sum(done["loss"] for done, _ in each) == pytest.approx(whole["loss"], rel=1e-5, abs=1e-7)
    torch.testing.assert_close(
        sum(found for _, found in each), expected, atol=1e-5 * expected.abs().max().item(), rtol=0
    )
    doubled, found = gradient(tiny[0], method, 8, torch.full((9,), 2.0))
    assert doubled["loss"] == pytest.approx(2 * whole["loss"], rel=1e-5)
    torch.testing.assert_close(found, 2 * expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


def test_no_value_is_read_before_the_last_pass_has_been_launched(tiny, monkeypatch):
    """On a GPU each reading would wait for the device; the loss is the sum of the passes', one after another."""
    calls, losses = [], []
    backward, item = torch.Tensor.backward, torch.Tensor.item
    loss = OBJECTIVES["pmd-mean"].loss

    def noted(seen, hyper):
        found = loss(seen, hyper)
        losses.append(found[0].detach())
        return found

    monkeypatch.setitem(OBJECTIVES, "pmd-mean", replace(OBJECTIVES["pmd-mean"], loss=noted))
    monkeypatch.setattr(torch.Tensor, "backward", lambda x, *a, **k: calls.append("backward") or backward(x, *a, **k))
    monkeypatch.setattr(torch.Tensor, "item", lambda x: calls.append("item") or item(x))
    done, _ = gradient(tiny[0], "pmd-mean", 8)
    launched = [i for i, name in enumerate(calls) if name == "backward"]
    assert len(launched) == len(losses) > 2
    assert "item" not in calls[launched[0] : launched[-1]]
    expected = 0.0
    for value in losses:
        expected += item(value)
    assert done["loss"] == expected


# --- ranks ---------------------------------------------------------------------------------------------------------

lengths = st.lists(st.lists(st.integers(1, 30), min_size=2, max_size=5), min_size=1, max_size=6)


def made(lengths: list[list[int]]) -> Rollouts:
    """Groups of responses of these lengths, each token its own."""
    responses = [[list(range(length)) for length in group] for group in lengths]
    return Rollouts([[3] * (1 + g % 3) for g in range(len(lengths))], responses, torch.zeros(0), 0.0)


@given(lengths, st.integers(1, 5))
def test_every_response_is_dealt_once_and_the_shares_are_balanced(lengths, ranks):
    rollouts = made(lengths)
    shares = share_by_rank(rollouts, list(range(len(lengths))), ranks)
    assert [pair for share in shares for pair in share] == [
        (g, i) for g, x in enumerate(lengths) for i in range(len(x))
    ]
    cost = {(g, i): n - 1 + len(rollouts.prompts[g]) / len(x) for g, x in enumerate(lengths) for i, n in enumerate(x)}
    loads = [sum(cost[pair] for pair in share) for share in shares]
    assert max(abs(load - sum(loads) / ranks) for load in loads) <= max(cost.values()) + 1e-9


def test_a_prompt_that_its_responses_share_is_paid_for_once():
    """Group 0 costs 90 + 10 · 10 tokens, group 1 costs 1 + 10 · 19: a rank each."""
    responses = [[[4] * 11] * 10, [[4] * 20] * 10]
    shares = share_by_rank(Rollouts([[3] * 90, [3]], responses, torch.zeros(0), 0.0), [0, 1], 2)
    assert shares == [[(g, i) for i in range(10)] for g in (0, 1)]


@given(lengths, st.integers(1, 4), st.sampled_from([None, 1, 12, 40]))
def test_all_ranks_make_the_same_number_of_passes_over_everything(lengths, ranks, budget):
    rollouts, groups = made(lengths), list(range(len(lengths)))
    dealt = [passes_of_rank(rollouts, groups, budget, rank, ranks) for rank in range(ranks)]
    assert len({len(own) for own in dealt}) == 1
    found = [(g, i) for own in dealt for part in own for g, chosen in part.items() for i in chosen]
    assert sorted(found) == [(g, i) for g, x in enumerate(lengths) for i in range(len(x))]


def test_a_pass_for_other_ranks_moves_nothing(tiny):
    """The gradient with an idle pass among the microbatches is the gradient without it, bit for bit."""
    model, advantages, gradients = tiny[0], torch.arange(9.0).view(3, 3) - 4, []
    for extra in ([], [{}]):
        parts = [{0: [0, 1, 2], 1: [0, 1, 2]}, {2: [0, 1, 2]}, *extra]
        batches = [make_pass(MIXED, part, advantages, "cpu") for part in parts]
        triples = [(b, frozen_log_probs(model, b.packed)[0] if b.chosen else torch.zeros(1), None) for b in batches]
        copied = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(copied.parameters())
        done = update.update(config("grpo"), 1, copied, optimizer, triples, (9, 24), [])
        gradients.append((done, [p.grad for p in copied.parameters()]))
    assert gradients[0][0] == gradients[1][0]
    assert all(torch.equal(a, b) for a, b in zip(gradients[0][1], gradients[1][1], strict=True))


# --- rollouts that wait, engines that mismatch ----------------------------------------------------------------------


def test_rollouts_survive_as_tensors():
    old = [[torch.rand(len(response)) for response in group] for group in MIXED.responses]
    sampled = [[[-0.5] * len(response) for response in group] for group in MIXED.responses]
    for rollouts in (MIXED, replace(MIXED, old=old, entropy=1.25, sampled=sampled)):
        again = from_tensors(to_tensors(rollouts))
        assert (again.prompts, again.responses) == (rollouts.prompts, rollouts.responses)
        assert torch.equal(again.rewards, rollouts.rewards)
        assert (again.truncated, again.entropy, again.sampled) == (0.0, rollouts.entropy, rollouts.sampled)
        groups = zip(again.old or [], rollouts.old or [], strict=True)
        pairs = [pair for group in groups for pair in zip(*group, strict=True)]
        assert len(pairs) == (9 if rollouts.old else 0)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_importance_weights_are_ratios_of_sequences_cut_at_the_cap(tiny):
    """Against the definition; and a weight multiplies its response's whole term, before the mean."""
    model, capped = tiny[0], config(engine="vllm", importance_cap=1.5)
    [batch] = own_passes(MIXED, [0, 1, 2], None, torch.ones(3, 3), "cpu")
    before = frozen_log_probs(model, batch.packed)[0]
    noise = np.random.default_rng(0).normal(0, 0.3, len(before))
    theirs = iter((before.double().numpy() + noise).tolist())
    sampled = [[[next(theirs) for _ in response] for response in group] for group in MIXED.responses]
    got = update.importance(capped, replace(MIXED, sampled=sampled), batch, before)
    ends = np.cumsum([0, *batch.packed.lengths.tolist()])
    exact = [min(1.5, np.exp(-noise[a:b].sum())) for a, b in pairwise(ends)]
    np.testing.assert_allclose(got.double().numpy(), exact, rtol=1e-6)
    assert (got == 1.5).any()
    assert (got < 1.5).any()
    assert update.importance(config(), MIXED, batch, before) is None


# --- what is sampled and measured -----------------------------------------------------------------------------------


def answers(tiny, step: int, **changes) -> list[list[int]]:
    """The responses to one prompt that `step` samples from a policy that never changes."""
    model, tokenizer = tiny
    policy = Policy(model, tokenizer, torch.optim.AdamW(model.parameters()), TorchEngine(model, tokenizer.eos_token_id))
    one = config(prompts=1, minibatches=1, probe=1, **changes)
    [group] = sample(one, step, policy, PROBLEMS[:1], Clock({})).responses
    return group


def test_the_same_prompt_is_answered_anew_at_each_step_at_the_temperature_of_training(tiny):
    assert answers(tiny, 1) == answers(tiny, 1) != answers(tiny, 2)
    assert len(set(map(tuple, answers(tiny, 1)))) > 1
    cold = [answers(tiny, step, temperature=1e-3) for step in (1, 2)]
    assert cold == [[cold[0][0]] * 4] * 2


def test_what_a_batch_is_like_by_hand():
    """A part of the reward is no success; a group whose rewards differ in one place has a signal."""
    rewards = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 1.0], [0.25, 0.25, 0.25]])
    assert measurements.of_rollouts(replace(MIXED, rewards=rewards, truncated=0.125)) == {
        "reward": pytest.approx(3.75 / 9),
        "signal": pytest.approx(2 / 3),
        "length": pytest.approx(24 / 9),
        "truncated": 0.125,
        "successes": [0, 2, 0],
        "group_size": 3,
    }


def test_tokens_count_alike_whichever_pass_or_rank_they_are_of(monkeypatch):
    assert measurements.mean_over_ranks([torch.tensor([1.0]), torch.tensor([2.0, 3.0, 7.0])]) == 3.25
    drifts = [Drift(0.1, 0.3, tokens=30), Drift(0.5, 0.9, tokens=10), Drift(0.0, 0.0, tokens=0), None]
    monkeypatch.setattr(measurements, "gather", lambda own: drifts)
    assert measurements.of_engine(object()) == {"drift": pytest.approx(0.2), "drift_largest": 0.9}
    drifts[:2] = []
    assert measurements.of_engine(object()) == {}
