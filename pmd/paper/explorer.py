"""The theory with sliders: one picture of an update by τ, p and n, drawn in the reader's browser.

explorer.html is a part of a page, theory.js has the numbers and explorer.js the picture. The report and the site hold
this one part, so that they cannot differ.
"""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parent


def part() -> str:
    """The HTML of the explorer with its scripts in it; it loads nothing, and a page may hold it once."""

    def script(match: re.Match) -> str:
        return f"<script>\n{(FOLDER / match[1]).read_text(encoding='utf-8')}</script>"

    text = (FOLDER / "explorer.html").read_text(encoding="utf-8")
    return re.sub(r'<script src="([^"]+)"></script>', script, text)
