"""One pass of the policy over packed tokens: its precision, its memory, the log-probabilities of the responses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from pmd.model.packing import Packed

CHUNK_BYTES = 512 * 2**20
"""Bytes of fp32 logits made at once, so that [tokens, vocabulary] never is: 883 rows of a vocabulary of 151,936."""

# --- precision and memory ------------------------------------------------------------------------------------------


def precision(model: PreTrainedModel) -> AbstractContextManager:
    """The context of one pass: products in the policy's compute type where its weights are kept in fp32, so that small
    updates and AdamW's moments are not rounded away. Enter it anew after every update: it caches the cast weights."""
    compute = getattr(model, "compute_dtype", model.dtype)
    # of a sharded policy, FSDP2 gathers the weights in the compute type
    exact = compute == model.dtype or hasattr(model, "score")
    return nullcontext() if exact else torch.autocast(model.device.type, compute)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep only each layer's input for the backward pass and compute the rest again; ValueError if the model cannot."""
    if not model.supports_gradient_checkpointing:
        raise ValueError(f"train.checkpoint_activations: got True, must be False for a {type(model).__name__}")
    model.gradient_checkpointing_enable({"use_reentrant": False})


def compile_layers(model: PreTrainedModel) -> None:
    """Let torch.compile fuse the norms and feed-forward blocks of every layer, for any number of tokens."""
    for layer in model.base_model.layers:
        for part in (layer.input_layernorm, layer.post_attention_layernorm, layer.mlp):
            part.compile(dynamic=True)


@contextmanager
def _recomputed(model: PreTrainedModel) -> Iterator[None]:
    """Transformers recomputes in training mode alone, where it also drops the cache that rollouts need and switches
    dropout on: so only the recomputed layers themselves enter it, and only for a pass with a graph."""
    before = {layer: layer.training for layer in model.modules() if getattr(layer, "gradient_checkpointing", False)}
    for layer in before:
        layer.training = torch.is_grad_enabled()
    try:
        yield
    finally:
        for layer, training in before.items():
            layer.training = training


# --- log-probabilities ---------------------------------------------------------------------------------------------


class Chosen(torch.autograd.Function):
    """log p [R, V] and ids [R] -> the ids' log-probabilities and the entropies −Σ p log p, both [R].

    Without `entropy` the second is None. One node for both, that keeps log p alone: whichever result is used, a
    backward pass frees it.
    """

    @staticmethod
    def forward(ctx, log_p: Tensor, target: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(log_p, target)
        ctx.set_materialize_grads(False)
        return log_p.gather(1, target[:, None])[:, 0], -log_p.exp().mul_(log_p).sum(-1) if entropy else None

    @staticmethod
    def backward(ctx, chosen: Tensor | None, entropy: Tensor | None) -> tuple[Tensor, None, None]:
        log_p, target = ctx.saved_tensors
        gradient = torch.zeros_like(log_p) if entropy is None else log_p.exp().mul_(log_p + 1).mul_(-entropy[:, None])
        if chosen is not None:
            gradient.scatter_add_(1, target[:, None], chosen[:, None])
        return gradient, None, None


def log_probs(
    model: PreTrainedModel, packed: Packed, temperature: float = 1.0, entropy: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each response token and entropy of its distribution, both [M] fp32, in nats.

    Without `entropy` the second is None and costs nothing; the first is the same to the bit. Logits are made
    CHUNK_BYTES at a time and recomputed in the backward pass when there is more than one chunk. Of a sharded policy
    (pmd/model/distributed.py) this is a collective: every rank makes the same number of passes.
    """
    if not hasattr(model, "score"):
        return score(model, packed, temperature, entropy)
    result = model.score(packed, temperature, entropy)
    if not torch.is_grad_enabled():
        model.reshard()  # a backward pass would have; whole weights left here would miss the next update
    return result


def frozen_log_probs(
    model: PreTrainedModel, packed: Packed, temperature: float = 1.0, entropy: bool = True
) -> tuple[Tensor, Tensor | None]:
    """`log_probs` without a graph, for values that are only read.

    A policy in one piece runs in inference mode, which keeps no books at all; FSDP2 must be able to use the weights
    that it gathers again in a pass with a graph, so a sharded policy runs under no_grad.
    """
    with torch.no_grad() if hasattr(model, "score") else torch.inference_mode():
        return log_probs(model, packed, temperature, entropy)


def score(model: PreTrainedModel, packed: Packed, temperature: float, entropy: bool) -> tuple[Tensor, Tensor | None]:
    """`log_probs` of a policy whose weights are all here."""
    with precision(model), _recomputed(model):
        hidden = model.base_model(
            input_ids=packed.ids, position_ids=packed.positions, layout=packed, use_cache=False
        ).last_hidden_state[0]
        return _token_log_probs(model.get_output_embeddings(), hidden, packed, temperature, entropy)


def _token_log_probs(
    head: nn.Module, hidden: Tensor, packed: Packed, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    def chunk(rows: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = head(rows).float()
        log_p = F.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)
        return Chosen.apply(log_p, target, entropy)

    size = max(1, CHUNK_BYTES // (4 * head.weight.shape[0]))
    rows = F.embedding(packed.predictor, hidden)
    pieces = list(zip(rows.split(size), packed.target.split(size), strict=True))
    if len(pieces) == 1 or not torch.is_grad_enabled():
        done = [chunk(*piece) for piece in pieces]
    else:
        done = [checkpoint(chunk, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    log_p, entropies = zip(*done, strict=True)
    return torch.cat(log_p), torch.cat(entropies) if entropy else None
