"""What samples responses: the protocol by which the trainer and the evaluators know every engine.

An engine turns prompts into responses. `pmd.sampling.torch_engine` has one that runs in the trainer's own process,
`pmd.scale` one that hands the weights to vLLM.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pmd.params import require

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ENGINES = ("torch", "vllm")
"""The engines by the names that settings give them: PyTorch in this process, or vLLM (pmd/scale/engines.py)."""

Responses = list[list[list[int]]]
"""[prompt][sample] -> token ids; a response that ended by itself ends with one of the engine's `ends`."""


@dataclass(frozen=True)
class Sampling:
    """How to sample: at most `max_tokens` tokens, at this temperature, from the smallest set of tokens of mass `top_p`.

    Temperature 0 is greedy decoding: always the likeliest token, of equals the first, so that all responses to a prompt
    are the same one. ValueError `key: got value, must be …` for a value out of bounds.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        require(0 <= self.temperature < math.inf, "temperature", self.temperature, "at least 0")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")


class Engine(Protocol):
    """Whatever samples responses: `n` to each prompt, the same ones for the same seed and weights.

    first: how many prompts of a larger batch come before these. They get the random numbers that they have in that
    batch, so the responses do not depend on how the batch is divided among ranks. An engine may have `ends`, the tokens
    that end a response; without, the tokenizer's end-of-sequence token does.
    """

    def sample(
        self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int, first: int = 0
    ) -> Responses: ...


MakeEngine = Callable[..., Engine]
"""(model, end-of-sequence token, **options) -> an engine that samples from the model, as the class TorchEngine does."""


def context(config: PreTrainedConfig) -> int | None:
    """The most tokens, prompt and response together, that a model was made for; None if its configuration is silent."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)
