"""PMD-mean in prime-rl: a custom loss, named by its import path in the trainer's configuration.

    [trainer.loss]
    type = "custom"
    import_path = "pmd.prime_rl.pmd_mean"

    [trainer.loss.kwargs]
    tau = 0.1
    group_size = 16

prime-rl calls it for one sequence at a time and divides the sum of a step's losses by the step's number of trained
tokens. docs/stacks.md says what else differs from the other stacks.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pmd.any_loop import check, regress, sequence_log_ratio
from pmd.trainer.objectives import moved


def pmd_mean(inputs: Any, tau: float, group_size: int, normalise: str = "length", max_tokens: int | None = None) -> Any:
    """(τ/2) (A/τ − s)² / L of one sequence, as prime-rl's LossOutputs, with λ, KL and χ² as metrics.

    inputs: prime-rl's LossInputs: trainer_logprobs and inference_logprobs [T], log π_θ and log π_t; advantages [T], of
    algorithm `grpo`, the reward minus the mean of the group; loss_mask [T], the trained tokens. group_size: n, the
    rollouts of a prompt, by which the mean of the group becomes that of the others: A = n/(n − 1) times the advantage.
    normalise, max_tokens: as in `pmd.loss`. ValueError for weights of tokens, or advantages that differ among tokens.
    """
    from prime_rl.trainer.rl.loss import LossOutputs

    check(tau, normalise=normalise)
    if not isinstance(group_size, int) or group_size < 2:
        raise ValueError(f"group_size: got {group_size!r}, must be the rollouts of a prompt, 2 or more")
    mask = inputs.loss_mask.bool()
    if inputs.loss_weights is not None and (inputs.loss_weights[mask] != 1).any():
        raise ValueError("loss_weights: got some other than 1, must be 1: loss_aggregation = 'token'")
    credit = inputs.advantages[mask]
    if len(credit) and (credit != credit[0]).any():
        raise ValueError("advantages: got several values in a sequence, must be one: an algorithm of type 'grpo'")
    advantage = credit[:1].sum()[None] * group_size / (group_size - 1)  # 0 for a sequence without trained tokens
    tokens = (inputs.trainer_logprobs[None], inputs.inference_logprobs[None], mask[None])
    loss = regress(*tokens, advantage, tau, normalise, max_tokens)
    with_tensors: dict[str, Tensor] = {
        f"pmd_{name}": loss.new_tensor(value)
        for name, value in moved(sequence_log_ratio(inputs.trainer_logprobs[None].detach(), *tokens[1:])).items()
    }
    return LossOutputs(loss=loss, metrics=with_tensors)
