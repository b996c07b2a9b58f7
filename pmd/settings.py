"""Every namespace of params.yaml, checked before the first stage works: a mistake costs a second and no training.

The classes stand beside the code that reads them (pmd/params.py lists them). None of their files loads torch.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from pmd.evaluators.entry import Benchmark
from pmd.evaluators.evaluate import Evaluate
from pmd.experiments import training_map
from pmd.experiments.bases import BASES, base_folder
from pmd.experiments.settings import Finite, Law, temperature
from pmd.files import ROOT
from pmd.foreign_sets.formats import problem_set
from pmd.harness.config import train_config
from pmd.model.settings import read_bases
from pmd.params import OPEN, listed, mapping, read, read_entry, require
from pmd.problems.arithmetic import Task
from pmd.scale.entry import read_scale

NAMESPACES = ("preset", "data", "bases", "base", "train", "methods", "grid", "law", "finite", "evaluate", *OPEN)


def check(values: dict[str, Any], root: Path = ROOT) -> None:
    """ValueError `key: got value, must be …` for the first bad setting of any namespace.

    values: of `params.load`. Nothing is read beside it but the base models where they are committed ones.
    """
    for key in (key for key in values if key not in NAMESPACES):
        require(False, key, values[key], f"left out: the namespaces are {listed(NAMESPACES, key)}")
    for key in ("preset", "data", "bases"):
        require(isinstance(values.get(key), str), key, values.get(key), "a string")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the stage that uses the setting warns
        _check_experiments(values, root)
        _check_entries(values)


def _check_experiments(values: dict[str, Any], root: Path) -> None:
    require(values["train_bases"] in ({}, {"own": True}), "train_bases", values["train_bases"], "{} or {own: true}")
    own = [base.seed for base in read_bases(values.get("base"))]
    if values["train_bases"] and (root / values["bases"]).resolve() == BASES:
        require(False, "bases", values["bases"], "another folder than the committed one, since train_bases says own")
    for method in mapping(values, "methods"):
        train_config(method, 0, values)
    training_map.runs(values.get("grid"), mapping(values, "train"), values["methods"])
    law, parts = read(Law, "law", values.get("law")), values["train"]["minibatches"]
    require(law.prompts % parts == 0, "law.prompts", law.prompts, f"a multiple of train.minibatches = {parts}")
    finite = read(Finite, "finite", values.get("finite"))
    for tau_b in finite.tau_b:
        temperature(tau_b, 1.0)
    read(Evaluate, "evaluate", values.get("evaluate"))
    for part in ("grid", "law", "finite"):
        for number in values[part]["bases"]:
            if values["train_bases"]:
                require(number in own, f"{part}.bases", number, f"one of base.seeds: {listed(own, number)}")
            else:
                base_folder(number, root / values["bases"])


def _check_entries(values: dict[str, Any]) -> None:
    for name in mapping(values, "tasks"):
        read_entry(Task, "tasks", values["tasks"], name)
    for namespace in ("sets", "hub_sets"):
        for name, entry in mapping(values, namespace).items():
            problem_set(name, entry)
    for name in mapping(values, "benchmark"):
        read_entry(Benchmark, "benchmark", values["benchmark"], name)
    for name in mapping(values, "scale"):
        read_scale(values, name)
