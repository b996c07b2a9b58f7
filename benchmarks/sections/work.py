"""What must be computed and read: the operations of an update, the bytes of decoding. Speeds are held against these.

An update's floating-point operations are counted as

    6 · W_body · N + 6 · W_head · M + 12 · layers · heads · d · pairs

with W_body and W_head the matrix entries of the layers and of the head, N the packed tokens (a prompt once for all its
responses), M the response tokens, and pairs the (query, key) pairs that attention looks at. What activations cost to
compute again is not counted, nor is padding: model-FLOPs utilisation (MFU) is that number a second, over the measured
matrix product's.

Sampling is bounded from below by the bytes that must be read: each step all matrices once, and the keys and values of
every sequence so far, over the measured copy's bytes a second. The prefill counts in the time, not in the bound.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def matrices(model: PreTrainedModel) -> tuple[int, int]:
    """Entries of the matrices that a token is multiplied by: (in the layers, in the head)."""
    body = sum(m.weight.numel() for m in model.base_model.modules() if isinstance(m, nn.Linear))
    return body, model.get_output_embeddings().weight.numel()


def seen_pairs(prompts: list[list[int]], responses: list[list[list[int]]]) -> int:
    """(query, key) pairs of packed causal attention: each prompt once, each fed response token behind its prompt."""
    pairs = sum(len(p) * (len(p) + 1) // 2 for p in prompts)
    for prompt, group in zip(prompts, responses, strict=True):
        for fed in (len(response) - 1 for response in group):
            pairs += fed * len(prompt) + fed * (fed + 1) // 2
    return pairs


def packed_tokens(prompts: list[list[int]], responses: list[list[list[int]]]) -> int:
    """Tokens that a pass computes: a response's last predicts nothing and is not fed."""
    return sum(map(len, prompts)) + sum(len(r) - 1 for group in responses for r in group)


def head_width(model: PreTrainedModel) -> int:
    """d, the width of one attention head."""
    config = model.config
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def training_flops(model: PreTrainedModel, prompts: list[list[int]], responses: list[list[list[int]]]) -> int:
    """Floating-point operations of a forward and backward pass, recomputation not counted (see the top of the file)."""
    body, head = matrices(model)
    scored = sum(len(r) for group in responses for r in group)
    heads = model.config.num_hidden_layers * model.config.num_attention_heads
    attention = 12 * heads * head_width(model) * seen_pairs(prompts, responses)
    return 6 * body * packed_tokens(prompts, responses) + 6 * head * scored + attention


def sampling_bytes(model: PreTrainedModel, prompt: int, lengths: list[int], itemsize: int) -> int:
    """Bytes that decoding must read: a step all matrices once, and the keys and values of the sequences still open.

    The first token of a response comes from the prefill; of the last, nothing is read any more.
    """
    token = 2 * model.config.num_hidden_layers * model.config.num_key_value_heads * head_width(model)
    places = sum(prompt + t for length in lengths for t in range(1, length))
    return itemsize * ((max(lengths) - 1) * sum(matrices(model)) + places * token)
