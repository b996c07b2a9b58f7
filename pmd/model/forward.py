"""One pass of the policy over packed tokens: its precision, its memory, the log-probabilities of the responses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from pmd.model.attention import PACKED
from pmd.model.packing import Packed, pack

COMPILED_LOSS = True
"""On CUDA, compile what turns logits into log-probabilities; False is the way back if a compiler fails."""

CHUNK_BYTES = 512 * 2**20
"""Bytes of fp32 logits that are made at once, never for all tokens: 883 rows of a vocabulary of 151,936."""

# --- precision and memory ------------------------------------------------------------------------------------------


def compute_type(model: PreTrainedModel) -> torch.dtype:
    """The type of the policy's matrix products; its weights may be kept in another."""
    return getattr(model, "compute_dtype", model.dtype)


def precision(model: PreTrainedModel) -> AbstractContextManager:
    """The context of one pass of a policy that keeps fp32 weights and computes in a smaller type.

    The weights stay fp32 so that small updates and AdamW's moments are not rounded away. A sharded policy needs no
    context: FSDP2 gathers its weights in the compute type, so that every layer's input and output have it too. A policy
    in one piece runs under autocast, which casts the weights and leaves norms and residual stream in fp32; enter the
    context anew after every update, because it keeps the cast weights.
    """
    exact = compute_type(model) == model.dtype or hasattr(model, SHARDED)
    return nullcontext() if exact else torch.autocast(model.device.type, compute_type(model))


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep only each layer's input for the backward pass and compute the rest again; ValueError if the model cannot."""
    if not model.supports_gradient_checkpointing:
        raise ValueError(f"train.checkpoint_activations: got True, must be False for a {type(model).__name__}")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers(model):  # which `_recomputed` puts into training mode, where OPT's drop out of what they add
        vars(layer).update({name: 0.0 for name in vars(layer) if "dropout" in name})


def compile_layers(model: PreTrainedModel) -> None:
    """Let torch.compile fuse the norms and feed-forward blocks of every layer, for any number of tokens.

    They are compiled one by one, inside what FSDP2 gathers and what is recomputed, so both see no difference. A single
    matrix product, as in OPT's layers, has nothing to be fused with.
    """
    for layer in layers(model):
        for part in layer.children():
            kind = type(part).__name__
            if "Norm" in kind or ("Attention" not in kind and any(part.children())):
                part.compile(dynamic=True)


def layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder's layers, whatever its architecture calls them: the list of as many modules as there are layers."""
    count = model.config.get_text_config().num_hidden_layers
    lists = (module for module in model.base_model.modules() if isinstance(module, nn.ModuleList))
    return next(found for found in lists if len(found) == count)


@contextmanager
def _recomputed(model: PreTrainedModel) -> Iterator[None]:
    """Put the layers whose activations are recomputed into training mode for a pass that needs gradients.

    Transformers recomputes in training mode only. The rest of the model stays in evaluation mode, because training mode
    would also drop the cache that rollouts need and switch dropout on.
    """
    before = {layer: layer.training for layer in model.modules() if getattr(layer, "gradient_checkpointing", False)}
    for layer in before:
        layer.training = torch.is_grad_enabled()
    try:
        yield
    finally:
        for layer, training in before.items():
            layer.training = training


# --- log-probabilities ---------------------------------------------------------------------------------------------


SHARDED = "packed_log_probs"
"""The method that `pmd.model.sharding.shard` gives a policy: `packed_log_probs` behind FSDP2's gathering of weights."""


class ChosenLogProbs(torch.autograd.Function):
    """log p [R, V] and ids [R] -> the ids' log-probabilities and the entropies −Σ p log p, both [R].

    Without `entropy` the second is None. Both come from one autograd node, which keeps log p alone, so a backward pass
    frees it whichever of the results is used.
    """

    @staticmethod
    def forward(ctx, log_p: Tensor, target: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(log_p, target)
        ctx.set_materialize_grads(False)
        chosen = log_p.gather(1, target[:, None])[:, 0]
        return chosen, -log_p.exp().mul_(log_p).sum(-1) if entropy else None

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
    (pmd/model/sharding.py) this is a collective: every rank makes the same number of passes.
    """
    if not hasattr(model, SHARDED):
        return packed_log_probs(model, packed, temperature, entropy)
    result = model.packed_log_probs(packed, temperature, entropy)
    if not torch.is_grad_enabled():
        model.reshard()  # as a backward pass does: gathered weights that stayed would miss the next update
    return result


def frozen_log_probs(
    model: PreTrainedModel, packed: Packed, temperature: float = 1.0, entropy: bool = True
) -> tuple[Tensor, Tensor | None]:
    """`log_probs` without a graph, for values that are only read.

    A policy in one piece runs in inference mode, in which autograd records nothing. A sharded policy runs under
    no_grad, because FSDP2 must be able to use the weights that it gathers in a later pass with a graph.
    """
    with torch.no_grad() if hasattr(model, SHARDED) else torch.inference_mode():
        return log_probs(model, packed, temperature, entropy)


def packed_log_probs(
    model: PreTrainedModel, packed: Packed, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """`log_probs` of a policy whose weights are all here."""
    with precision(model), _recomputed(model):
        hidden = model.base_model(
            input_ids=packed.ids, position_ids=packed.positions, layout=packed, use_cache=False
        ).last_hidden_state[0]
        return _token_log_probs(model.get_output_embeddings(), hidden, packed, temperature, entropy)


UNLIKE = {torch.float32: 1e-3}
"""The largest relative difference of the hidden states in a trial; 0.3 in types of 16 bits, whose rounding may send a
token to other experts."""


@torch.no_grad()
def check_attention(model: PreTrainedModel) -> None:
    """ValueError unless packed tokens get the hidden states that the model's own attention gives, sequence by sequence.

    It finds an architecture that does more than attention between tokens, such as a recurrence or a mask of its own.
    Only for a policy in one piece: of a sharded one, layers are gathered in a pass of the whole alone.
    """
    ids = [i % model.get_input_embeddings().num_embeddings for i in range(3, 18)]  # any tokens do
    prompts, responses = [ids[:3], ids[3:6]], [[ids[6:9], ids[9:11]], [ids[11:15]]]
    packed = pack(prompts, responses, model.device, "blocks")
    with precision(model):
        got = model.base_model(
            input_ids=packed.ids, position_ids=packed.positions, layout=packed, use_cache=False
        ).last_hidden_state[0, packed.predictor]
        model.set_attn_implementation("eager")
        own = []
        for prompt, group in zip(prompts, responses, strict=True):
            for response in group:
                ids = torch.tensor([prompt + response[:-1]], device=model.device)
                states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
                own.append(states[len(prompt) - 1 :])
        model.set_attn_implementation(PACKED)
    expected = torch.cat(own).float()
    off = ((got.float() - expected).norm() / expected.norm()).item()
    if not off <= UNLIKE.get(compute_type(model), 0.3):
        raise ValueError(
            f"{type(model).__name__} does not compute its hidden states by causal attention alone: packed tokens get "
            f"others, by {off:.2g} of their norm; such an architecture is not supported"
        )


def chosen_log_probs(logits: Tensor, target: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor | None]:
    """Logits [R, V] and ids [R] -> the ids' log-probabilities and, if asked for, the entropies, both [R] fp32."""
    logits = logits.float()
    log_p = F.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)
    return ChosenLogProbs.apply(log_p, target, entropy)


def fusible_log_probs(
    logits: Tensor, target: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """`chosen_log_probs` in operations that a compiler joins to one kernel each way.

    A comparison takes the place of the gather, whose gradient would be scattered into a table of zeros.
    """
    log_p = F.log_softmax(logits.float() / temperature, dim=-1)
    column = torch.arange(logits.shape[1], device=logits.device)
    chosen = torch.where(column == target[:, None], log_p, 0.0).sum(-1)
    return chosen, -(log_p.exp() * log_p).sum(-1) if entropy else None


@cache
def compiled_log_probs():
    """`fusible_log_probs` compiled for any number of rows. Used on CUDA, where eager passes over [R, V] take about a
    fifth of an update of a small model; on a CPU numbers must not depend on a compiler."""
    return torch.compile(fusible_log_probs, dynamic=True)


def _token_log_probs(
    head: nn.Module, hidden: Tensor, packed: Packed, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    choose = compiled_log_probs() if hidden.is_cuda and COMPILED_LOSS else chosen_log_probs

    def chunk(rows: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
        return choose(head(rows), target, temperature, entropy)

    size = max(1, CHUNK_BYTES // (4 * head.weight.shape[0]))
    rows = F.embedding(packed.predictor, hidden)
    pieces = list(zip(rows.split(size), packed.target.split(size), strict=True))
    if len(pieces) == 1 or not torch.is_grad_enabled():
        done = [chunk(*piece) for piece in pieces]
    else:
        done = [checkpoint(chunk, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    log_p, entropies = zip(*done, strict=True)
    return torch.cat(log_p), torch.cat(entropies) if entropy else None
