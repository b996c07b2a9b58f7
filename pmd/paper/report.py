"""The page with everything: what was found, in words and in one picture, three pictures, the claims, then the rest.

`sections` says what is on it; `markdown` and `html` say how it looks. The HTML needs no other file: pictures are
inlined, so it can be sent by itself.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import NamedTuple

import mistune
import pandas as pd

from pmd.evaluators.intervals import Interval
from pmd.files import write_text
from pmd.paper import claims, explorer
from pmd.paper.captions import CAPTIONS, IDEA, TERMS, found, label
from pmd.paper.typeset import cell_text

TITLE = "PMD-mean: what holds, how strongly, and where it does not"
LEAD = ("law", "finite", "F8")
"""The pictures that come first."""
LINKS = (
    "[The paper](https://arxiv.org/abs/2602.05933). In the repository: [README](../../README.md), "
    "[notebooks](../../notebooks), [what was asked before the runs](../../docs/experiments.md), "
    "[answers of the models](benchmark/embedded/examples.md); these four links work where the page lies in it."
)


class Picture(NamedTuple):
    """A figure by name, its SVG, and what is seen in it: (row, reason) of the claims that it shows, "" for no row."""

    name: str
    path: Path
    found: list[tuple[str, str]]


@dataclass
class Section:
    """A part of the page. tables: Markdown files. folded: in HTML shown when asked for.

    claims: rows of the claims table; in HTML each is a line that opens, in place of `tables`. live: a part of the HTML
    that runs in the reader's browser; Markdown lacks it. aside: in HTML the pictures stand beside the prose.
    """

    title: str
    prose: str = ""
    figures: list[Picture] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    folded: bool = False
    claims: pd.DataFrame | None = None
    live: str = ""
    aside: bool = False

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def build(directory: Path, rows: pd.DataFrame, preset: str, study: Path | None = None) -> Path:
    """Write report.md and report.html into results/<preset>; returns the path of report.html.

    rows: the table of claims that opens the page. study: the folder of the study's figures and tables, which then come
    first; None where there is no study. What is absent is left out.
    """
    parts = sections(directory, rows, study)
    write_text(directory / "report.md", markdown(parts, directory))
    write_text(directory / "report.html", html(parts, f"PMD-mean: {preset}"))
    return directory / "report.html"


def sections(directory: Path, rows: pd.DataFrame, study: Path | None) -> list[Section]:
    """What is on the page, in order."""
    lead = study or directory
    made = {"F1", "F2", "F3", "F4", "F4-chain"}

    def present(folder: Path, kind: str, file: str) -> Path:
        path = folder / kind / file  # what the study has not finished is the default's
        return path if path.is_file() else directory / kind / file

    def pictures(folder: Path, names: list[str], judged: pd.DataFrame | None = None) -> list[Picture]:
        paths = [(n, present(directory / "theory" if n in made else folder, "figures", f"{n}.svg")) for n in names]
        return [
            Picture(name, path, found(name, judged, path.with_suffix(".csv"))) for name, path in paths if path.is_file()
        ]

    def tables(folder: Path, names: list[str]) -> list[Path]:
        return [path for name in names if (path := present(folder, "tables", f"{name}.md")).is_file()]

    rest = [name for name in CAPTIONS if name not in ("claims", *LEAD, *made)]
    parts = [
        Section(
            "What was asked, and what was found",
            "\n\n".join([IDEA, claims.finding(rows), TERMS, LINKS]),
            pictures(directory, ["claims"]),
            aside=True,
        ),
        Section("Three pictures", figures=pictures(lead, list(LEAD), rows)),
        Section("The theory, with sliders", folded=True, live=explorer.part()),
        Section("The claims", tables=tables(directory, ["T1"]), claims=rows),
        Section("Training", figures=pictures(lead, rest, rows), tables=tables(lead, ["T2", "T3"])),
        Section("The theory", figures=pictures(lead, sorted(made)), tables=tables(directory, ["T4"]), folded=True),
        Section("How the verdicts were reached", tables=tables(directory, ["T1-details"]), folded=True),
        Section("Settings and compute", tables=tables(directory, ["T5", "T6"]), folded=True),
    ]
    if study:
        own = Section(
            "The default run", "The same, from the run that `make repro` makes on other base models and seeds."
        )
        own.figures = pictures(directory, ["law", "finite"])
        if not rows["of_default"].any():  # otherwise what stands above already is the default's training
            own.figures += pictures(directory, ["F8", "F5", "F6", "F7"])
            own.tables = tables(directory, ["T2", "T3"])
        parts.insert(5, own)
    return [part for part in parts if part.prose or part.figures or part.tables or part.live]


def markdown(parts: list[Section], directory: Path) -> str:
    """The page as Markdown; pictures are links relative to `directory`."""
    lines = [f"# {TITLE}"]
    for part in parts:
        if part.live:
            continue
        lines += [f"## {part.title}", part.prose]
        for name, path, seen in part.figures:
            link = Path(os.path.relpath(path, directory)).as_posix()
            said = f" Found: {'. '.join(f'({row}) {what}' if row else what for row, what in seen)}." if seen else ""
            lines += [f"![{CAPTIONS[name]}]({link})", f"*{label(name)}{CAPTIONS[name]}{said}*"]
        lines += [path.read_text(encoding="utf-8").strip() for path in part.tables]
    return "\n\n".join(text for text in lines if text) + "\n"


# --- HTML -----------------------------------------------------------------------------------------------------------

_CSS = """
:root{color-scheme:light dark;--ink:#1f2328;--paper:#fff;--line:#d0d7de;--soft:#59636e;--link:#0969da}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--line:#30363d;--soft:#9198a1;--link:#58a6ff}}
body{max-width:60rem;margin:0 auto;padding:1rem;font:17px/1.55 system-ui,sans-serif}
body{color:var(--ink);background:var(--paper);overflow-wrap:break-word}
h1{line-height:1.2;font-size:1.7rem}h2{margin:2.5rem 0 1rem;border-bottom:1px solid var(--line);line-height:1.3}
nav a{margin-right:1rem;white-space:nowrap}a{color:var(--link)}li{margin:.3rem 0}
summary{cursor:pointer}.folded{margin:2.5rem 0 1rem}.folded h2{display:inline;border:0}
.folded>summary{border-bottom:1px solid var(--line);margin-bottom:1rem}code{background:#8882;padding:0 .2em}
.one{white-space:nowrap}

figure{margin:1.5rem 0;padding:.75rem;background:#fff;border:1px solid var(--line);border-radius:6px}
@media(min-width:60rem){.aside{display:grid;grid-template-columns:1fr 23rem;gap:1.5rem;align-items:start}}
.aside figure{margin:0}.aside p:first-child{margin-top:0}
.picture{overflow-x:auto;cursor:zoom-in}
.picture svg{width:100%;max-width:var(--width);height:auto;display:block;margin:auto}
figcaption{color:#444;font-size:.9rem;margin-top:.5rem}figcaption ul{margin:.3rem 0 0;padding-left:1.2rem}
figure.large{position:fixed;inset:0;margin:0;z-index:9;overflow:auto}
.large .picture{overflow:visible;cursor:zoom-out}.large svg{min-width:75rem;max-width:none}

.scroll{overflow-x:auto}.scroll table{border-collapse:collapse;font-size:.85rem;width:100%}
.scroll th,.scroll td{padding:.35rem .4rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
.scroll th{white-space:nowrap}.scroll~p,.claim~p{color:var(--soft);font-size:.9rem}

.claim{border-bottom:1px solid var(--line);padding:.45rem 0}.claim p{margin:.4rem 0 .4rem 3rem;color:var(--soft)}
.claim summary{display:grid;grid-template-columns:2.6rem 11rem 1fr 12.5rem;gap:0 .6rem;align-items:start}
.claim summary{list-style:none}
.claim summary::-webkit-details-marker{display:none}
.claim b::before{content:"▸ "}.claim[open] b::before{content:"▾ "}
.verdict{border:1px solid;border-radius:1em;padding:0 .55em;display:inline-block}
.supported{background:#0072b222}.contradicted{background:#d55e0033}
.claim small{display:block;color:var(--soft);font-size:.8rem;line-height:1.3}
.effect{color:var(--soft);text-align:right;font-size:.95rem}

@media(max-width:40rem){
.picture svg{min-width:min(36rem,var(--width))}
.claim summary{grid-template-columns:2.6rem 1fr}.claim summary>:nth-child(n+3){grid-column:2;text-align:left}
.scroll table,.scroll tbody,.scroll tr{display:block}.scroll thead{display:none}
.scroll tr{border-bottom:1px solid var(--line);padding:.4rem 0}
.scroll td{border:0;padding:0 1rem 0 0;display:inline-block}
.scroll td:empty{display:none}.scroll td:first-child{display:block;font-weight:600}
.scroll td:not(:first-child)::before{content:attr(data-label) " ";color:var(--soft);font-size:.8rem}}
"""

_SCRIPT = """
for (const figure of document.querySelectorAll("figure")) {
  const toggle = () => figure.classList.toggle("large");
  figure.tabIndex = 0;
  figure.querySelector(".picture").onclick = toggle;
  figure.onkeydown = (event) => { if (event.key === "Enter") toggle(); };
}
document.onkeydown = (event) => {
  if (event.key === "Escape") document.querySelector("figure.large")?.classList.remove("large");
};
const unfold = () => document.querySelector(`[id="${location.hash.slice(1)}"] > details`)?.setAttribute("open", "");
window.onhashchange = unfold;
unfold();
"""
"""A picture is shown as large as the window when it is clicked; a link to a folded section opens it."""


def html(parts: list[Section], title: str) -> str:
    """The page as one HTML file without any other resource."""
    links = "".join(f'<a href="#{part.anchor}">{escape(part.title)}</a> ' for part in parts)
    body = "\n".join(_section(part) for part in parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_CSS}</style></head>\n'
        f"<body>\n<h1>{escape(TITLE)}</h1>\n<nav>{links}</nav>\n{body}\n<script>{_SCRIPT}</script>\n</body></html>\n"
    )


def _section(part: Section) -> str:
    render = mistune.create_markdown(plugins=["table"])
    inner = [str(render(part.prose))] if part.prose else []
    inner += [part.live] if part.live else []
    inner += [_figure(part.anchor, picture) for picture in part.figures]
    if part.claims is not None:
        inner += [_claim(row) for row in part.claims.to_dict("records")]
        inner += [str(render("\n\n".join(notes))) for notes in map(_notes, part.tables)]
    else:
        inner += [_table(str(render(path.read_text(encoding="utf-8")))) for path in part.tables]
    text, title = "\n".join(inner), f"<h2>{escape(part.title)}</h2>"
    if part.aside and part.figures:
        text = f'{title}\n<div class="aside">\n<div>{inner[0]}</div>\n{"".join(inner[1:])}</div>'
    elif part.folded:
        text = f'<details class="folded"><summary>{title}</summary>\n{text}\n</details>'
    else:
        text = f"{title}\n{text}"
    return f'<section id="{part.anchor}">\n{text}\n</section>'


def _text(plain: str) -> str:
    """Plain text as HTML, where no line breaks within "n = 8", "32 %" or an interval, and τ_b has its subscript."""
    text = re.sub(r"(?<=[\d\]]) (?=%|pp\b)|(?<=\w) (?== )|(?<= =) ", "\u00a0", escape(plain))
    text = re.sub(r"\[[^\]]*\](\u00a0pp)?", r'<span class="one">\g<0></span>', text)
    return text.replace("τ_b", "τ<sub>b</sub>")


def _claim(row: dict) -> str:
    """A row of the claims as a line with verdict and effect, which opens on the reason."""
    doubt = claims.doubt(row["verdict"], row["cautious"])
    weak = f"<small>but {doubt}</small>" if doubt else ""
    beside = "verdict (default)" in row and not row["of_default"]
    reason = row["reason"][:1].upper() + row["reason"][1:]
    if beside:
        other = claims.doubt(row["verdict (default)"], row["cautious (default)"])
        reason += f"; the default run: {row['verdict (default)']}" + (f" ({other})" if other else "")
    if "verdict (GPU)" in row:
        reason += f"; at a GPU's size: {row['verdict (GPU)']}, {cell_text(row['effect (GPU)'])} {row['unit']}".rstrip()
    known = claims.printed(row)
    effect = f"{cell_text(known)} {row['unit']}".strip() if isinstance(known, Interval) else known or ""
    kind = row["verdict"].split(" ")[0]
    return (
        f'<details class="claim" id="claim-{row["row"]}"><summary><b>{row["row"]}</b> '
        f'<span><span class="verdict {kind}">{escape(row["verdict"])}</span>{weak}</span> '
        f'<span>{_text(row["claim"])}</span> <span class="effect">{_text(effect)}</span></summary>'
        f"<p>{_text(reason)}. Measured: {_text(row['metric'])}; {row['bases']} base models, {row['runs']} runs.</p>"
        "</details>"
    )


def _notes(table: Path) -> list[str]:
    """What stands below the cells of a table in Markdown."""
    return [part for part in table.read_text(encoding="utf-8").split("\n\n")[1:] if not part.startswith("|")]


ENLARGED = 1.4
"""How much larger than for print a picture is at most shown, so that the text of a narrow one does not grow."""


def _figure(where: str, picture: Picture) -> str:
    """A picture inlined; the ids in it are made unique, since several pictures share a page."""
    svg = picture.path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    prefix = f"{where}-{picture.name}-"
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
    width = ENLARGED * float(re.search(r'\bwidth="([\d.]+)pt"', svg)[1])
    svg = svg.replace("<svg", f'<svg role="img" aria-labelledby="{prefix}caption" style="--width:{width:.0f}pt"', 1)
    items = "".join(f"<li>{f'<b>{row}</b> ' if row else ''}{_text(reason)}</li>" for row, reason in picture.found)
    said = f" Found:<ul>{items}</ul>" if items else ""
    return (
        f'<figure id="{prefix}figure"><div class="picture">{svg}</div><figcaption id="{prefix}caption">'
        f"<b>{label(picture.name)}</b>{_text(CAPTIONS[picture.name])}{said}</figcaption></figure>"
    )


SHORT = 16
"""Characters of a cell that is never broken into lines."""


def _table(text: str) -> str:
    """Tables in a box that scrolls; each cell knows its column's name, which a narrow screen shows beside it."""

    def labelled(table: re.Match) -> str:
        names = [re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<th[^>]*>(.*?)</th>", table[0], re.DOTALL)]

        def row(match: re.Match) -> str:
            columns = iter(names)
            return re.sub(r"<td>(.*?)</td>", lambda m: _cell(next(columns, ""), m[1]), match[0], flags=re.DOTALL)

        return f'<div class="scroll">{re.sub(r"<tr>.*?</tr>", row, table[0], flags=re.DOTALL)}</div>'

    return f"<div>{re.sub(r'<table>.*?</table>', labelled, text, flags=re.DOTALL)}</div>"


def _cell(column: str, inner: str) -> str:
    kept = ' class="one"' if len(inner) <= SHORT and "[" not in inner else ""
    inner = re.sub(r"\[[^\]]*\]", r'<span class="one">\g<0></span>', inner)
    inner = re.sub(r"(?<=[a-z])_(?=[a-z])", "_<wbr>", inner)  # the name of a test may be broken there
    return f'<td data-label="{escape(column)}"{kept}>{inner}</td>'
