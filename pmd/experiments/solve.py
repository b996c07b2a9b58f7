"""One update of policy mirror descent whose regression is solved.

Training makes one pass over a batch and leaves its regression far from solved. The theory speaks of the solution. Here
the same loss is minimised on the whole batch, as one minibatch, by so many steps of Adam that its rate can fall to 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pmd.model.forward import frozen_log_probs, log_probs
from pmd.model.packing import Packed, pack
from pmd.problems.prompts import encode
from pmd.sampling.engine import Sampling
from pmd.sampling.scoring import ends_of
from pmd.sampling.torch_engine import TorchEngine
from pmd.trainer.objectives import Hyper, Minibatch, per_response, regression
from pmd.trainer.rollouts import Rollouts, judge


class Frozen(NamedTuple):
    """Rollouts as the regression sees them: the D different ones of S responses, packed once for all steps.

    log_p: log π_t of their tokens, [M]. which: [S], the different response that each response is. times: [D], how often
    each was sampled. The more certain a policy is, the fewer there are.
    """

    packed: Packed
    log_p: Tensor
    which: Tensor
    times: Tensor


def draw(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: list[dict],
    n: int,
    max_tokens: int,
    seed: int,
) -> Rollouts:
    """n responses of the policy to each problem, at temperature 1, with their rewards."""
    prompts = [encode(tokenizer, problem["prompt"]) for problem in problems]
    engine = TorchEngine(model, tokenizer.eos_token_id)
    responses = engine.sample(prompts, n, Sampling(max_tokens), seed)
    return judge(problems, prompts, responses, tokenizer, ends_of(engine, tokenizer))


def freeze(model: PreTrainedModel, rollouts: Rollouts) -> Frozen:
    """The rollouts, packed, with their log-probabilities by the model's present weights."""
    different = [list(dict.fromkeys(map(tuple, group))) for group in rollouts.responses]
    place = {pair: i for i, pair in enumerate((g, response) for g, group in enumerate(different) for response in group)}
    which = torch.tensor(
        [place[g, tuple(response)] for g, group in enumerate(rollouts.responses) for response in group]
    )
    packed = pack(rollouts.prompts, different, model.device)
    which = which.to(model.device)
    return Frozen(packed, frozen_log_probs(model, packed, entropy=False)[0], which, which.bincount())


def solve(
    model: PreTrainedModel, frozen: Frozen, advantage: Tensor, hyper: Hyper, max_tokens: int, lr: float, steps: int
) -> Iterator[int]:
    """Minimise mean_i (τ/2)(A_i/τ − s_i)² / L_i in the model's weights, in place; yields 1, 2, … after each step.

    advantage: A_i of each response, any shape of S entries; responses that are the same share their s, so that what
    counts is the mean of their A and their number. hyper: τ and the length normalisation. lr: the rate of
    the first step, from which it falls to 0 as a cosine. Between two steps the caller may measure the model.
    FloatingPointError, before the weights change, at a loss that is not finite.
    """
    packed, before, which, times = frozen
    given = advantage.flatten().double().to(which.device)
    mean = mean_of_copies(given, which, times)
    whole = (len(which), int((times * packed.lengths).sum()))
    rest = (mean.float(), packed.sequence, packed.lengths, max_tokens, whole, times.float())
    optimizer = torch.optim.Adam(model.parameters(), lr, betas=(0.9, 0.99), fused=True)
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        new, _ = log_probs(model, packed, entropy=False)
        loss, _ = regression(Minibatch(new - before, *rest), hyper)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"inner step {step}: the loss is {loss.item()}; lower lr = {lr}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        yield step


def mean_of_copies(values: Tensor, which: Tensor, times: Tensor) -> Tensor:
    """The mean of values [S] over the copies of each of D responses: [D]; which, times: as `Frozen` has them.

    Copies are added in their order, on CUDA too, where `index_add` would add them in any.
    """
    order = which.argsort(stable=True)
    return torch.segment_reduce(values[order], "sum", lengths=times, unsafe=True) / times


def log_ratios(model: PreTrainedModel, frozen: Frozen) -> Tensor:
    """s = log π_θ − log π_t of each response under the model's present weights: [S] float64."""
    packed, before = frozen.packed, frozen.log_p
    new, _ = frozen_log_probs(model, packed, entropy=False)
    change = (new - before).double()
    return per_response(change, packed.lengths)[frozen.which].cpu()
