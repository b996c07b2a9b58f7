"""Problem sets: the embedded arithmetic task, and one reader for every set.

A problem set is a JSONL file in the field's convention for verifiable rewards: `prompt`, `ground_truth`, `source`,
`split`, `difficulty` (and `id`; supervised sets add `response`). The embedded task is multi-step arithmetic with
worked steps: the prompt `47+38-13=` is answered by rewriting what remains, `85-13=72`. Every running total stays
in 0..99, so the difficulty is the number of terms alone.

`python -m pmd.tasks generate OUT` writes the five splits and refuses if they differ from what `data.dvc` pins;
`python -m pmd.tasks pin` accepts a changed generator on purpose.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML

from pmd.files import ROOT, read_jsonl, write_jsonl, write_text

COLUMNS = ("id", "prompt", "ground_truth", "source", "split", "difficulty")
RULES = ("exact", "dapo", "math")
"""How a row may want its responses judged (`pmd/verifier.py`); a row that does not say is judged by "exact"."""

SYMBOLS = "0123456789+-="
SOURCE = "pmd/arithmetic"

SPLITS = {  # split: {number of terms: problems}; T <= 5 is seen in training, T = 6, 7 never is
    "val": {2: 12, 3: 28, 4: 30, 5: 30},
    "test": {2: 12, 3: 28, 4: 30, 5: 30},
    "ood": {6: 50, 7: 50},
    "rl": {2: 500, 3: 1500, 4: 2000, 5: 2000},
    "sft": {2: 3000, 3: 18000, 4: 20000, 5: 20000},
}
"""Prompts per split and difficulty. At two terms only 10,100 problems exist, hence the small quota."""

FAULTS = {"carry": 0.75, "slip": 0.05, "hasty": 0.12}
"""Probability of each deliberate fault in a supervised step (a fault-free base model would leave RL nothing to do).

carry: a carry or borrow is dropped (only where there is one); slip: the result is off by one; hasty: the
remaining steps are skipped and an answer guessed.
"""

CARD = """# The embedded problem sets

Multi-step arithmetic with worked steps, written by `python -m pmd.tasks generate` (deterministic; pinned by `data.dvc`).
A prompt is an expression of T terms and `=`; a response rewrites what remains after each step and ends with the answer:
`47+38-13=` is answered `85-13=72`. Every running total is in 0..99. The reward is 1 if and only if the response
ends and the text after its last `=` is the answer, digit for digit (`pmd/verifier.py`).

| column | meaning |
|---|---|
| id | `<split>-<number>`, unique |
| prompt | the text given to the policy |
| ground_truth | the exact answer, a decimal integer |
| source | `{source}` |
| split | as below |
| difficulty | T, the number of terms |
| response | supervised split only: a worked answer **with deliberate faults** ({faults}) |

| split | problems | T | use |
|---|---|---|---|
{splits}

No prompt occurs twice, within or across splits. Licence: Apache-2.0, with the code.
"""


def apply(total: int, sign: str, term: int) -> int:
    """One step: total ± term."""
    return total + term if sign == "+" else total - term


def problem(rng: random.Random, terms: int) -> tuple[int, list[tuple[str, int]]]:
    """A start in 0..99 and `terms - 1` signed terms that keep every running total in 0..99."""
    start = total = int(rng.random() * 100)
    steps = []
    for _ in range(terms - 1):
        sign = "+" if rng.random() < 0.5 else "-"
        term = int(rng.random() * ((99 - total if sign == "+" else total) + 1))
        steps.append((sign, term))
        total = apply(total, sign, term)
    return start, steps


def expression(total: int, steps: list[tuple[str, int]]) -> str:
    """`47+38-13`."""
    return str(total) + "".join(f"{sign}{term}" for sign, term in steps)


def drop_carry(total: int, sign: str, term: int) -> int:
    """Add or subtract digit by digit, losing the carry or borrow between units and tens."""
    units = apply(total % 10, sign, term % 10) % 10
    tens = apply(total // 10, sign, term // 10) % 10
    return 10 * tens + units


def trace(rng: random.Random, start: int, steps: list[tuple[str, int]]) -> str:
    """A worked answer to the problem, with the faults of FAULTS."""
    total, lines = start, []
    for i, (sign, term) in enumerate(steps):
        correct = apply(total, sign, term)
        dropped = drop_carry(total, sign, term)
        total = correct
        if dropped != correct and rng.random() < FAULTS["carry"]:
            total = dropped
        elif rng.random() < FAULTS["slip"]:
            total = min(99, max(0, correct + (1 if rng.random() < 0.5 else -1)))
        rest = steps[i + 1 :]
        if len(rest) > 1 and rng.random() < FAULTS["hasty"]:
            return "=".join([*lines, expression(total, rest), str(int(rng.random() * 100))])
        lines.append(expression(total, rest))
    return "=".join(lines)


def splits(seed: int = 0) -> dict[str, list[dict]]:
    """Every split of the embedded task; no prompt occurs twice. Uses only `random.random`, stable across Pythons."""
    rng = random.Random(seed)
    seen: set[str] = set()
    made = {}
    for split, quota in SPLITS.items():
        rows = []
        for terms, count in quota.items():
            for _ in range(count):
                start, steps = next(
                    p for p in iter(lambda t=terms: problem(rng, t), None) if expression(*p) not in seen
                )
                seen.add(expression(start, steps))
                answer = start
                for sign, term in steps:
                    answer = apply(answer, sign, term)
                row = {
                    "prompt": expression(start, steps) + "=",
                    "ground_truth": str(answer),
                    "source": SOURCE,
                    "split": split,
                    "difficulty": terms,
                }
                rows.append(row | {"response": trace(rng, start, steps)} if split == "sft" else row)
        rng.shuffle(rows)
        made[split] = [{"id": f"{split}-{i}", **row} for i, row in enumerate(rows)]
    return made


def card() -> str:
    """The data card, as Markdown."""
    use = {
        "val": "choosing hyper-parameters and checkpoints",
        "test": "in-distribution test",
        "ood": "out-of-distribution test: longer than anything in training",
        "rl": "reinforcement learning",
        "sft": "supervised traces for the base model",
    }
    rows = [
        f"| {split} | {sum(quota.values()):,} | {', '.join(f'{t} ({c:,})' for t, c in quota.items())} | {use[split]} |"
        for split, quota in SPLITS.items()
    ]
    faults = ", ".join(f"{name} {probability}" for name, probability in FAULTS.items())
    return CARD.format(source=SOURCE, faults=faults, splits="\n".join(rows))


def directory_hash(folder: Path) -> str:
    """DVC's hash of a folder: the MD5 of its sorted listing of (md5, relpath)."""
    listing = [
        {"md5": hashlib.md5(path.read_bytes()).hexdigest(), "relpath": path.relative_to(folder).as_posix()}
        for path in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).parts)
        if path.is_file()
    ]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def generate(out: str | Path) -> str:
    """Write the five splits and the card to `out`; return the folder's hash."""
    out = Path(out)
    for split, rows in splits().items():
        write_jsonl(out / f"{split}.jsonl", rows)
    write_text(out / "README.md", card())
    return directory_hash(out)


def read_problems(path: str | Path, limit: int | None = None) -> list[dict]:
    """Read a problem set (any JSONL with at least prompt and ground_truth), at most `limit` rows.

    Missing optional columns are filled: id from the row number, source and split from the file's name,
    difficulty None, rule "exact". ValueError naming file, row and column if the file is empty, a column is missing,
    a prompt is blank, a rule unknown or an id repeats; FileNotFoundError if there is no file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such problem set (the embedded ones are made by `dvc repro data.dvc`)")
    rows = list(_checked(path))[:limit]
    if not rows:
        raise ValueError(f"{path}: the problem set is empty")
    return rows


def _checked(path: Path) -> Iterator[dict]:
    ids: set[str] = set()
    for number, row in enumerate(read_jsonl(path), start=1):
        for column in ("prompt", "ground_truth"):
            if not isinstance(row.get(column), str) or not row[column].strip():
                raise ValueError(
                    f"{path}:{number}: column {column!r} must be a non-empty string, got {row.get(column)!r}"
                )
        row = {
            "id": f"{path.stem}-{number - 1}",
            "source": path.stem,
            "split": path.stem,
            "difficulty": None,
            "rule": "exact",
        } | row
        if row["rule"] not in RULES:
            raise ValueError(f"{path}:{number}: column 'rule' must be one of {', '.join(RULES)}, got {row['rule']!r}")
        if row["id"] in ids:
            raise ValueError(f"{path}:{number}: id {row['id']!r} occurs twice")
        ids.add(row["id"])
        yield row


def pinned_hash(dvc_file: Path = ROOT / "data.dvc") -> str:
    """The hash of `data/` that data.dvc pins; ValueError if it pins none."""
    try:
        return YAML(typ="safe").load(dvc_file.read_text())["outs"][0]["md5"]
    except (FileNotFoundError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{dvc_file}: pins no hash for data/ ({error!r})") from error


def pin(digest: str, dvc_file: Path = ROOT / "data.dvc") -> None:
    """Rewrite data.dvc so that both its source and `data/` are pinned to `digest`."""
    source = {"path": "runs/problems", "hash": "md5", "md5": digest}
    text = [
        "# data/ is what `python -m pmd.tasks generate` writes, copied and verified by `dvc repro`; see data/README.md"
    ]
    text += ["deps:", *_entry(source), "outs:", *_entry({"path": "data", "hash": "md5", "md5": digest})]
    write_text(dvc_file, "\n".join(text) + "\n")


def _entry(fields: dict[str, str]) -> list[str]:
    return [f"{'- ' if i == 0 else '  '}{key}: {value}" for i, (key, value) in enumerate(fields.items())]


def main(arguments: list[str] | None = None) -> None:
    """`generate OUT` writes the splits and checks them against data.dvc; `pin` accepts them as they are now."""
    parser = argparse.ArgumentParser(prog="python -m pmd.tasks", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("generate").add_argument("out", type=Path)
    commands.add_parser("pin")
    options = parser.parse_args(arguments)
    if options.command == "pin":
        digest = generate(ROOT / "runs" / "problems")
        pin(digest)
        print(f"data.dvc now pins {digest}; `dvc repro` will use it, `git diff data.dvc` shows the change")
        return
    digest, pinned = generate(options.out), pinned_hash()
    if digest != pinned:
        sys.exit(
            f"{options.out}: the generator now writes {digest}, data.dvc pins {pinned}; "
            "undo the change to pmd/tasks.py, or accept it with `python -m pmd.tasks pin`"
        )
    print(f"{options.out}: {', '.join(f'{s} {sum(q.values()):,}' for s, q in SPLITS.items())}; hash as pinned")


if __name__ == "__main__":
    main()
