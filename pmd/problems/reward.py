"""A reward function of your own in place of the verifier, in the form that TRL made common.

    def reward(prompts, completions, ground_truth, **columns) -> list[float]:

Every argument is a list with an entry a response: its prompt, its text, `truncated` (true if it did not end by itself)
and each column of its problem. All are given by name, and a function without `**columns` gets those that it names. It
returns one finite number a response, of that response alone. 1 is full marks and counts as a correct answer.

The function is code that you wrote, but it reads text that a model wrote. So it runs in worker processes with limits
(limited_pool.py), one response a call; a trusted one runs in this process, on all responses in one call.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from pmd.files import ROOT
from pmd.params import listed, require
from pmd.problems.limited_pool import Killed, Pool
from pmd.processes import workers

RewardFunction = Callable[..., Sequence[float]]

LIMITS = {"seconds": 2.0, "wall": 60.0, "memory": 4 * 2**30}
"""What one response may take in a worker: seconds of CPU time and of wall time, and bytes of address space."""

LARGEST = 3e38
"""The largest reward: rewards are trained on in single precision."""


@dataclass(frozen=True)
class Reward:
    """A reward function, its name `module:function`, and the MD5 of its source: of the module's file, or of the text of
    a function that no file holds. trusted: it runs in this process."""

    name: str
    source: str
    function: RewardFunction
    trusted: bool

    @property
    def identity(self) -> str:
        """What run.json says of it."""
        return f"{self.name} {self.source}"


def read_reward(given: str | RewardFunction | None, trusted: bool = False) -> Reward | None:
    """The reward that is given as `module:function` or as a function; None for None, which means the verifier.

    A module is looked for in the repository and wherever Python looks. ValueError in one line that says what to change
    if there is no such function, or if it is not trusted and workers could not import it, as in a notebook.
    """
    if given is None:
        return None
    if isinstance(given, str):
        return Reward(given, *_load(given), trusted)
    require(callable(given), "reward", given, "a function, or its name module:function")
    name = f"{given.__module__}:{getattr(given, '__qualname__', type(given).__qualname__)}"
    try:
        source, found = _load(name)
    except ValueError:
        source, found = "", None
    if found is given:
        return Reward(name, source, given, trusted)
    allowed = "trusted (trusted=True), or what a module's file holds by that name: workers import it from there"
    require(trusted, "reward", name, allowed)
    try:
        text = inspect.getsource(given)
    except (OSError, TypeError):
        raise ValueError(f"reward: got {name!r}, must be a function whose source Python can read") from None
    return Reward(name, hashlib.md5(text.encode()).hexdigest(), given, trusted)


def try_out(reward: Reward | None, *sets: list[dict]) -> None:
    """Call a reward for an empty response to the first problem of each set; ValueError in one line if it cannot be."""
    for problems in sets if reward is not None else ():
        [found] = rewards(reward, [shown(problems[0], "", False)])
        if isinstance(found, Killed):
            raise ValueError(
                f"reward: {reward.name} was ended in its worker ({found.reason}) for an empty completion, must take "
                "less than that or be trusted"
            )


def shown(problem: dict, response: str, truncated: bool) -> dict[str, Any]:
    """What a reward may read of one response."""
    columns = {key: value for key, value in problem.items() if key != "prompt"}
    return columns | {"prompts": problem["prompt"], "completions": response, "truncated": truncated}


def rewards(reward: Reward, rows: list[dict[str, Any]]) -> list[float | Killed]:
    """The reward of each response, or Killed where it exceeded a limit in its worker.

    rows: of `shown`; a column that only some have is None for the others. ValueError in one line if the function does
    not take what it is given, raises an exception, or returns anything but one finite number a response.
    """
    if not rows:  # the share of a rank that has no problem
        return []
    names = _arguments(reward, list(dict.fromkeys(key for row in rows for key in row)))
    if reward.trusted:
        try:
            return call(reward.function, {name: [row.get(name) for row in rows] for name in names}, len(rows))
        except ValueError as error:
            raise ValueError(f"reward: {reward.name} {error}") from error
    found = _pool(reward).map([[reward.name, {name: [row.get(name)] for name in names}] for row in rows])
    for row, value in zip(rows, found, strict=True):
        if isinstance(value, str):
            raise ValueError(f"reward: {reward.name} {value}; the completion is {row['completions']!r:.80}")
    return found


def call(function: RewardFunction, columns: dict[str, list], count: int) -> list[float]:
    """The rewards of `count` responses; ValueError that says what was wrong with them."""
    try:
        found = function(**columns)
    except (MemoryError, RecursionError):  # a limit that the text exceeds, not a mistake of the function
        raise
    except Exception as error:
        raise ValueError(f"raised {type(error).__name__}: {' '.join(str(error).split())}") from error
    values = found.tolist() if hasattr(found, "tolist") else found
    if not isinstance(values, list | tuple):
        raise ValueError(f"returned {values!r:.60}, must be a list of numbers")
    if len(values) != count:
        raise ValueError(f"returned {len(values)} rewards for {count} completions, must be one each")
    values = [value.item() if hasattr(value, "item") else value for value in values]
    for value in values:
        if not isinstance(value, Real) or not abs(value) < LARGEST:  # not: NaN is in no order
            raise ValueError(f"returned the reward {value!r:.60}, must be a finite number")
    return [float(value) for value in values]


def _arguments(reward: Reward, columns: list[str]) -> list[str]:
    """The columns that a reward takes; ValueError if it needs others."""
    try:
        signature = inspect.signature(reward.function)
        every = any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())
        names = [column for column in columns if every or column in signature.parameters]
        signature.bind(**dict.fromkeys(names))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"reward: {reward.name} cannot be called ({error}), must take arguments by name, of {', '.join(columns)}"
        ) from None
    return names


# --- importing it --------------------------------------------------------------------------------------------------


_seen: dict[str, str] = {}
"""{module: the MD5 of the file that it was last loaded from}."""


def _load(name: str) -> tuple[str, RewardFunction]:
    """(MD5 of the module's file, the function) of a name; a file that was edited since is loaded again."""
    form = "module:function, such as rewards.marks:reward"
    module, _, function = name.partition(":")
    require(bool(re.fullmatch(r"[\w.]+:\w+", name)) and module != "__main__", "reward", name, form)
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    importlib.invalidate_caches()  # a file may be new
    try:
        loaded, source = _fresh(importlib.import_module(module))
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"reward: got {name!r}, must be {form}, and {module} cannot be imported ({why})") from None
    found = getattr(loaded, function, None)
    known = [key for key, value in vars(loaded).items() if inspect.isfunction(value)]
    require(callable(found), "reward", name, f"a function of {module}: {listed(known, function) or 'it has none'}")
    return source, found


def _fresh(module: ModuleType) -> tuple[ModuleType, str]:
    """(The module as its file now is, the file's MD5.)"""
    source = hashlib.md5(Path(module.__file__).read_bytes()).hexdigest()
    if _seen.setdefault(module.__name__, source) != source:
        module = importlib.reload(module)
        _seen[module.__name__] = source
    return module, source


# --- in the workers ------------------------------------------------------------------------------------------------


@cache
def _pool(reward: Reward) -> Pool:
    """The workers of a reward: an edited file gets others. They are shared by all calls in this process."""
    return Pool(f"{__name__}:work", workers(1, "cpu"), prepare=f"{__name__}:ready {reward.name}", **LIMITS)


@cache
def ready(name: str) -> RewardFunction:
    """Load a reward in a new worker, so that the first response's time limit does not count it."""
    return _load(name)[1]


def work(name: str, columns: dict[str, list]) -> float | str:
    """The reward of one response, or what was wrong with it."""
    try:
        return call(ready(name), columns, 1)[0]
    except ValueError as error:
        return str(error)
