"""A page of answers to read: numbers say how often a policy is right, only its answers say why."""

from __future__ import annotations

import re

import pandas as pd

LONGEST = 3000
"""Characters shown of a text; of a longer one the middle is left out."""

UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters and those that turn the direction of what follows."""


def page(samples: pd.DataFrame, problems: list[dict], title: str, rewarded: bool = False) -> str:
    """Markdown with the first solved, failed and truncated response, or a line that there is none.

    samples: rows with `pmd.sampling.scoring.COLUMNS`. A response failed if it is wrong although it ended by itself.
    rewarded: a reward of your own judged; then the first with the highest and with the lowest reward stand in their
    place. Texts stand in code fences that are longer than any in them, so that no text can end its fence.
    """
    known = {problem["id"]: problem for problem in problems}
    if rewarded:
        best, worst = samples["reward"].max(), samples["reward"].min()
        kinds = {f"One with the reward {value:g}": samples["reward"] == value for value in (best, worst)}
    else:
        kinds = {"A solved one": samples["correct"], "A failed one": ~samples["correct"] & ~samples["truncated"]}
    kinds["A truncated one"] = samples["truncated"]
    parts = [f"# {title}"]
    for kind, chosen in kinds.items():
        parts.append(f"## {kind}: {int(chosen.sum()):,} of {len(samples):,} responses")
        for row in samples[chosen].head(1).to_dict("records"):
            problem = known[row["prompt_id"]]
            tokens = "" if pd.isna(row["tokens"]) else f", {int(row['tokens']):,} tokens"
            parts += [f"Problem `{row['prompt_id']}`, response {row['sample']}{tokens}. The prompt:"]
            parts += [fenced(problem["prompt"]), "The response:", fenced(row["response"])]
            gold = problem["ground_truth"]
            right = gold if isinstance(gold, str) else " or ".join(gold)
            if rewarded:
                parts += [f"Its reward: {row['reward']:g}. The right answer:", fenced(right)]
            else:
                answer = row["answer"] if isinstance(row["answer"], str) else "(none)"
                parts += ["The extracted answer, then the right one:", fenced(f"{answer}\n{right}")]
    return "\n\n".join(parts) + "\n"


def fenced(text: str) -> str:
    """A Markdown code block that shows `text` and nothing else, whatever it holds; a long one without its middle."""
    if len(text) > LONGEST:
        left = len(text) - LONGEST
        text = f"{text[: LONGEST // 2]}\n[… {left:,} characters left out …]\n{text[-(LONGEST // 2) :]}"
    text = UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"
