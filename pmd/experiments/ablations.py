"""The ablation grid: the regularisation τ, the group size and staleness, each varied alone from the main setting."""

from __future__ import annotations

from typing import Annotated, Any

from pmd import params
from pmd.experiments.launch import Job
from pmd.harness.config import seeds, train_config
from pmd.methods import METHODS

AXES = ("tau", "group", "stale")


class Grid(params.Settings):
    """One axis of the namespace `ablate`: every method is trained with every value."""

    # of τ, the group size or the number of minibatches
    values: Annotated[list[int | float], params.must(lambda found: min(found, default=1) > 0, "numbers > 0")]
    methods: list[Annotated[str, params.one_of(METHODS)]]


def changes(axis: str, value: float, train: dict[str, Any]) -> dict[str, Any]:
    """The settings of the `train` namespace that one value of one axis changes.

    Axis group: the number of rollouts a step stays, so that larger groups mean fewer prompts. Axis stale: a step's
    batch is split into K minibatches of the same size as before, and the whole run has as many rollouts and optimizer
    steps as before, so that a larger K means larger and rarer batches. ValueError if the budget cannot be kept exactly.
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
    """How many steps lie between two evaluations: half of the run, or one step if the run has fewer than eight.

    Ablations are compared at their end, so that more evaluations would only cost time.
    """
    return steps // 2 if steps >= 8 else 1


def jobs(ablate: dict[str, Any], train: dict[str, Any], methods: dict[str, dict]) -> list[Job]:
    """Every run of the grid; all are checked here, before the first starts.

    ablate: `seeds`, and for each axis a mapping with `values` and `methods`.
    """
    values, found = {"train": train, "methods": methods}, seeds(ablate, "ablate.seeds")
    for key in ablate:
        params.require(key in ("seeds", *AXES), f"ablate.{key}", ablate[key], f"one of seeds, {', '.join(AXES)}")
    grids = {axis: params.read(Grid, f"ablate.{axis}", ablate[axis]) for axis in AXES if axis in ablate}
    return [
        Job(
            train_config(method, seed, values, **changes(axis, value, train)),
            f"{axis}/{method}-{value}/seed-{seed}",
            {"axis": axis},
        )
        for axis in grids
        for value in grids[axis].values
        for method in grids[axis].methods
        for seed in found
    ]
