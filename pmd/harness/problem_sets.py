"""What a run can be trained and evaluated on: problem sets that are there, with prompts that fit into the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pmd.harness.config import Train
from pmd.params import require
from pmd.problems.prompts import within
from pmd.problems.reader import require_problems
from pmd.sampling.engine import context

if TYPE_CHECKING:  # transformers takes seconds to load
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

Problems = list[dict]


def usable(
    config: Train, model: str | Path, problems: Problems, sets: dict[str, Problems], judged: bool = True
) -> tuple[Problems, dict[str, Problems]]:
    """The problems to train on and those to evaluate on whose prompt leaves room for a response in the model's context.

    judged: by the verifier, not by a reward of your own. A warning in one line counts the others. ValueError in one
    line if `sets` has no "val", or a set is empty, holds what is no problem, or has no prompt that fits.
    """
    require("val" in sets, "sets", sorted(sets), "a mapping of names to problem sets with val among them")
    for key, rows in [("problems", problems), *((f"sets.{name}", rows) for name, rows in sets.items())]:
        require_problems(key, rows, judged)
    most = context(architecture(model))
    if most is None:
        return problems, sets
    reader = tokenizer(model)
    kept = {name: within(reader, rows, most, config.eval_max_tokens, f"sets.{name}") for name, rows in sets.items()}
    return within(reader, problems, most, config.max_tokens, "problems"), kept


def architecture(model: str | Path) -> PreTrainedConfig:
    """The configuration of a model folder or of owner/name@revision; ValueError in one line if there is none."""
    from transformers import AutoConfig

    return _read(AutoConfig, model, "configuration")


def tokenizer(model: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or of owner/name@revision; ValueError in one line if there is none."""
    from transformers import AutoTokenizer

    return _read(AutoTokenizer, model, "tokenizer")


def _read(kind: Any, model: str | Path, name: str) -> Any:
    from pmd.model.loading import directory

    path = directory(model)
    try:
        return kind.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers and transformers each raise their own
        raise ValueError(f"{path}: the {name} cannot be loaded ({' '.join(str(error).split())[:200]})") from error
