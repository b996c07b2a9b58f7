"""The objective of PMD-mean and its relatives in one call, for any training loop: `pmd.loss`.

It needs torch alone. The plug-ins for TRL, verl and prime-rl (pmd/trl.py, pmd/verl.py, pmd/prime_rl.py) are made of the
functions here, so they share the arithmetic of this package's own trainer (pmd/trainer/objectives.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pmd.trainer.objectives import (
    Hyper,
    Minibatch,
    full_step,
    leave_one_out_tilted,
    per_response,
    regression,
)

BASELINES = ("mean", "partition", "tilted")
"""PMD-mean, PMD-part, and the family between them whose baseline has a temperature τ_b of its own."""


def loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    rewards: Tensor,
    lengths: Tensor,
    *,
    tau: float,
    baseline: str = "mean",
    tau_b: float | None = None,
    normalise: str = "length",
    max_tokens: int | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """mean_i (τ/2) (A_i/τ − s_i)² / L_i, a scalar, differentiable in `log_probs` (arXiv:2602.05933, practical loss).

    S responses in G groups, each of n ≥ 2 responses to one prompt: S = G n, group after group.

    log_probs, old_log_probs: log π_θ and log π_t of the response tokens, π_t being the policy that sampled them. Either
    flat [M], response after response, or padded [S, T].
    rewards: [G, n], finite.
    lengths: [S], the tokens of each response, which begin at the first column where the tensors are padded; or, for
    padded tensors, a mask [S, T] that is not 0 where a response's tokens are.
    tau: τ in units of reward. baseline, tau_b: see `advantages`. normalise, max_tokens, weight: see `regress`.

    Where a batch of whole groups is divided into passes of equally many responses, the mean of the losses of the passes
    is the loss of the batch. ValueError for shapes that disagree and for settings or rewards outside their range.
    """
    check(tau, baseline, tau_b, normalise)
    advantage = advantages(rewards, tau, baseline, tau_b).flatten()
    return regress(log_probs, old_log_probs, lengths, advantage, tau, normalise, max_tokens, weight)


def advantages(rewards: Tensor, tau: float, baseline: str = "mean", tau_b: float | None = None) -> Tensor:
    """A_i = r_i − b of the rewards [G, n], in float64; b is taken over the other n − 1 responses of the group.

    baseline: "mean", their mean (PMD-mean); "partition", τ log mean exp(r/τ) (PMD-part); "tilted", the same with τ_b
    (`tau_b`, not 0, may be negative or infinite) in place of τ.
    """
    check(tau, baseline, tau_b)
    if not isinstance(rewards, Tensor) or rewards.dim() != 2 or rewards.shape[1] < 2:
        got = f"shape {list(rewards.shape)}" if isinstance(rewards, Tensor) else f"a {type(rewards).__name__}"
        raise ValueError(f"rewards: got {got}, must be a tensor [groups, responses], with 2 responses or more")
    if not rewards.isfinite().all():
        g, i = (~rewards.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"rewards: got {rewards[g, i].item()} in group {g}, response {i}, must be a finite number")
    rewards = rewards.double()
    return leave_one_out_tilted(rewards, {"mean": math.inf, "partition": tau, "tilted": tau_b}[baseline])


def check(tau: float, baseline: str = "mean", tau_b: float | None = None, normalise: str = "length") -> None:
    """ValueError in one line for a setting outside its range."""
    if isinstance(tau, bool) or not isinstance(tau, int | float) or not 0 < tau < math.inf:
        raise ValueError(f"tau: got {tau!r}, must be a finite number above 0")
    if baseline not in BASELINES:
        raise ValueError(f"baseline: got {baseline!r}, must be one of {', '.join(BASELINES)}")
    if (baseline == "tilted") != (tau_b is not None):
        raise ValueError(f"tau_b: got {tau_b!r}, must be a number where baseline is 'tilted' and None elsewhere")
    if tau_b is not None and (tau_b == 0 or math.isnan(tau_b)):
        raise ValueError(f"tau_b: got {tau_b}, must be a number other than 0, or infinite")
    if normalise not in ("length", "constant"):
        raise ValueError(f"normalise: got {normalise!r}, must be 'length' or 'constant'")


def regress(
    log_probs: Tensor,
    old_log_probs: Tensor,
    lengths: Tensor,
    advantage: Tensor,
    tau: float,
    normalise: str = "length",
    max_tokens: int | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """`loss` for advantages [S] that are known already; a response without tokens counts in the mean as 0.

    normalise: "length" divides a response's term by its own length, "constant" by max_tokens, the longest response
    allowed. weight: [S], importance weights, by which each response's term is multiplied; None for none.
    """
    if normalise == "constant" and not max_tokens:
        raise ValueError(f"max_tokens: got {max_tokens}, must be the longest response where normalise is 'constant'")
    log_ratio, lengths = flatten(log_probs, old_log_probs, lengths)
    if advantage.shape != lengths.shape:
        raise ValueError(f"rewards: got {advantage.numel()} of them, must be as many as responses, {len(lengths)}")
    responses, some = len(lengths), lengths > 0
    if not some.any():
        return log_ratio.sum()
    lengths, advantage = lengths[some], advantage[some].to(log_ratio.dtype)
    batch = Minibatch(
        log_ratio,
        advantage,
        torch.repeat_interleave(lengths),
        lengths,
        max_tokens or 0,
        whole=(responses, len(log_ratio)),
        weight=None if weight is None else weight[some].to(log_ratio.dtype),
    )
    return regression(batch, Hyper(tau=tau, normalise=normalise))[0]


def flatten(log_probs: Tensor, old_log_probs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(log π_θ − log π_t of all response tokens [M], in float32 at least; tokens of each response [S] int64).

    What stands in the padding, be it NaN, takes no part. Arguments as in `loss`.
    """
    for name, given in (("log_probs", log_probs), ("old_log_probs", old_log_probs), ("lengths", lengths)):
        if not isinstance(given, Tensor):
            raise ValueError(f"{name}: got a {type(given).__name__}, must be a tensor")
    shape = list(log_probs.shape)
    if old_log_probs.shape != log_probs.shape:
        raise ValueError(f"old_log_probs: got shape {list(old_log_probs.shape)}, must be that of log_probs, {shape}")
    precise = torch.promote_types(log_probs.dtype, torch.float32)
    old_log_probs = old_log_probs.detach()
    if log_probs.dim() == 1:
        if lengths.dim() != 1 or int(lengths.sum()) != len(log_probs):
            raise ValueError(
                f"lengths: got {lengths.tolist()}, must add up to the {len(log_probs)} tokens of log_probs"
            )
        return log_probs.to(precise) - old_log_probs.to(precise), lengths.long()
    if lengths.dim() == 1 and log_probs.dim() == 2 and len(lengths) == shape[0] and int(lengths.max()) <= shape[1]:
        lengths = torch.arange(shape[1], device=lengths.device) < lengths[:, None]
    if lengths.shape != log_probs.shape:
        raise ValueError(f"lengths: got shape {list(lengths.shape)}, must fit log_probs, {shape}")
    mask = lengths.bool()
    return log_probs[mask].to(precise) - old_log_probs[mask].to(precise), mask.sum(1)


def sequence_log_ratio(log_probs: Tensor, old_log_probs: Tensor, lengths: Tensor) -> Tensor:
    """s_i = Σ_t (log π_θ − log π_t) of each response: [S]. Arguments as in `loss`."""
    log_ratio, lengths = flatten(log_probs, old_log_probs, lengths)
    return per_response(log_ratio, lengths)


def predicted(rewards: Tensor, tau: float) -> dict[str, float]:
    """The mean λ, KL and χ² that one full step of PMD-mean with the leave-one-out mean predicts for rewards [G, n].

    The leave-one-out mean stretches advantages by n/(n − 1), which is the mean of the group at τ (n − 1)/n.
    """
    n = rewards.shape[1]
    return full_step(rewards, tau * (n - 1) / n)
