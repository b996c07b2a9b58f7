"""The methods: what settings, tables and figures need to know of them, without loading torch.

A method is one entry here. It names the advantage and the loss, two functions of pmd/trainer/objectives.py, from which
`OBJECTIVES` there is made. Nothing else lists the methods.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A training method. uses: the settings of its loss and advantage that it reads; about: one line on it."""

    label: str
    advantage: str
    loss: str
    uses: tuple[str, ...]
    about: str


_TAU, _CLIP = ("tau", "normalise"), ("clip_low", "clip_high")

METHODS: dict[str, Method] = {
    "pmd-mean": Method("PMD-mean", "leave_one_out_mean", "regression", _TAU, "regress s on A/τ, baseline: the mean"),
    "pmd-part": Method("PMD-part", "leave_one_out_tilted", "regression", _TAU, "the same, baseline: τ log Z"),
    "grpo": Method("GRPO", "group_standardised", "token_clip", _CLIP, "PPO's clip on the ratio of each token"),
    "grpo-unclipped": Method("GRPO, no clip", "group_standardised", "token_unclipped", (), "GRPO without the clip"),
    "gspo": Method("GSPO", "group_standardised", "sequence_clip", _CLIP, "PPO's clip on the ratio of a response"),
    "rloo": Method("RLOO", "leave_one_out_mean", "reinforce", ("normalise",), "policy gradient, leave-one-out mean"),
    "dr-grpo": Method("Dr. GRPO", "group_mean", "token_clip_constant", _CLIP, "GRPO without its length and std biases"),
    "cispo": Method("CISPO", "group_standardised", "clipped_weight", _CLIP, "policy gradient, clipped token weights"),
    "kimi": Method("Kimi K1.5", "group_mean", "regression", _TAU, "PMD-mean's loss, the mean of the whole group"),
    "pmd-tilted": Method("PMD-tilted", "leave_one_out_tilted", "regression", (*_TAU, "tau_b"), "the same at τ_b"),
}
"""Every method by its name in params.yaml, in the order in which tables and figures show them."""
