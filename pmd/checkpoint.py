"""Checkpoints of a run: weights, optimizer and position, each whole or absent; safetensors and JSON only.

A checkpoint is a folder `checkpoint-<step>`; it is written beside and renamed into place, and only then are older
ones removed, so a run killed at any moment finds a complete one. Randomness has no state to save (pmd/seeds.py).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pmd.files import read_json, write_json


def save(out: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Path:
    """Write checkpoint-<step> under `out`, then remove older ones; OSError in one line if it cannot be written."""
    out.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out, prefix=".checkpoint."))
    try:
        save_file(
            {name: p.detach().contiguous() for name, p in model.named_parameters()},
            temporary / "model.safetensors",
        )
        save_file(_flatten(model, optimizer), temporary / "optimizer.safetensors")
        write_json(temporary / "state.json", {"step": step, **state})
        for file in temporary.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        path = out / f"checkpoint-{step:06d}"
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    except Exception as error:  # safetensors raises its own for a full disk
        raise OSError(
            f"{out}: checkpoint of step {step} could not be written ({error}); the previous one is kept"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for older in sorted(out.glob("checkpoint-*"))[:-1]:
        shutil.rmtree(older)
    return path


def latest(out: Path) -> Path | None:
    """The newest checkpoint under `out`, or None."""
    return max(out.glob("checkpoint-*"), default=None)


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore model and optimizer in place and return the state; ValueError if it is corrupt or another model's."""
    try:
        state = read_json(path / "state.json")
        weights = load_file(path / "model.safetensors")
        moments = load_file(path / "optimizer.safetensors")
    except Exception as error:
        raise ValueError(
            f"{path}: corrupt checkpoint ({' '.join(str(error).split())}); delete it to start the run afresh"
        ) from error
    parameters = dict(model.named_parameters())
    same = weights.keys() == parameters.keys() and all(weights[n].shape == p.shape for n, p in parameters.items())
    if not same:
        raise ValueError(f"{path}: a checkpoint of another model; delete it, or give the run another folder")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
            optimizer.state[parameter] = {
                key: moments[f"{name}/{key}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")
            }
    return state


def _flatten(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's moments by parameter name; a parameter not yet updated has zeros."""
    flat = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        flat[f"{name}/step"] = torch.as_tensor(state.get("step", 0.0), dtype=torch.float32).clone()
        for key in ("exp_avg", "exp_avg_sq"):
            flat[f"{name}/{key}"] = state.get(key, torch.zeros_like(parameter)).detach().clone()
    return flat
