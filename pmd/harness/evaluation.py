"""The evaluations of a run on its problem sets: the rows of eval.jsonl."""

from __future__ import annotations

from pmd.harness.config import Train
from pmd.harness.policy import Policy
from pmd.sampling.engine import Sampling
from pmd.sampling.scoring import respond, summarise_by_rule
from pmd.sampling.seeds import derive


def evaluate(config: Train, step: int, policy: Policy, sets: dict[str, list[dict]]) -> list[dict]:
    """A row for each set: the summary of eval_k samples of each problem (pmd/sampling/accuracy.py)."""
    sampling = Sampling(config.eval_max_tokens, 1.0, config.eval_top_p)
    rows = []
    for name, problems in sets.items():
        how = (config.eval_k, sampling, derive(config.seed, step, f"eval/{name}"), policy.reward)
        samples = respond(policy.engine, policy.tokenizer, problems, *how)
        rows.append({"step": step, "set": name, **summarise_by_rule(samples, problems, policy.reward)})
    return rows
