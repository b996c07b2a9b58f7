"""Sample a policy on a problem set and score it.

Saved samples (parquet, one row a response) are enough to recompute every metric without the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pmd.evaluators.evaluate import Evaluate
from pmd.evaluators.intervals import maj_at_k
from pmd.model.distributed import spread
from pmd.model.loading import load_policy
from pmd.problems.prompts import encode
from pmd.problems.verifier import equivalent, verify
from pmd.sampling.seeds import derive
from pmd.sampling.torch_engine import Engine, Responses, Sampling, TorchEngine

VERDICT = ["answer", "correct", "reward", "killed"]
COLUMNS = ["prompt_id", "sample", "prompt", "response", *VERDICT, "tokens", "truncated", "seed"]
"""One row a response. killed: its verification hit a limit and it counts as wrong; truncated: it did not end by itself;
tokens and seed are null where another program sampled it."""


def respond(engine: Engine, tokenizer, problems: list[dict], k: int, sampling: Sampling, seed: int) -> pd.DataFrame:
    """k responses to each problem, scored: a row each, in order, with COLUMNS; every rank does its share of both."""

    def work(share: list[dict], first: int) -> list[list[list[int]]]:
        return engine.sample([encode(tokenizer, problem["prompt"]) for problem in share], k, sampling, seed, first)

    responses = spread(work, problems, getattr(engine, "copies", 1))
    rows = spread(lambda share, first: score(share, responses[first : first + len(share)], tokenizer), problems)
    return pd.DataFrame(rows).assign(seed=seed)[COLUMNS]


def score(problems: list[dict], responses: Responses, tokenizer) -> list[dict]:
    """Every response [problem][sample] as text, with its verdict; a flat list in order, verified in one batch."""
    rows = [
        {
            "prompt_id": problem["id"],
            "sample": i,
            "prompt": problem["prompt"],
            "response": tokenizer.decode(response, skip_special_tokens=True),
            "tokens": len(response),
            "truncated": response[-1] != tokenizer.eos_token_id,
        }
        for problem, group in zip(problems, responses, strict=True)
        for i, response in enumerate(group)
    ]
    return [row | verdict for row, verdict in zip(rows, verdicts(rows, problems), strict=True)]


def verdicts(rows: list[dict], problems: Iterable[dict]) -> list[dict]:
    """VERDICT of each row (prompt_id, response, truncated) by its problem's rule: one batch, whatever the rules."""
    known = {problem["id"]: problem for problem in problems}
    asked = [known[row["prompt_id"]] for row in rows]
    found = verify(
        [problem.get("rule", "exact") for problem in asked],
        [row["response"] for row in rows],
        [problem["ground_truth"] for problem in asked],
        [not row["truncated"] for row in rows],
    )
    return [{name: getattr(verdict, name) for name in VERDICT} for verdict in found]


def summarise(samples: pd.DataFrame, problems: Iterable[dict]) -> dict:
    """Per-prompt counts, from which avg@k, pass@k, best@k and maj@k follow; problems in the given order.

    {"k", "correct": successes of k, "majority": 0/1 is the majority answer right, "length": mean tokens, "truncated"}.
    """
    problems = list(problems)
    groups = dict(list(samples.sort_values("sample", kind="stable").groupby("prompt_id", sort=False)))
    ordered = [groups[problem["id"]] for problem in problems]
    answers = [[a if isinstance(a, str) else None for a in group["answer"]] for group in ordered]
    votes = merge(answers, [problem.get("rule", "exact") for problem in problems])
    right = [group["correct"].tolist() for group in ordered]
    return {
        "k": len(ordered[0]),
        "correct": [sum(flags) for flags in right],
        "majority": [int(maj_at_k(vote, flags)) for vote, flags in zip(votes, right, strict=True)],
        "length": [float(group["tokens"].mean()) for group in ordered],
        "truncated": float(samples["truncated"].mean()),
    }


def merge(answers: Sequence[Sequence[str | None]], rules: Sequence[str]) -> list[list[str | None]]:
    """Each problem's answers, those that its rule calls equal replaced by the one of them that was given first.

    Equality by rule need not be transitive, so the order decides: an answer joins the earliest of the answers that
    stand for others, if it equals one. Under "exact" only equal strings are equal. All problems advance together, one
    batch a round, because a batch is what the verifier's workers are fast at.
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


def evaluate(config: Evaluate, model_dir: Path, sets: dict[str, list[dict]]) -> pd.DataFrame:
    """Sample the policy in a model folder on every set, each from its own seed; `respond`'s frame, `set` first."""
    model, tokenizer = load_policy(model_dir, config.device)
    engine = TorchEngine(model, tokenizer.eos_token_id)
    sampling = Sampling(config.max_tokens, config.temperature, config.top_p)
    frames = []
    for name, problems in sets.items():
        frame = respond(engine, tokenizer, problems, config.k, sampling, derive(config.seed, 0, f"evaluate/{name}"))
        frame.insert(0, "set", name)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def accuracy(summary: dict) -> float:
    """avg@k of a summary."""
    return float(np.mean(summary["correct"]) / summary["k"])
