"""The committed base models, from which every run of the experiments starts (`bases/`, notebook 5).

They are small enough to be in the repository, so that no conclusion hangs on how one processor rounds: `dvc repro`
reads them and does not train them. `bases/digests.json` says what their weights are; a model that differs is refused.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pmd.files import ROOT, read_json, write_json
from pmd.params import require
from pmd.problems.arithmetic import SYMBOLS

BASES = ROOT / "bases"


def base_folder(number: int, folder: Path = BASES) -> Path:
    """The model folder of base model `number`; ValueError in one line if it is missing, altered or speaks otherwise."""
    known = read_json(folder / "digests.json") if (folder / "digests.json").exists() else {}
    back = f" (`git restore {folder.name}` brings the committed ones back)" if folder == BASES else ""
    require(
        str(number) in known, "bases", number, f"one of the base models in {folder.name}/: {', '.join(known)}{back}"
    )
    model = folder / f"base-{number}"
    weights = model / "model.safetensors"
    if not weights.is_file():
        raise ValueError(f"{weights}: missing; `git restore {folder.name}` brings it back")
    if digest(weights) != known[str(number)]:
        raise ValueError(
            f"{weights}: differs from {folder.name}/digests.json; `git restore {folder.name}` brings the committed one "
            "back, `make bases` trains them all again"
        )
    lacking = set(SYMBOLS) - set(read_json(model / "tokenizer.json")["model"]["vocab"])
    if lacking:
        raise ValueError(f"{model}: its vocabulary lacks {' '.join(sorted(lacking))}, the task's symbols are {SYMBOLS}")
    return model


def digest(weights: Path) -> str:
    """SHA-256 of a file of weights."""
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def write_digests(numbers: list[int], folder: Path = BASES) -> None:
    """Accept the base models that lie in `folder` as they are."""
    write_json(folder / "digests.json", {str(n): digest(folder / f"base-{n}" / "model.safetensors") for n in numbers})
