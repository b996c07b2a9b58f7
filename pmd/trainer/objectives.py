"""Advantages and losses: PMD-mean, its relatives and its baselines.

Every method is an advantage, a function of a group's rewards, and a loss, a function of the log-ratios
s = log π_θ − log π_t and the advantages. τ refers to the rewards as given: with rewards in {−1, +1} instead of {0, 1}
the same update needs τ twice as large. `OBJECTIVES` holds all of them by name.

    PMD-mean, PMD-part   arXiv:2602.05933          GRPO    arXiv:2402.03300 (clip-higher: DAPO, arXiv:2503.14476)
    Kimi K1.5            arXiv:2501.12599          GSPO    arXiv:2507.18071
    RLOO                 arXiv:2402.14740          Dr. GRPO  arXiv:2503.20783
    CISPO                arXiv:2506.13585
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pmd.methods import METHODS
from pmd.theory.population import predicted_lambda

# --- advantages: rewards [G, n] -> [G, n] ---------------------------------------------------------------------------


def leave_one_out_mean(rewards: Tensor, tau: float) -> Tensor:
    """r_i − mean_{j≠i} r_j: PMD-mean and RLOO. It is n/(n−1) times r_i minus the mean of the whole group."""
    n = rewards.shape[1]
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / (n - 1)


def leave_one_out_tilted(rewards: Tensor, tau_b: float) -> Tensor:
    """r_i − τ_b log mean_{j≠i} exp(r_j/τ_b): PMD-part at τ_b = τ, PMD-mean at τ_b = ±∞; τ_b < 0 is below the mean.

    Exact for every τ_b but 0, since exponents are taken from the largest. The reference code's PMD-part clamps its mean
    at 1e-8 of the maximum *including* i: a lone success in {0, 1} has at most 18.4 τ there for τ < 0.054, here 1.
    """
    if math.isinf(tau_b):
        return leave_one_out_mean(rewards, tau_b)
    n = rewards.shape[1]
    itself = torch.eye(n, dtype=torch.bool, device=rewards.device)
    others = (rewards / tau_b)[:, None, :].expand(-1, n, -1)
    best = others.masked_fill(itself, -math.inf).amax(2)
    excess = (others - best[:, :, None]).masked_fill(itself, 0).expm1().sum(2) / (n - 1)
    return rewards - tau_b * (best + excess.log1p())


def group_mean(rewards: Tensor, tau: float) -> Tensor:
    """r_i − mean_j r_j: Kimi K1.5 and Dr. GRPO."""
    return rewards - rewards.mean(1, keepdim=True)


def group_standardised(rewards: Tensor, tau: float) -> Tensor:
    """(r_i − mean) / (std + 1e-6), the sample standard deviation (n − 1): GRPO, GSPO, CISPO."""
    return group_mean(rewards, tau) / (rewards.std(1, keepdim=True) + 1e-6)


def per_response(x: Tensor, lengths: Tensor) -> Tensor:
    """The sum of a per-token quantity [M] over each response of `lengths` [S]: [S]. Its order is fixed, on CUDA too."""
    return torch.segment_reduce(x, "sum", lengths=lengths, unsafe=True)


# --- losses --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Minibatch:
    """What a loss sees of S responses with M tokens in all.

    log_ratio: [M], log π_θ − log π_t of each response token, response after response, differentiable in θ.
    advantage: [S]. sequence: [M] int64, the response of each token. lengths: [S] int64, its tokens.
    max_tokens: the longest response allowed. whole: (responses, tokens) of the whole minibatch, where this is one pass
    of several over it; None if it is all of it. weight: [S], the importance weights, by which each response's term is
    multiplied before a mean is taken; None for no weights.
    """

    log_ratio: Tensor
    advantage: Tensor
    sequence: Tensor
    lengths: Tensor
    max_tokens: int
    whole: tuple[int, int] | None = None
    weight: Tensor | None = None

    def response_mean(self, x: Tensor) -> Tensor:
        """The mean of a quantity [S] over the responses of the whole minibatch, or what this pass adds to it."""
        weighed = x if self.weight is None else self.weight * x
        return weighed.sum() / (self.whole[0] if self.whole else len(self.lengths))

    def token_mean(self, x: Tensor) -> Tensor:
        """The mean of a quantity [M] over the tokens of the whole minibatch, or what this pass adds to it."""
        weighed = x if self.weight is None else self.weight[self.sequence] * x
        return weighed.sum() / (self.whole[1] if self.whole else len(self.sequence))

    @property
    def s(self) -> Tensor:
        """The sequence log-ratio s = Σ_t (log π_θ − log π_t): [S]."""
        return per_response(self.log_ratio, self.lengths)


@dataclass(frozen=True)
class Hyper:
    """A loss's hyper-parameters: τ, the clip range (1 − clip_low, 1 + clip_high) and the length normalisation.

    normalise: "length" divides a response's term by its L_i (the reference code's seq-mean-token-mean), "constant" by
    the longest response allowed (seq-mean-token-sum-norm).
    """

    tau: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    normalise: str = "length"


Loss = Callable[[Minibatch, Hyper], tuple[Tensor, Tensor | None]]
"""(minibatch, hyper) -> (scalar loss, the terms that the clip changed: bool [S] or [M], or None without a clip).

The losses of all passes over a minibatch add up to its own, and so do their gradients.
"""


def length_weight(batch: Minibatch, hyper: Hyper) -> Tensor:
    """1/L_i or 1/max_tokens for each response: [S]."""
    lengths = batch.lengths if hyper.normalise == "length" else torch.full_like(batch.lengths, batch.max_tokens)
    return 1 / lengths.to(batch.advantage.dtype)


def regression(batch: Minibatch, hyper: Hyper) -> tuple[Tensor, None]:
    """mean_i (τ/2) (A_i/τ − s_i)² / L_i: the practical loss of PMD-mean, PMD-part and Kimi K1.5.

    At θ = θ_t, s = 0 and the gradient is the policy gradient −mean_i A_i ∇log π_i / L_i.
    """
    residual = batch.advantage / hyper.tau - batch.s
    return batch.response_mean(hyper.tau / 2 * residual**2 * length_weight(batch, hyper)), None


def reinforce(batch: Minibatch, hyper: Hyper) -> tuple[Tensor, None]:
    """−mean_i A_i s_i / L_i: REINFORCE with the leave-one-out baseline (RLOO), no ratio, no clip."""
    return -batch.response_mean(batch.advantage * batch.s * length_weight(batch, hyper)), None


def clipped(ratio: Tensor, advantage: Tensor, hyper: Hyper) -> tuple[Tensor, Tensor]:
    """PPO's pessimistic term min(ρ A, clip(ρ) A) and whether the clip is what counts in it."""
    inside = ratio.clamp(1 - hyper.clip_low, 1 + hyper.clip_high)
    return torch.minimum(ratio * advantage, inside * advantage), inside * advantage < ratio * advantage


def token_clip(batch: Minibatch, hyper: Hyper) -> tuple[Tensor, Tensor]:
    """GRPO: token ratios, clipped, averaged over all tokens of the minibatch (DAPO's token mean)."""
    term, active = clipped(batch.log_ratio.exp(), batch.advantage[batch.sequence], hyper)
    return -batch.token_mean(term), active


def token_unclipped(batch: Minibatch, hyper: Hyper) -> tuple[Tensor, None]:
    """GRPO without its clip: a control that separates the regression from the absence of clipping."""
    return -batch.token_mean(batch.log_ratio.exp() * batch.advantage[batch.sequence]), None


def token_clip_constant(batch: Minibatch, hyper: Hyper) -> tuple[Tensor, Tensor]:
    """Dr. GRPO: GRPO's term summed over a response and divided by a constant, so length is not rewarded."""
    term, active = clipped(batch.log_ratio.exp(), batch.advantage[batch.sequence], hyper)
    return -batch.response_mean(per_response(term, batch.lengths) / batch.max_tokens), active


def sequence_clip(batch: Minibatch, hyper: Hyper) -> tuple[Tensor, Tensor]:
    """GSPO: the length-normalised sequence ratio exp(s_i/L_i), clipped, averaged over responses."""
    term, active = clipped((batch.s / batch.lengths).exp(), batch.advantage, hyper)
    return -batch.response_mean(term), active


def clipped_weight(batch: Minibatch, hyper: Hyper) -> tuple[Tensor, Tensor]:
    """CISPO: −sg(clip(ρ)) A log π, averaged over tokens; every token keeps a gradient, the clip bounds its weight."""
    ratio = batch.log_ratio.detach().exp()
    weight = ratio.clamp(1 - hyper.clip_low, 1 + hyper.clip_high)
    return -batch.token_mean(weight * batch.advantage[batch.sequence] * batch.log_ratio), weight != ratio


# --- the methods ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objective:
    """A method: advantages from rewards and τ (of pmd-tilted τ_b), what is minimised, and the settings of the two."""

    advantage: Callable[[Tensor, float], Tensor]
    loss: Loss
    uses: frozenset[str]


OBJECTIVES: dict[str, Objective] = {
    name: Objective(globals()[method.advantage], globals()[method.loss], frozenset(method.uses))
    for name, method in METHODS.items()
}
"""Every method of pmd/methods.py, which names its advantage and its loss: two functions of this file."""


def keep_groups(rewards: Tensor, low: float | None, high: float | None) -> Tensor:
    """Which groups of rewards [G, n] have a mean in the open interval (low, high); None is no bound: [G] bool."""
    mean = rewards.mean(1)
    return (mean > (-math.inf if low is None else low)) & (mean < (math.inf if high is None else high))


def moved(s: Tensor) -> dict[str, float]:
    """λ, KL(π_θ‖π_t) and χ²(π_θ‖π_t), estimated from the s [S] of responses that π_t sampled.

    With ρ = exp(s), λ is estimated by −mean(s), KL by the mean of ρ s − ρ + 1 and χ² by that of (ρ − 1)²: unbiased
    estimators, the latter two of which cannot be negative, in nats.
    """
    s = s.detach().cpu().double()
    rho = s.clamp(max=300).exp()  # far from π_t exp(s) would overflow, and the log cannot hold infinity
    values = {"lambda": -s.mean(), "kl": (rho * s - rho + 1).mean(), "chi2": ((rho - 1) ** 2).mean()}
    return {key: value.item() for key, value in values.items()}


def full_step(rewards: Tensor, tau: float) -> dict[str, float]:
    """The mean λ, KL and χ² that theory predicts for groups with rewards [G, n], the baseline being a group's mean."""
    lam, kl, chi2 = predicted_lambda(rewards.detach().cpu().double().numpy(), tau)
    return {f"{key}_theory": float(v.mean()) for key, v in (("lambda", lam), ("kl", kl), ("chi2", chi2))}
