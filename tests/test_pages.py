"""Figures, tables and the page: what they show is what the evidence holds."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections import Counter
from html import unescape

import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import PNGFormatter

from pmd import params
from pmd.files import ROOT
from pmd.paper import (
    captions,
    claims,
    claims_figure,
    explorer,
    figures,
    finite_figures,
    frames,
    law_figures,
    report,
    settings_table,
    style,
    tables,
)
from pmd.paper.typeset import markdown, write
from tests import evidence as made

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
REPORTED = pd.read_csv(ROOT / "results" / "reference" / "reported_30b_curves.csv")


def accuracy(variant, k, rate):
    """RLOO falls at the large rate, the others end at 0.6, PMD-mean at K = 8 at 0.65."""
    return 0.1 if variant == "rloo" and rate == 1e-3 else 0.65 if variant == "pmd-mean" and k == 8 else 0.6


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence")
    variants = ("pmd-mean", "pmd-mean tau=0.5", "pmd-part", "grpo", "gspo", "rloo")
    made.write(folder, **made.frames(accuracy, variants=variants), law=made.law(), finite=made.finite())
    return frames.load(folder)


def test_the_map_has_every_cell_and_marks_what_collapsed(evidence):
    figure, table = figures.robustness_map(evidence)
    assert len(table) == 6 * 4 + 2 * 2
    assert set(table[table.collapsed].variant) == {"rloo"}
    assert table[table.collapsed].lr.unique().tolist() == [1e-3]
    cell = table[(table.variant == "pmd-mean") & (table.minibatches == 8)]
    assert cell.accuracy.tolist() == pytest.approx([0.65, 0.65], abs=0.01)
    assert table.base.tolist() == pytest.approx([0.4] * len(table), abs=0.01)
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert sum("×" in text for text in texts) == table.collapsed.sum()
    assert "PMD-mean, τ = 0.5" in [axis.get_title(loc="left") or axis.get_title() for axis in figure.axes]


def only(found, variants, k, rate):
    """The frames without what these variants have in other cells than this one."""
    runs = found["runs"]
    lost = runs.run[runs.variant.isin(variants) & ~((runs.minibatches == k) & (runs.lr == rate))]
    return {name: rows[~rows.run.isin(lost)] if "run" in rows else rows for name, rows in found.items()}


def test_variants_of_one_cell_share_a_panel_of_the_map(tmp_path):
    def value(variant, k, rate):
        return {"cispo": 0.1, "kimi": 0.5}.get(variant, 0.6)

    found = made.frames(value, variants=("pmd-mean", "grpo", "cispo", "kimi"))
    made.write(tmp_path, **only(found, ("cispo", "kimi"), 8, 1e-3))
    figure, table = figures.robustness_map(frames.load(tmp_path))
    assert len(table) == 2 * (4 + 2) + 2
    panels = {axis.get_title(loc="left") or axis.get_title(): axis for axis in figure.axes}
    shared = panels["others, one cell"]
    assert set(panels) - {""} == {"PMD-mean", "GRPO", "others, one cell"}
    assert [text.get_text() for text in shared.get_yticklabels()] == ["CISPO", "Kimi K1.5"]
    assert [text.get_text() for text in shared.get_xticklabels()] == ["K = 8, 1e−3"]
    assert [text.get_text() for text in shared.texts] == ["10 ×", "50"]


@pytest.mark.parametrize("alone", [("cispo",), ("pmd-mean", "grpo", "cispo", "kimi")])
def test_one_such_variant_or_all_of_them_have_panels_of_their_own(tmp_path, alone):
    found = made.frames(accuracy, variants=("pmd-mean", "grpo", "cispo", "kimi"))
    made.write(tmp_path, **only(found, alone, 8, 1e-3))
    figure, _ = figures.robustness_map(frames.load(tmp_path))
    titles = [axis.get_title(loc="left") or axis.get_title() for axis in figure.axes]
    assert [title for title in titles if title] == ["PMD-mean", "GRPO", "CISPO", "Kimi K1.5"]


def test_curves_are_those_of_the_best_rate_and_end_where_the_runs_do(evidence):
    _, table = figures.training_curves(evidence)
    rloo = table[(table.variant == "rloo") & (table.panel == "accuracy, test")]
    assert rloo.lr.unique().tolist() == [1e-4]
    last = table[(table.variant == "pmd-mean") & (table.panel == "accuracy, test") & (table.step == 3)]
    assert last.set_index("minibatches")["mean"].to_dict() == pytest.approx({8: 0.65, 40: 0.6}, abs=0.01)
    assert (last.low < last["mean"]).all()
    assert set(table.bases) == {4}


def test_a_variant_with_fewer_rates_is_in_the_map_and_not_among_the_curves(tmp_path):
    found = made.frames(accuracy, variants=("pmd-mean", "grpo", "cispo"))
    lost = found["runs"].run[(found["runs"].variant == "cispo") & (found["runs"].lr == 1e-3)]
    made.write(tmp_path, **{k: v[~v.run.isin(lost)] if "run" in v else v for k, v in found.items()})
    few = frames.load(tmp_path)
    for draw in (figures.training_curves, figures.time_efficiency):
        assert set(draw(few)[1].variant) == {"pmd-mean", "grpo"}
    assert "cispo" in set(figures.robustness_map(few)[1].variant)


def test_cost_is_shown_at_the_best_k_with_on_policy_beside(evidence):
    figure, table = figures.time_efficiency(evidence)
    picks = table.groupby("variant").minibatches.unique().map(sorted).to_dict()
    assert picks["pmd-mean"] == [1, 8]
    assert picks["grpo"][0] == 1
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named[-2:] == ["PMD-mean, on-policy", "GRPO, on-policy"]
    assert len(named) == sum(len(ks) for ks in picks.values())
    assert set(table[table.step == 3].seconds.round(6)) == {10.0}


def test_practice_is_drawn_for_what_theory_knows(evidence):
    drawn, table = figures.implicit_regulariser(evidence)
    for axis in drawn.axes:  # on axes that are no longer linear two points would not do
        line = max((x.get_xydata() for x in axis.lines if x.get_color() == style.COLOURS["black"]), key=len)
        assert len(line) > 100
        assert (line[:, 0] == line[:, 1]).all()
    assert set(table.variant) == {"pmd-mean", "pmd-mean tau=0.5"}
    assert set(table["lambda_theory"]) == {0.2}
    # λ is 0.11, 0.12 and 0.13 after the three steps of every run; a variant is left out
    table.loc[table.variant != "pmd-mean", "lambda"] = 1.0
    said = captions.practice(table)
    assert said.startswith(
        "in PMD-mean's training, the median of −mean(s)/λ is 0.6 (K = 1), 0.6 (K = 8), 0.6 (K = 40);"
    )


def test_accuracies_of_the_table_are_in_percent_with_intervals(evidence):
    frame = tables.accuracy(evidence, REPORTED).frame.set_index(["method", "K"])
    cell = frame.loc[("PMD-mean", 8), "avg@200, test"]
    assert cell.estimate == pytest.approx(65, abs=0.5)
    assert cell.low < cell.estimate < cell.high <= 100
    assert frame.loc[("PMD-mean", 8), "pass@8, test"].estimate == pytest.approx(100 * (1 - 0.35**8), abs=1)
    assert frame.loc[("RLOO", 40), "rate"] == "0.0001"
    assert "PMD-mean 43.0, GRPO 31.7, GSPO 40.5" in tables.accuracy(evidence, REPORTED).notes[1]


def test_stability_counts_the_worst_and_what_collapsed(evidence):
    frame = tables.stability(evidence).frame.set_index(["method", "K"])
    assert frame.loc[("RLOO", "8"), "collapsed"] == "1 of 2"
    assert frame.loc[("RLOO", "8"), "worst"] == pytest.approx(10, abs=1)
    mean = frame.loc[("RLOO", "8"), "mean"]
    assert mean.estimate == pytest.approx(35, abs=1)
    assert mean.low < mean.estimate < mean.high < mean.low + 10
    assert frame.loc[("PMD-mean", "8"), "collapsed"] == "0 of 2"


def test_settings_stand_beside_the_papers():
    frame = settings_table.settings(params.load()).frame.set_index("setting")
    assert frame.loc["train.group_size", ["ours", "the paper's"]].tolist() == ["8", "16"]
    assert frame.loc["grid.rates", "ours"] == "5e-05, 0.00015, 0.0005"
    assert frame.loc["methods.gspo.clip_low", "ours"] == "0.01"
    both = settings_table.settings(params.of_preset("default"), params.of_preset("study")).frame.set_index("setting")
    other = both["the study's, where it differs"]
    assert (both.loc["train.steps", "ours"], other["train.steps"]) == ("10", "30")
    assert other["train.group_size"] == ""
    assert other["grid.regimes[3].staleness"] == "3"  # the default has no such regime


def test_theory_is_a_table_of_its_own():
    rows = pd.DataFrame({"statement": ["a", "b"], "source": ["s"] * 2, "proved_by": ["tests/t.py::x"] * 2,
                         "residual": [1e-12, 1e-3], "tolerance": [1e-10] * 2})  # fmt: skip
    assert tables.theory(rows).frame.verdict.tolist() == ["holds", "fails"]
    with pytest.raises(ValueError, match="has no column residual"):
        tables.theory(rows.drop(columns="residual"))


def test_a_notebook_shows_a_picture_that_is_the_value_of_a_cell(evidence):
    """Also where pyplot was never used: then matplotlib has not told IPython how to show its own figures."""
    drawn = [law_figures.law(evidence.law), finite_figures.finite(evidence.finite), figures.robustness_map(evidence)]
    assert [PNGFormatter()(figure)[:4] for figure, _ in drawn] == [b"\x89PNG"] * 3


@pytest.fixture(scope="module")
def drawn(evidence, tmp_path_factory):
    """A folder results/<preset> with all that the page shows, and the rows of its claims."""
    folder, rows = tmp_path_factory.mktemp("drawn"), claims.table(evidence)
    figures_of = {"law": law_figures.law(evidence.law), "finite": finite_figures.finite(evidence.finite),
                  "F8": figures.robustness_map(evidence), "F5-reported": figures.reported_curves(REPORTED),
                  "claims": claims_figure.verdicts(rows)}  # fmt: skip
    for name, (figure, data) in figures_of.items():
        style.save(figure, data, folder / "figures" / name)
    for table in (tables.claims_table(rows), tables.stability(evidence), tables.accuracy(evidence, REPORTED)):
        write(table, folder / "tables")
    return folder, rows


@pytest.fixture
def page(drawn, tmp_path):
    """`drawn`, in a folder of the test's own."""
    return shutil.copytree(drawn[0], tmp_path, dirs_exist_ok=True), drawn[1].copy()


def test_the_page_is_one_file_that_opens_with_what_was_found(page):
    folder, rows = page
    whole = report.build(folder, rows, "test").read_text()
    assert whole.count(explorer.part()) == 1  # what it is and shows, test_explorer.py says
    text = whole.replace(explorer.part(), "")
    outside = {link for link in re.findall(r'(?:src|href)="([^"]*)', text) if not link.startswith(("#", "data:image/"))}
    inside = {"../../README.md", "../../notebooks", "../../docs/experiments.md", "benchmark/embedded/examples.md"}
    assert outside == {"https://arxiv.org/abs/2602.05933"} | inside
    found = claims.finding(rows).split("\n\n")[1]
    assert text.index("Supported at this size") < text.index("<figure") < text.index("<table")
    assert found.split(":")[0].removeprefix("- **") in text
    assert text.count('<details class="claim"') == len(rows)
    assert readable(rows.reason[0]) in readable(text[text.index('id="claim-a1"') : text.index('id="claim-a2"')])
    law = text[text.index("law-caption") : text.index("finite-caption")]
    assert readable(rows.reason[rows.row == "e1"].item()) in readable(law)
    ids = re.findall(r'\bid="([^"]+)"', text) + re.findall(r'<\w+ id="([^"]+)"', explorer.part())
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    assert used <= set(ids)
    assert text.count('role="img" aria-labelledby="') == text.count("<figure ") == 5
    assert text.count("<td data-label=") == text.count("<td")


def test_effects_are_drawn_in_margins_to_the_right_where_they_speak_for_the_claim(evidence):
    frame = claims.table(evidence)
    rows = frame.set_index("row", drop=False)
    slow = rows.loc["c2"].copy()
    claim = next(claim for claim in claims.CLAIMS if claim.row == "c2")
    effect = claims.Effect(2 * np.log(1.1), np.log(1.1) / 1.96, 1e9)
    slow["in_margins"] = claims._in_margins(claim, effect, None)
    figure, plotted = claims_figure.verdicts(pd.DataFrame([rows.loc["a1"], slow, rows.loc["e1"]]))
    assert claims._in_margins(claim, effect, "above") == pytest.approx((-2, -math.inf, -2))
    nothing = claims._in_margins(claim, effect, "none")
    assert math.isnan(nothing.estimate)
    assert nothing[1:] == (-math.inf, math.inf)
    found = plotted.set_index("row")
    assert found.loc["a1", "estimate"] == pytest.approx(5, abs=1)  # 0.65 against 0.6, and 1 pp matters
    assert found.loc["c2", ["estimate", "low", "high"]].tolist() == pytest.approx([-2, -3, -1], abs=1e-3)
    assert found.loc["e1", "estimate"] == pytest.approx(rows.loc["e1", "effect"].estimate / 0.15)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "accuracy  a1",
        "time  c2",
        "the law  e1",
    ]
    assert "default" not in plotted
    both = claims.beside(study=frame, default=frame[frame.row != "a1"], own={"train"})  # the law is the default's own
    found = claims_figure.verdicts(both)[1].set_index("row")
    assert found.default.notna().to_dict() == {row: row not in ("a1", "e1", "e2", "d1", "d2") for row in found.index}


def readable(html):
    """What a reader sees of a piece of HTML, with plain spaces."""
    return unescape(re.sub("<[^>]+>", "", html)).replace("\u00a0", " ")


def test_a_number_stays_with_its_unit_and_an_interval_in_one_piece():
    assert report._text("32.0 % at n = 8, [−2.1, 0.1] pp at τ_b < τ") == (
        '32.0\u00a0% at n\u00a0=\u00a08, <span class="one">[−2.1, 0.1]\u00a0pp</span> at τ<sub>b</sub> &lt; τ'
    )
    assert report._cell("avg@4", "48.4 [44.0, 52.9]") == (
        '<td data-label="avg@4">48.4 <span class="one">[44.0, 52.9]</span></td>'
    )
    assert report._cell("K", "PMD-mean") == '<td data-label="K" class="one">PMD-mean</td>'
    assert report._cell("why", "a longer text than that") == '<td data-label="why">a longer text than that</td>'


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")
def test_the_page_needs_no_sideways_scrolling_on_a_phone_and_its_links_unfold(page, tmp_path_factory):
    """A frame as wide as a phone, since a window of the browser cannot be that narrow."""
    folder, rows = page
    text = report.build(folder, rows, "test").read_text()
    probe = """<script>
      const shown = document.querySelector('[id="the-theory-with-sliders"] > details');
      const page = document.documentElement;
      document.title = JSON.stringify([page.scrollWidth - page.clientWidth, shown.open,
        document.querySelectorAll("[data-value]").length]);
    </script>"""
    (folder / "phone.html").write_text(text.replace("</body>", f"{probe}</body>"))
    frame = '<iframe id="f" src="phone.html#the-theory-with-sliders" width="390" height="844"></iframe>'
    script = "f.onload = () => { document.body.dataset.seen = f.contentDocument.title; }"
    (folder / "frame.html").write_text(
        f'<meta charset="utf-8"><style>iframe{{border:0}}</style>{frame}<script>{script}</script>'
    )
    profile = tmp_path_factory.mktemp("browser")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--allow-file-access-from-files", f"--user-data-dir={profile}",
               "--virtual-time-budget=5000", "--dump-dom", (folder / "frame.html").as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    seen = unescape(re.search(r'data-seen="([^"]*)"', done.stdout)[1])
    assert json.loads(seen) == [0, True, 10]  # as wide as the frame, unfolded, with the explorer's numbers


def test_the_page_in_markdown_links_its_pictures(page):
    folder, rows = page
    report.build(folder, rows, "test")
    text = (folder / "report.md").read_text()
    links = re.findall(r"\]\(([^)]+\.svg)\)", text)
    assert links[:4] == [f"figures/{name}.svg" for name in ("claims", "law", "finite", "F8")]
    assert all((folder / link).is_file() for link in links)


def test_the_study_comes_first_and_the_default_beside_it(evidence, page, tmp_path_factory):
    folder, rows = page
    study = tmp_path_factory.mktemp("study")
    style.save(*figures.robustness_map(evidence), study / "figures" / "F8")
    write(tables.stability(evidence), study / "tables")
    joined = claims.beside(study=rows, default=rows, own={"train", "law", "finite"})
    write(tables.claims_table(joined), folder / "tables")
    assert "verdict (default)" in markdown(tables.claims_table(joined))
    text = report.build(folder, joined, "test", study).read_text()
    assert text.index("Three pictures") < text.index("The default run")


def test_a_variant_has_its_methods_colour_and_a_name_of_its_own():
    plain, soft = (style.variant_style(name) for name in ("pmd-mean", "pmd-mean tau=0.5"))
    assert plain["color"] == soft["color"]
    assert (plain["label"], soft["label"]) == ("PMD-mean", "PMD-mean, τ = 0.5")
    assert soft["markerfacecolor"] == "white"
    assert frames.ordered(["rloo", "pmd-mean tau=0.5", "pmd-mean"]) == ["pmd-mean", "pmd-mean tau=0.5", "rloo"]
    with pytest.raises(ValueError, match="method: got 'ppo', must be one of"):
        frames.ordered(["ppo"])


def test_the_scale_of_the_map_is_symmetric_and_readable_without_colour():
    ramp = style.diverging()
    assert np.allclose(ramp(0.5)[:3], 1, atol=0.01)
    luminance = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b, _ in (ramp(0.0), ramp(0.5), ramp(1.0))]
    assert luminance[1] > max(luminance[0], luminance[2]) + 0.4
