"""The folder of a run: whose run it holds, its logs, and how a run that stopped goes on. Nothing here needs torch.

run.json        every setting, what else identifies the run, and what was changed when it went on
log.jsonl       a row a step        timing.jsonl  its seconds        eval.jsonl  a row a set and evaluation
checkpoint-*/   from which a run that stopped goes on
best/, last/    model folders        result.json  says that the run has finished
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pmd.files import digest, fingerprint, read_json, write_json, write_jsonl

LOGS = ("log.jsonl", "timing.jsonl", "eval.jsonl")

ADJUSTABLE = (
    "microbatch_tokens",
    "checkpoint_activations",
    "threads",
    "compile",
    "device",
    "eval_every",
    "checkpoint_every",
)
"""Settings that may have other values when a stopped run goes on, because they change only rounding or how often
something is written. `steps` may grow, too."""

LARGE = 2**30
"""Bytes of weights above which a model is identified by the sizes of its files: hashing 60 GB would take minutes."""


# --- whose run is it? ----------------------------------------------------------------------------------------------


def model_digest(model: Path) -> str:
    """MD5 of what a model folder computes: its architecture, its tokenizer with the chat template, and its weights,
    wherever it lies.

    Of more than LARGE bytes of weights the files' names and sizes are taken, and the index that says what is in which.
    """
    weights = sorted(model.glob("*.safetensors"))
    sizes = [[file.name, file.stat().st_size] for file in weights]
    large = sum(size for _, size in sizes) > LARGE
    hashed = sorted(model.glob("*.safetensors.index.json")) if large else weights
    text = [model / name for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")]
    return digest([fingerprint(*text, *hashed, code=False), sizes])


def problems_digest(problems: list[dict], whole: bool = False) -> str:
    """MD5 of what training reads of its problems, in their order: id, prompt, ground truth and rule.

    whole: a reward of your own reads every column.
    """
    if whole:
        return digest(problems)
    return digest([[p["id"], p["prompt"], p["ground_truth"], p.get("rule", "exact")] for p in problems])


def difference(folder: Path, wanted: dict[str, Any], free: Collection[str] = ()) -> str | None:
    """The first entry of `wanted` in which the run in `folder` differs from it, such as "tau = 0.05, not 0.25".

    None if there is no difference. Entries named in `free` are not compared, nor what `wanted` does not mention.
    """
    if not (folder / "run.json").exists():
        return "no run.json"
    was = read_json(folder / "run.json")
    differing = (key for key in wanted if key not in free and was.get(key) != wanted[key])
    return next((f"{key} = {was.get(key)!r}, not {wanted[key]!r}" for key in differing), None)


def remove_other(folder: Path, wanted: dict[str, Any]) -> None:
    """Remove the folder unless the run that it holds agrees with `wanted` in everything."""
    if folder.exists() and difference(folder, wanted):
        shutil.rmtree(folder)


def finished(folder: Path, wanted: dict[str, Any]) -> bool:
    """Has the run in `folder` done all the steps that are wanted?

    False if there is no run or it has no checkpoint yet. ValueError in one line if the folder holds another run, a run
    that was to do more steps, or one that has done fewer and whose checkpoint is gone.
    """
    result, stopped = folder / "result.json", any(folder.glob("checkpoint-*"))
    if not (stopped or result.exists()):
        return False
    found = difference(folder, wanted, (*ADJUSTABLE, "steps"))
    steps = 0 if found else read_json(folder / "run.json")["steps"]
    if steps > wanted["steps"]:
        found = f"steps = {steps}, not {wanted['steps']}"
    if found:
        raise ValueError(f"{folder}: holds a run with {found}; delete it or choose another folder")
    if not result.exists():
        return False
    done = read_json(result)["last_step"]
    if done < wanted["steps"] and not stopped:
        raise ValueError(
            f"{folder}: holds a run of {done} steps whose checkpoint was removed, so that it cannot go on to "
            f"{wanted['steps']}; delete it or choose another folder"
        )
    return done >= wanted["steps"]


# --- beginning and going on ----------------------------------------------------------------------------------------


def begin(folder: Path, wanted: dict[str, Any]) -> None:
    """Make a folder ready for a run from its start."""
    for name in LOGS:
        (folder / name).unlink(missing_ok=True)
    write_json(folder / "run.json", wanted | {"history": []})


def go_on(folder: Path, wanted: dict[str, Any], step: int) -> None:
    """Make a folder ready to go on after `step`: the logs end there, and run.json's history says what was changed."""
    was = read_json(folder / "run.json")
    changed = {key: [was.get(key), value] for key, value in wanted.items() if was.get(key) != value}
    history = was.get("history", []) + ([{"after_step": step, "changed": changed}] if changed else [])
    (folder / "result.json").unlink(missing_ok=True)
    write_json(folder / "run.json", wanted | {"history": history})
    for name in LOGS:
        write_jsonl(folder / name, [row for row in complete_rows(folder / name) if row["step"] <= step])


def complete_rows(path: Path) -> list[dict]:
    """The rows of a log, which may be missing or be cut off in its last line; that line is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].split("\n")[:-1]]


def append(path: Path, row: dict) -> None:
    """Add one line to a log at once, so that a run killed at any moment leaves at most one line cut off."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
    except OSError as error:
        raise OSError(
            f"{path}: step {row['step']} could not be logged ({error}); the last checkpoint is kept"
        ) from error
