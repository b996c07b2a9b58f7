"""A small policy from scratch: its settings, a tokenizer of single characters and a Qwen2-architecture model."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config

from pmd.model.attention import PACKED
from pmd.params import Device, Settings, read, require


class Base(Settings):
    """A base model: its architecture and its supervised training. Namespace `base` of params.yaml is one for each of
    its `seeds`."""

    # --- the architecture ---
    layers: int = Field(ge=1)
    width: int = Field(ge=1)  # of the residual stream
    heads: int = Field(ge=1)  # of queries; they divide the width
    kv_heads: int = Field(ge=1)  # of keys and values; each serves as many query heads as the others
    feedforward: int = Field(ge=1)  # width of the gated block
    positions: int = Field(ge=1, default=256)  # tokens of the longest prompt and response together

    # --- the training ---
    seed: int = Field(ge=0)  # of the initial weights and of the order of the traces
    steps: int = Field(ge=1)  # optimizer steps
    batch: int = Field(ge=1)  # traces of a step
    lr: float = Field(gt=0)  # the learning rate after warm-up, which then falls as a cosine to a tenth
    warmup: int = Field(ge=0)  # steps over which the learning rate grows linearly

    # --- the machine ---
    device: Device  # cpu, cuda, cuda:1, …
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the products in a pass; weights and optimizer stay float32
    threads: int = Field(ge=1)  # CPU threads

    @model_validator(mode="after")
    def _fits_together(self) -> Base:
        require(self.width % self.heads == 0, "heads", self.heads, f"a divisor of base.width = {self.width}")
        groups = f"a divisor of base.heads = {self.heads}"
        require(self.heads % self.kv_heads == 0, "kv_heads", self.kv_heads, groups)
        require(self.warmup <= self.steps, "warmup", self.warmup, f"in 0..base.steps = {self.steps}")
        return self


def read_bases(values: Any) -> list[Base]:
    """Namespace `base` of params.yaml, checked: a `Base` for each of its `seeds`."""
    require(isinstance(values, dict), "base", values, "a mapping")
    seeds = values.get("seeds")
    good = isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)
    require(bool(good) and len(set(seeds)) == len(seeds), "base.seeds", seeds, "a list of different integers")
    shared = {key: value for key, value in values.items() if key != "seeds"}
    return [read(Base, "base", shared | {"seed": seed}) for seed in seeds]


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


def build_policy(
    symbols: str, layers: int, width: int, heads: int, kv_heads: int, feedforward: int, seed: int, positions: int = 256
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A Qwen2-architecture causal LM with random fp32 weights, on the CPU, and the character tokenizer of `symbols`.

    seed: of the weights; PyTorch's own random state stays as it is. For the sizes see `Base`.
    """
    tokenizer = character_tokenizer(symbols)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=feedforward,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED)
    return model, tokenizer
