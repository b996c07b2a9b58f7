"""The policy: build, load and save a Hugging Face causal LM; log-probabilities of responses, without padding.

Training and scoring run on *packed* tokens: a group's prompt stands once, its n responses follow, and no token is
padding. Every layer but attention works on that flat list; attention gathers each response behind its prompt,
attends causally and scatters back (`packed_attention`, plugged into transformers' attention interface, so any
model that uses the interface can be trained).
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.utils import logging

logging.disable_progress_bar()  # a bar for every load and save of a model drowns the run's own

CHUNK_BYTES = 512 * 2**20
"""Bytes of fp32 logits made at once, so that [tokens, vocabulary] never is: 883 rows of a vocabulary of 151,936."""

BLOCKS = 3
"""Blocks of responses of similar length in which attention is computed."""


# --- building, loading, saving -------------------------------------------------------------------------------------


def character_tokenizer(symbols: str) -> PreTrainedTokenizerFast:
    """One token a character of `symbols`, after <pad>, <eos> and <unk> (ids 0, 1, 2)."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *symbols])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def build_policy(symbols: str, layers: int, width: int, heads: int, kv_heads: int, feedforward: int, seed: int):
    """A Qwen2-architecture causal LM from scratch, fp32, and its character tokenizer."""
    tokenizer = character_tokenizer(symbols)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=feedforward,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED)
    return model, tokenizer


def load_policy(name: str | Path, device: str = "cpu", dtype: str = "float32", compute: str | None = None):
    """Load (model, tokenizer) from a directory that holds config.json, safetensors weights and a tokenizer, or from
    the hub as `owner/name@revision`, the revision being a commit of 40 hexadecimal digits.

    dtype: of the weights; compute: of the forward and backward pass (see `precision`), None being the same. No pickle,
    no remote code; no network unless a revision is named. ValueError in one line naming the model and what is missing,
    broken or not supported.
    """
    _check_device(device)
    path = _directory(name)
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        _check_architecture(AutoConfig.from_pretrained(path, **options))
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        model = AutoModelForCausalLM.from_pretrained(
            path, **options, use_safetensors=True, attn_implementation=PACKED, dtype=getattr(torch, dtype)
        )
        if not model.is_backend_compatible():
            raise ValueError(f"{type(model).__name__} computes attention by itself; transformers' interface is needed")
    except Exception as error:  # safetensors, tokenizers and transformers each raise their own
        raise ValueError(f"{path}: the model cannot be loaded ({' '.join(str(error).split())[:200]})") from error
    _check_tokens(path, tokenizer, model)
    model.compute_dtype = getattr(torch, compute or dtype)
    return model.to(device), tokenizer


HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})")
HUB_FILES = ("*.json", "*.jinja", "*.safetensors")


def _directory(name: str | Path) -> Path:
    """The model directory of that name, or the hub's snapshot at a pinned revision, downloaded unless it is there."""
    path, hub = Path(name), HUB_NAME.fullmatch(str(name))
    if hub and not path.exists():
        try:
            path = Path(snapshot_download(hub[1], revision=hub[2], allow_patterns=list(HUB_FILES)))
        except Exception as error:  # the network, the hub and the cache raise their own
            raise ValueError(
                f"{name}: cannot be fetched ({type(error).__name__}); check name, revision and network, or run "
                f"`hf download {hub[1]} --revision {hub[2]}` where there is one and give the directory that it prints"
            ) from error
    if not path.exists():
        raise ValueError(f"{name}: no such directory; a model of the hub is owner/name@revision, 40 hexadecimal digits")
    missing = [file for file in ("config.json", "tokenizer.json") if not (path / file).is_file()]
    if not list(path.glob("*.safetensors")):
        missing.append("*.safetensors (weights)")
    if missing:
        raise ValueError(f"{path}: not a model directory, it lacks {', '.join(missing)}")
    return path


def _check_device(device: str) -> None:
    """ValueError unless this PyTorch can compute there."""
    kind, _, index = device.partition(":")
    if kind == "cuda" and not (torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count()):
        raise ValueError(
            f"device: got {device!r}, but PyTorch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices; "
            "choose cpu, or install a PyTorch with CUDA and check the driver with nvidia-smi"
        )


def _check_architecture(config: PreTrainedConfig) -> None:
    """ValueError if packed attention or `log_probs` would compute something else than the model does."""
    layers = getattr(config, "layer_types", None)
    unlike = sorted({*(layers or ())} - {"full_attention"})
    plain = ("attn_logit_softcapping", "final_logit_softcapping", "logit_scale", "logits_scaling")
    unlike += [key for key in plain if getattr(config, key, None) not in (None, 1)]
    unlike += ["sliding_window"] if not layers and getattr(config, "sliding_window", None) else []
    if unlike:
        raise ValueError(f"{config.model_type} has {', '.join(unlike)}; it must have full attention and plain logits")


def _check_tokens(path: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """ValueError if the tokenizer is another model's: too many tokens, or another end of sequence."""
    size = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > size:
        raise ValueError(f"{path}: the tokenizer has {len(tokenizer)} tokens, the model {size}")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{path}: the tokenizer has no end-of-sequence token, so no response could ever end")
    stated = [source.eos_token_id for source in (model.config, model.generation_config)]
    ends = {end for ids in stated if ids is not None for end in (ids if isinstance(ids, list) else [ids])}
    if ends and tokenizer.eos_token_id not in ends:
        raise ValueError(
            f"{path}: the tokenizer ends a response with token {tokenizer.eos_token_id} ({tokenizer.eos_token}), the "
            f"model with {sorted(ends)}; make eos_token in tokenizer_config.json and eos_token_id in config.json agree"
        )


def save_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
    """Write a Hugging Face model directory (safetensors); the directory appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        temporary.chmod(0o755)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# --- packing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """B rows of packed tokens for attention: queries [B, Q], keys [B, K], and bias [B, 1, Q, K], 0 where a query may
    look and -inf elsewhere."""

    queries: Tensor
    keys: Tensor
    bias: Tensor

    def to(self, device: str) -> Block:
        return Block(self.queries.to(device), self.keys.to(device), self.bias.to(device))


@dataclass(frozen=True)
class Packed:
    """G prompts and their S responses laid out without padding, as N packed tokens; all int64 but the biases.

    ids, positions: [1, N]. Attention reads blocks: the prompts, then the responses behind their prompts, those of
    similar length together so that little of a block is padding; scatter [N] says where in the blocks' flattened
    queries each packed token is. predictor, target, sequence: [M], for each response token the packed token that
    predicts it, its id and its response (tokens of one response are consecutive). lengths: [S] tokens of each response.
    """

    ids: Tensor
    positions: Tensor
    blocks: tuple[Block, ...]
    scatter: Tensor
    predictor: Tensor
    target: Tensor
    sequence: Tensor
    lengths: Tensor


def pack(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]], device: str = "cpu") -> Packed:
    """Lay out `responses[g]`, the token ids of the responses to `prompts[g]`.

    The last token of a response predicts nothing and is not fed. ValueError if a prompt or a response is empty.
    """
    flat = [response for group in responses for response in group]
    if not all(map(len, prompts)) or not all(map(len, flat)):
        raise ValueError("a prompt or a response has no tokens")
    group = torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor([len(g) for g in responses]))
    prompt_length, length = torch.tensor([len(p) for p in prompts]), torch.tensor([len(r) for r in flat])
    prompt_ids, prompt_real = _table(prompts)
    target_ids, target_real = _table(flat)
    fed_real = target_real[:, 1:]  # [S, R]: every token but the last is fed
    prompt_rows = _number(prompt_real, 0)
    response_rows = _number(fed_real, int(prompt_length.sum()))
    parts = (prompt_length[group] + length).argsort(stable=True).chunk(BLOCKS)
    blocks = [_block(prompt_rows[:, :0], prompt_length * 0, prompt_rows, prompt_length)]
    blocks += [_block(prompt_rows[group[i]], prompt_length[group[i]], response_rows[i], length[i] - 1) for i in parts]
    blocks = [(block, real) for block, real in blocks if real.numel()]  # a response of one token is not fed
    first = (prompt_length.cumsum(0) - 1)[group, None]  # the prompt's last token predicts the first of the response
    position = prompt_length[group, None] + torch.arange(response_rows.shape[1])
    layout = Packed(
        ids=torch.cat([prompt_ids[prompt_real], target_ids[:, :-1][fed_real]])[None],
        positions=torch.cat([(prompt_real.cumsum(1) - 1)[prompt_real], position[fed_real]])[None],
        blocks=tuple(block for block, _ in blocks),
        scatter=_slots([block.queries for block, _ in blocks], [real for _, real in blocks]),
        predictor=torch.cat([first, response_rows], dim=1)[target_real],
        target=target_ids[target_real],
        sequence=torch.repeat_interleave(torch.arange(len(flat)), length),
        lengths=length,
    )
    moved = {name: value.to(device) for name, value in vars(layout).items() if name != "blocks"}
    return Packed(blocks=tuple(block.to(device) for block in layout.blocks), **moved)


def _block(behind: Tensor, behind_length: Tensor, rows: Tensor, length: Tensor) -> tuple[Block, Tensor]:
    """Rows of packed tokens [B, Q] that attend to those before them [B, P] and causally to themselves; and which of
    the queries are real [B, Q]. Both are cut to the longest row."""
    p, q = int(behind_length.max()), int(length.max())
    behind, rows = behind[:, :p], rows[:, :q]
    before = torch.arange(p) < behind_length[:, None]
    causal = torch.ones(q, q, dtype=torch.bool).tril()
    seen = torch.cat([before[:, None].expand(-1, q, -1), causal.expand(len(rows), -1, -1)], dim=2)
    bias = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))[:, None]
    return Block(rows, torch.cat([behind, rows], dim=1), bias), torch.arange(q) < length[:, None]


def _slots(queries: list[Tensor], real: list[Tensor]) -> Tensor:
    """Where each packed token stands in the blocks' flattened queries."""
    token, real = (torch.cat([x.flatten() for x in xs]) for xs in (queries, real))
    return torch.empty(int(real.sum()), dtype=torch.int64).scatter_(0, token[real], real.nonzero()[:, 0])


def _table(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one table of ids and the mask of its real entries, both [rows, longest]."""
    lengths = np.array([len(row) for row in rows])
    real = np.arange(lengths.max()) < lengths[:, None]
    table = np.zeros(real.shape, dtype=np.int64)
    table[real] = np.concatenate([np.asarray(row) for row in rows])
    return torch.from_numpy(table), torch.from_numpy(real)


def _number(real: Tensor, start: int) -> Tensor:
    """Number the real entries row by row from `start`; the others point at token 0 and are never read."""
    return torch.where(real, real.flatten().cumsum(0).view_as(real) - 1 + start, 0)


# --- attention -----------------------------------------------------------------------------------------------------

PACKED = "pmd_packed"
"""The name under which transformers finds `packed_attention`."""


def packed_attention(module, query, key, value, attention_mask, layout: Packed | None = None, **kwargs):
    """Causal attention of each response behind its prompt; without a layout, attention under a given 4-D mask.

    query: [B, heads, Q, d]; key, value: [B, kv_heads, K, d]; returns ([B, Q, heads, d], None). B is 1 with a layout.
    """
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast the rotary embedding made them fp32
    if layout is None:
        return attend(query, key, value, attention_mask, scale).transpose(1, 2), None
    d, heads = query.shape[-1], query.shape[1]
    q, kv = (x[0].transpose(0, 1).flatten(1) for x in (query, torch.cat([key, value], dim=1)))  # [N, heads * d]

    def rows(index: Tensor, flat: Tensor) -> Tensor:  # -> [rows, heads, width, d]
        return F.embedding(index, flat).unflatten(2, (-1, d)).transpose(1, 2)  # a gather with a fast CPU backward

    def attended(block: Block) -> Tensor:  # -> [rows * width, heads * d]
        out = attend(rows(block.queries, q), *rows(block.keys, kv).chunk(2, dim=1), block.bias, scale)
        return out.transpose(1, 2).reshape(-1, heads * d)

    out = torch.cat([attended(block) for block in layout.blocks])
    return F.embedding(layout.scatter, out).view(1, -1, heads, d), None


AttentionInterface.register(PACKED, packed_attention)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    """softmax(scale q kᵀ + bias) v; query: [B, heads, Q, d], key, value: [B, kv_heads, K, d], bias: [B or 1, 1, Q, K].

    On a CPU the fused kernel is several times slower than plain products at short lengths; heads that share a key stand
    as its queries there, so that nothing is repeated.
    """
    bias = bias.to(query.dtype)
    if query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale, enable_gqa=True)
    b, heads, q, d = query.shape
    kv = key.shape[1]
    scores = torch.bmm((query * scale).reshape(b * kv, -1, d), key.flatten(0, 1).transpose(1, 2))
    scores.view(b, kv, heads // kv, q, -1).add_(bias[:, :, None])
    return torch.bmm(scores.softmax(-1), value.flatten(0, 1)).view(b, heads, q, d)


# --- precision and memory of a pass ---------------------------------------------------------------------------------


def precision(model: PreTrainedModel) -> AbstractContextManager:
    """The context of one pass: products in the policy's compute type where its weights are kept in fp32, so that small
    updates and AdamW's moments are not rounded away. Enter it anew after every update: it caches the cast weights."""
    compute = getattr(model, "compute_dtype", model.dtype)
    return nullcontext() if compute == model.dtype else torch.autocast(model.device.type, compute)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep only each layer's input for the backward pass and compute the rest again; ValueError if the model cannot."""
    if not model.supports_gradient_checkpointing:
        raise ValueError(f"train.checkpoint_activations: got True, must be False for a {type(model).__name__}")
    model.gradient_checkpointing_enable({"use_reentrant": False})


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

    One node for both, that keeps log p alone: whichever result is used, a backward pass frees it.
    """

    @staticmethod
    def forward(ctx, log_p: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(log_p, target)
        ctx.set_materialize_grads(False)
        return log_p.gather(1, target[:, None])[:, 0], -log_p.exp().mul_(log_p).sum(-1)

    @staticmethod
    def backward(ctx, chosen: Tensor | None, entropy: Tensor | None) -> tuple[Tensor, None]:
        log_p, target = ctx.saved_tensors
        gradient = torch.zeros_like(log_p) if entropy is None else log_p.exp().mul_(log_p + 1).mul_(-entropy[:, None])
        if chosen is not None:
            gradient.scatter_add_(1, target[:, None], chosen[:, None])
        return gradient, None


def log_probs(model: PreTrainedModel, packed: Packed, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability of each response token and entropy of its distribution, both [M] fp32, in nats.

    Logits are made CHUNK_BYTES at a time and recomputed in the backward pass when there is more than one chunk.
    """
    with precision(model), _recomputed(model):
        hidden = model.base_model(
            input_ids=packed.ids, position_ids=packed.positions, layout=packed, use_cache=False
        ).last_hidden_state[0]
        return _token_log_probs(model.get_output_embeddings(), hidden, packed, temperature)


def _token_log_probs(head: nn.Module, hidden: Tensor, packed: Packed, temperature: float) -> tuple[Tensor, Tensor]:
    def chunk(rows: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(rows).float()
        log_p = F.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)
        return Chosen.apply(log_p, target)

    size = max(1, CHUNK_BYTES // (4 * head.weight.shape[0]))
    rows = F.embedding(packed.predictor, hidden)
    pieces = list(zip(rows.split(size), packed.target.split(size), strict=True))
    if len(pieces) == 1 or not torch.is_grad_enabled():
        done = [chunk(*piece) for piece in pieces]
    else:
        done = [checkpoint(chunk, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    log_p, entropy = zip(*done, strict=True)
    return torch.cat(log_p), torch.cat(entropy)
