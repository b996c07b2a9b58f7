"""An entry of `scale:` in params.yaml: one run of your own, where its files lie and what makes it that run.

The launcher, the notebook and every rank read the entry through this module. Importing it does not load torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from pmd.files import ROOT, fingerprint
from pmd.harness.config import Train, train_config
from pmd.harness.run_folder import model_digest
from pmd.params import FileName, Settings, listed, mapping, read_entry, require
from pmd.problems.reader import read_problems
from pmd.problems.reward import read_reward, try_out


class Scale(Settings):
    """A run of your own, of any size: an entry of `scale:`, named by its key.

    One process on a CPU is the default; with more ranks, or on CUDA, torchrun starts them.
    """

    name: FileName
    model: str  # a Hugging Face model directory (relative to the repository or absolute) or owner/name@revision
    problems: str  # the JSONL file of the problems to train on
    sets: dict[str, str]  # {name: JSONL file} of the problem sets to evaluate on; one of them is "val"
    max_prompt_tokens: int = Field(ge=1)  # longer prompts are left out, and counted
    method: str
    seed: int
    reward: str | None = None  # module:function in place of the verifier (pmd/problems/reward.py)
    trusted: bool = False  # the reward runs in the trainer's process, without limits
    nodes: int = Field(ge=1, default=1)  # machines
    ranks: int = Field(ge=1, default=1)  # processes of each machine: one a GPU; on a CPU they share the cores
    train: dict[str, Any] = Field(default={})  # what differs from the namespace `train`

    @model_validator(mode="after")
    def _fits_together(self) -> Scale:
        require("val" in self.sets, "sets", self.sets, "a mapping of names to files with val among them")
        settings = Train.model_fields.keys() - {"method", "seed"}  # these two are the entry's own
        for key, value in self.train.items():
            require(key in settings, f"train.{key}", value, f"one of {listed(sorted(settings), key)}")
        return self


def read_scale(values: dict[str, Any], name: str) -> tuple[Scale, Train]:
    """The entry `name` of the `scale` namespace and the run that it describes; values: all of params.yaml.

    ValueError `scale.name.key: got value, must be …` for the first bad setting.
    """
    entry = read_entry(Scale, "scale", mapping(values, "scale"), name)
    return entry, train_config(entry.method, entry.seed, values, **entry.train)


def folder(values: dict[str, Any], name: str) -> Path:
    """Where the finished run goes; values: the namespaces of params.yaml."""
    return ROOT / "runs" / str(values["preset"]) / "scale" / name


def work_folder(out: Path) -> Path:
    """Where the run is made until it is finished and moves to `out`."""
    return out.with_name(f"{out.name}-work")


def read_sets(entry: Scale) -> tuple[list[dict], dict[str, list[dict]]]:
    """The problems to train on and, by name, those to evaluate on.

    Raises as `read_problems` does, and as `try_out` if the entry's reward cannot judge them.
    """
    sets = {name: read_problems(ROOT / path) for name, path in entry.sets.items()}
    problems = read_problems(ROOT / entry.problems)
    try_out(read_reward(entry.reward, entry.trusted), problems, *sets.values())
    return problems, sets


def model_path(entry: Scale) -> str:
    """The model's directory, or its name on the hub."""
    return str(ROOT / entry.model) if (ROOT / entry.model).exists() else entry.model


def tags(entry: Scale) -> dict[str, Any]:
    """What makes two runs the same run besides their settings: what the model and the problem sets hold.

    Where they lie does not count. A model of the hub is known by its name and commit. The numbers of nodes and ranks do
    not count either, because they may change from one launch to the next; nor does the code, because a run of days
    should outlive the correction of a comment. A reward's code does: it is what the run learns.
    """
    model, reward = ROOT / entry.model, read_reward(entry.reward, entry.trusted)
    return {
        "model": model_digest(model) if model.exists() else entry.model,
        "problems": fingerprint(ROOT / entry.problems, code=False),
        "sets": {name: fingerprint(ROOT / path, code=False) for name, path in entry.sets.items()},
        "max_prompt_tokens": entry.max_prompt_tokens,
        "reward": reward and reward.identity,
    }
