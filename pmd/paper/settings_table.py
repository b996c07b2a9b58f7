"""T5: every setting, ours beside the paper's."""

from __future__ import annotations

from typing import Any

import numpy as np

from pmd.methods import METHODS
from pmd.paper.typeset import Table, from_records

_LAUNCH = "reference code's 30B launch script"
_BASELINES = "arXiv:2503.14476, arXiv:2507.18071"
_CURVES = "reference code's 30B figure"
PAPER: dict[str, tuple[str, str]] = {
    "policy": ("Qwen2.5-7B, Qwen3-30B-A3B-Base", "paper"),
    "training problems": ("DAPO-Math-17k", "paper"),
    "test problems": ("AIME 2024, AIME 2025", "paper"),
    "optimizer": ("AdamW", "paper"),
    "KL to the reference policy": ("none", "paper"),
    "entropy bonus": ("none", "paper"),
    "train.prompts": ("512", "paper"),
    "train.group_size": ("16", "paper"),
    "train.minibatches": ("16 (of 32 prompts)", "paper"),
    "train.lr": ("1e-06", "paper"),
    "train.tau": ("0.01 to 0.1 with rewards ±1 (0.005 to 0.05 with rewards 0/1)", "paper"),
    "train.temperature": ("1.0", "paper"),
    "train.max_tokens": ("8192 (prompt: 2048)", "paper"),
    "train.normalise": ("length (seq-mean-token-mean)", _LAUNCH),
    "train.clip_low": ("0.2 (DAPO); 0.0003 (GSPO)", _BASELINES),
    "train.clip_high": ("0.28 (DAPO); 0.0004 (GSPO)", _BASELINES),
    "train.filter_low": ("none", _LAUNCH),
    "train.filter_high": ("none", _LAUNCH),
    "train.steps": ("300 shown", _CURVES),
    "train.eval_every": ("10 shown", _CURVES),
    "train.eval_k": ("32", "paper"),
    "train.eval_top_p": ("0.7", "paper"),
    "evaluate.k": ("32", "paper"),
    "evaluate.temperature": ("1.0", "paper"),
    "evaluate.top_p": ("0.7", "paper"),
}
"""Settings of the paper (arXiv:2602.05933) and of its code (OpenKimi, examples/math), with their source."""

_OURS = {
    "policy": "see base.* (trained from scratch)",
    "training problems": "embedded arithmetic task",
    "test problems": "test (in distribution), ood (longer)",
    "optimizer": "AdamW",
    "KL to the reference policy": "none",
    "entropy bonus": "none",
}


def settings(params: dict[str, Any], study: dict[str, Any] | None = None) -> Table:
    """T5: the settings of a preset beside the paper's, and those of the study where they differ.

    params, study: params.yaml, or a preset laid over it, as nested dictionaries. A method's own settings are listed
    with it.
    """
    ours, studied = _of(params), _of(study) if study else {}
    records = []
    for key in dict.fromkeys([*ours, *studied]):
        paper, source = PAPER.get(key, ("not stated", "–"))
        record = {"setting": key, "ours": ours.get(key, "–")}
        if study:
            other = studied.get(key, "–")
            record["the study's, where it differs"] = "" if other == record["ours"] else other
        records.append(record | {"the paper's": paper, "source": source})
    notes = (
        "The paper is arXiv:2602.05933, the reference code horizon-rl/OpenKimi; “not stated” means that no "
        "source used here states it. Our τ refers to rewards in {0, 1}; with rewards ±1 the same update has "
        f"twice that τ. Methods: {', '.join(f'{name} is {method.label}' for name, method in METHODS.items())}.",
    )
    return Table("T5", "Settings, ours and the paper's.", from_records(records), notes)


def _of(params: dict[str, Any]) -> dict[str, str]:
    parts = ("base", "train", "methods", "grid", "evaluate", "law", "finite")
    return _OURS | _leaves({key: params[key] for key in parts if key in params})


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            found |= _leaves(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(v, list) for item in value for v in _values(item)):
            for number, item in enumerate(value):
                found |= _leaves(item, f"{name}[{number}].")
        else:
            found[name] = _plain(value)
    return found


def _values(item: Any) -> list[Any]:
    return list(item.values()) if isinstance(item, dict) else []


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, dict):
        return " and ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "none"
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
