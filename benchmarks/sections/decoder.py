"""The decoder: CUDA graphs against step by step, and both against transformers' own greedy search, in fp32."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from pmd.sampling.engine import Responses, Sampling
from pmd.sampling.torch_engine import TorchEngine
from sections.common import EOS, SMALL, TINY, Context, Row, bound, build, equal, fact, free, opinionated, seconds

GREEDY = 1e-9
"""A top-p that leaves the likeliest token alone."""


def rows(context: Context) -> Iterator[Row]:
    """Short prompts and long ones; the graphs again after the weights have changed."""
    model = opinionated(build(TINY if context.quick else SMALL, context.device, torch.float32))
    reference = eager(model)
    n, tokens, count = (2, 12, 2) if context.quick else (16, 64, 4)
    for words, lengths in {"short prompts": (5, 24), "prompts of up to 700 tokens": (300, 700)}.items():
        prompts = random_prompts(model.config.vocab_size, count, lengths)
        static = TorchEngine(model, EOS, static=True, kv_bytes=2**30)
        plain = TorchEngine(model, EOS, static=False)
        sampling = Sampling(tokens)
        first = static.sample(prompts, n, sampling, 3)
        yield bound(
            f"{words}: responses that differ from step by step", differ(first, plain, prompts, n, sampling), 0.05
        )
        yield equal(f"{words}: graphs replayed give the same", static.sample(prompts, n, sampling, 3) == first)
        greedy = Sampling(tokens, top_p=GREEDY)
        expected = [[searched(reference, prompt, tokens)] for prompt in prompts]
        for name, engine in (("graphs", static), ("step by step", plain)):
            got = engine.sample(prompts, 1, greedy, 3)
            yield equal(f"{words}: greedy, {name}, as transformers' generate", got == expected)
        for name, engine in (("graphs", static), ("step by step", plain)):
            spent, made = seconds(context.device, lambda e=engine, p=prompts, s=sampling: e.sample(p, n, s, 4))
            made_tokens = sum(len(r) for group in made for r in group)
            yield fact(f"{words}: {name}", made_tokens / spent, "tokens/s")
    yield changed(model, static, plain, prompts, n, sampling)
    del static, plain
    free(context.device)
    model.compute_dtype = torch.bfloat16
    half = TorchEngine(model, EOS, static=True, kv_bytes=2**30)
    first = half.sample(prompts, n, sampling, 3)
    yield equal("bf16: graphs replayed give the same", half.sample(prompts, n, sampling, 3) == first)


def random_prompts(vocabulary: int, count: int, lengths: tuple[int, int]) -> list[list[int]]:
    """Prompts of lengths spread from the least to the most."""
    generator = torch.Generator().manual_seed(7)
    sizes = torch.linspace(*lengths, count).long().tolist()
    return [torch.randint(3, vocabulary, (size,), generator=generator).tolist() for size in sizes]


def eager(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights with transformers' own attention."""
    with torch.device(model.device):
        copy = AutoModelForCausalLM.from_config(model.config, attn_implementation="eager", dtype=model.dtype)
    copy.load_state_dict(model.state_dict())
    return copy.eval()


@torch.no_grad()
def searched(model: PreTrainedModel, prompt: list[int], tokens: int) -> list[int]:
    """Transformers' greedy response."""
    ids = torch.tensor([prompt], device=model.device)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    response = out[0, len(prompt) :].tolist()
    return response[: response.index(EOS) + 1] if EOS in response else response


def differ(found: Responses, engine: TorchEngine, prompts: list, n: int, sampling: Sampling) -> float:
    """The share of responses that the engine samples otherwise: rounding may turn a draw at the edge of two tokens."""
    other = engine.sample(prompts, n, sampling, 3)
    pairs = [pair for groups in zip(found, other, strict=True) for pair in zip(*groups, strict=True)]
    return sum(a != b for a, b in pairs) / len(pairs)


def changed(
    model: PreTrainedModel, static: TorchEngine, plain: TorchEngine, prompts: list, n: int, sampling: Sampling
) -> Row:
    """A graph replayed after an update must sample from the new weights."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * weight.std() * torch.randn_like(weight) if weight.dim() == 2 else 0)
    found = static.sample(prompts, n, sampling, 3)
    return bound(
        "after an update: responses that differ from step by step", differ(found, plain, prompts, n, sampling), 0.05
    )
