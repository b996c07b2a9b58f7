"""What a rank trains and samples from, the model, its optimizer and the engine, and what rewards its responses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pmd.harness.config import Train
from pmd.model.forward import checkpoint_activations, compile_layers
from pmd.model.loading import load_policy
from pmd.model.sharding import trained_sharded
from pmd.params import require
from pmd.problems.reward import Reward
from pmd.sampling.engine import Engine, MakeEngine
from pmd.sampling.torch_engine import TorchEngine


@dataclass
class Policy:
    """The policy π_θ of a rank. The engine samples from `model`, whatever its weights are at the call.

    reward: of your own; None: the verifier.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    optimizer: torch.optim.Optimizer
    engine: Engine
    reward: Reward | None = None


def make_policy(
    config: Train, base: str | Path, device: str, engine: MakeEngine | None = None, reward: Reward | None = None
) -> Policy:
    """The policy in folder `base`, AdamW on its weights, and its engine; None: TorchEngine.

    With several ranks, and on CUDA with one too, the policy is sharded and each rank reads its own rows. ValueError in
    one line if the model cannot be loaded, or if `config` names an engine that is not given.
    """
    given = engine is not None or config.engine == "torch"
    require(
        given, "train.engine", config.engine, "torch, or train() be given engine=pmd.scale.engines.engine_for(config)"
    )
    model, tokenizer = load_policy(base, device, compute=config.dtype, divided=trained_sharded(device))
    if config.checkpoint_activations:
        checkpoint_activations(model)
    if config.compile:
        compile_layers(model)
    betas = (config.beta1, config.beta2)
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, betas, weight_decay=config.weight_decay, fused=True)
    make = engine or TorchEngine
    return Policy(model, tokenizer, optimizer, make(model, tokenizer.eos_token_id, **config.engine_options), reward)
