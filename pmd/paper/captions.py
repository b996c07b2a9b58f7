"""The words of the page: the idea, what each picture draws, and what it shows, which is computed."""

from __future__ import annotations

import pandas as pd

IDEA = (
    "Policy mirror descent improves a language model by regressing s, the log-ratio of its new and its old policy, on"
    " rewards. The exact step needs a log-partition function that a few rollouts cannot estimate. PMD-mean puts "
    "the mean reward in its place, and the paper's theorem says that this adds a regulariser of its own, a χ² "
    "term whose weight λ is largest where it is needed. This page asks what of that can be seen in small language"
    " models, trained on two CPU cores."
)

CAPTIONS = {
    "claims": "Every effect in units of the smallest that would matter, with its 95 % interval, dotted where only a "
    "bound of the effect is known. Grey band: too small to matter, which is what e1 claims. Hollow circles, where a "
    "study stands beside the default run: the default run. Beyond 2 the axis is logarithmic.",
    "law": "The law in a language model. Dots: the log-ratio s of right and wrong responses after an update whose "
    "regression is solved, and −mean(s) of each prompt. Lines: the Lambert-W curves and the λ that theory predicts "
    "from a prompt's success rate p alone. The right panels show the distance from the prediction, from one pass (what "
    "practice does) to the solution.",
    "finite": "Finite samples. Success after one solved update from n rollouts, by the temperature τ_b of the "
    "baseline: PMD-part at τ_b = τ on the left, PMD-mean at ∞, baselines below the mean to its right; on the prompts "
    "that the update learns from, on others, and per nat of movement, "
    "where the update moves at least 0.05 nats.",
    "F8": "The robustness map. Final accuracy over learning rate and K, the number of updates made from one batch of "
    "rollouts. White is the accuracy of the base models, × marks a cell that lost more than half of it, "
    "– was not run.",
    "F1": "Theory. The policy ratio ρ of PMD-mean's update against the scaled advantage, for several λ; λ = 0 is the "
    "exact step of mirror descent.",
    "F2": "Theory, rewards 0 and 1. λ and the ratios of successes and failures against the success probability p.",
    "F3": "Theory, rewards 0 and 1. The success probability over repeated updates.",
    "F4": "Theory, finite samples. How often an estimated baseline makes λ negative, and the spread of the next success"
    " probability, against the number of rollouts n.",
    "F4-chain": "Theory, repeated updates from n rollouts: the exact Markov chain of one prompt's success probability.",
    "F5": "Training curves of every method at the learning rate that is best for it on validation problems, a row for "
    "each K. Bands: 95 % intervals over base models, of PMD-mean and GRPO.",
    "F5-reported": "What the paper's authors report for Qwen3-30B-A3B. These are not runs of this repository.",
    "F6": "Accuracy against seconds of training and generated tokens, each method at its best K; on-policy runs (K = 1)"
    " beside them.",
    "F7": "Practice. −mean(s) after each step of training against the λ of the solved update, a panel for each K. On "
    "the line, one pass over the batch would reach the solution.",
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


def found(name: str, rows: pd.DataFrame | None) -> list[tuple[str, str]]:
    """What is seen in the picture `name`: (row, reason) of the rows of `claims.table` that it shows, if there are."""
    judged = rows[rows["row"].isin(SHOWN.get(name, ()))] if rows is not None else None
    return [] if judged is None else list(zip(judged["row"], judged["reason"], strict=True))
