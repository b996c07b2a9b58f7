"""Fuzz the verifier with strings that look like answers gone wrong.

    python -m tests.fuzz_verifier --strings 100000

Prints, as it goes, how many were judged, how many killed, the slowest batch and the memory of parent and workers.
"""

from __future__ import annotations

import argparse
import logging
import random
import time

import psutil

from pmd.problems import verifier
from pmd.problems.boxes import BOXES

ATOMS = [
    *"0123456789abcexyinπ∞٣½²+-*/^_=<>!|()[]{}$,.;:'\"&%#~\\ \n\t",
    *(
        "\0",
        "\x1b[31m",
        "\u202e",
        "\ud800",
        "\udfff",
        "\ufeff",
        "é",
        "答案",
        "🤖",
        "9" * 400,
        "-0",
        "1e99",
        "0x1f",
        "007",
    ),
    *("\\frac", "\\sqrt", "\\boxed", "\\text", "\\left(", "\\right)", "\\cdot", "\\pi", "\\pm", "\\circ", "\\infty"),
    *("\\begin{pmatrix}", "\\end{pmatrix}", "\\\\", "\\sin", "\\log", "\\int", "\\sum_{i=1}^{9}", "\\lim_{x\\to 0}"),
    *(
        "\\cup",
        "\\in",
        "\\le",
        "\\ne",
        "\\binom",
        "\\lfloor",
        "\\mathrm",
        "\\quad",
        "\\{",
        "\\}",
        "\\[",
        "\\]",
        "\\(",
        "\\)",
    ),
    *(
        "Answer:",
        "the final answer is ",
        "I hope it is correct",
        "and",
        "or",
        "$$",
        "__import__('os')",
        "lambda",
        "eval",
    ),
]
WHOLE = [
    "3",
    "-\\frac{1}{2}",
    "x^2+1",
    "(1,2)",
    "[0,1)",
    "\\{1,2\\}",
    "2\\sqrt{3}",
    "x=5",
    "50\\%",
    "\\text{C}",
    "12:30",
]
TRAPS = [
    "9^{9^{9^9}}",
    "(10^9)!",
    "\\int_0^1 x^{x^x}dx",
    "(" * 300,
    "\\frac{" * 200,
    "{" * 400,
    "e^{e^{e^{e^e}}}",
    "1+" * 300,
]


def hostile(rng: random.Random) -> str:
    """One string: an answer, atoms in any order, or (rarely) a trap; often braced, nested or repeated."""
    kind = rng.random()
    if kind < 0.002:
        text = rng.choice(TRAPS)
    elif kind < 0.3:
        text = rng.choice(WHOLE) + rng.choice(["", *ATOMS])
    else:
        text = "".join(rng.choices(ATOMS + WHOLE, k=int(rng.expovariate(0.15)) + 1))
    if rng.random() < 0.01:
        text *= rng.choice([2, 10, 1000])
    shape = rng.choice(["\\boxed{%s}", "\\boxed{%s}", "Answer: %s", "The answer is $%s$.", "\\frac{%s}{2}", "%s"])
    return shape.replace("%s", text)


def batch(seed: int, size: int = 100) -> list[verifier.Verdict]:
    """Judge `size` strings by both pooled rules and check what must hold whatever they are."""
    rng = random.Random(seed)
    texts = [hostile(rng) for _ in range(size)]
    rules = ["math" if rng.random() < 0.8 else "dapo" for _ in texts]
    golds = [rng.choice(WHOLE) for _ in texts]
    verdicts = verifier.verify(rules, texts, golds, [True] * size)
    assert len(verdicts) == size
    for rule, text, verdict in zip(rules, texts, verdicts, strict=True):
        assert verdict.reward == (1.0 if verdict.correct else verifier.RULES[rule].wrong)
        assert not (verdict.correct and (verdict.killed or verdict.answer is None))
        assert verdict.answer is None or verdict.answer.strip()
        assert verdict.answer is None or len(verdict.answer) <= len(text) + 2 * BOXES
    return verdicts


def resident() -> str:
    """Resident MiB of this process and of each worker."""
    processes = [psutil.Process(), *psutil.Process().children()]
    return " ".join(f"{process.memory_info().rss / 2**20:.0f}" for process in processes)


def main() -> None:
    """Run and report; an assertion that fails names the batch's seed in its traceback."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strings", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    killed = right = 0
    slowest, start = 0.0, time.monotonic()
    for number in range(1, options.strings // 100 + 1):
        begun = time.monotonic()
        verdicts = batch(options.seed * 10**6 + number)
        slowest = max(slowest, time.monotonic() - begun)
        killed += sum(verdict.killed for verdict in verdicts)
        right += sum(verdict.correct for verdict in verdicts)
        if number % 50 == 0:
            seconds = time.monotonic() - start
            print(
                f"{number * 100:,} strings in {seconds:.0f} s: {right} right, {killed} killed, "
                f"slowest batch {slowest:.1f} s, MiB {resident()}",
                flush=True,
            )


if __name__ == "__main__":
    main()
