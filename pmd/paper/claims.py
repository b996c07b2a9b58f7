"""T1: the claims, written down before the runs (docs/experiments.md), and the verdicts that the evidence gives.

A row asks one question of one effect with a margin, the smallest size that matters. Verdicts are computed by one rule,
so that nobody writes by hand what the outcome was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pmd.evaluators.intervals import Interval
from pmd.paper import questions
from pmd.paper.effects import Effect, holm
from pmd.paper.frames import Evidence
from pmd.paper.questions import Answer
from pmd.paper.style import label_of

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
EQUIVALENT, NOT_TESTABLE = "equivalent within the margin", "not testable here"
LEVEL = 0.05


@dataclass(frozen=True)
class Claim:
    """A row of T1. margin and effect are in `unit`. brief: the claim in a list of findings.

    sense: +1 if the claim says that the effect is above 0, −1 below, 0 that it is within the margin of 0. show: from
    the effect's number to the one that is printed.
    """

    row: str
    claim: str
    brief: str
    metric: str
    unit: str
    margin: float
    sense: int
    ask: Callable[[Evidence], Answer]
    show: Callable[[float], float] = float


def _accuracy(number: int, rival: str, large: bool) -> Claim:
    which = "large" if large else "small"
    return Claim(
        f"a{number}",
        f"PMD-mean ends more accurate than {label_of(rival)}, each at its best learning rate, at {which} K",
        f"more accurate than {label_of(rival)} at {which} K",
        "difference of accuracy on test and ood, each at the rate that is best on val",
        "pp",
        1.0,
        1,
        lambda evidence: questions.best_rates(evidence, "pmd-mean", rival, large),
    )


def _stability(number: int, rival: str) -> Claim:
    return Claim(
        f"b{number}",
        f"PMD-mean is more stable than {label_of(rival)} over learning rates and K",
        f"more stable than {label_of(rival)}",
        "difference of the mean accuracy over the whole grid of rates and both K",
        "pp",
        2.0,
        1,
        lambda evidence: questions.whole_grid(evidence, "pmd-mean", rival),
    )


def _time(number: int, rival: str, on_policy: bool) -> Claim:
    return Claim(
        f"c{number}",
        f"PMD-mean at its best K takes less time than {rival}",
        f"quicker than {rival}",
        "ratio of the seconds to 95 % of what on-policy GRPO gains",
        "ratio",
        float(np.log(1.1)),
        -1,
        lambda evidence: questions.seconds_to_target(evidence, on_policy),
        lambda x: float(np.exp(x)),
    )


def _finite(number: int, name: str, words: str) -> Claim:
    return Claim(
        f"d{number}",
        f"From few rollouts, PMD-mean does better than PMD-part on {words}",
        f"from few rollouts better than PMD-part on {words}",
        "difference of success after one solved update from n = 8 rollouts",
        "pp",
        1.0,
        1,
        lambda evidence: questions.baselines(evidence, name),
    )


CLAIMS = (
    _accuracy(1, "grpo", False),
    _accuracy(2, "gspo", False),
    _accuracy(3, "grpo", True),
    _accuracy(4, "gspo", True),
    _stability(1, "rloo"),
    _stability(2, "pmd-part"),
    _stability(3, "grpo"),
    _stability(4, "gspo"),
    _time(1, "on-policy GRPO", True),
    _time(2, "GRPO at its best K", False),
    _finite(1, "same", "the prompts that it learns from"),
    _finite(2, "other", "other prompts"),
    Claim("e1", "After a solved update, −mean(s) is the λ that theory predicts",
          "−mean(s) of a solved update is the λ of theory, on the rollouts that it learned from",
          "ratio of −mean(s) to λ, minus 1", "ratio − 1", 0.15, 0, questions.law_ratio),
    Claim("e2", "Prompts with a larger predicted λ are moved more",
          "prompts with a larger λ are moved more", "rank correlation over prompts, minus 0.5",
          "correlation − 0.5", 0.1, 1, questions.law_order),
    Claim("g", "The gains hold for language models of 4B to 30B parameters",
          "gains at 4B to 30B parameters", "avg@32 on AIME 2024 and 2025",
          "pp", 1.0, 1,
          lambda evidence: Answer(None, "no such model is trained here; the reported curves stand beside", 0, 0)),
)  # fmt: skip
"""Every row, in the order of the table."""


def table(evidence: Evidence, claims: tuple[Claim, ...] = CLAIMS) -> pd.DataFrame:
    """The rows with verdict, effect (an `Interval`), p (Holm), bases, runs and the reason; see docs/experiments.md.

    in_margins: the effect over its margin, an `Interval` that is above 0 where it speaks for the claim. only, but:
    those of `questions.Answer`.
    cautious: the verdict if no effect had more degrees of freedom than its base models give.
    """
    answers = [claim.ask(evidence) for claim in claims]
    few = [a._replace(effect=a.effect.cautious(a.bases)) if a.effect else a for a in answers]
    records = []
    for claim, answer, (p, judged), (_, cautious) in zip(
        claims, answers, _judged(claims, answers), _judged(claims, few), strict=True
    ):
        effect = answer.effect
        shown = Interval(*(claim.show(x) for x in effect.interval())) if effect else None
        records.append(
            {
                "row": claim.row,
                "claim": claim.claim,
                "brief": claim.brief,
                "verdict": judged,
                "cautious": cautious,
                "effect": shown,
                "in_margins": _in_margins(claim, effect, answer.only) if effect else None,
                "only": answer.only,
                "but": answer.but,
                "unit": claim.unit,
                "margin": claim.show(claim.margin),
                "p": p,
                "bases": answer.bases,
                "runs": answer.runs,
                "reason": answer.reason + _lost(claim, answer, p),
                "metric": claim.metric,
            }
        )
    frame = pd.DataFrame(records)
    return frame.astype({"effect": object, "in_margins": object, "only": object})


def printed(row: dict) -> Interval | str | None:
    """The effect of a row of `table` as it is printed: of a bound only what is known."""
    effect, only = row["effect"], row["only"]
    if not isinstance(only, str) or effect is None:  # pandas makes NaN of None beside text
        return effect
    return f"{questions.KNOWN[only]} {effect.estimate:.2f}" if only in questions.KNOWN else "not known"


def _in_margins(claim: Claim, effect: Effect, only: str | None) -> Interval:
    """An effect over the smallest that matters, above 0 where it speaks for the claim.

    A claim that an effect is within its margin keeps the effect's sign: what speaks for it is to be near 0. Where a
    bound of the effect is known, the interval is all that lies beyond it; where nothing is, all numbers.
    """
    estimate, low, high = effect.interval()
    known = {"above": (estimate, np.inf), "below": (-np.inf, estimate), "none": (-np.inf, np.inf)}
    ends = known.get(only, (low, high))
    scaled = [(claim.sense or 1) * x / claim.margin for x in (np.nan if only == "none" else estimate, *ends)]
    return Interval(scaled[0], min(scaled[1:]), max(scaled[1:]))


def _lost(claim: Claim, answer: Answer, corrected: float) -> str:
    """What to add to a reason where only the correction for the other rows left the row undecided."""
    asked = _asked(claim, answer.effect)
    if not (verdict(claim, answer, corrected) == UNDECIDED != verdict(claim, answer, asked)):
        return ""
    return f"; p = {asked:.2g} alone, {corrected:.2g} with Holm's correction for all rows"


def _judged(claims: tuple[Claim, ...], answers: list[Answer]) -> list[tuple[float, str]]:
    """(p corrected by Holm over all rows that ask for one, verdict) of each row."""
    asked = [_asked(claim, answer.effect) for claim, answer in zip(claims, answers, strict=True)]
    return [(p, verdict(claim, a, p)) for claim, a, p in zip(claims, answers, holm(asked), strict=True)]


def _asked(claim: Claim, effect: Effect | None) -> float:
    """The p-value of the one decision that the estimate points to; NaN without an effect.

    A claim that an effect is within its margin is rejected by an effect that is significantly beyond it.
    """
    if not effect:
        return np.nan
    if claim.sense:
        return effect.p_value()
    if abs(effect.estimate) <= claim.margin:
        return effect.p_within(claim.margin)
    return effect.p_value(float(np.sign(effect.estimate)) * claim.margin)


def verdict(claim: Claim, answer: Answer, p: float) -> str:
    """The verdict on a claim from its effect and its corrected p-value; see `Answer.only` for an effect that is a
    bound."""
    effect = answer.effect
    if not effect:
        return NOT_TESTABLE
    if claim.sense == 0:
        decided = SUPPORTED if abs(effect.estimate) <= claim.margin else CONTRADICTED
        return decided if p < LEVEL else UNDECIDED
    if answer.only is None and effect.p_within(claim.margin) < LEVEL:
        return EQUIVALENT
    side = "above" if effect.estimate > 0 else "below"
    if p < LEVEL and answer.only in (None, side):
        return SUPPORTED if effect.estimate * claim.sense > 0 else CONTRADICTED
    return UNDECIDED


EXPERIMENT = {"a": "train", "b": "train", "c": "train", "d": "finite", "e": "law"}
"""The experiment that the rows of a letter ask."""


def doubt(verdict: str, cautious: str) -> str:
    """What to say of a verdict that hangs on too few base models, with the one of `cautious`; "" of any other."""
    return "" if verdict == cautious else f"too few base models to rely on it; judged cautiously: {cautious}"


def beside(*, default: pd.DataFrame, study: pd.DataFrame, own: Collection[str]) -> pd.DataFrame:
    """The study's table with the default's verdicts and effect beside it, and whether two decided verdicts disagree.

    own: the experiments of the study that are its own (`frames.study`); rows of the others are the default's, and
    `of_default`. The two tables are given by name, since nothing would show that they were swapped.
    """
    other = default[["row", "verdict", "cautious", "effect", "in_margins"]]
    joined = study.merge(other, on="row", how="left", suffixes=("", " (default)"))
    decided = {SUPPORTED, CONTRADICTED}
    pairs = zip(joined["verdict"], joined["verdict (default)"], strict=True)
    borrowed = [EXPERIMENT.get(row[0], "") not in {*own, ""} for row in joined["row"]]
    return joined.assign(disagree=[{a, b} == decided for a, b in pairs], of_default=borrowed)


def with_gpu(rows: pd.DataFrame, gpu: pd.DataFrame) -> pd.DataFrame:
    """The table with verdict and effect of the experiment at a GPU's size beside it, judged and corrected by itself."""
    other = gpu.assign(effect=[printed(row) for row in gpu.to_dict("records")])[["row", "verdict", "effect"]]
    return rows.merge(other, on="row", how="left", suffixes=("", " (GPU)"))


def finding(table: pd.DataFrame) -> str:
    """What was found, as a Markdown list of plain sentences made from the verdicts alone.

    Of a verdict that would not stand with the degrees of freedom of its few base models alone it says so, and which
    one would. table: of `table`, or of `beside`, whose first verdicts are the study's.
    """
    order = {
        SUPPORTED: "Supported at this size",
        CONTRADICTED: "Contradicted, for the opposite was found",
        EQUIVALENT: "No difference that would matter",
        UNDECIDED: "Undecided",
    }
    weak, lines = table["verdict"] != table["cautious"], []
    for word, lead in order.items():
        for rows, how in ((table[~weak], ""), (table[weak], ", but too few base models to rely on it")):
            rows = rows[rows["verdict"] == word]
            if len(rows):
                said = "; ".join(map(_item, rows.to_dict("records")))
                lines.append(f"**{lead}{how}:** {said}.")
    if "of_default" in table:
        lines += _others(table)
    if "disagree" in table and table["disagree"].any():
        lines.append(f"**The study and the default run disagree** on {', '.join(table['row'][table['disagree']])}.")
    if "of_default" in table and table["of_default"].any():
        rows = ", ".join(table["row"][table["of_default"]])
        lines.append(f"**Of the default run alone**, because the study has not finished the like: {rows}.")
    absent = table[table["verdict"] == NOT_TESTABLE]
    if len(absent):
        said = "; ".join(f"{row.brief} ({row.row})" for row in absent.itertuples())
        lines.append(f"**Not testable here:** {said}.")
    lead = "What is claimed of PMD-mean, by verdict"
    if "of_default" in table:
        lead = (
            "What is claimed of PMD-mean, by the verdict of the *study*, a larger run whose evidence is kept in the "
            "repository; the *default run*, which `make repro` makes, is smaller and from other base models"
        )
    lead += ". Letters name the rows of the claims below; pp are percentage points of accuracy."
    return lead + "\n\n" + "\n".join(f"- {line}" for line in lines)


STRENGTH = {
    "pp": lambda x: f"{x:+.1f} pp",
    "ratio − 1": lambda x: f"ratio {1 + x:.3g}",
    "correlation − 0.5": lambda x: f"correlation {0.5 + x:.3g}",
}
"""An effect in a list of findings, by its unit; of a unit that is absent none is said."""


def _item(row: dict) -> str:
    """A row in a list of findings, with its effect, if it is known, and with what the verdict alone would not say."""
    known = row["effect"] is not None and not isinstance(row["only"], str) and row["unit"] in STRENGTH
    strength = [STRENGTH[row["unit"]](row["effect"].estimate).replace("-", "−")] if known else []
    weak = [f"judged cautiously: {row['cautious']}"] if row["cautious"] != row["verdict"] else []
    return f"{row['brief']} ({'; '.join([', '.join([row['row'], *strength]), *filter(None, [row['but']]), *weak])})"


def _others(table: pd.DataFrame) -> list[str]:
    """A line on the rows of `beside` on which the default run has another verdict, and one on those where too few base
    models gave its verdict, if there are such."""
    own = table[~table["of_default"]]
    apart = own[own["verdict"] != own["verdict (default)"]]
    parts = [f"{', '.join(rows['row'])}: {word}" for word, rows in apart.groupby("verdict (default)", sort=False)]
    weak = ", ".join(own["row"][own["verdict (default)"] != own["cautious (default)"]])
    lines = [f"**The default run has another verdict on** {'; '.join(parts)}."] if parts else []
    return lines + ([f"**The default run has too few base models to rely on its verdict on** {weak}."] if weak else [])
