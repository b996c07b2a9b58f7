"""Shared fixtures: a tiny policy, and no threads to fight over."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch

from pmd import processes
from pmd.model.from_scratch import build_policy
from pmd.model.loading import save_policy
from pmd.problems.arithmetic import SYMBOLS
from pmd.processes import prepare

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start


@pytest.fixture(scope="session")
def tiny():
    """A two-layer policy of width 32 with grouped keys, and its tokenizer."""
    return build_policy(SYMBOLS, layers=2, width=32, heads=4, kv_heads=2, feedforward=64, seed=3)


@pytest.fixture
def tiny_dir(tiny, tmp_path):
    """`tiny` as a model folder."""
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
