"""The embedded problem sets: multi-step arithmetic with worked steps, generated and so available without a network.

The prompt `47+38-13=` is answered by one step after the other, each followed by the rest of the expression:
`85-13=72`. Every running total (47, 85 and 72) is in 0..99, so the number of terms alone makes a problem difficult. An
entry of params.yaml's `tasks` is a harder version, with more digits and more terms.

`pmd problems generate` writes the five splits and fails if they differ from what data.dvc pins; `pmd problems pin`
accepts a changed generator; `pmd problems harder` writes a harder version.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator
from ruamel.yaml import YAML

from pmd import params
from pmd.files import ROOT, write_jsonl, write_text
from pmd.params import FileName, Settings, must, read_entry, require

Quota = dict[str, dict[int, int]]
"""Prompts per split and difficulty: {split: {number of terms: problems}}."""

Blocks = list[tuple[str, dict[int, int]]]
"""The same in the order in which they are drawn; a split may be drawn in several blocks."""

SYMBOLS = "0123456789+-="
"""The alphabet of the prompts and responses."""

SOURCE = "pmd/arithmetic"

BLOCKS: Blocks = [  # a base model has seen some problems of 6 terms; reinforcement learning sees neither 6 nor 7
    ("val", {2: 24, 3: 56, 4: 60, 5: 60}),
    ("test", {2: 48, 3: 112, 4: 120, 5: 120}),
    ("ood", {6: 200}),
    ("rl", {2: 500, 3: 1500, 4: 2000, 5: 2000}),
    ("sft", {2: 3000, 3: 18000, 4: 20000, 5: 20000, 6: 6000}),
    ("ood", {7: 200}),
]
"""The embedded sets. Only 10,100 problems of two terms exist, hence their small quota."""

DIGITS = 2
"""The digits of the largest running total of the embedded sets."""

FAULTS = {"carry": 0.75, "slip": 0.05, "hasty": 0.12}
"""The probability of each deliberate fault in a step of a supervised trace.

They are there because a base model without faults would leave reinforcement learning nothing to improve.
carry: every carry or borrow of the step is dropped (only where there is one); slip: the result is wrong by one; hasty:
the remaining steps are skipped and an answer is guessed.
"""

CARD = """# {title}

Multi-step arithmetic with worked steps, written by `pmd problems {command}` (deterministic{pinned}).
A prompt is an expression of T terms and `=`; a response rewrites what remains after each step and ends with the answer:
`47+38-13=` is answered `85-13=72`. Every running total is in 0..{largest}. The reward is 1 if and only if the response
ends by itself and the text after its last `=` is the answer, digit for digit (the rule `exact`).

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


Terms = Annotated[
    list[int],
    must(
        lambda terms: len(set(terms)) == len(terms) > 0 and min(terms) >= 2,
        "a list of different integers, each at least 2",
    ),
]


class Task(Settings):
    """An entry of `tasks` in params.yaml: a harder version of the embedded task.

    The problems of a split are shared equally among its numbers of terms; split `ood` has as many as `test`.
    """

    name: FileName  # the entry's key
    seed: int  # of the generator
    digits: int = Field(ge=2, le=9)  # of the largest running total
    terms: Terms  # the numbers of terms that occur in training
    ood: Terms  # the numbers of terms that never occur in training
    val: int  # problems of each split
    test: int
    rl: int
    sft: int
    faults: float = Field(gt=0, le=1, default=1.0)  # the probabilities of FAULTS are multiplied by this

    @model_validator(mode="after")
    def _fits_together(self) -> Task:
        def check(condition: bool, key: str, allowed: str) -> None:
            require(condition, key, getattr(self, key), allowed)

        check(not set(self.terms) & set(self.ood), "ood", f"other numbers of terms than tasks.{self.name}.terms")
        for key in ("val", "test", "rl", "sft"):
            check(getattr(self, key) >= len(self.terms), key, f"at least {len(self.terms)}, one for each of its terms")
        for t in self.terms:  # from any total in 0..L a step has L + 2 choices, and no problem occurs twice
            possible = 10**self.digits * (10**self.digits + 1) ** (t - 1)
            needed = sum(quota.get(t, 0) for quota in self.quota.values())
            check(2 * needed <= possible, "sft", f"smaller: of {possible:,} problems of {t} terms it takes {needed:,}")
        return self

    @property
    def quota(self) -> Quota:
        """The number of problems by split and number of terms, in the order in which they are drawn."""
        sizes = {"val": self.val, "test": self.test, "ood": self.test, "rl": self.rl, "sft": self.sft}
        return {split: share(size, self.ood if split == "ood" else self.terms) for split, size in sizes.items()}


def share(size: int, terms: list[int]) -> dict[int, int]:
    """{number of terms: problems}: `size` problems divided as equally as possible among the numbers of terms."""
    return {t: size * (i + 1) // len(terms) - size * i // len(terms) for i, t in enumerate(terms)}


def apply(total: int, sign: str, term: int) -> int:
    """One step: total ± term."""
    return total + term if sign == "+" else total - term


def problem(rng: random.Random, terms: int, digits: int = DIGITS) -> tuple[int, list[tuple[str, int]]]:
    """A random problem: its first term and `terms - 1` signed ones that keep every running total to `digits` digits."""
    largest = 10**digits - 1
    start = total = int(rng.random() * (largest + 1))
    steps = []
    for _ in range(terms - 1):
        sign = "+" if rng.random() < 0.5 else "-"
        term = int(rng.random() * ((largest - total if sign == "+" else total) + 1))
        steps.append((sign, term))
        total = apply(total, sign, term)
    return start, steps


def expression(total: int, steps: list[tuple[str, int]]) -> str:
    """The text of what remains to be computed, such as `47+38-13`."""
    return str(total) + "".join(f"{sign}{term}" for sign, term in steps)


def drop_carry(total: int, sign: str, term: int, digits: int = DIGITS) -> int:
    """total ± term, computed digit by digit without any carry or borrow between the digits."""
    places = [10**i for i in range(digits)]
    return sum(place * (apply(total // place % 10, sign, term // place % 10) % 10) for place in places)


def trace(
    rng: random.Random, start: int, steps: list[tuple[str, int]], digits: int = DIGITS, faults: float = 1.0
) -> str:
    """A worked answer to the problem, with the faults of FAULTS, their probabilities multiplied by `faults`."""
    total, lines, largest = start, [], 10**digits - 1
    for i, (sign, term) in enumerate(steps):
        correct = apply(total, sign, term)
        dropped = drop_carry(total, sign, term, digits)
        total = correct
        if dropped != correct and rng.random() < faults * FAULTS["carry"]:
            total = dropped
        elif rng.random() < faults * FAULTS["slip"]:
            total = min(largest, max(0, correct + (1 if rng.random() < 0.5 else -1)))
        rest = steps[i + 1 :]
        if len(rest) > 1 and rng.random() < faults * FAULTS["hasty"]:
            return "=".join([*lines, expression(total, rest), str(int(rng.random() * (largest + 1)))])
        lines.append(expression(total, rest))
    return "=".join(lines)


def merged(blocks: Blocks) -> Quota:
    """The blocks of each split together."""
    found: Quota = {}
    for split, quota in blocks:
        found.setdefault(split, {}).update(quota)
    return found


def splits(seed: int = 0, blocks: Blocks = BLOCKS, digits: int = DIGITS, faults: float = 1.0) -> dict[str, list[dict]]:
    """{split: its rows}; no prompt occurs twice, within a split or in two of them.

    Only `random.random` is used, because its values are the same in every version of Python.
    """
    rng = random.Random(seed)
    seen: set[str] = set()
    made: dict[str, list[dict]] = {}
    for split, quota in blocks:
        rows = made.setdefault(split, [])
        for terms, count in quota.items():
            for _ in range(count):
                start, steps = next(
                    p for p in iter(lambda t=terms: problem(rng, t, digits), None) if expression(*p) not in seen
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
                rows.append(row | {"response": trace(rng, start, steps, digits, faults)} if split == "sft" else row)
        rng.shuffle(rows)
    return {split: [{"id": f"{split}-{i}", **row} for i, row in enumerate(rows)] for split, rows in made.items()}


def card(harder: Task | None = None) -> str:
    """The data card of the embedded sets, or of a harder version of them, as Markdown."""
    of = {"title": "The embedded problem sets", "command": "generate", "pinned": "; pinned by `data.dvc`"}
    if harder:
        of = {"title": f"The embedded task, harder: {harder.name}", "command": f"harder {harder.name}", "pinned": ""}
    quotas, digits = (harder.quota, harder.digits) if harder else (merged(BLOCKS), DIGITS)
    use = {
        "val": "choosing hyper-parameters and checkpoints",
        "test": "in-distribution test",
        "ood": "out-of-distribution test: longer than any problem of reinforcement learning",
        "rl": "reinforcement learning",
        "sft": "supervised traces for the base model",
    }
    rows = [
        f"| {split} | {sum(quota.values()):,} | {', '.join(f'{t} ({c:,})' for t, c in quota.items())} | {use[split]} |"
        for split, quota in quotas.items()
    ]
    scale = harder.faults if harder else 1
    faults = ", ".join(f"{name} {probability * scale:g}" for name, probability in FAULTS.items())
    return CARD.format(source=SOURCE, faults=faults, splits="\n".join(rows), largest=10**digits - 1, **of)


def directory_hash(folder: Path) -> str:
    """The hash that DVC gives a folder: the MD5 of its sorted listing of MD5s and relative paths."""
    listing = [
        {"md5": hashlib.md5(path.read_bytes()).hexdigest(), "relpath": path.relative_to(folder).as_posix()}
        for path in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).parts)
        if path.is_file()
    ]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def generate(out: str | Path, harder: Task | None = None) -> str:
    """Write the five splits of the embedded task, or of a harder version, and a card to `out`; returns its hash."""
    out = Path(out)
    made = splits(harder.seed, list(harder.quota.items()), harder.digits, harder.faults) if harder else splits()
    for split, rows in made.items():
        write_jsonl(out / f"{split}.jsonl", rows)
    write_text(out / "README.md", card(harder))
    return directory_hash(out)


def pinned_hash(dvc_file: Path = ROOT / "data.dvc") -> str:
    """The hash of data/ that data.dvc pins; ValueError if it pins none."""
    try:
        return YAML(typ="safe").load(dvc_file.read_text())["outs"][0]["md5"]
    except (FileNotFoundError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{dvc_file}: pins no hash for data/ ({error!r})") from error


def pin(digest: str, dvc_file: Path = ROOT / "data.dvc") -> None:
    """Rewrite data.dvc so that it pins both the generated folder and its copy data/ to `digest`."""
    source = {"path": "runs/problems", "hash": "md5", "md5": digest}
    text = ["# data/ is what `pmd problems generate` writes, copied and verified by `dvc repro`; see data/README.md"]
    text += ["deps:", *_entry(source), "outs:", *_entry({"path": "data", "hash": "md5", "md5": digest})]
    write_text(dvc_file, "\n".join(text) + "\n")


def _entry(fields: dict[str, str]) -> list[str]:
    return [f"{'- ' if i == 0 else '  '}{key}: {value}" for i, (key, value) in enumerate(fields.items())]


def generate_pinned(out: Path) -> str:
    """Write the embedded sets to `out` and describe them; ValueError if they differ from what data.dvc pins."""
    digest, pinned = generate(out), pinned_hash()
    if digest != pinned:
        raise ValueError(
            f"{out}: the generator now writes {digest}, data.dvc pins {pinned}; "
            "undo the change to the generator, or accept it with `pmd problems pin`"
        )
    return f"{out}: {_counts(merged(BLOCKS))}; hash as pinned"


def generate_harder(name: str, out: Path) -> str:
    """Write the entry `name` of params.yaml's `tasks` to `out` and describe it."""
    spec = read_entry(Task, "tasks", params.mapping(params.load(), "tasks"), name)
    generate(out, spec)
    return f"{out}: {_counts(spec.quota)}"


def pin_generated() -> str:
    """Accept the generator as it is now: pin in data.dvc what it writes."""
    digest = generate(ROOT / "runs" / "problems")
    pin(digest)
    return f"data.dvc now pins {digest}; `dvc repro` will use it, `git diff data.dvc` shows the change"


def _counts(quotas: Quota) -> str:
    return ", ".join(f"{split} {sum(quota.values()):,}" for split, quota in quotas.items())
