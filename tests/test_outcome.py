"""What a run says at its end: whose verdicts stand beside its own, and the numbers of metrics.json."""

from __future__ import annotations

import subprocess

import pandas as pd
import pytest

from pmd.files import ROOT, read_json
from pmd.paper import claims, frames, outcome
from tests import evidence as made

ROWS = pd.DataFrame({"row": ["a1", "b1", "g"], "verdict": ["supported", "undecided", "not testable here"]})
STUDIED = (
    ",verdict (study),verdict (default),claim\n"
    'a1,undecided (too few base models to rely on it),supported – disagrees,"x, y"\n'
    "b1,supported,undecided,z\n"
)


def test_the_committed_verdicts_are_those_of_head_and_of_the_presets_own_runs(tmp_path):
    table = tmp_path / "results" / "default" / "tables" / "T1.csv"
    table.parent.mkdir(parents=True)
    table.write_text(STUDIED, encoding="utf-8")
    own = {"a1": "supported", "b1": "undecided"}
    assert outcome.known_verdicts(table, tmp_path) == ("before", own)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    table.write_text(",verdict\na1,contradicted (too few base models to rely on it)\n")
    assert outcome.known_verdicts(table, tmp_path) == ("committed", own)
    other = table.with_name("T1-other.csv")
    assert outcome.known_verdicts(other, tmp_path) == ("before", {})
    other.write_text(table.read_text())
    assert outcome.known_verdicts(other, tmp_path) == ("before", {"a1": "contradicted"})


def test_differences_are_named():
    text = outcome.beside(ROWS, "committed", {"a1": "undecided", "b1": "undecided", "g": "not testable here"})
    head, a1, b1, g, last = text.splitlines()
    assert head.split() == ["verdict", "committed"]
    assert a1.split() == ["a1", "supported", "undecided", "differs"]
    assert b1.split() == ["b1", "undecided", "undecided"]
    assert "differs" not in g
    assert last == "2 of 3 verdicts are the same as committed; a1: other ones"
    assert outcome.beside(ROWS, "before", {}).endswith("there are no verdicts to compare these with")


def test_the_metrics_are_few_short_and_those_of_the_evidence(tmp_path):
    levels = {"pmd-mean": 0.65, "grpo": 0.6, "rloo": 0.5}

    def accuracy(variant, k, rate):
        return levels[variant.split(" ")[0]] - (0.2 if rate == 1e-3 else 0) - (0.1 if k == 40 else 0)

    variants = ("pmd-mean", "pmd-mean tau=0.5", "grpo", "rloo")
    made.write(tmp_path, **made.frames(accuracy, variants=variants), law=made.law(ratio=1.1), finite=made.finite(0.07))
    evidence = frames.load(tmp_path)
    verdicts = claims.table(evidence)
    found = outcome.metrics(evidence, verdicts)
    assert {name: found[name] for name in levels} == pytest.approx({n: 100 * x for n, x in levels.items()}, abs=1)
    assert found["law"] == pytest.approx(0.1, abs=0.02)
    assert found["finite"] == pytest.approx(14, abs=0.5)  # twice the gain, on prompts that it learns from
    assert found["supported"] == (verdicts["verdict"] == "supported").sum() > 0
    assert list(found) == [
        "base",
        "grpo",
        "pmd-mean",
        "rloo",
        "law",
        "finite",
        "supported",
        "contradicted",
        "undecided",
    ]


def test_the_committed_metrics_are_those_of_the_committed_evidence():
    evidence = frames.load(ROOT / "results" / "default" / "evidence")
    assert read_json(ROOT / "metrics.json") == outcome.metrics(evidence, claims.table(evidence))
