"""PMD-mean in verl: `import pmd.verl` registers its advantage estimators and its policy loss.

Advantage estimators `pmd_mean`, `pmd_part` and `pmd_tilted`, for `algorithm.adv_estimator`; policy loss `pmd`, for
`actor_rollout_ref.actor.policy_loss.loss_mode`. docs/stacks.md has an example. The settings that they read:

    actor_rollout_ref.actor.policy_loss.dro_beta   τ of the loss: verl's weight of a squared log-ratio
    actor_rollout_ref.actor.loss_agg_mode          seq-mean-token-mean, or seq-mean-token-sum-norm
    +algorithm.tau                                 τ of pmd_part's baseline, the same as the loss's
    +algorithm.tau_b                               τ_b of pmd_tilted's baseline
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pmd.any_loop import advantages, check, regress, sequence_log_ratio
from pmd.extras import check_stack
from pmd.trainer.objectives import moved

check_stack("verl")  # before its names are imported, which another version may not have

from verl.trainer.ppo import core_algos

NORMALISE = {"seq-mean-token-mean": "length", "seq-mean-token-sum-norm": "constant"}
"""verl's names of the two normalisations."""


def register(registry: dict[str, Callable], name: str, function: Callable) -> None:
    """Add a function to one of verl's registries; ValueError if another's function has the name already."""
    known = registry.get(name)
    if known is not None and known.__module__ != function.__module__:
        raise ValueError(f"{name}: got a second function of this name beside {known.__module__}'s, must be one")
    registry[name] = function


def estimator(baseline: str) -> Callable:
    """The advantage estimator with this baseline, in verl's form."""

    def estimate(
        token_level_rewards: Tensor, response_mask: Tensor, index: np.ndarray, config: Any = None, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """(advantages, the same again), [S, T]: A_i on every token of response i, 0 on padding.

        token_level_rewards, response_mask: [S, T]; a response's reward is the sum over its tokens. index: [S], the
        prompt of each response; responses of one prompt are a group, and need not be neighbours. ValueError for groups
        of unequal size, of one response, or with a reward that is not finite.
        """
        order, shape = groups(index)
        order = torch.from_numpy(order).to(token_level_rewards.device)
        rewards = token_level_rewards.sum(1)
        setting = (config or {}).get
        # the mean does not depend on τ, which the loss alone reads then
        tau = setting("tau") if baseline == "partition" else 1.0
        tau_b = setting("tau_b") if baseline == "tilted" else None
        each = torch.empty_like(rewards)
        each[order] = advantages(rewards[order].view(shape), tau, baseline, tau_b).flatten().to(rewards)
        spread = each[:, None] * response_mask
        return spread, spread

    return estimate


def groups(index: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """(the responses in an order in which those of one prompt are neighbours, (groups, responses of each))."""
    _, group, sizes = np.unique(np.asarray(index).astype(str), return_inverse=True, return_counts=True)
    if len(set(sizes.tolist())) != 1 or sizes[0] < 2:
        found = sorted(set(sizes.tolist()))
        raise ValueError(f"uid: got groups of {found} responses, must be of one size, 2 or more (rollout.n)")
    return np.argsort(group, kind="stable"), (len(sizes), int(sizes[0]))


def pmd_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """(what these responses add to the loss of the optimizer step, metrics), in verl's form.

    old_log_prob, log_prob, advantages, response_mask: [S, T]. rollout_is_weights: [S, T], of which a response's must be
    equal (`rollout_is: sequence`), or None. The mean is over `config.global_batch_info`'s responses where verl says
    them, as in verl's own losses. ValueError for a setting that contradicts the objective.
    """
    tau = config.policy_loss.dro_beta
    if loss_agg_mode not in NORMALISE:
        raise ValueError(f"loss_agg_mode: got {loss_agg_mode!r}, must be one of {', '.join(NORMALISE)}")
    if tau is None:
        raise ValueError("policy_loss.dro_beta: got None, must be τ, a finite number above 0")
    check(tau)
    mask = response_mask.bool()
    begun = mask & (mask.cumsum(1) == 1)  # the first token of each response
    advantage, weight = ((values * begun).sum(1) if values is not None else None
                         for values in (advantages, rollout_is_weights))  # fmt: skip
    if weight is not None and ((rollout_is_weights - weight[:, None]) * mask).any():
        raise ValueError("rollout_is: got weights that differ within a response, must be 'sequence' or null")
    info = config.global_batch_info
    here = regress(
        log_prob,
        old_log_prob,
        mask,
        advantage,
        tau,
        NORMALISE[loss_agg_mode],
        info.get("loss_scale_factor") or mask.shape[1],
        weight,
    )
    whole, share = info.get("global_batch_size"), info.get("dp_size", 1)
    if whole is None and share > 1:
        raise ValueError("global_batch_size: got None, must be the optimizer step's responses on several processes")
    # verl's own losses leave responses without tokens out of the mean where they count it themselves
    loss = here * (len(mask) / (whole or max(1, int(mask.any(1).sum()))) * share)
    s = sequence_log_ratio(log_prob.detach(), old_log_prob, mask)
    return loss, {f"actor/pmd_{name}": value for name, value in moved(s).items()}


for _name, _baseline in (("pmd_mean", "mean"), ("pmd_part", "partition"), ("pmd_tilted", "tilted")):
    register(core_algos.ADV_ESTIMATOR_REGISTRY, _name, estimator(_baseline))
register(core_algos.POLICY_LOSS_REGISTRY, "pmd", pmd_loss)
