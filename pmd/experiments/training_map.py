"""The training map: every method on one grid of learning rates, under several kinds of staleness (notebook 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pmd import params
from pmd.experiments.bases import BASES, base_folder
from pmd.experiments.launch import Job
from pmd.harness.config import Train, train_config
from pmd.methods import METHODS

TUNABLE = ("tau", "tau_b", "clip_low", "clip_high", "normalise")
"""The settings that a variant of a method may change."""


class Regime(params.Settings):
    """How stale the rollouts are that an update learns from, and which part of the grid is trained so."""

    minibatches: int = Field(ge=1)  # [K] updates from one batch of rollouts; 1 is on-policy
    staleness: int = Field(ge=0, default=0)  # steps between the sampling of a batch and its use
    rates: list[Annotated[float, Field(gt=0)]] | None = None  # null: all of the grid's
    methods: list[str] | None = None  # null: all of the grid's


class Grid(params.Settings):
    """Namespace `grid` of params.yaml: runs for every method × learning rate × regime × base model × seed.

    A method is a name of pmd/methods.py, and behind it may stand settings that differ: `pmd-mean tau=0.5`.
    """

    bases: list[int] = Field(min_length=1)  # base models, by number
    seeds: list[int] = Field(min_length=1)  # runs from each base model
    rates: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)  # learning rates, the same for every method
    methods: list[str] = Field(min_length=1)
    regimes: list[dict[str, Any]] = Field(min_length=1)  # each a `Regime`


def variant(text: str) -> tuple[str, dict[str, Any]]:
    """("pmd-mean", {"tau": 0.5}) of "pmd-mean tau=0.5"; ValueError in one line for a text of another form."""
    method, *changes = text.split(" ")
    params.require(method in METHODS, "grid.methods", text, f"begun by a method: {params.listed(METHODS, method)}")
    found: dict[str, Any] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        usable = [name for name in METHODS[method].uses if name in TUNABLE]
        params.require(bool(equals) and key in usable, "grid.methods", text, f"{method} and {usable} as key=value")
        found[key] = value if key == "normalise" else float(value)
    return method, found


def changes(regime: Regime, train: dict[str, Any]) -> dict[str, Any]:
    """The settings of the `train` namespace that a regime changes.

    A batch is split into K minibatches of as many prompts as before, and the whole run has as many rollouts and
    optimizer steps as before, so that a larger K means larger and rarer batches. It is evaluated and saved as often as
    before, if the numbers of steps divide; `warmup` and `staleness` count steps, whatever their size.
    ValueError if the budget cannot be kept exactly.
    """
    updates, k = train["steps"] * train["minibatches"], regime.minibatches
    params.require(updates % k == 0, "grid.regimes.minibatches", k, f"a divisor of {updates} optimizer steps")
    steps = updates // k
    times = max(1, train["steps"] // train["eval_every"])
    params.require(steps >= times, "grid.regimes.minibatches", k, f"at most {updates // times}: {times} evaluations")
    return {
        "minibatches": k,
        "prompts": train["prompts"] // train["minibatches"] * k,
        "steps": steps,
        "eval_every": steps // times,
        "checkpoint_every": max(1, train["checkpoint_every"] * steps // train["steps"]),
        "probe": min(train["probe"], k),
        "staleness": regime.staleness,
    }


def name_of(config: Train, label: str, base: int) -> str:
    """The folder of a run, which is also the name of its cell and number, such as
    `pmd-mean,tau=0.5/K-8/lr-0.00015/base-1-seed-101`."""
    late = f",late-{config.staleness}" if config.staleness else ""
    cell = f"{label.replace(' ', ',')}/K-{config.minibatches}{late}/lr-{config.lr:g}"
    return f"{cell}/base-{base}-seed-{config.seed}"


def jobs(grid: dict[str, Any], train: dict[str, Any], methods: dict[str, dict], bases: Path = BASES) -> list[Job]:
    """Every run of the grid with its base model's folder; all are checked here, before the first starts."""
    planned = runs(grid, train, methods)
    models = {base: base_folder(base, bases) for _, _, base in planned}
    return [
        Job(config, models[base], name_of(config, label, base), {"variant": label, "base": base})
        for config, label, base in planned
    ]


def runs(grid: dict[str, Any], train: dict[str, Any], methods: dict[str, dict]) -> list[tuple[Train, str, int]]:
    """(settings, variant, base model) of every run of the grid, one seed of all cells after another, all checked.

    A run's seed is a hundred times its base model's number plus its own, so that no two runs of a cell share prompts.
    """
    found = params.read(Grid, "grid", grid)
    regimes = [params.read(Regime, f"grid.regimes[{i}]", entry) for i, entry in enumerate(found.regimes)]
    values = {"train": train, "methods": methods}
    made = []
    for seed in found.seeds:  # outermost, so that a map that is stopped has something of every cell
        for regime in regimes:
            for lr in regime.rates or found.rates:
                for base in found.bases:
                    for label in regime.methods or found.methods:  # innermost: what is compared runs at the same time
                        method, own = variant(label)
                        settings = changes(regime, train) | own | {"lr": lr}
                        made.append((train_config(method, 100 * base + seed, values, **settings), label, base))
    names = [name_of(*run) for run in made]
    twice = next((name for name in names if names.count(name) > 1), None)
    params.require(twice is None, "grid", twice, "without runs that are there twice")
    return made
