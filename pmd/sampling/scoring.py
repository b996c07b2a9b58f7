"""Sample k responses to each problem, and judge them by the problem's rule or by a reward of your own.

The rows, saved as parquet, are enough to compute every metric again without the model.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Sequence

import pandas as pd

from pmd.model.distributed import spread
from pmd.problems.limited_pool import Killed
from pmd.problems.prompts import encode
from pmd.problems.reward import Reward, rewards, shown
from pmd.problems.verifier import equivalent, verify
from pmd.sampling import accuracy
from pmd.sampling.engine import Engine, Responses, Sampling

log = logging.getLogger(__name__)

VERDICT = ["answer", "correct", "reward", "killed"]
COLUMNS = ["prompt_id", "sample", "prompt", "response", *VERDICT, "tokens", "truncated", "seed"]
"""The columns of a frame with one row a response.

killed: its verification hit a limit, and it counts as wrong. truncated: it did not end by itself. tokens and seed are
null where another program sampled it, answer where a reward of your own judged it.
"""


def respond(
    engine: Engine, tokenizer, problems: list[dict], k: int, sampling: Sampling, seed: int, reward: Reward | None = None
) -> pd.DataFrame:
    """k responses to each problem, sampled and scored: a frame with COLUMNS, a row a response, in order.

    reward: of pmd.problems.reward.read_reward; None: the verifier scores. In a torchrun job every rank samples and
    scores its share of the problems, and all return the same frame.
    """

    def work(share: list[dict], first: int) -> list[list[list[int]]]:
        return engine.sample([encode(tokenizer, problem["prompt"]) for problem in share], k, sampling, seed, first)

    responses = spread(work, problems, getattr(engine, "ranks_per_engine", 1))
    ends = ends_of(engine, tokenizer)
    rows = spread(lambda part, at: score(part, responses[at : at + len(part)], tokenizer, ends, reward), problems)
    return pd.DataFrame(rows).assign(seed=seed)[COLUMNS]


def ends_of(engine: Engine, tokenizer) -> Collection[int]:
    """The tokens with which an engine's responses end."""
    return getattr(engine, "ends", None) or {tokenizer.eos_token_id}


def score(
    problems: list[dict],
    responses: Responses,
    tokenizer,
    ends: Collection[int] | None = None,
    reward: Reward | None = None,
) -> list[dict]:
    """Every response [problem][sample] as text, with its verdict; a flat list in order, verified in one batch.

    ends: the tokens that end a response, None for the tokenizer's own; the text is what stands before.
    """
    ends = ends or {tokenizer.eos_token_id}
    rows = [
        {
            "prompt_id": problem["id"],
            "sample": i,
            "prompt": problem["prompt"],
            "response": tokenizer.decode(response[:-1] if response[-1] in ends else response, skip_special_tokens=True),
            "tokens": len(response),
            "truncated": response[-1] not in ends,
        }
        for problem, group in zip(problems, responses, strict=True)
        for i, response in enumerate(group)
    ]
    return [row | verdict for row, verdict in zip(rows, verdicts(rows, problems, reward), strict=True)]


def verdicts(rows: list[dict], problems: Iterable[dict], reward: Reward | None = None) -> list[dict]:
    """VERDICT of each row (prompt_id, response, truncated) by its problem's rule or by a reward, all in one batch."""
    known = {problem["id"]: problem for problem in problems}
    asked = [known[row["prompt_id"]] for row in rows]
    if reward is not None:
        return rewarded(rows, asked, reward)
    found = verify(
        [problem.get("rule", "exact") for problem in asked],
        [row["response"] for row in rows],
        [problem["ground_truth"] for problem in asked],
        [not row["truncated"] for row in rows],
    )
    return [{name: getattr(verdict, name) for name in VERDICT} for verdict in found]


def rewarded(rows: list[dict], asked: list[dict], reward: Reward) -> list[dict]:
    """VERDICT of each row, an answer to the problem beside it in `asked`, by a reward of your own.

    A response whose reward exceeded a limit gets the lowest reward among the others, and never more than 0.
    """
    found = rewards(reward, [shown(p, one["response"], one["truncated"]) for p, one in zip(asked, rows, strict=True)])
    least = min([0.0, *(value for value in found if not isinstance(value, Killed))])
    judged = []
    for one, value in zip(rows, found, strict=True):
        killed = isinstance(value, Killed)
        if killed:
            log.warning("killed after %s, gets the reward %g: %.80r", value.reason, least, one["response"])
        got = least if killed else value
        judged.append({"answer": None, "correct": math.isclose(got, 1, rel_tol=1e-7), "reward": got, "killed": killed})
    return judged


def summarise_by_rule(samples: pd.DataFrame, problems: Iterable[dict], reward: Reward | None = None) -> dict:
    """`accuracy.summarise` of `respond`'s rows, where answers that a problem's rule calls equal vote together.

    With a reward there is no answer to vote on: in the majority's place stands the mean reward.
    """
    problems = list(problems)
    ids, rules = [problem["id"] for problem in problems], [problem.get("rule", "exact") for problem in problems]
    if reward is not None:
        summary = accuracy.summarise(samples, ids)
        del summary["majority"]
        return summary | {"reward": float(samples["reward"].mean())}
    if set(rules) != {"exact"}:
        samples = accuracy.in_order(samples, ids)
        merged = merge(accuracy.answers_of(samples, ids), rules)
        samples = samples.assign(answer=[answer for answers in merged for answer in answers])
    return accuracy.summarise(samples, ids)


def merge(answers: Sequence[Sequence[str | None]], rules: Sequence[str]) -> list[list[str | None]]:
    """Replace each answer by the first answer to the same problem that the rule calls equal to it.

    After that the votes for an answer can be counted by comparing strings. Equality by a rule need not be transitive,
    so the order decides: an answer joins the earliest answer that stands for others and that it equals. Under "exact"
    only equal strings are equal. All problems advance together, with one batch of comparisons a round, because the
    verifier's workers are fast at batches.
    """
    stands: list[dict[str | None, str | None]] = [{answer: answer for answer in group} for group in answers]
    left = {i: [a for a in stands[i] if a is not None] for i, rule in enumerate(rules) if rule != "exact"}
    while left := {i: group for i, group in left.items() if len(group) > 1}:
        for rule in sorted({rules[i] for i in left}):
            asked = [(i, group[0], other) for i, group in left.items() if rules[i] == rule for other in group[1:]]
            equal = equivalent(rule, [(first, other) for _, first, other in asked])
            for (i, first, other), same in zip(asked, equal, strict=True):
                if same:
                    stands[i][other] = first
        left = {i: [a for a in group[1:] if stands[i][a] == a] for i, group in left.items()}
    return [[stands[i][answer] for answer in group] for i, group in enumerate(answers)]
