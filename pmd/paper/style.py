"""The style of every figure: one palette, one set of widths, one way to save.

Colours are those of Okabe and Ito (2008), told apart by people with any common colour-vision deficiency;
line style and marker differ too, so that a figure survives a greyscale printer.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.colors
import pandas as pd
from matplotlib.figure import Figure

from pmd.files import atomic
from pmd.methods import METHODS

SINGLE = 3.4
"""Width in inches of a figure that spans one column of a paper."""
DOUBLE = 7.0
"""Width in inches of a figure that spans both columns."""

COLOURS = {
    "vermillion": "#D55E00",
    "blue": "#0072B2",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "black": "#000000",
    "grey": "#7F7F7F",
    "light": "#D9D9D9",
}
"""Okabe–Ito colours by name, with two greys for guides and bands."""

LOOKS: dict[str, tuple[str, Any, str]] = {
    "pmd-mean": ("vermillion", "-", "o"),
    "pmd-part": ("blue", (0, (5, 1.5)), "s"),
    "grpo": ("green", (0, (1, 1.2)), "^"),
    "grpo-unclipped": ("green", (0, (3, 1, 1, 1, 1, 1)), ">"),
    "gspo": ("purple", (0, (5, 1.5, 1, 1.5)), "D"),
    "rloo": ("orange", (0, (3, 1.2)), "v"),
    "dr-grpo": ("sky", (0, (5, 1.2, 1, 1.2, 1, 1.2)), "P"),
    "cispo": ("black", (0, (1, 2.5)), "X"),
    "kimi": ("grey", (0, (7, 2)), "<"),
    "pmd-tilted": ("blue", (0, (2, 1)), "h"),
}
"""The colour, line style and marker of each method of pmd/methods.py, which has their labels and their order."""

_RC = {
    "axes.formatter.use_mathtext": True,
    "axes.grid": True,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 8,
    "axes.titley": 1.0,  # where it would be put: to look for what it might collide with takes a quarter of a drawing
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "figure.figsize": (SINGLE, 2.4),
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "legend.title_fontsize": 7,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "mathtext.fontset": "dejavusans",
    "savefig.dpi": 300,
    "svg.fonttype": "none",  # real text: it can be searched, read aloud and copied
    "svg.hashsalt": "pmd",
    "xtick.labelsize": 7,
    "xtick.major.size": 3,
    "xtick.major.width": 0.6,
    "xtick.minor.size": 1.5,
    "xtick.minor.width": 0.4,
    "ytick.labelsize": 7,
    "ytick.major.size": 3,
    "ytick.major.width": 0.6,
    "ytick.minor.size": 1.5,
    "ytick.minor.width": 0.4,
}


def apply_style() -> None:
    """Make the house style matplotlib's default for this process."""
    import seaborn as sns  # only here: it takes a second to load, and a table needs the methods' labels alone

    sns.set_theme(context="paper", style="ticks", palette=[COLOURS[c] for c in list(COLOURS)[:7]], rc=_RC)


def method_style(method: str) -> dict[str, Any]:
    """Keyword arguments for `Axes.plot` (colour, line, marker, width, label) that stand for one method.

    Raises ValueError if `method` is not one of the methods with a style.
    """
    if method not in LOOKS:
        raise ValueError(f"method: {method!r} has no style; allowed: {', '.join(LOOKS)}")
    colour, linestyle, marker = LOOKS[method]
    first = method == "pmd-mean"
    return {
        "color": COLOURS[colour],
        "linestyle": linestyle,
        "marker": marker,
        "label": METHODS[method].label,
        "linewidth": 2.0 if first else 1.2,
        "zorder": 3 if first else 2,
    }


def diverging() -> mpl.colors.Colormap:
    """Vermillion below, white in the middle, blue above: told apart by people with any common colour vision."""
    ends = [COLOURS["vermillion"], "#FFFFFF", COLOURS["blue"]]
    return mpl.colors.LinearSegmentedColormap.from_list("pmd-diverging", ends)


_SYMBOLS = {"tau": "τ", "tau_b": "τ_b", "clip_low": "clip below", "clip_high": "clip above", "normalise": "by"}


def label_of(variant: str) -> str:
    """The name in figures and tables of a variant such as "pmd-mean tau=0.5": PMD-mean, τ = 0.5."""
    method, *changes = variant.split(" ")
    parts = [change.partition("=") for change in changes]
    return ", ".join([METHODS[method].label, *(f"{_SYMBOLS[key]} = {value}" for key, _, value in parts)])


def variant_style(variant: str) -> dict[str, Any]:
    """`method_style` of a variant: its method's, thinner and with a hollow marker where settings differ."""
    look = method_style(variant.split(" ")[0]) | {"label": label_of(variant)}
    return look | ({"markerfacecolor": "white", "linewidth": 0.9} if " " in variant else {})


class Shown(Figure):
    """A figure that a notebook shows as the value of a cell, also where pyplot, which prepares that, was never used."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()


def save(figure: Figure, data: pd.DataFrame, stem: str | Path) -> list[Path]:
    """Write `stem`.svg, `stem`.png (300 dpi) and `stem`.csv (the plotted numbers), each atomically.

    The same figure gives the same bytes: SVG ids come from a fixed salt and no file carries a date. The layout is
    computed once and then kept, which halves the time of writing both images.
    Returns the three paths in that order. Raises OSError naming the path that could not be written.
    """
    stem = Path(stem)
    svg, png, csv = (stem.with_name(f"{stem.name}.{ending}") for ending in ("svg", "png", "csv"))

    def image(kind: str, metadata: dict[str, None], dpi: int) -> Callable[[Path], None]:
        return lambda path: figure.savefig(path, format=kind, metadata=metadata, dpi=dpi)

    if layout := figure.get_layout_engine():
        layout.execute(figure)
        figure.set_layout_engine("none")
    with mpl.rc_context({key: _RC[key] for key in ("svg.fonttype", "svg.hashsalt")}):
        atomic(svg, image("svg", {"Date": None}, 200))  # of the parts that are images: clouds of dots
        atomic(png, image("png", {"Software": None}, 300))
    atomic(csv, lambda path: data.to_csv(path, index=False, float_format="%.10g", lineterminator="\n"))
    return [svg, png, csv]
