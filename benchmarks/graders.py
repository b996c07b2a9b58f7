"""How far the `math` rule agrees with labelled data, and who is right where it does not.

    python benchmarks/graders.py [--data FOLDER] [--out FOLDER]

FOLDER holds grader/math500_outputs.jsonl (real outputs on MATH-500, from microsoft/rho), grader/pairs.jsonl (pairs from
the tests of public graders) and gsm8k/test.jsonl; default PMD_REAL_DATA, else ../shared/data beside the repository. The
outputs go through `verify`; both texts of a pair through the rule's extraction and, under the pair's settings, its
comparison. GSM8K's worked solutions are right answers in five usual endings; each is also judged against four golds
that are wrong for it. Writes graders.csv (every disagreement) and graders.md to results/reference.

What a disagreement means was judged by reading it; a new one appears as "not judged".
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import os
import sys
from pathlib import Path

from pmd.files import ROOT, read_jsonl, write_text
from pmd.problems.extraction import extract_math
from pmd.problems.limited_pool import Pool
from pmd.problems.verifier import verify

OURS, LABEL = "ours", "label"
JUDGED = {  # id: who is right, and why
    "math500/20": (OURS, "the chain of equalities ends in the gold"),
    "math500/37": (OURS, "the response ends in the gold, 72"),
    "math500/53": (OURS, "the chain of equalities ends in the gold"),
    "math500/107": (OURS, "the response ends in the gold, 9"),
    "math500/146": (OURS, "the gold with a doubled backslash before sqrt"),
    "math500/174": (OURS, "the response ends in the gold, 2, said twice"),
    "math500/182": (OURS, "the response ends in the gold, 1251"),
    "math500/243": (OURS, "the response ends in 3 units, the gold with its unit"),
    "math500/329": (OURS, "the response ends in 4 inches per second, the gold with its unit"),
    "math500/337": (OURS, "the response ends in the gold, 6"),
    "math500/374": (OURS, "the response ends in the gold, 4"),
    "math500/384": (OURS, "the chain of equalities ends in the gold"),
    "math500/467": (OURS, "15 square centimetres, as the gold"),
    "math500/474": (OURS, "no answer is given before the response breaks off; a 3 occurs only within logarithms"),
    "pairs/95": (LABEL, "two boxes with ++++++ between them, of which the last is taken"),
    "pairs/153": (OURS, "the same three numbers in another order, which that grader counts as wrong"),
    "pairs/174": (LABEL, "within 0.001 of each other, but not equal when rounded to 3 digits"),
}


def default_data() -> Path:
    """PMD_REAL_DATA, else shared/data beside the repository."""
    return Path(os.environ.get("PMD_REAL_DATA") or ROOT.parent / "shared" / "data")


def outputs(path: Path) -> list[dict]:
    """One row a labelled output: id, gold, answer, label (the reviewed one where there is one), ours, killed."""
    rows = read_jsonl(path)
    verdicts = verify(
        ["math"] * len(rows), [row["response"] for row in rows], [row["gold"] for row in rows], [True] * len(rows)
    )
    return [
        {
            "id": f"math500/{row['id'].rpartition('/')[2]}",
            "gold": row["gold"],
            "answer": verdict.answer,
            "label": row["label_checked"] == "equal" if "label_checked" in row else row["label"],
            "ours": verdict.correct,
            "killed": verdict.killed,
        }
        for row, verdict in zip(rows, verdicts, strict=True)
    ]


def settings(pair: dict) -> dict:
    """A pair's settings as the rule's comparison takes them; what the pair does not state is the rule's default, but
    Math-Verify's own pairs leave relations and sets apart unless they say otherwise."""
    chosen: dict = {}
    if pair["source"].endswith("Math-Verify"):
        chosen["relations"] = pair.get("allow_set_relation_comp", False)
    for theirs, ours in (("float_digits", "digits"), ("strict", "strict")):
        if theirs in pair:
            chosen[ours] = pair[theirs]
    if "precision" in pair:
        precision = pair["precision"]
        chosen["digits"] = -round(math.log10(float(precision[0] if isinstance(precision, list) else precision)))
    return chosen


def pairs(path: Path) -> list[dict]:
    """One row a pair, as `outputs`; of a symmetric pair both orders must be as labelled."""
    rows = read_jsonl(path)
    tasks = []
    for row in rows:
        gold, answer = (extract_math(row[key]) or row[key] for key in ("gold", "pred"))
        tasks.append(["math", gold, answer, settings(row)])
        tasks.append(["math", *((answer, gold) if row.get("symmetric") else (gold, answer)), settings(row)])
    pool = Pool("pmd.problems.verifier:compare", 1, prepare="pmd.problems.verifier:prepare")
    found = pool.map(tasks)
    pool.close()
    made = []
    for number, row in enumerate(rows):
        both = found[2 * number : 2 * number + 2]
        agreed = both == [row["expected"]] * 2
        made.append(
            {
                "id": f"pairs/{number}",
                "gold": row["gold"],
                "answer": row["pred"],
                "label": row["expected"],
                "ours": row["expected"] if agreed else not row["expected"],
                "killed": not all(isinstance(verdict, bool) for verdict in both),
            }
        )
    return made


ENDINGS = ("#### %s", "The answer is %s.", "\\boxed{%s}", "**%s**", "A: %s")
OTHER_GOLDS = {
    "the next problem's": lambda golds: golds[1:] + golds[:1],
    "one more": lambda golds: [str(int(gold) + 1) for gold in golds],
    "one less": lambda golds: [str(int(gold) - 1) for gold in golds],
    "ten times as much": lambda golds: [str(int(gold) * 10) for gold in golds],
}


def endings(path: Path) -> dict[str, list[int]]:
    """Each ending -> how many of GSM8K's worked solutions are right with it, then how many with each other gold.

    Where another gold happens to be the same number, the problem is left out of that count.
    """
    solutions = [row["answer"].rpartition("####")[::2] for row in read_jsonl(path)]
    golds = [gold.strip().replace(",", "") for _, gold in solutions]
    found = {}
    for ending in ENDINGS:
        texts = [f"{text.rstrip()}\n{ending % gold.strip()}" for text, gold in solutions]
        counts = []
        for others in (golds, *(other(golds) for other in OTHER_GOLDS.values())):
            verdicts = verify(["math"] * len(texts), texts, others, [True] * len(texts))
            pairs = zip(golds, others, verdicts, strict=True)
            counts.append(sum(verdict.correct for gold, other, verdict in pairs if others is golds or gold != other))
        found[ending % "G"] = [len(texts), *counts]
    return found


def disagreements(rows: list[dict]) -> list[dict]:
    """The rows where ours is not the label, judged."""
    wrong = [row for row in rows if row["ours"] != row["label"]]
    return [
        row | dict(zip(("right", "reason"), JUDGED.get(row["id"], ("", "not judged")), strict=True)) for row in wrong
    ]


def short(text: str | None, length: int = 60) -> str:
    """The end of a text, on one line."""
    line = " ".join((text or "").split())
    return line if len(line) <= length else "…" + line[-length:]


def false_acceptances(rows: list[dict]) -> tuple[int, int]:
    """How many answers are accepted against their label, and how many of these the label is right about."""
    accepted = [row for row in disagreements(rows) if row["ours"]]
    return len(accepted), sum(row["right"] != OURS for row in accepted)


def table(sets: dict[str, list[dict]], solutions: dict[str, list[int]]) -> str:
    """The page graders.md."""
    lines = [
        "# The `math` rule beside labelled data",
        "",
        "Made by `python benchmarks/graders.py`, whose text says what is compared and how. Every disagreement is",
        "judged by hand: *ours* means that the label is wrong. *Accepted against label* are the answers that are",
        "right here and wrong by their label; *falsely* are those of them about which the label is right.",
        "",
        "| set | judged | agree | share | ours is right | label is right | accepted against label | falsely | killed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in sets.items():
        wrong = disagreements(rows)
        sides = [sum(row["right"] == side for row in wrong) for side in (OURS, LABEL)]
        agree = len(rows) - len(wrong)
        killed = sum(row["killed"] for row in rows)
        lines.append(
            f"| {name} | {len(rows)} | {agree} | {agree / len(rows):.1%} | {sides[0]} | {sides[1]} | "
            f"{' | '.join(map(str, false_acceptances(rows)))} | {killed} |"
        )
    lines += [
        "",
        "GSM8K's worked solutions, each with its answer G at the end, judged against their own gold and wrong ones:",
        "",
        f"| ending | solutions | right | share | {' | '.join(f'falsely right: {name}' for name in OTHER_GOLDS)} |",
        "|---|---|---|---|" + "---|" * len(OTHER_GOLDS),
    ]
    for ending, (count, right, *false) in solutions.items():
        lines.append(f"| `{ending}` | {count:,} | {right:,} | {right / count:.1%} | {' | '.join(map(str, false))} |")
    lines += ["", "| id | gold | answer | label | ours | right | why |", "|---|---|---|---|---|---|---|"]
    for row in [row for rows in sets.values() for row in disagreements(rows)]:
        gold, answer = (
            f"`{short(row[key])}`".replace("|", "\\|") if row[key] else "none" for key in ("gold", "answer")
        )
        said = [{True: "equal", False: "not equal"}[row[key]] for key in ("label", "ours")]
        lines.append(f"| {row['id']} | {gold} | {answer} | {said[0]} | {said[1]} | {row['right']} | {row['reason']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Judge both sets and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default_data())
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "reference")
    options = parser.parse_args()
    folder = options.data / "grader"
    if not folder.is_dir():
        sys.exit(f"{folder}: no such folder; name the data's folder with --data or PMD_REAL_DATA")
    sets = {
        "math500_outputs": outputs(folder / "math500_outputs.jsonl"),
        "pairs": pairs(folder / "pairs.jsonl"),
    }
    text = io.StringIO()
    columns = ["id", "gold", "answer", "label", "ours", "right", "reason"]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in [row for rows in sets.values() for row in disagreements(rows)]:
        writer.writerow(row | {key: short(row[key]) for key in ("gold", "answer")})
    write_text(options.out / "graders.csv", text.getvalue())
    page = table(sets, endings(options.data / "gsm8k" / "test.jsonl"))
    write_text(options.out / "graders.md", page)
    print(page)


if __name__ == "__main__":
    main()
