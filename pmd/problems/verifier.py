"""Response -> extracted answer -> verdict and reward. Text from a model is only ever compared, never executed.

A rule says how the responses to a problem are judged: `exact` for the embedded task, `dapo` for the paper's runs,
`math` for everything that is written as mathematics. The answer is extracted in this process (`extraction.py`). Where
the gold and the answer as strings do not decide, they are compared (`comparison.py`) in worker processes that are ended
when they exceed a limit (`limited_pool.py`), because no comparison of formulas is sure to end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pmd.problems.comparison import equal_dapo, equal_exact, equal_math, quick_dapo, quick_math
from pmd.problems.extraction import extract_dapo, extract_exact, extract_math
from pmd.problems.limited_pool import Killed, Pool
from pmd.processes import workers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rule:
    """How the answer to a problem is found and compared; a correct response earns the reward 1.0, any other `wrong`.

    `quick(gold, answer)` decides from the two strings, or returns None. Then `equal(gold, answer)` decides in a worker.
    """

    extract: Callable[[str], str | None]
    quick: Callable[[str, str], bool | None]
    equal: Callable[..., bool]
    wrong: float


RULES = {
    "exact": Rule(extract_exact, equal_exact, equal_exact, wrong=0.0),
    "dapo": Rule(extract_dapo, quick_dapo, equal_dapo, wrong=-1.0),
    "math": Rule(extract_math, quick_math, equal_math, wrong=0.0),
}
"""The rules by the names that a problem's column `rule` may hold."""


@dataclass(frozen=True)
class Verdict:
    """The judgement of one response. `killed`: its comparison exceeded a limit, and it therefore counts as wrong."""

    answer: str | None
    correct: bool
    reward: float
    killed: bool


def verify(
    rules: Sequence[str], responses: Sequence[str], golds: Sequence[str | Sequence[str]], ended: Sequence[bool]
) -> list[Verdict]:
    """Judge each response by its rule against its gold answer, or against several golds of which any is right.

    A response that was cut off (`ended` is False) has no answer and is wrong. Raises ValueError that names the first
    unknown rule, or if the four sequences differ in length.
    """
    _require_known(rules)
    answers = [
        RULES[rule].extract(response) if end else None
        for rule, response, end in zip(rules, responses, ended, strict=True)
    ]
    right = [[gold] if isinstance(gold, str) else gold for gold in golds]
    cases = list(zip(rules, right, answers, strict=True))
    decided = _decide({(rule, gold, a) for rule, several, a in cases if a is not None for gold in several})
    verdicts = []
    for rule, several, answer in cases:
        found = [decided.get((rule, gold, answer), False) for gold in several]
        correct = True in found
        killed = not correct and any(isinstance(one, Killed) for one in found)
        verdicts.append(Verdict(answer, correct, 1.0 if correct else RULES[rule].wrong, killed))
    return verdicts


def equivalent(rule: str, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether the two answers of each pair, the gold answer first, are the same under `rule`.

    A comparison that exceeds a limit counts as False. Raises ValueError if the rule is unknown.
    """
    _require_known([rule])
    decided = _decide({(rule, gold, answer) for gold, answer in pairs})
    return [decided[rule, gold, answer] is True for gold, answer in pairs]


def compare(rule: str, gold: str, answer: str, settings: dict[str, Any] | None = None) -> bool:
    """The full comparison of a rule, which the workers run; `settings` replace the defaults of its `equal`."""
    return RULES[rule].equal(gold, answer, **(settings or {}))


def _require_known(rules: Sequence[str]) -> None:
    for rule in rules:
        if rule not in RULES:
            raise ValueError(f"rule: unknown rule {rule!r}, must be one of {', '.join(RULES)}")


def _decide(cases: set[tuple[str, str, str]]) -> dict[tuple[str, str, str], bool | Killed]:
    """Decide each different (rule, gold, answer) once: from the strings where they suffice, else in the workers."""
    decided: dict[tuple[str, str, str], bool | Killed] = {}
    for case in cases:
        rule, gold, answer = case
        quick = RULES[rule].quick(gold, answer)
        if quick is not None:
            decided[case] = quick
    rest = sorted(cases - decided.keys())
    for case, found in zip(rest, _pool().map(rest) if rest else [], strict=True):
        decided[case] = found
        if isinstance(found, Killed):
            log.warning("killed after %s, counts as wrong: rule %s, gold %.80r, answer %.80r", found.reason, *case)
    return decided


@cache
def _pool() -> Pool:
    """The workers that compare. They are shared by all calls in this process and start when they are first needed."""
    return Pool(f"{__name__}:compare", workers(1, "cpu"), prepare=f"{__name__}:prepare")


def prepare() -> None:
    """Load in a new worker what comparisons need, so that the first comparison's time limit does not count it."""
    logging.disable(logging.CRITICAL)
    assert equal_math("x^2", "x\\cdot x"), "math-verify does not work"
