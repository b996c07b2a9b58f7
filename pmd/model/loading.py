"""A policy on disk: find, check, load and save a Hugging Face causal LM and its tokenizer."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from pmd.files import read_json, write_json
from pmd.model import ends
from pmd.model.attention import PACKED
from pmd.model.device import check_device, check_memory
from pmd.model.distributed import barrier, world
from pmd.model.forward import check_attention, compute_type
from pmd.model.sharding import full_weights, local, own_rows, shard, sharded

logging.disable_progress_bar()  # a bar for every load and save of a model drowns the run's own


def load_policy(
    name: str | Path,
    device: str = "cpu",
    dtype: str = "float32",
    compute: str | None = None,
    divided: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load (model, tokenizer) from a directory that holds config.json, safetensors weights and a tokenizer, or from
    the hub as `owner/name@revision`, the revision being a commit of 40 hexadecimal digits.

    dtype: the type of the weights; "auto": that of the files. compute: the type of the forward and backward pass (see
    `precision`); None: that of the weights. divided: shard the policy among the ranks (pmd/model/sharding.py). Its
    weights are then fp32 whatever `dtype` says, and every rank reads only its own rows. Nothing is unpickled, no remote
    code runs, and the network is used only if a revision is named. ValueError in one line that names the model and what
    is missing, broken (weights that are NaN or, in this dtype, infinite) or not supported.
    """
    check_device(device, compute or dtype)
    path = directory(name)
    if device.startswith("cuda"):
        _check_room(path, device, dtype, divided)
    options = {"local_files_only": True, "trust_remote_code": False}
    with _explained(path):
        config = AutoConfig.from_pretrained(path, **options)
        _check_architecture(config)
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        try:
            model = _empty(path, config) if divided else _whole(path, getattr(torch, dtype, dtype))
        except KeyError as error:
            raise (ValueError(BY_ITSELF.format(config.model_type)) if error.args == (PACKED,) else error) from error
        if not model.is_backend_compatible():
            raise ValueError(BY_ITSELF.format(type(model).__name__))
    _check_tokens(path, tokenizer, model)
    ends.declare(model, tokenizer)
    model.compute_dtype = getattr(torch, compute) if compute else model.dtype
    with _explained(path):
        if divided:
            shard(model, device)
            _read_own_rows(model, path)
        model = model.eval() if divided else model.to(device)
        _check_finite(model)
        if not divided:
            check_attention(model)
    return model, tokenizer


def _check_room(path: Path, device: str, dtype: str, divided: bool) -> None:
    """ValueError in one line, before a weight is read, if the weights do not fit on a GPU; of a policy that is divided,
    and so trained, if this rank's share of them with gradients and moments does not. What a pass takes comes on top."""
    numbers = 0
    for file in path.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())  # not iterable by itself
            numbers += sum(math.prod(opened.get_slice(name).get_shape()) for name in names)
    model = f"a model of {numbers / 1e9:.2f} B parameters"
    if divided:
        what, help = f"training {model}", "train on more GPUs by torchrun, or take a smaller model"
        check_memory(device, 16 * numbers / world()[1], what, help)  # fp32: weights, gradients and AdamW's two moments
    else:
        size = getattr(getattr(torch, dtype, None), "itemsize", 2)
        check_memory(device, size * numbers, model, "choose bfloat16, where it is not, or take a smaller model")


BY_ITSELF = "{} computes attention by itself; transformers' interface is needed"


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Any error as a ValueError in one line: safetensors, tokenizers and transformers each raise their own."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path}: the model cannot be loaded ({' '.join(str(error).split())[:200]})") from error


def _empty(path: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """The model in a directory without its weights: fp32 parameters on the meta device, which take no memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED, dtype=torch.float32)
    if (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    return model


def _whole(path: Path, dtype: torch.dtype | str) -> PreTrainedModel:
    """The model in a directory, on the CPU."""
    return AutoModelForCausalLM.from_pretrained(
        path,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        attn_implementation=PACKED,
        dtype=dtype,
    )


EXPERTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""The weights of a mixture that are one tensor of all experts in memory, and of what entries each expert's is made."""

APART = ("qwen2_moe", "qwen3_moe")
"""Architectures whose files hold these weights expert by expert."""


@torch.no_grad()
def _read_own_rows(model: PreTrainedModel, path: Path) -> None:
    """Fill this rank's rows of a sharded policy from the safetensors files in a directory.

    Some architectures keep weights on disk under other names or in other shapes than in memory, which transformers
    converts when it loads. The rows of a mixture's weights are its experts, each read by itself. Of other conversions
    every rank loads the whole model on its CPU and takes its rows.
    """
    with ExitStack() as files:
        entries = {}
        for file in path.glob("*.safetensors"):
            opened = files.enter_context(safe_open(file, "pt"))
            names = list(opened.keys())  # not iterable by itself
            entries |= {name: opened.get_slice(name) for name in names}
        shapes = {name: entry.get_shape() for name, entry in entries.items()}
        rows = {
            name: _experts(model, name, list(parameter.shape), shapes)
            for name, parameter in model.named_parameters()
            if shapes.get(name) != list(parameter.shape)
        }
        whole = {} if all(rows.values()) else dict(_whole(path, "auto").named_parameters())
        for name, parameter in model.named_parameters():
            mine, here = own_rows(parameter), local(parameter)
            if whole or name not in rows:
                here.copy_((whole or entries)[name][mine])
            else:
                for row, parts in zip(here, rows[name][mine], strict=True):
                    row.copy_(torch.cat([entries[part][:] for part in parts]))


def _experts(
    model: PreTrainedModel, name: str, shape: list[int], shapes: dict[str, list[int]]
) -> list[list[str]] | None:
    """The entries of each expert's row of a weight, in the order in which they are joined; None for other weights."""
    block, _, kind = name.rpartition(".")
    if model.config.model_type not in APART or not block.endswith(".experts") or kind not in EXPERTS:
        return None
    rows = [[f"{block}.{expert}.{part}.weight" for part in EXPERTS[kind]] for expert in range(shape[0])]
    joined = [[shapes.get(entry, [0, 0]) for entry in row] for row in rows]
    fits = all(
        sum(size[0] for size in row) == shape[1] and all(size[1:] == shape[2:] for size in row) for row in joined
    )
    return rows if fits else None


HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})")
HUB_FILES = ("*.json", "*.jinja", "*.safetensors")


def directory(name: str | Path) -> Path:
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


ODD = {"doge": "a mask of its own for every head", "jetmoe": "heads that are chosen for every token"}
"""Architectures that go through transformers' attention interface and yet do something else than attention."""


def _check_finite(model: PreTrainedModel) -> None:
    """ValueError naming the first weight, among this rank's rows, that is NaN or infinite."""
    for name, parameter in model.named_parameters():
        rows = local(parameter).detach()
        if rows.numel() and not all(bound.isfinite() for bound in rows.aminmax()):  # a NaN is both bounds
            kind = str(rows.dtype).removeprefix("torch.")
            help = "; a dtype of bfloat16 or float32 has a larger range" if rows.dtype == torch.float16 else ""
            raise ValueError(f"{name} is NaN or infinite in {kind}{help}")


def _check_architecture(config: PreTrainedConfig) -> None:
    """ValueError if packed attention, a decoder's cache or `log_probs` would compute something else than the model."""
    layers = getattr(config, "layer_types", None)
    unlike = sorted({*(layers or ())} - {"full_attention"})
    plain = ("attn_logit_softcapping", "final_logit_softcapping", "logit_scale", "logits_scaling")
    unlike += [key for key in plain if getattr(config, key, None) not in (None, 1)]
    unlike += ["sliding_window"] if not layers and getattr(config, "sliding_window", None) else []
    if getattr(config, "kv_lora_rank", None):
        nope, rope, value = (getattr(config, f"{part}_head_dim", 0) for part in ("qk_nope", "qk_rope", "v"))
        unlike += [f"latent keys of width {nope + rope} and values of width {value}"]
    unlike += [ODD[config.model_type]] if config.model_type in ODD else []
    if unlike:
        raise ValueError(f"{config.model_type} has {', '.join(unlike)}; it must have full attention and plain logits")


def _check_tokens(path: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """ValueError if the tokenizer is another model's: too many tokens, or an end of sequence that neither the model nor
    the tokenizer's own chat template knows."""
    size = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > size:
        raise ValueError(f"{path}: the tokenizer has {len(tokenizer)} tokens, the model {size}")
    own, of_model, of_turn = tokenizer.eos_token_id, ends.declared(model), ends.turn_end(tokenizer)
    if own is None and not of_model and not of_turn:
        raise ValueError(f"{path}: no end-of-sequence token is declared, so no response could ever end")
    if own is not None and of_model and own not in (*of_model, *of_turn):
        raise ValueError(
            f"{path}: the tokenizer ends a response with token {own} ({tokenizer.eos_token}), the model with "
            f"{of_model}; make eos_token in tokenizer_config.json and eos_token_id in config.json agree"
        )


def save_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
    """Write a Hugging Face model directory (safetensors); it appears whole or not at all.

    Of a sharded policy rank 0 gathers the weights on its CPU, one after another, and writes; every rank must call. They
    are written in the compute type: a policy that computes in bfloat16 is sampled in bfloat16, so the folder holds what
    was sampled in half the space, and the fp32 weights from which training goes on are in the checkpoint.
    """
    path, main, dtype = Path(path), world()[0] == 0, compute_type(model)
    weights = None
    if sharded(model):
        states = model.state_dict(keep_vars=True)
        once = {id(weight): name for name, weight in reversed(states.items())}.values()  # tied weights have two names
        weights = {name: weight.to(dtype).to("cpu") for name, weight in full_weights(model) if main and name in once}
    if main:
        _write(model, tokenizer, path, weights)
    barrier()


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, weights: dict | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        model.save_pretrained(temporary, state_dict=weights)
        if weights is not None:  # transformers states the type of the weights in memory
            config = temporary / "config.json"
            write_json(config, read_json(config) | {"dtype": str(compute_type(model)).removeprefix("torch.")})
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
