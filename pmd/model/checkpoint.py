"""Checkpoints of a run: weights, optimizer moments, the loop's state and waiting rollouts, as safetensors and JSON.

A checkpoint is a folder `checkpoint-<step>`. It is written under another name and renamed when it is complete, and only
then are older ones removed, so a run that was killed at any moment finds a complete one. Each rank writes its own rows
of every tensor, and any number of ranks can read them. Randomness has no state to save (pmd/sampling/seeds.py).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pmd.files import read_json, write_json
from pmd.model.distributed import barrier, gather, world
from pmd.model.sharding import local, own_rows
from pmd.params import require

MOMENTS = ("exp_avg", "exp_avg_sq")


def save(
    out: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    waiting: dict[int, dict[str, Tensor]] | None = None,
) -> Path:
    """Write checkpoint-<step> under `out`, then remove older ones; OSError in one line if it cannot be written.

    waiting: {step: tensors} of the rollouts that later steps will train on (pmd/trainer/staleness.py).
    """
    rank, ranks = world()
    path, temporary = out / f"checkpoint-{step:06d}", out / f".checkpoint-{step:06d}"
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    barrier()
    try:
        save_file(_weights(model), temporary / f"weights-{rank}-of-{ranks}.safetensors")
        save_file(_moments(model, optimizer), temporary / f"moments-{rank}-of-{ranks}.safetensors")
        if rank == 0:
            for at, tensors in (waiting or {}).items():
                save_file(tensors, temporary / f"waiting-{at}.safetensors")
            write_json(temporary / "state.json", {"step": step, **state, "waiting": sorted(waiting or {})})
            _flush(temporary.glob("waiting-*"))
        _flush(temporary.glob(f"*-{rank}-of-{ranks}.safetensors"))  # others are still writing theirs
        error = None
    except Exception as caught:  # safetensors raises its own for a full disk
        error = caught
    failed = [text for text in gather(str(error) if error else None) if text]
    if failed:
        barrier()
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(
            f"{out}: checkpoint of step {step} could not be written ({failed[0]}); the previous one is kept"
        ) from error
    if rank == 0:
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
        for older in sorted(out.glob("checkpoint-*"))[:-1]:
            shutil.rmtree(older)
    barrier()
    return path


def _flush(files: Iterable[Path]) -> None:
    for file in files:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def latest(out: Path) -> Path | None:
    """The newest checkpoint under `out`, or None."""
    return max(out.glob("checkpoint-*"), default=None)


def load(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[int, dict[str, Tensor]]]:
    """Restore model and optimizer in place; returns (state, waiting rollouts).

    ValueError in one line if it is corrupt or belongs to another model.
    """
    try:
        state = read_json(path / "state.json")
        waiting = {int(file.stem.partition("-")[2]): load_file(file) for file in path.glob("waiting-*.safetensors")}
        missing = set(state.pop("waiting", [])) - set(waiting)
        require(not missing, "waiting rollouts", sorted(waiting), f"those of steps {sorted(missing)} too")
        with ExitStack() as stack:
            shards = {name: _open(path, name, stack) for name in ("weights", "moments")}
            _same_model(path, model, shards["weights"])
            for name, parameter in model.named_parameters():
                optimizer.state[parameter] = {
                    "step": shards["moments"][0].get_tensor(f"{name}/step").to(parameter.device),
                    **{
                        key: _filled(torch.empty_like(parameter), shards["moments"], f"{name}/{key}") for key in MOMENTS
                    },
                }
                _filled(parameter, shards["weights"], name)
    except AnotherModel:
        raise
    except Exception as error:
        raise ValueError(
            f"{path}: corrupt checkpoint ({' '.join(str(error).split())}); delete it to start the run afresh"
        ) from error
    return state, waiting


class AnotherModel(ValueError):
    """The checkpoint belongs to another model."""


def _open(path: Path, name: str, stack: ExitStack) -> list:
    """The shards of all the ranks that wrote them, in order; a missing one is an error."""
    files = list(path.glob(f"{name}-*-of-*.safetensors"))
    ranks = int(files[0].stem.rpartition("-")[2]) if files else 1
    return [stack.enter_context(safe_open(path / f"{name}-{i}-of-{ranks}.safetensors", "pt")) for i in range(ranks)]


def _same_model(path: Path, model: nn.Module, shards: list) -> None:
    def shape(name: str) -> tuple[int, ...]:
        pieces = [shard.get_slice(name).get_shape() for shard in shards]
        return (sum(piece[0] for piece in pieces), *pieces[0][1:])

    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if set(shards[0].keys()) != set(wanted) or any(shape(name) != wanted[name] for name in wanted):
        raise AnotherModel(f"{path}: a checkpoint of another model; delete it, or give the run another folder")


@torch.no_grad()
def _filled(tensor: Tensor, shards: list, name: str) -> Tensor:
    """Read this rank's rows of `tensor` into it, from whichever shards hold some of them; no others are read."""
    target, own = local(tensor), own_rows(tensor)
    first = 0
    for shard in shards:
        saved = shard.get_slice(name)
        last = first + saved.get_shape()[0]
        start, stop = max(first, own.start), min(last, own.stop)
        if start < stop:
            target[start - own.start : stop - own.start] = saved[start - first : stop - first]
        first = last
    return tensor


def _copied(tensor: Tensor) -> Tensor:
    """This rank's rows on the CPU. Tensors of a CPU are not copied, and those of a GPU one at a time."""
    return local(tensor).detach().to("cpu").contiguous()


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: _copied(p) for name, p in model.named_parameters()}


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's moments by parameter name; a parameter not yet updated has zeros."""
    flat = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        flat[f"{name}/step"] = torch.as_tensor(state.get("step", 0.0), dtype=torch.float32, device="cpu")
        for key in MOMENTS:
            flat[f"{name}/{key}"] = _copied(state[key] if key in state else torch.zeros_like(parameter))
    return flat
