"""Shared fixtures: a tiny policy, and no threads to fight over.

torch and transformers are loaded where they are used: they take seconds, and xdist's controller, which runs no test,
need not wait for them.
"""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from pmd import processes
from pmd.problems.arithmetic import SYMBOLS
from pmd.processes import prepare

os.environ["OMP_NUM_THREADS"] = "1"  # of torch, which reads it when it is loaded, and of the processes that tests start


@pytest.fixture(scope="session")
def tiny():
    """A two-layer policy of width 32 with grouped keys, and its tokenizer."""
    from pmd.model.from_scratch import build_policy

    return build_policy(SYMBOLS, layers=2, width=32, heads=4, kv_heads=2, feedforward=64, seed=3)


OTHER_ARCHITECTURES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_bigcode": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},  # one key head for all query heads
    "opt": {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "word_embed_proj_dim": 16, "max_position_embeddings": 64, "dropout": 0.5},
}  # fmt: skip
"""Small sizes of architectures whose parts have other names than those of `tiny`."""


def save_other(kind: str, tokenizer, folder: Path, **sizes: int) -> Path:
    """A model folder of an architecture by its name, of OTHER_ARCHITECTURES or with sizes given."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from pmd.model.loading import save_policy

    config = AutoConfig.for_model(
        kind,
        vocab_size=16,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
        **OTHER_ARCHITECTURES.get(kind, {}),
        **sizes,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # so far from zero that a response may end
            parameter.add_(0.2 * torch.randn(parameter.shape))
    save_policy(model, tokenizer, folder / kind)
    return folder / kind


@pytest.fixture
def folder_of(tiny, tmp_path):
    """`save_other` into the test's own folder, with the tokenizer of `tiny`."""
    return lambda kind, **sizes: save_other(kind, tiny[1], tmp_path, **sizes)


@pytest.fixture
def tiny_dir(tiny, tmp_path):
    """`tiny` as a model folder."""
    from pmd.model.loading import save_policy

    save_policy(*tiny, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def server(monkeypatch):
    """One fork server for all tests, so that what workers need is loaded once; else each use of it ends its own.

    Returns the context whose processes it forks.
    """
    monkeypatch.setattr(processes, "stop_server", lambda: None)
    prepare("cpu")
    return multiprocessing.get_context("forkserver")
