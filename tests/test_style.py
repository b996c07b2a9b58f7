"""The house style: every method distinct in colour and in greyscale, saved files identical byte for byte."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.image import imread

from pmd.methods import METHODS
from pmd.paper import style

LABELS = [
    "PMD-mean",
    "PMD-part",
    "GRPO",
    "GRPO, no clip",
    "GSPO",
    "RLOO",
    "Dr. GRPO",
    "CISPO",
    "Kimi K1.5",
    "PMD-tilted",
]


@pytest.fixture
def figure():
    with mpl.rc_context():
        style.apply_style()
        figure, axes = plt.subplots()
        axes.plot([1, 2, 3], [1, 4, 9], **style.method_style("pmd-mean"))
        axes.set_xlabel(r"$\Delta/\tau$")
        yield figure
        plt.close(figure)


def test_every_method_has_its_own_label_line_and_marker():
    styles = [style.method_style(method) for method in METHODS]
    assert [s["label"] for s in styles] == LABELS
    assert len({(str(s["linestyle"]), s["marker"]) for s in styles}) == len(METHODS)
    assert len({str(s["linestyle"]) for s in styles}) == len(METHODS)
    assert max(styles, key=lambda s: s["linewidth"])["label"] == "PMD-mean"


def test_every_registered_method_has_a_look_and_none_else():
    assert set(style.LOOKS) == set(METHODS)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match=r"method: 'ppo' has no style; allowed: pmd-mean"):
        style.method_style("ppo")


def test_saving_twice_gives_the_same_bytes_and_no_date(figure, tmp_path):
    data = pd.DataFrame({"x": [1, 2], "y": [0.1, 1 / 3]})
    first = style.save(figure, data, tmp_path / "v1.0-figure")
    assert [path.name for path in first] == ["v1.0-figure.svg", "v1.0-figure.png", "v1.0-figure.csv"]
    before = [path.read_bytes() for path in first]
    second = style.save(figure, data, tmp_path / "again")
    assert [path.read_bytes() for path in second] == before
    assert b"dc:date" not in before[0]
    assert before[2].decode() == "x,y\n1,0.1\n2,0.3333333333\n"
    assert imread(first[1]).shape[1] == pytest.approx(style.SINGLE * 300, abs=1)
