"""A small policy from scratch: a tokenizer of single characters and a Qwen2-architecture model."""

from __future__ import annotations

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config

from pmd.model.attention import PACKED


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
