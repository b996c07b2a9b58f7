"""Which engine samples a run's responses, by the name in its configuration: the one place that knows vLLM's engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any


def engine_for(config: Any) -> Callable[..., Any] | None:
    """What makes the engine of a run or a benchmark: a function (model, end-of-sequence token, **options) -> engine.

    config: anything with an attribute `engine`, "torch" or "vllm", and optionally `microbatch_tokens`, which then also
    bounds the passes by which vLLM's weights are proven. None means the default, TorchEngine. vLLM's engine is imported
    when it is made, because most environments have no vLLM.
    """
    if config.engine == "torch":
        return None
    return partial(_vllm_engine, pass_tokens=getattr(config, "microbatch_tokens", None))


def _vllm_engine(model: Any, eos: int, pass_tokens: int | None, **options: Any) -> Any:
    from pmd.scale.vllm_engine import VLLMEngine

    return VLLMEngine(model, eos, pass_tokens=pass_tokens, **options)
