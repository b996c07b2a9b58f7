"""Response -> answer: where each rule looks for the answer in a response.

Extraction takes time that is linear in the length of the response, so unlike the comparison of two answers it runs in
the caller's process without a limit. The text is only searched, never executed.
"""

from __future__ import annotations

import re

from pmd.problems.announced import FINAL, anchored
from pmd.problems.boxes import boxed, last_box
from pmd.problems.conclusion import last_expression, whole

# --- exact: the embedded task -----------------------------------------------------------------------------------------


def extract_exact(response: str) -> str | None:
    """The text after the last `=`, or the whole response if it has none; None if that text is blank."""
    return response.rpartition("=")[2].strip() or None


# --- dapo: the grader of the paper's runs (DAPO, arXiv:2503.14476) ----------------------------------------------------

DAPO_TAIL = 300
"""How many characters at the end of a response are searched."""

ANSWER_LINE = re.compile(r"answer\s*:\s*([^\n]+)", re.IGNORECASE)


def extract_dapo(response: str) -> str | None:
    """What follows the last `Answer:`, in upper or lower case, on its line; None if nothing does.

    Only the last DAPO_TAIL characters of the response are searched.
    """
    found = ANSWER_LINE.findall(response[-DAPO_TAIL:])
    return found[-1].strip() or None if found else None


# --- math: the last box, or else the place where the response states its answer ---------------------------------------

TAIL = 2000
"""How many characters at the end of a response without a box are searched."""


def extract_math(response: str) -> str | None:
    """The answer by the first of five ways that finds one, or None if none does.

    1. What follows `final answer` after the last box, because that box then held a step.
    2. The content of the last `\\boxed{…}`, with the boxes that are listed directly before it.
    3. The whole response, if it is nothing but a formula or a number.
    4. What follows the last `answer is`, `answer:`, `####` or `<answer>`.
    5. The last formula or number, unless its sentence concludes nothing.
    """
    tail = response[-TAIL:]
    if len(response) > TAIL:
        tail = tail.partition("\n")[2] or tail  # begin with a whole line: no formula in dollars extends over two lines
    box = last_box(tail)
    if box >= 0 and (final := FINAL.search(tail, box)) and (answer := anchored(tail[final.start() :])):
        return answer
    return boxed(response) or whole(response) or anchored(tail) or last_expression(tail) or None
