r"""Unicode -> LaTeX: the characters that people and models write for mathematics, in the notation that is compared."""

from __future__ import annotations

import re
import unicodedata

VULGAR = "[¼-¾⅐-⅞]"
SCRIPTS = re.compile("(?P<above>[⁰¹²³⁴-⁹⁺⁻ⁿⁱ]+)|(?P<below>[₀-₉₊₋]+)")
SYMBOLS = str.maketrans(
    {
        **dict.fromkeys("−–﹣－", "-"),
        **dict.fromkeys("\u200b\u2060\ufeff€£¥₹₩₽₱₺₿₦฿¢￥", None),
        **dict.fromkeys("º˚°", "^\\circ "),
        **dict.fromkeys("·⋅", "\\cdot "),
        **dict.fromkeys("÷∕⁄", "/"),
        **dict.fromkeys("、，", ","),
        **{"×": "\\times ", "π": "\\pi ", "∞": "\\infty ", "∅": "\\emptyset ", "∶": ":", "ℝ": "\\mathbb{R}"},
        **{"≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "±": "\\pm ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in "},
        **{"≈": "\\approx ", "\t": " ", "\n": " "},
    }
)
r"""Characters and the LaTeX for them; currencies and characters without a width are dropped."""


def in_latex(text: str) -> str:
    r"""The text in ASCII as far as it can be: `2½` is `2\frac{1}{2}`, `10⁻³` is `10^{-3}`, a wide `％` is `%`."""
    text = re.sub(VULGAR, _fraction, text)
    text = SCRIPTS.sub(lambda match: ("^" if match["above"] else "_") + f"{{{_plain(match[0])}}}", text)
    return _plain(text.translate(SYMBOLS)).translate(SYMBOLS)


def _plain(text: str) -> str:
    """Letters, digits and spaces in their plain form."""
    return unicodedata.normalize("NFKC", text)


def _fraction(match: re.Match[str]) -> str:
    above, below = _plain(match[0]).split("⁄")
    return f"\\frac{{{above}}}{{{below}}}"
