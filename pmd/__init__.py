"""PMD-mean: policy mirror descent with the mean reward in place of the log-partition function.

Reproduces Xu et al., arXiv:2602.05933. `from pmd import …` gives the names in `__all__`. The module of a name is loaded
when the name is first used, so `import pmd` by itself takes no time; a name that needs more than torch and numpy says
then what to install. Each folder is a room with one purpose; a reader begins with the first:

trainer      the algorithm: advantages and losses, a batch of rollouts, the update on it, the loop
harness      what a run needs besides: its settings, its folder, its policy, its progress
model        one forward pass of a causal language model: packing, attention, checkpoints, sharding
sampling     what samples responses and scores them
problems     problem sets, prompts and the verifier
foreign_sets DAPO-Math, AIME, GSM8K, MATH-500 or your own as problem sets
evaluators   checkpoints and benchmarks, with intervals
experiments  base models, the law, finite samples and the training map
scale        runs of any size: vLLM, torchrun, memory planned beforehand
theory       the population update, with weights too, its binary case, finite samples once and repeatedly
paper        figures, tables and the report
"""

import os
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pmd.extras import missing

if TYPE_CHECKING:  # for type checkers and editors
    from pmd.any_loop import loss
    from pmd.evaluators.evaluate import evaluate
    from pmd.harness.config import train_config
    from pmd.params import load as load_params
    from pmd.problems.reader import read_problems
    from pmd.problems.verifier import verify
    from pmd.sampling.engine import Sampling
    from pmd.sampling.torch_engine import TorchEngine
    from pmd.theory.binary import binary_update, finite_sample
    from pmd.theory.population import population_update
    from pmd.trainer.loop import train
    from pmd.trainer.objectives import OBJECTIVES, Hyper, Minibatch

__all__ = [
    "OBJECTIVES", "Hyper", "Minibatch", "Sampling", "TorchEngine", "binary_update", "evaluate", "finite_sample",
    "load_params", "loss", "population_update", "read_problems", "train", "train_config", "verify",
]  # fmt: skip

SPIN = "1000"
"""How many times a thread of GNU OpenMP looks for work before it sleeps. By default it keeps looking for milliseconds;
where another program wants that core, a stage on two threads then takes three times as long as with a shared core."""

os.environ.setdefault("GOMP_SPINCOUNT", SPIN)  # here, because it is read when torch is loaded, in whatever kernel

_MODULES = {
    "train": "pmd.trainer.loop",
    "loss": "pmd.any_loop",
    "OBJECTIVES": "pmd.trainer.objectives",
    "Hyper": "pmd.trainer.objectives",
    "Minibatch": "pmd.trainer.objectives",
    "train_config": "pmd.harness.config",
    "load_params": "pmd.params",
    "read_problems": "pmd.problems.reader",
    "verify": "pmd.problems.verifier",
    "TorchEngine": "pmd.sampling.torch_engine",
    "Sampling": "pmd.sampling.engine",
    "evaluate": "pmd.evaluators.evaluate",
    "population_update": "pmd.theory.population",
    "binary_update": "pmd.theory.binary",
    "finite_sample": "pmd.theory.binary",
}
"""The module that defines each public name; `load_params` is called `load` there."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # only here, because it loads much

        value = version("pmd")
    elif name in _MODULES:
        value = getattr(_load(name), "load" if name == "load_params" else name)
    else:
        raise AttributeError(f"module 'pmd' has no attribute {name!r}")
    globals()[name] = value
    return value


def _load(name: str) -> ModuleType:
    """The module of a public name; ModuleNotFoundError in one line if a package that it needs is not installed."""
    try:
        return import_module(_MODULES[name])
    except ModuleNotFoundError as error:
        raise missing(f"pmd.{name}", error) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
