"""The page with everything: what was found, three pictures, the claims, then the rest.

`sections` says what is on it; `markdown` and `html` say how it looks. The HTML needs no other file: pictures are
inlined, so it can be sent by itself.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import mistune
import pandas as pd

from pmd.files import write_text
from pmd.paper import claims
from pmd.paper.captions import CAPTIONS, IDEA

LEAD = ("law", "finite", "F8")
"""The pictures that come first."""


@dataclass
class Section:
    """A part of the page. figures: (name, its SVG). tables: Markdown files. folded: shown when asked for."""

    title: str
    prose: str = ""
    figures: list[tuple[str, Path]] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    folded: bool = False

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def build(directory: Path, rows: pd.DataFrame, preset: str, study: Path | None = None) -> Path:
    """Write report.md and report.html into results/<preset>; returns the path of report.html.

    rows: the table of claims that opens the page. study: the folder of the study's figures and tables, which then come
    first; None where there is no study. What is absent is left out.
    """
    found = sections(directory, rows, study)
    write_text(directory / "report.md", markdown(found, directory))
    write_text(directory / "report.html", html(found, f"PMD-mean: {preset}"))
    return directory / "report.html"


def sections(directory: Path, rows: pd.DataFrame, study: Path | None) -> list[Section]:
    """What is on the page, in order."""
    lead = study or directory
    made = {"F1", "F2", "F3", "F4", "F4-chain"}

    def pictures(folder: Path, names: list[str]) -> list[tuple[str, Path]]:
        paths = [(n, (directory / "theory" if n in made else folder) / "figures" / f"{n}.svg") for n in names]
        return [(name, path) for name, path in paths if path.is_file()]

    def tables(folder: Path, names: list[str]) -> list[Path]:
        return [path for name in names if (path := folder / "tables" / f"{name}.md").is_file()]

    rest = [name for name in CAPTIONS if name not in (*LEAD, *made)]
    found = [
        Section("What was asked, and what was found", IDEA + "\n\n" + claims.finding(rows)),
        Section("Three pictures", figures=pictures(lead, list(LEAD))),
        Section("The claims", tables=tables(directory, ["T1"])),
        Section("Training", figures=pictures(lead, rest), tables=tables(lead, ["T2", "T3"])),
        Section("The theory", figures=pictures(lead, sorted(made)), tables=tables(directory, ["T4"]), folded=True),
        Section("Settings and compute", tables=tables(directory, ["T5", "T6"]), folded=True),
    ]
    if study:
        own = Section(
            "The default run", "The same, from the run that `make repro` makes on other base models and seeds."
        )
        own.figures, own.tables = pictures(directory, [*LEAD, "F5", "F6", "F7"]), tables(directory, ["T2", "T3"])
        found.insert(4, own)
    return [part for part in found if part.prose or part.figures or part.tables]


def markdown(found: list[Section], directory: Path) -> str:
    """The page as Markdown; pictures are links relative to `directory`."""
    parts = ["# PMD-mean: what holds, how strongly, and where it does not"]
    for part in found:
        parts += [f"## {part.title}", part.prose]
        for name, path in part.figures:
            parts += [
                f"![{CAPTIONS[name]}]({Path(os.path.relpath(path, directory)).as_posix()})",
                f"*{name}. {CAPTIONS[name]}*",
            ]
        parts += [path.read_text(encoding="utf-8").strip() for path in part.tables]
    return "\n\n".join(text for text in parts if text) + "\n"


# --- HTML -----------------------------------------------------------------------------------------------------------

_CSS = """
:root{color-scheme:light dark;--ink:#1f2328;--paper:#fff;--line:#d0d7de;--soft:#59636e}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--line:#30363d;--soft:#9198a1}}
body{max-width:70rem;margin:0 auto;padding:1rem;font:17px/1.55 system-ui,sans-serif}
body{color:var(--ink);background:var(--paper)}
h1{line-height:1.2}h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}
nav a{margin-right:1rem}a{color:#0969da}@media(prefers-color-scheme:dark){a{color:#58a6ff}}
figure{margin:1.5rem 0;padding:.75rem;background:#fff;border:1px solid var(--line);border-radius:6px}
figure svg{width:100%;height:auto;display:block}figcaption{color:#444;font-size:.9rem;margin-top:.5rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;width:100%}
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{white-space:nowrap}summary{cursor:pointer;font-weight:600}code{background:#8882;padding:0 .2em}
@media(max-width:40rem){table,tbody,tr,td{display:block}thead{display:none}tr{border-bottom:2px solid var(--line)}
td{border:0;padding:.15rem 0}td::before{content:attr(data-label) " ";color:var(--soft);font-size:.8rem}}
"""


def html(found: list[Section], title: str) -> str:
    """The page as one HTML file without any other resource."""
    links = "".join(f'<a href="#{part.anchor}">{escape(part.title)}</a> ' for part in found)
    body = "\n".join(_section(part) for part in found)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_CSS}</style></head>\n'
        "<body>\n<h1>PMD-mean: what holds, how strongly, and where it does not</h1>\n<p>"
        '<a href="https://arxiv.org/abs/2602.05933">The paper</a></p>\n'
        f"<nav>{links}</nav>\n{body}\n</body></html>\n"
    )


def _section(part: Section) -> str:
    render = mistune.create_markdown(plugins=["table"])
    inner = [str(render(part.prose))] if part.prose else []
    inner += [_figure(part.anchor, name, path) for name, path in part.figures]
    inner += [_table(str(render(path.read_text(encoding="utf-8")))) for path in part.tables]
    text = "\n".join(inner)
    if part.folded:
        text = f"<details><summary>{escape(part.title)}: show</summary>\n{text}\n</details>"
    return f'<section id="{part.anchor}">\n<h2>{escape(part.title)}</h2>\n{text}\n</section>'


def _figure(where: str, name: str, path: Path) -> str:
    """A picture inlined; the ids in it are made unique, since several pictures share a page."""
    svg = path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    prefix = f"{where}-{name}-"
    seen: set[str] = set()

    def own(match: re.Match) -> str:  # two panels that look the same have images of the same id
        name = match[1]
        while name in seen:
            name += "-"
        seen.add(name)
        return f'id="{prefix}{name}"'

    svg = re.sub(r'\bid="([^"]+)"', own, svg)
    svg = re.sub(r'href="#([^"]+)"', lambda m: f'href="#{prefix}{m[1]}"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", lambda m: f"url(#{prefix}{m[1]})", svg)
    said = escape(CAPTIONS[name], quote=True)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{said}"', 1)
    return f'<figure id="{prefix}figure">{svg}<figcaption><b>{escape(name)}.</b> {said}</figcaption></figure>'


def _table(text: str) -> str:
    """Tables in a box that scrolls; each cell knows its column's name, which a narrow screen shows beside it."""

    def labelled(table: re.Match) -> str:
        names = [re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<th[^>]*>(.*?)</th>", table[0], re.DOTALL)]

        def row(match: re.Match) -> str:
            cells = iter(names)
            return re.sub(r"<td", lambda m: f'<td data-label="{escape(next(cells, ""), quote=True)}"', match[0])

        return f'<div class="scroll">{re.sub(r"<tr>.*?</tr>", row, table[0], flags=re.DOTALL)}</div>'

    return re.sub(r"<table>.*?</table>", labelled, text, flags=re.DOTALL)
