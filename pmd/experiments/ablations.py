"""The ablation grid: τ, group size and staleness, each varied alone from the main setting."""

from __future__ import annotations

from typing import Any

from pmd import params
from pmd.experiments.launch import Job

AXES = ("tau", "group", "stale")


def changes(axis: str, value: float, train: dict[str, Any]) -> dict[str, Any]:
    """What one value of one axis changes in the shared `train` namespace.

    group keeps the rollouts a step; stale (K minibatches a step) keeps their size and the rollouts and optimizer steps
    of the whole run, so a larger K means larger, rarer batches. ValueError if the budget cannot be kept exactly.
    """
    if axis == "tau":
        return {"tau": value, "eval_every": sparse(train["steps"])}
    if axis == "group":
        rollouts = train["prompts"] * train["group_size"]
        params.require(rollouts % value == 0, "ablate.group.values", value, f"a divisor of {rollouts} rollouts a step")
        return {"group_size": value, "prompts": rollouts // value, "eval_every": sparse(train["steps"])}
    updates = train["steps"] * train["minibatches"]
    params.require(updates % value == 0, "ablate.stale.values", value, f"a divisor of {updates} optimizer steps")
    steps = updates // value
    return {
        "minibatches": value,
        "prompts": train["prompts"] // train["minibatches"] * value,
        "steps": steps,
        "eval_every": sparse(steps),
        "checkpoint_every": max(1, round(train["checkpoint_every"] * steps / train["steps"])),
    }


def sparse(steps: int) -> int:
    """Ablations are read at their end: evaluate halfway too, a run of few (large) steps after each."""
    return steps // 2 if steps >= 8 else 1


def jobs(ablate: dict[str, Any], train: dict[str, Any], methods: dict[str, dict]) -> list[Job]:
    """Every run of the grid, checked before any starts; the `ablate` namespace is seeds and one entry an axis."""
    seeds = params.seeds(ablate, "ablate.seeds")
    for key in ablate:
        params.require(key in ("seeds", *AXES), f"ablate.{key}", ablate[key], f"one of seeds, {', '.join(AXES)}")
    return [
        Job(
            params.train(train, methods, method, seed, **changes(axis, value, train)),
            f"{axis}/{method}-{value}/seed-{seed}",
            {"axis": axis},
        )
        for axis in AXES
        if axis in ablate
        for value in ablate[axis]["values"]
        for method in ablate[axis]["methods"]
        for seed in seeds
    ]
