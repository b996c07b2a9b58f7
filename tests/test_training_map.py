"""The training map: as many rollouts and updates in every run, a name for every run, bad grids refused."""

from __future__ import annotations

import re

import pytest

from pmd import params
from pmd.experiments import training_map
from pmd.files import ROOT
from pmd.methods import METHODS

COMMITTED = params.load()
TRAIN, METHODS_GIVEN, GRID = (COMMITTED[name] for name in ("train", "methods", "grid"))


def jobs(**changes):
    return training_map.jobs(GRID | changes, TRAIN, METHODS_GIVEN)


def test_every_run_has_as_many_rollouts_updates_and_evaluations():
    regimes = [{"minibatches": k} for k in (1, 8, 40)]
    made = jobs(bases=[1], regimes=regimes, methods=["pmd-mean"])
    for c in (job.config for job in made):
        assert c.steps * c.prompts * c.group_size == TRAIN["steps"] * TRAIN["prompts"] * TRAIN["group_size"]
        assert c.steps * c.minibatches == TRAIN["steps"] * TRAIN["minibatches"]
        assert c.prompts * c.group_size // c.minibatches == 64
        assert c.steps // c.eval_every == TRAIN["steps"] // TRAIN["eval_every"]
        assert c.probe <= c.minibatches
    often = training_map.jobs(GRID | {"bases": [1]}, TRAIN | {"checkpoint_every": 5}, METHODS_GIVEN)
    assert {(c.minibatches, c.steps // c.checkpoint_every) for c in (job.config for job in often)} == {
        (k, 2) for k in (1, 8, 40)
    }
    always = training_map.jobs(GRID | {"bases": [1]}, TRAIN | {"checkpoint_every": 1, "probe": 8}, METHODS_GIVEN)
    assert min(job.config.checkpoint_every for job in always) == 1  # never every 0 steps
    assert {(job.config.minibatches, job.config.probe) for job in always} == {(1, 1), (8, 8), (40, 8)}


def test_the_committed_map_is_what_the_design_says():
    made = jobs()
    cells = {(j.tags["variant"], j.config.minibatches, j.config.lr) for j in made}
    assert len(made) == len({j.name for j in made}) == len(cells) * len(GRID["bases"]) * len(GRID["seeds"])
    assert max(GRID["rates"]) >= 10 * min(GRID["rates"])
    assert len(GRID["rates"]) >= 3
    for k in (8, 40):  # one grid, the same for all
        assert {(v, lr) for v, minibatches, lr in cells if minibatches == k} == {
            (v, lr) for v in GRID["methods"] for lr in GRID["rates"]
        }
    assert {v for v, k, _ in cells if k == 1} >= {"pmd-mean", "grpo"}
    grpo = next(j.config for j in made if j.config.method == "grpo")
    assert (grpo.clip_low, grpo.clip_high) == (0.2, 0.28)


def test_a_regime_may_take_part_of_the_grid():
    made = jobs(bases=[1], regimes=[{"minibatches": 8}, {"minibatches": 1, "rates": [3e-4], "methods": ["grpo"]}])
    part = [job for job in made if job.config.minibatches == 1]
    assert {(job.tags["variant"], job.config.lr) for job in part} == {("grpo", 3e-4)}
    assert len(part) == len(GRID["seeds"])
    assert len(made) == len(part) * (1 + len(GRID["methods"]) * len(GRID["rates"]))


def test_the_default_and_the_study_share_no_base_model_and_no_seed():
    study = params.load(ROOT / "presets" / "study.yaml")
    for part in ("law", "finite", "grid"):
        assert not set(COMMITTED[part]["bases"]) & set(study[part]["bases"])
    seeds = {job.config.seed for job in jobs()}
    assert seeds == {100 * base + seed for base in GRID["bases"] for seed in GRID["seeds"]}
    assert len(study["grid"]["bases"]) * len(study["grid"]["seeds"]) >= 10


def test_a_variant_is_a_method_with_settings_and_is_named_in_the_folder():
    job = jobs(bases=[1], methods=["pmd-mean tau=0.5"], regimes=[{"minibatches": 8, "staleness": 2}], rates=[1e-4])[0]
    assert (job.config.tau, job.config.staleness, job.config.lr) == (0.5, 2, 1e-4)
    assert job.name == "pmd-mean,tau=0.5/K-8,late-2/lr-0.0001/base-1-seed-101"
    assert job.base.name == "base-1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["ppo"]}, "grid.methods: got 'ppo', must be begun by a method: pmd-mean"),
        ({"methods": ["rloo tau=1"]}, "grid.methods: got 'rloo tau=1', must be rloo and ['normalise'] as key=value"),
        ({"methods": []}, "grid.methods: got [], must be"),
        ({"rates": [0.0]}, "grid.rates: got [0.0], must be"),
        (
            {"regimes": [{"minibatches": 7}]},
            "grid.regimes.minibatches: got 7, must be a divisor of 80",
        ),
        ({"regimes": [{"minibatches": 80}]}, "grid.regimes.minibatches: got 80, must be at most 40: 2 evaluations"),
        (
            {"regimes": [{"minibatch": 8}]},
            "grid.regimes[0].minibatch: got 8, must be left out",
        ),
        ({"regimes": [{"minibatches": 8}] * 2}, "grid: got 'pmd-mean/K-8/lr-5e-05/base-6-seed-601', must be without"),
        ({"bases": [99]}, "bases: got 99, must be one of the base models in bases/: 1, 2"),
    ],
)
def test_a_bad_grid_is_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)) as caught:
        jobs(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_on_the_map(method):
    assert jobs(bases=[1], methods=[method])[0].config.method == method
