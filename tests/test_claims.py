"""T1: every row has the sign that the evidence gives it, its margin counts, and nothing is dropped silently."""

from __future__ import annotations

import math
import re

import pandas as pd
import pytest

from pmd.evaluators.intervals import Interval
from pmd.paper import claims, frames, questions, report, tables
from pmd.paper.claims import CONTRADICTED, EQUIVALENT, NOT_TESTABLE, SUPPORTED, UNDECIDED, Claim
from pmd.paper.effects import Effect
from pmd.paper.questions import Answer
from tests import evidence


def table(tmp_path, accuracy=lambda variant, k, rate: 0.6, law=None, finite=None, **how):
    found = evidence.frames(accuracy, **how)
    found |= {"law": evidence.law() if law is None else law, "finite": evidence.finite() if finite is None else finite}
    evidence.write(tmp_path, **found)
    return claims.table(frames.load(tmp_path)).set_index("row")


def better(who, by, only=lambda k, rate: True):
    """A final accuracy of 0.6, and `by` more for one variant."""
    return lambda variant, k, rate: 0.6 + by * (variant == who and only(k, rate))


def test_no_difference_is_equivalent_and_at_most_sixteen_rows(tmp_path):
    found = table(tmp_path)
    assert len(claims.CLAIMS) == len(found) <= 16
    assert set(found.verdict[["a1", "a2", "a3", "a4", "b1", "b2", "b3", "b4"]]) == {EQUIVALENT}
    assert found.verdict["g"] == NOT_TESTABLE


@pytest.mark.parametrize(
    ("row", "rival", "k"), [("a1", "grpo", 8), ("a2", "gspo", 8), ("a3", "grpo", 40), ("a4", "gspo", 40)]
)
def test_accuracy_at_the_best_rate_of_each_staleness(tmp_path, row, rival, k):
    at = lambda found, rate: found == k and rate == 1e-3  # noqa: E731
    assert table(tmp_path / "1", better("pmd-mean", 0.05, at)).verdict[row] == SUPPORTED
    lost = table(tmp_path / "2", better(rival, 0.05, at))
    assert lost.verdict[row] == CONTRADICTED
    assert lost.effect[row].estimate == pytest.approx(-5, abs=1)
    others = {"a1", "a2", "a3", "a4"} - {row}
    assert set(lost.verdict[list(others)]) == {EQUIVALENT}


@pytest.mark.parametrize(("row", "rival"), [("b1", "rloo"), ("b2", "pmd-part"), ("b3", "grpo"), ("b4", "gspo")])
def test_stability_is_over_the_whole_grid(tmp_path, row, rival):
    """A fall at one of two rates: nothing at the best rate, half of the fall over the grid."""
    fallen = table(tmp_path / "1", better(rival, -0.3, lambda k, rate: rate == 1e-3 and k > 1))
    assert fallen.verdict[row] == SUPPORTED
    assert fallen.effect[row].estimate == pytest.approx(15, abs=1)
    if row in ("b3", "b4"):
        assert fallen.verdict["a1"] == EQUIVALENT
    assert table(tmp_path / "2", better("pmd-mean", -0.3, lambda k, rate: k > 1)).verdict[row] == CONTRADICTED


def test_opposite_differences_at_two_k_are_seen_behind_their_mean(tmp_path):
    """3 pp better at the one, 3 pp worse at the other: equivalent over the grid, which is not to be the same."""
    found = table(tmp_path, lambda variant, k, rate: 0.6 + (variant == "grpo") * {8: 0.03, 40: -0.03}.get(k, 0))
    assert found.verdict["b3"] == EQUIVALENT
    assert re.search(
        r"includes 0; the difference is −(3\.0|2\.9|3\.1) pp at K = 8, (3\.0|2\.9|3\.1) pp at K = 40$",
        found.reason["b3"],
    )


def test_a_difference_below_the_margin_is_no_support(tmp_path):
    found = table(tmp_path, better("pmd-mean", 0.005), noise=0.0005)
    assert found.effect["a1"].low > 0
    assert found.verdict["a1"] == EQUIVALENT


def test_few_noisy_base_models_decide_nothing(tmp_path):
    """With all problems taken as independent the interval would be a fifth of this and exclude 0."""
    found = table(tmp_path, better("pmd-mean", 0.03), bases=(1, 2, 3), noise=0.1, seed=1)
    assert found.verdict["a1"] == UNDECIDED
    alone = table(tmp_path / "1", better("pmd-mean", 0.3), bases=(1,))
    assert alone.verdict["a1"] == NOT_TESTABLE
    assert alone.effect["a1"] is None
    assert alone.reason["a1"].endswith("one base model alone has no interval")


def test_time_is_compared_at_one_target_and_counts_what_misses_it(tmp_path):
    fast = table(tmp_path / "1", speed=lambda variant, k: 5.0 if variant == "pmd-mean" and k > 1 else 10.0)
    assert fast.verdict[["c1", "c2"]].tolist() == [SUPPORTED, SUPPORTED]
    assert fast.effect["c1"].estimate == pytest.approx(0.5, rel=0.1)
    assert re.search(r"; of generated tokens (0\.9\d|1\.0\d) times as many$", fast.reason["c1"])
    slow = table(tmp_path / "2", speed=lambda variant, k: 20.0 if variant == "pmd-mean" and k > 1 else 10.0)
    assert slow.verdict["c2"] == CONTRADICTED
    short = table(tmp_path / "3", lambda variant, k, rate: 0.45 if variant == "pmd-mean" else 0.6)
    missed = "4 of 4 runs of PMD-mean (K = 40) miss the target; counting all of their seconds, PMD-mean (K = 40) takes"
    assert short.reason["c1"].startswith(f"{missed} at least ")
    assert claims.printed(short.loc["c1"]).startswith("at least ")
    assert claims.printed(short.loc["a1"]) == short.effect["a1"]  # the others are measured all the same
    assert short.in_margins["c1"].low == -math.inf  # longer still, which speaks against the claim
    mixed = table(tmp_path / "4", cpu=lambda base, variant: variant)
    assert mixed.verdict["c2"] == NOT_TESTABLE
    assert "different processors" in mixed.reason["c2"]


def test_seconds_that_are_only_a_bound_decide_in_one_direction(tmp_path):
    """Who misses the target would have taken longer, so that its haste is no merit and its rival's no fault."""
    misses = lambda who: lambda variant, k, rate: 0.45 if variant == who and k > 1 else 0.6  # noqa: E731
    took = lambda who, seconds: lambda variant, k: seconds if variant == who and k > 1 else 10.0  # noqa: E731
    for name, who, seconds, found in (
        ("1", "pmd-mean", 2.0, UNDECIDED),
        ("2", "pmd-mean", 40.0, CONTRADICTED),
        ("3", "grpo", 2.0, UNDECIDED),
        ("4", "grpo", 40.0, SUPPORTED),
    ):
        row = table(tmp_path / name, misses(who), speed=took(who, seconds)).loc["c2"]
        assert re.match(r"4 of 4 runs of (PMD-mean|GRPO) \(K = \d+\) miss the target; counting", row.reason)
        assert row.verdict == found
        assert claims.printed(row).startswith("at least" if who == "pmd-mean" else "at most")
        assert math.isinf(row.in_margins.low if who == "pmd-mean" else row.in_margins.high)


def test_runs_that_miss_the_target_are_counted_one_by_one_with_all_they_took():
    curve = {"step": [0, 1, 2], "seconds": [0.0, 10.0, 20.0]}
    runs = {"reaches": [0.2, 0.4, 0.6], "misses": [0.2, 0.3, 0.3], "never": [0.2, 0.2, 0.2]}
    rows = pd.concat([pd.DataFrame(curve | {"run": name, "accuracy": found}) for name, found in runs.items()])
    assert questions._to_target(rows, 0.5, "seconds") == (pytest.approx((15 + 20 + 20) / 3), 2)


def test_a_map_that_was_stopped_compares_the_cells_that_both_have(tmp_path):
    """RLOO lacks the rate at which all collapse from one base model: that cell is left out for both."""
    made = evidence.frames(lambda variant, k, rate: 0.2 if rate == 1e-3 else 0.6)
    runs = made["runs"]
    lost = runs.run[(runs.variant == "rloo") & (runs.lr == 1e-3) & (runs.base == 2)]
    kept = {name: made[name][~made[name].run.isin(lost)] for name in ("runs", "steps", "evals")}
    evidence.write(tmp_path, **made | kept)
    found = claims.table(frames.load(tmp_path)).set_index("row")
    assert found.verdict["b1"] == EQUIVALENT
    assert "over 2 cells of rate and K (2 incomplete ones left out)" in found.reason["b1"]


def test_a_rate_that_lacks_base_models_is_not_the_best_one(tmp_path):
    """A third rate is better, but was only trained from one base model before the map was stopped."""
    made = evidence.frames(lambda variant, k, rate: 0.8 if rate == 2e-4 else 0.6, rates=(1e-4, 2e-4, 1e-3))
    runs = made["runs"]
    lost = runs.run[(runs.lr == 2e-4) & (runs.base > 1)]
    kept = {name: made[name][~made[name].run.isin(lost)] for name in ("runs", "steps", "evals")}
    evidence.write(tmp_path, **made | kept)
    found = frames.load(tmp_path)
    assert set(frames.chosen(found).lr) <= {1e-4, 1e-3}
    rows = claims.table(found).set_index("row")
    assert rows.verdict["a1"] == EQUIVALENT
    assert rows.bases["a1"] == 4


def test_runs_that_begin_at_the_target_are_not_compared_in_time(tmp_path):
    flat = table(tmp_path, lambda variant, k, rate: 0.4, noise=0.0, on_policy=("pmd-mean", "grpo"))
    assert flat.verdict["c1"] == NOT_TESTABLE
    assert "gains nothing" in flat.reason["c1"]
    little = table(tmp_path / "2", lambda variant, k, rate: 0.41 if k == 1 else 0.39)
    made = frames.load(tmp_path / "2")
    made.evals.loc[(made.evals.variant == "pmd-mean") & (made.evals.step == 0), "accuracy"] = 0.5
    row = claims.table(made).set_index("row").loc["c1"]
    assert little.verdict["c1"] != NOT_TESTABLE
    assert (row.verdict, row.reason) == (
        NOT_TESTABLE,
        "on-policy GRPO gains so little from base model 1 that runs begin at the target",
    )


def test_a_law_without_differences_between_prompts_is_not_testable(tmp_path):
    flat = evidence.law().assign(lam=0.0)
    assert set(table(tmp_path, law=flat).verdict[["e1", "e2"]]) == {NOT_TESTABLE}


def test_finite_samples_compare_the_mean_with_the_partition(tmp_path):
    found = table(tmp_path)
    assert found.verdict[["d1", "d2"]].tolist() == [SUPPORTED, SUPPORTED]
    assert found.effect["d1"].estimate == pytest.approx(10, abs=1)
    assert found.effect["d2"].estimate == pytest.approx(5, abs=1)
    worse = table(tmp_path / "1", finite=evidence.finite(-0.05))
    assert worse.verdict["d2"] == CONTRADICTED
    assert (found.but == "").all()
    harm = table(tmp_path / "3", finite=evidence.finite().assign(before=600))
    assert harm.but["d2"] == "both lower success, from 60 % to 45 % and 40 %"
    assert table(tmp_path / "2", finite=evidence.finite(0.0, noise=0.0005)).verdict["d1"] == EQUIVALENT


def test_the_law_must_be_met_and_not_only_not_missed(tmp_path):
    found = table(tmp_path)
    assert found.verdict[["e1", "e2"]].tolist() == [SUPPORTED, SUPPORTED]
    assert found.effect["e1"].estimate == pytest.approx(0, abs=0.05)
    apart = evidence.law(noise=0)
    apart.loc[apart["set"] == "held out", "minus_mean_s"] *= 1.5
    apart.loc[(apart["set"] == "batch") & (apart.tau == 0.5) & (apart.base == 1), "minus_mean_s"] *= 1.05
    apart.loc[(apart["set"] == "batch") & (apart.tau == 0.5) & (apart.base == 2), "minus_mean_s"] *= 0.95
    reason = table(tmp_path / "4", law=apart).reason["e1"]
    assert reason == (
        "−mean(s)/λ is 1.00 (1.00 to 1.00) at τ = 0.1, 1.00 (0.95 to 1.05) at τ = 0.5; on other rollouts of the same "
        "prompts 1.50 (1.50 to 1.50) at τ = 0.1, 1.50 (1.50 to 1.50) at τ = 0.5; in brackets the range over base models"
    )
    assert table(tmp_path / "1", law=evidence.law(1.5)).verdict["e1"] == CONTRADICTED
    assert table(tmp_path / "2", law=evidence.law(1.0, noise=0.3)).verdict["e1"] == UNDECIDED
    assert table(tmp_path / "3", law=evidence.law(order=-1)).verdict["e2"] == CONTRADICTED


def test_what_was_not_run_is_not_testable(tmp_path):
    evidence.write(tmp_path, **evidence.frames(lambda *cell: 0.6, variants=("pmd-mean", "rloo"), on_policy=()))
    found = claims.table(frames.load(tmp_path)).set_index("row")
    assert set(found.verdict.drop(["b1"])) == {NOT_TESTABLE}
    assert found.verdict["b1"] == EQUIVALENT
    assert (found.reason.str.len() > 10).all()


def test_two_presets_side_by_side_name_what_disagrees(tmp_path):
    one = table(tmp_path / "1", better("pmd-mean", 0.05)).reset_index()
    other = table(tmp_path / "2", better("grpo", 0.05)).reset_index()
    joined = claims.beside(study=one, default=other, own={"train", "law", "finite"}).set_index("row")
    assert joined.disagree["a1"]
    assert not joined.disagree[["a2", "d1", "g"]].any()
    assert joined["verdict (default)"]["a1"] == CONTRADICTED


def test_the_finding_is_made_of_the_verdicts(tmp_path):
    found = table(tmp_path, better("grpo", 0.05, lambda k, rate: k == 40)).reset_index()
    text = claims.finding(found)
    opposite = text[text.index("**Contradicted, for the opposite was found:** ") :].split("\n")[0]
    a3 = found.set_index("row").effect["a3"].estimate
    assert a3 < -4
    assert f"more accurate than GRPO at large K (a3, −{-a3:.1f} pp)" in opposite
    assert "**Not testable here:** gains at 4B to 30B parameters (g)." in text


@pytest.mark.parametrize(
    ("unit", "estimate", "only", "but", "said"),
    [
        ("pp", 10.66, None, "", "(x, +10.7 pp)"),
        ("pp", -2.05, None, "but", "(x, −2.0 pp; but)"),
        ("ratio − 1", -0.005, None, "", "(x, ratio 0.995)"),
        ("correlation − 0.5", 0.385, None, "", "(x, correlation 0.885)"),
        ("ratio", 0.5, "above", "", "(x)"),  # a bound of the seconds, which T1 explains
        ("pp", 3.0, "none", "", "(x)"),
    ],
)
def test_a_finding_says_how_strong_it_is(unit, estimate, only, but, said):
    row = {"row": "x", "brief": "claim", "unit": unit, "effect": Interval(estimate, 0, 1), "only": only, "but": but}
    row |= {"verdict": SUPPORTED, "cautious": SUPPORTED}
    assert claims._item(row) == f"claim {said}"
    assert claims._item(row | {"effect": None}).startswith("claim (x")
    assert "pp" not in claims._item(row | {"effect": None})


def test_a_verdict_that_hangs_on_few_base_models_says_so(tmp_path):
    """Three base models that agree to a tenth of what the problems vary by."""
    found = table(tmp_path, better("pmd-mean", 0.03), bases=(1, 2, 3), noise=0.002).reset_index()
    found.loc[found.row == "a1", "cautious"] = UNDECIDED
    text = claims.finding(found)
    weak = text[text.index("**Supported at this size, but too few base models to rely on it:** ") :].split("\n")[0]
    assert re.search(r"at small K \(a1, \+[23]\.\d pp; judged cautiously: undecided\)\.$", weak)
    assert "(a3, +" in text[: text.index("**Supported at this size, but")]


def test_the_other_verdict_is_named_wherever_too_few_base_models_gave_one(tmp_path):
    """Of the study in its list, of the default in a line of its own, and of both in the table."""
    study = table(tmp_path, better("pmd-mean", 0.05)).reset_index()
    default = study.assign(cautious=study.cautious.where(study.row != "b1", UNDECIDED))
    study.loc[study.row == "a2", "cautious"] = EQUIVALENT
    joined = claims.beside(study=study, default=default, own={"train", "law", "finite"})
    text = claims.finding(joined)
    assert re.search(r"\(a2, \+\d\.\d pp; judged cautiously: equivalent within the margin\)", text)
    assert "\n- **The default run has too few base models to rely on its verdict on** b1." in text
    shown = tables.claims_table(joined).frame.set_index("")
    few = "supported (too few base models to rely on it; judged cautiously: "
    assert shown.loc["a2"].tolist()[:2] == [f"{few}equivalent within the margin)", SUPPORTED]
    assert shown.loc["b1"].tolist()[:2] == [SUPPORTED, f"{few}undecided)"]
    assert shown.loc["a1"].tolist()[:2] == [SUPPORTED, SUPPORTED]
    assert f"; the default run: {few}undecided)" in report._claim(
        joined.set_index("row", drop=False).loc["b1"].to_dict()
    )


def test_the_cautious_verdict_has_the_base_models_degrees_of_freedom():
    """t = 3.8: p is 0.0002 with the 177 degrees of freedom of the problems, 0.06 with the 2 of three base models."""
    rows = []
    for bases in (3, 30):
        answer = Answer(Effect(2.0, 0.53, 177.0), "why", bases, 2 * bases)
        claim = Claim("x", "A claim", "", "", "pp", 1.0, 1, lambda _, answer=answer: answer)
        rows += claims.table(None, (claim,)).to_dict("records")
    assert [row["verdict"] for row in rows] == [SUPPORTED, SUPPORTED]
    assert [row["cautious"] for row in rows] == [UNDECIDED, SUPPORTED]


def test_where_study_and_default_disagree_the_finding_says_it(tmp_path):
    one = table(tmp_path / "1", better("pmd-mean", 0.05)).reset_index()
    other = table(tmp_path / "2", better("grpo", 0.05)).reset_index()
    text = claims.finding(claims.beside(default=other, study=one, own={"train", "law", "finite"}))
    assert "disagree** on a1, a3" in text
    apart = re.search(r"\*\*The default run has another verdict on\*\* (.*)\.", text)[1]
    assert re.search(r"a1, a3[^;]*: contradicted", apart)
    assert "d1" not in apart  # the same in both


def test_the_verdicts_of_a_gpu_stand_beside_in_columns_of_their_own(tmp_path):
    one = table(tmp_path / "1", better("pmd-mean", 0.05)).reset_index()
    other = table(tmp_path / "2", better("grpo", 0.05)).reset_index()
    rows = tables.claims_table(claims.with_gpu(one, other)).frame.set_index("")
    assert rows.loc["a1", ["verdict", "verdict (GPU)"]].tolist() == [SUPPORTED, CONTRADICTED]
    assert rows.loc["a1", "effect"].estimate == pytest.approx(5, abs=0.5)
    assert rows.loc["a1", "effect (GPU)"].estimate == pytest.approx(-5, abs=0.5)
    assert not any("GPU" in column for column in tables.claims_table(one).frame)


def test_evidence_of_another_schema_is_refused_in_one_line(tmp_path):
    made = evidence.frames(lambda *cell: 0.6, variants=("pmd-mean",))
    with pytest.raises(ValueError, match=r"runs\.parquet: missing; first execute notebooks 1 to 3"):
        frames.load(tmp_path)
    evidence.write(tmp_path, **made | {"runs": made["runs"].drop(columns="cpu")})
    with pytest.raises(ValueError, match=r"runs\.parquet: of another schema, it has no column cpu"):
        frames.load(tmp_path)
    evidence.write(tmp_path, **made | {"runs": made["runs"][1:]})
    with pytest.raises(ValueError, match=r"evals\.parquet: of other runs than runs\.parquet"):
        frames.load(tmp_path)


def test_counts_of_more_than_a_byte_are_summed_as_numbers(tmp_path):
    """200 of 200 right on every problem: in bytes, their sum would wrap."""
    evidence.write(tmp_path, **evidence.frames(lambda *cell: 1.0, variants=("pmd-mean",), noise=0.0))
    found = frames.load(tmp_path)
    assert frames.final(found).accuracy.tolist() == [1.0] * len(frames.final(found))
    assert frames.scores(frames.final(found))[1].mean() == 1.0


@pytest.mark.parametrize(
    ("effect", "expected"),
    [(0.1, SUPPORTED), (0.2, UNDECIDED), (0.5, CONTRADICTED)],
)
def test_a_claim_of_equality_is_decided_by_the_p_value_that_holm_corrects(effect, expected):
    """Margin 0.15, error 0.02, 9 degrees of freedom; 0.2 lies 2.5 errors beyond: p is 0.034 alone, 0.07 of two rows."""
    claim, answer = Claim("x", "", "", "", "", 0.15, 0, lambda _: None), Answer(Effect(effect, 0.02, 9.0), "", 10, 20)
    twin = Answer(Effect(effect, 0.02, 9.0), "", 10, 20)
    (p, judged), _ = claims._judged((claim, claim), [answer, twin])
    assert judged == expected
    assert (p < 0.05) == (expected != UNDECIDED)


def test_a_row_that_holm_alone_left_undecided_says_so(tmp_path):
    """The same as above, in the table: the reason names both p-values, and in no other row."""
    evidence.write(tmp_path, **evidence.frames(better("pmd-mean", 0.0)))
    found = {
        0.1: ("", SUPPORTED),
        0.2: ("because; p = 0.034 alone, 0.068 with Holm's correction for all rows", UNDECIDED),
    }
    for effect, (reason, judged) in found.items():
        claim = Claim("x", "", "", "", "", 0.15, 0, lambda _, e=effect: Answer(Effect(e, 0.02, 9.0), "because", 10, 20))
        rows = claims.table(frames.load(tmp_path), (claim, claim))
        assert rows.verdict.tolist() == [judged] * 2
        assert rows.reason.tolist() == [reason or "because"] * 2


def test_a_bound_that_decides_nothing_is_not_said_to_have_been_lost_by_holm(tmp_path):
    evidence.write(tmp_path, **evidence.frames(better("pmd-mean", 0.0)))
    for only, says in (("none", False), ("below", False), ("above", True)):
        answer = Answer(Effect(0.2, 0.08, 9.0), "because", 10, 20, only)
        claim = Claim("x", "", "", "", "", 0.15, 1, lambda _, a=answer: a)
        rows = claims.table(frames.load(tmp_path), (claim, claim))
        assert rows.verdict.tolist() == [UNDECIDED] * 2
        assert rows.reason.str.contains("Holm").tolist() == [says] * 2
        printed = tables.claims_details(rows).frame["p (Holm)"]
        assert printed.isna().tolist() == [only == "none"] * 2
