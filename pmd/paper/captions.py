"""The words of the page: the idea, what each picture draws, and what it shows, which is computed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

IDEA = (
    "Policy mirror descent improves a language model by regressing s, the log-ratio of its new and its old policy, on"
    " rewards. The exact step needs a log-partition function that a few rollouts cannot estimate. PMD-mean puts "
    "the mean reward in its place, and the paper's theorem says that this adds a regulariser of its own: a χ² "
    "term, whose weight λ the rewards themselves set. Where right answers are rare, it lets them gain far less than the"
    " exact step would. This page asks what of that can be seen in small language models, trained on two CPU cores."
)

TERMS = (
    "PMD-part estimates the log-partition function from the rollouts. RLOO is PMD-mean without its regulariser; GRPO "
    "and GSPO are the usual clipped methods. K is the number of updates that learn from one batch of rollouts. *More "
    "stable* means a higher mean accuracy over learning rates and K. A *solved* update is trained on one batch until "
    "its loss hardly falls any more; ordinary training stops long before."
)

CAPTIONS = {
    "claims": "Every effect in units of the smallest that would matter, with its 95 % interval. Grey band: too small "
    "to matter, which is what e1 claims. An arrow: only a bound is known, and the effect lies beyond it. Dotted: "
    "nothing is known. Hollow circles, where a study stands beside the default run: the default run. Beyond 2 the "
    "axis is logarithmic.",
    "law": "The law in a language model. Dots: the log-ratio s of right and wrong responses after an update whose "
    "regression is solved, and −mean(s) of each prompt. Lines: the Lambert-W curves and the λ that theory predicts "
    "from a prompt's success rate p alone. The right panels show the mean distance from the prediction by inner "
    "steps, with 95 % intervals where there are at least five base models; open marks: one pass, as in ordinary "
    "training, circles on the batch, triangles on other rollouts of its prompts. The loss is divided by a constant; "
    "training divides it by the length of a response.",
    "finite": "Finite samples. Success after one solved update from n rollouts, by the temperature τ_b of the "
    "baseline, the highest baseline on the left: “part” marks PMD-part (τ_b = τ), “mean” PMD-mean. On the prompts "
    "that the update learns from, on others, and per nat of movement, where the update moves at least 0.05 nats. "
    "Bars: 95 % intervals over base models.",
    "F8": "The robustness map. Final accuracy over learning rate and K, the number of updates made from one batch of "
    "rollouts. White is the accuracy of the base models, × marks a cell that lost more than half of it, – was not "
    "run. Variants that were trained in one cell alone share a panel.",
    "F1": "Theory. The policy ratio ρ of PMD-mean's update against the scaled advantage, for several λ; λ = 0 is the "
    "exact step of mirror descent.",
    "F2": "Theory, rewards 0 and 1. λ and the ratios of successes and failures against the success probability p.",
    "F3": "Theory, rewards 0 and 1. Top: the success probability p over repeated updates. Bottom: 1 − p, which both "
    "methods shrink at the same rate in the end.",
    "F4": "Theory, finite samples, against the number of rollouts n. Top: how often an estimated baseline makes λ "
    "negative, and, hollow, how often there is no solution. Middle and bottom, where there is one: median and 10 to "
    "90 % range of the next success probability and of the distance moved; horizontal lines: n → ∞.",
    "F4-chain": "Theory, repeated updates from n rollouts: the exact Markov chain of one prompt's success "
    "probability p. Top: p after five updates, from the median to the worst decile. Middle: how likely it is still "
    "below one half. Bottom: how likely an update gives more than 10 % of the probability to responses that were not "
    "sampled.",
    "F5": "Training curves of the methods that were trained at every learning rate, each at the one that is best for "
    "it on validation problems, a row for each K. Bands: 95 % intervals over base models, of PMD-mean and GRPO. "
    "Curves are over the first problems of each set, the numbers below over all problems of test and ood.",
    "F5-reported": "What the paper's authors report for Qwen3-30B-A3B. These are not runs of this repository.",
    "F6": "Accuracy against seconds of training and generated tokens, the same methods, each at its best K; on-policy "
    "runs (K = 1) beside them. Over the first problems of val, test and ood together, on which the target of (c) is "
    "measured too.",
    "F7": "Practice. −mean(s) after each step of training against the λ of the solved update, a panel for each K. On "
    "the line, one pass over the batch would reach the solution. Both axes are logarithmic, the vertical one "
    "linear near 0.",
}

SHOWN = {
    "law": ("e1", "e2"),
    "finite": ("d1", "d2"),
    "F8": ("b1", "b2", "b3", "b4"),
    "F5": ("a1", "a2", "a3", "a4"),
    "F6": ("c1", "c2"),
}
"""The rows of the claims table that a picture shows."""


def label(name: str) -> str:
    """What stands before a caption: "F8. "; nothing where the name is a word that the caption begins with anyway."""
    return f"{name}. " if name.startswith("F") else ""


def found(name: str, rows: pd.DataFrame | None, data: Path) -> list[tuple[str, str]]:
    """What is seen in the picture `name`: (row, reason) of the rows of `claims.table` that it shows, if there are.

    data: the CSV of the numbers that the picture plots.
    """
    if name == "F7":
        return [("", practice(pd.read_csv(data)))]
    judged = rows[rows["row"].isin(SHOWN.get(name, ()))] if rows is not None else None
    return [] if judged is None else list(zip(judged["row"], judged["reason"], strict=True))


def practice(steps: pd.DataFrame) -> str:
    """How much of a solved update a step of PMD-mean's training makes; steps: the numbers that F7 plots."""
    mine = steps[steps["variant"] == "pmd-mean"]
    shares = (mine["lambda"] / mine["lambda_theory"]).groupby(mine["minibatches"]).median()
    words = ", ".join(f"{share:.2g} (K = {k})" for k, share in shares.items())
    return f"in PMD-mean's training, the median of −mean(s)/λ is {words}; it would be 1 for a solved update"
