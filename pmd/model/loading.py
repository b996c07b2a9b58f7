"""The policy: build, load, check and save a Hugging Face causal LM and its tokenizer."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
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

from pmd.model.attention import PACKED
from pmd.model.device import check_device
from pmd.model.distributed import barrier, full_weights, sharded, world

logging.disable_progress_bar()  # a bar for every load and save of a model drowns the run's own


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


def load_policy(
    name: str | Path,
    device: str = "cpu",
    dtype: str = "float32",
    compute: str | None = None,
    placed: str | None = None,
):
    """Load (model, tokenizer) from a directory that holds config.json, safetensors weights and a tokenizer, or from
    the hub as `owner/name@revision`, the revision being a commit of 40 hexadecimal digits.

    dtype: of the weights, "auto" being the files'; compute: of the forward and backward pass (see `precision`), None
    being the same; placed: a device that the caller will move it to, checked before anything is read. No pickle, no
    remote code; no network unless a revision is named. ValueError in one line naming the model and what is missing,
    broken or not supported.
    """
    check_device(placed or device, compute or dtype)
    path = directory(name)
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        _check_architecture(AutoConfig.from_pretrained(path, **options))
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        model = AutoModelForCausalLM.from_pretrained(
            path,
            **options,
            use_safetensors=True,
            attn_implementation=PACKED,
            dtype=getattr(torch, dtype, dtype),
        )
        if not model.is_backend_compatible():
            raise ValueError(f"{type(model).__name__} computes attention by itself; transformers' interface is needed")
    except Exception as error:  # safetensors, tokenizers and transformers each raise their own
        raise ValueError(f"{path}: the model cannot be loaded ({' '.join(str(error).split())[:200]})") from error
    _check_tokens(path, tokenizer, model)
    model.compute_dtype = getattr(torch, compute) if compute else model.dtype
    return model.to(device), tokenizer


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
    """Write a Hugging Face model directory (safetensors); the directory appears whole or not at all.

    Of a sharded policy rank 0 gathers the weights on its CPU and writes; every rank must call.
    """
    path, main = Path(path), world()[0] == 0
    weights = {name: weight.to("cpu") for name, weight in full_weights(model) if main} if sharded(model) else None
    if main:
        _write(model, tokenizer, path, weights)
    barrier()


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, weights: dict | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        model.save_pretrained(temporary, state_dict=weights)
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
