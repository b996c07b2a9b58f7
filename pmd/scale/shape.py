"""The shape of an architecture: its parameters and the widths of its activations, counted without making weights."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from pmd.files import ROOT, read_json
from pmd.model.forward import layers
from pmd.params import require


@dataclass(frozen=True)
class Shape:
    """Parameters of a model and the widths of its activations; an MoE is a mixture of experts."""

    total: int  # all parameters
    experts: int  # of them, those in expert blocks
    used: float  # share of the expert blocks that one token is sent to
    layer: int  # parameters of the largest decoder layer
    head: int  # vocabulary x hidden: the output head and, unless `tied`, once more the embedding
    tied: bool
    layers: int
    hidden: int
    vocabulary: int
    heads: int
    query: int  # heads x head width
    key: int  # key-value heads x head width
    feedforward: int  # width of the gated block; in an MoE, of the experts that one token is sent to together
    routed: int  # how many experts one token is sent to; 0 without experts
    normed: bool  # whether queries and keys are normalised

    @property
    def rest(self) -> int:
        """Parameters outside the layers."""
        return self.total - self.layers * self.layer

    @property
    def products(self) -> float:
        """Parameters that one token is multiplied with: not the embedding, which is looked up, nor unused experts."""
        return self.total - (1 - self.used) * self.experts - (0 if self.tied else self.head)


def shape(config: PreTrainedConfig) -> Shape:
    """The shape of an architecture, counted on the meta device."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    every = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 0
    routed = config.num_experts_per_tok if every else 0
    names = ("intermediate_size", "ffn_dim", "n_inner")  # OPT's and GPT-2's, whose null stands for 4 x hidden
    wide = next((size for name in names if (size := getattr(config, name, None))), 4 * config.hidden_size)
    own = getattr(config, "moe_intermediate_size", wide)
    return Shape(
        total=sum(sizes.values()),
        experts=sum(size for name, size in sizes.items() if ".experts." in name),
        used=routed / every if every else 1.0,
        layer=max(sum(p.numel() for p in layer.parameters()) for layer in layers(model)),
        head=config.vocab_size * config.hidden_size,
        tied=config.tie_word_embeddings,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        heads=heads,
        query=heads * width,
        key=kv_heads * width,
        feedforward=routed * own if every else wide,
        routed=routed,
        normed=any(".q_norm." in name for name in sizes),
    )


def architecture(model: str) -> PreTrainedConfig:
    """The configuration of a model directory, or of a model of the hub whose architecture is in presets/models.

    ValueError if it is neither.
    """
    folder, known = ROOT / model, sorted(path.stem for path in (ROOT / "presets" / "models").glob("*.json"))
    if (folder / "config.json").is_file():
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    name = re.fullmatch(r"(?:.*/)?([^/@]+)(?:@[0-9a-f]{40})?", model)
    require(bool(name) and name[1] in known, "model", model, f"a model directory or one of {', '.join(known)}")
    values = read_json(ROOT / "presets" / "models" / f"{name[1]}.json")
    return AutoConfig.for_model(values.pop("model_type"), **values)
