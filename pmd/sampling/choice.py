"""The choice of a token: from logits and a uniform random number, at a temperature and within top-p."""

from __future__ import annotations

import torch
from torch import Tensor

from pmd.sampling.engine import Sampling

LIKELIEST = 1024
"""On CUDA, how many of the likeliest tokens are sorted for top-p before all of a vocabulary of 150,000 are."""


def choose(logits: Tensor, uniform: Tensor, sampling: Sampling, row: Tensor | None = None) -> Tensor:
    """Inverse-CDF sampling: logits [R, V] and uniform numbers [S] -> token ids [S], and V where logits are not finite.

    row: [S], the row of logits that each number belongs to; None: S = R and each has a row of its own. The uniform
    numbers are drawn for each response beforehand, so a response does not depend on which others have ended.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        token = logits.argmax(-1, keepdim=True)  # a NaN counts as the largest
        token = token.where(logits.gather(1, token).isfinite(), logits.shape[-1])[:, 0]
        return token if row is None else token[row]
    p = torch.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        p = nucleus(p, sampling.top_p, LIKELIEST if p.is_cuda else p.shape[-1])
    cdf = running_sums(p) if row is None else running_sums(p)[row]
    total = cdf[:, -1:]
    below = torch.nextafter(total, torch.zeros_like(total))  # rounding must not pick beyond the last possible token
    return torch.searchsorted(cdf, torch.minimum(uniform[:, None] * total, below), right=True)[:, 0]


def running_sums(p: Tensor) -> Tensor:
    """The sums of each row of p [R, V] up to and with each place, every time with the same bits.

    Of a single row CUDA adds pieces in whatever order they are done, of several each in a fixed order.
    """
    return p.expand(2, -1).cumsum(-1)[:1] if p.is_cuda and len(p) == 1 else p.cumsum(-1)


def ended(tokens: Tensor, ends: Tensor) -> Tensor:
    """Which of the tokens [S] are among `ends` [E]; a comparison that waits for no device."""
    return (tokens[:, None] == ends).any(-1)


def check_finite(tokens: Tensor, vocabulary: int, dtype: torch.dtype) -> None:
    """FloatingPointError if `choose` found logits that are not finite for any of these tokens."""
    if (tokens == vocabulary).any():
        raise FloatingPointError(not_finite(dtype))


def not_finite(dtype: torch.dtype) -> str:
    """In one line, that a model which computes in this type gives no probabilities, and what to do."""
    help = "a dtype of bfloat16 or float32 has a larger range" if dtype == torch.float16 else "its weights are broken"
    return f"the model's logits are NaN or infinite in {str(dtype).removeprefix('torch.')}: {help}"


def nucleus(p: Tensor, top_p: float, most: int) -> Tensor:
    """Probabilities [R, V] with those outside the smallest set of mass `top_p` set to 0; of equals the first are taken.

    Sorting a large vocabulary is slow, so only the `most` likeliest tokens of each row are sorted if that is enough for
    every row, which takes one value from the device. It is enough if the least likely of them is outside the set, since
    no token beyond them can then belong to it.
    """
    if most < p.shape[-1]:
        index = p.topk(most, sorted=False).indices.sort().values  # equal probabilities in the order of their tokens
        ordered, place = p.gather(1, index).sort(dim=-1, descending=True, stable=True)
        inside = running_sums(ordered) - ordered < top_p
        if not (inside & (ordered == ordered[:, -1:])).any():
            return torch.zeros_like(p).scatter(1, index.gather(1, place), ordered.where(inside, 0.0))
    ordered, index = p.sort(dim=-1, descending=True, stable=True)
    before = running_sums(ordered) - ordered
    return p.scatter(1, index, ordered.where(before < top_p, 0.0))
