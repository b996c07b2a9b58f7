"""One page with every figure and table of a preset, as Markdown and as HTML, verdicts first."""

from __future__ import annotations

from pathlib import Path

import mistune
import pandas as pd

from pmd.files import write_text

FIGURES = {
    "F1": "Theory: the policy ratio ρ of PMD-mean's population update against the scaled advantage "
    "Δ/τ, for several λ; λ = 0 is the exponential of KL-PMD. The larger λ, the slower ρ grows "
    "with the advantage.",
    "F2": "Theory, binary rewards: λ and the ratios of successes and failures against the success "
    "probability p, PMD-mean solid, KL-PMD dashed, asymptotes dotted. Compare the two at small "
    "p.",
    "F3": "Theory, binary rewards: the success probability over repeated population updates, and its "
    "distance from 1 on a logarithmic axis, with the common rate dotted.",
    "F4": "Theory, finite samples: how often an estimated baseline turns the regulariser negative, and"
    " the spread of the next success probability, against the group size n.",
    "F4-chain": "Theory, repeated updates from n rollouts each, exactly: the success probability p after them, median "
    "and worst decile; the chance that p is still below one half, dotted what of it no baseline can change; the chance "
    "that an update leaves more than 10 % of the probability to responses that no rollout showed. p never falls.",
    "F5": "Training curves of every method on the main matrix of runs: mean over seeds and, for PMD-mean and "
    "GRPO, a 95 % band (Student's t over seeds; none with one seed; the CSV has every method's). The panels are "
    "those of the reference code's 30B figure. Look at how early the curves part, whether bands overlap, and "
    "whether any curve falls back. best@k is resampled with replacement and so biased low; T1 has the unbiased "
    "pass@k.",
    "F5-reported": "The same panels as the paper's authors report them for Qwen3-30B-A3B, DAPO-Math-17k and "
    "AIME, read off the figure in their repository. These are not our runs, and one run a "
    "method: compare shapes with F5, not values.",
    "F6": "Overall accuracy against the cost of reaching it: seconds of training on the left, "
    "generated tokens on the right; small K above, large K below: larger, rarer batches whose "
    "later updates learn from an older policy, at the same number of samples and updates in all."
    " Read along a horizontal line to compare the cost of one accuracy; T2 does so at one "
    "target.",
    "F7": "The implicit regulariser in training. Theory says that −mean(s) over the rollouts, measured"
    " after an update, estimates the λ of the population solution. Top: measured against "
    "predicted, as points with the line of equality and over the steps (linear within ±0.01, logarithmic "
    "beyond). Points below the line "
    "mean that the optimizer stopped short of the population solution; points above, that it "
    "overshot. Bottom: how far one step moves the policy, for every method.",
    "F8": "Ablations: final overall accuracy with 95 % intervals clustered by seed and prompt (of "
    "prompts alone where there is one seed), against τ, the group size n at the same number of "
    "samples a step, and the number K of minibatches a batch is split into, at the same number "
    "of samples and updates in all. GRPO without clipping and RLOO are controls: they separate "
    "the effect of the regression from that of leaving out the clip.",
}
"""Captions: what is drawn and what to look for. None says what was found, which is the purpose of T4."""

TABLES = ("T1", "T2", "T3", "T4", "T5")

_CSS = """
body{max-width:64rem;margin:2rem auto;padding:0 1rem;font:16px/1.5 system-ui,sans-serif;color:#222}
h2{margin-top:3rem;border-bottom:1px solid #ddd}
img{max-width:100%;height:auto}
table{display:block;overflow-x:auto;border-collapse:collapse;font-size:.8rem;margin:1rem 0}
th,td{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}
th{border-bottom:2px solid #222;white-space:nowrap}
code{background:#f4f4f4;padding:0 .2em}
"""


def build(directory: str | Path, preset: str) -> Path:
    """Write report.md and report.html into results/<preset> from the figures and tables that lie there.

    directory: has figures/*.svg, theory/figures/*.svg and tables/*.md. What is absent is left out, except T4, without
    which there is a ValueError. Images are relative links. Returns the path of report.html.
    """
    directory = Path(directory)
    verdicts = directory / "tables" / "T4.csv"
    if not verdicts.is_file():
        raise ValueError(f"{verdicts}: missing; write the tables before the report")
    parts = [
        f"# PMD-mean, preset “{preset}”: results",
        _summary(pd.read_csv(verdicts, keep_default_na=False)),
    ]
    parts.append("## Figures")
    for name, caption in FIGURES.items():
        folder = "theory/figures" if name in ("F1", "F2", "F3", "F4", "F4-chain") else "figures"
        if (directory / folder / f"{name}.svg").is_file():
            links = _links(folder, name, "png", "csv")
            parts += [f"### {name}", f"![{name}]({folder}/{name}.svg)", caption, links]
    parts.append("## Tables")
    for name in TABLES:
        table = directory / "tables" / f"{name}.md"
        if table.is_file():
            links = _links("tables", name, "csv", "tex")
            parts += [f"### {name}", table.read_text(encoding="utf-8").strip(), links]
    text = "\n\n".join(parts) + "\n"
    write_text(directory / "report.md", text)
    body = mistune.create_markdown(plugins=["table"])(text)
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>PMD-mean: {preset}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_CSS}</style></head>\n'
        f"<body>\n{body}</body></html>\n"
    )
    write_text(directory / "report.html", page)
    return directory / "report.html"


def _summary(claims: pd.DataFrame) -> str:
    """The first section: every row of T4 without its numbers."""
    lines = [
        "## The abstract's claims",
        "",
        "| claim | metric | scope | verdict |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| {row.claim} | {row.metric} | {row.scope} | **{row.verdict}** |" for row in claims.itertuples()]
    lines += ["", "Verdicts are computed from 95 % intervals; T4 below has the numbers and the rules."]
    return "\n".join(lines)


def _links(folder: str, name: str, *endings: str) -> str:
    """Links to the same figure or table in other formats."""
    links = [f"[{ending.upper()}]({folder}/{name}.{ending})" for ending in endings]
    return f"The same as {' and '.join(links)}."
