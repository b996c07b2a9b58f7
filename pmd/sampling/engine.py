"""What samples: the protocol that the trainer and the evaluator know, and the choice of a token.

An engine turns prompts into responses. `pmd.sampling.torch_engine` has one that runs in the trainer's own process,
`pmd.scale` one that hands the weights to vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

LIKELIEST = 1024
"""On CUDA, how many of the likeliest tokens are sorted for top-p before all of a vocabulary of 150,000 are."""

Responses = list[list[list[int]]]
"""[prompt][sample] -> token ids; a response that ended by itself ends with the end-of-sequence token."""


@dataclass(frozen=True)
class Sampling:
    """How to sample: at most `max_tokens` tokens, at this temperature, from the smallest set of mass `top_p`."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self):
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}, must be at least 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}, must be > 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, must be in (0, 1]")


class Engine(Protocol):
    """Whatever samples responses: `n` to each prompt, the same ones for the same seed and weights.

    first: how many prompts of a larger batch come before these. They get the random numbers that they have in that
    batch, so the responses do not depend on how the batch is divided among ranks.
    """

    def sample(
        self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int, first: int = 0
    ) -> Responses: ...


MakeEngine = Callable[..., Engine]
"""(model, end-of-sequence token, **options) -> an engine that samples from the model, as the class TorchEngine does."""


def choose(logits: Tensor, uniform: Tensor, sampling: Sampling, row: Tensor | None = None) -> Tensor:
    """Inverse-CDF sampling: logits [R, V] and uniform numbers [S] -> token ids [S].

    row: [S], the row of logits that each number belongs to; None: S = R and each has a row of its own. The uniform
    numbers are drawn for each response beforehand, so a response does not depend on which others have ended.
    """
    p = torch.softmax(logits.float() / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        p = nucleus(p, sampling.top_p, LIKELIEST if p.is_cuda else p.shape[-1])
    cdf = p.cumsum(-1) if row is None else p.cumsum(-1)[row]
    total = cdf[:, -1:]
    below = torch.nextafter(total, torch.zeros_like(total))  # rounding must not pick beyond the last possible token
    token = torch.searchsorted(cdf, torch.minimum(uniform[:, None] * total, below), right=True)[:, 0]
    return token.clamp_max(p.shape[-1] - 1)  # NaN logits give V; the loss will report them


def nucleus(p: Tensor, top_p: float, most: int) -> Tensor:
    """Probabilities [R, V] with those outside the smallest set of mass `top_p` set to 0; of equals the first are taken.

    Sorting a large vocabulary is slow, so only the `most` likeliest tokens of each row are sorted if that is enough for
    every row, which takes one value from the device. It is enough if the least likely of them is outside the set, since
    no token beyond them can then belong to it.
    """
    if most < p.shape[-1]:
        index = p.topk(most, sorted=False).indices.sort().values  # equal probabilities in the order of their tokens
        ordered, place = p.gather(1, index).sort(dim=-1, descending=True, stable=True)
        inside = ordered.cumsum(-1) - ordered < top_p
        if not (inside & (ordered == ordered[:, -1:])).any():
            return torch.zeros_like(p).scatter(1, index.gather(1, place), ordered.where(inside, 0.0))
    ordered, index = p.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    return p.scatter(1, index, ordered.where(before < top_p, 0.0))


def context(config: PreTrainedConfig) -> int | None:
    """The most tokens, prompt and response together, that a model was made for; None if its configuration is silent."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)
