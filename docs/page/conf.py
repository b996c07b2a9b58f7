"""How Sphinx builds the page from what stage.py gathered: `make page`. Nothing is fetched while it does.

PAGE_REPOSITORY, such as https://github.com/OWNER/NAME/blob/main, is where links to files of the repository lead that
are no part of the page. Where it is not set, they lead to the checkout that the page was built in.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
REPOSITORY = os.environ.get("PAGE_REPOSITORY", "")

project = "PMD-mean, from clone to paper"
html_title = "PMD-mean"
html_theme = "furo"
html_copy_source = False
html_show_copyright = False
html_extra_path = ["files"]
exclude_patterns = ["files"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_math_renderer = "mathml"

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_mock_imports = ["huggingface_hub", "safetensors", "tokenizers", "torch", "tqdm", "transformers"]
"""What pmd imports and the page's environment lacks: signatures and docstrings do not need it."""


def show_formula(visitor: Any, node: nodes.Element) -> None:
    """A formula as MathML, which every browser draws without a script."""
    block = isinstance(node, nodes.math_block)
    visitor.body.append(tex2mathml(node.astext(), as_block=block))
    raise nodes.SkipNode


def leads_to_a_file(app: Sphinx, env: Any, node: nodes.Element, shown: nodes.Node) -> nodes.reference | None:
    """A link to a file of the repository that is no page of the site; None, hence a warning, if there is none."""
    if node.get("reftype") != "myst":
        return None
    folder = (ROOT / node["refdoc"]).parent
    target, _, anchor = node["reftarget"].partition("#")
    path = (folder / target).resolve()
    if not path.exists() or not path.is_relative_to(ROOT):
        return None
    if path == ROOT / "results" / "default" / "report.md":
        uri = app.builder.get_relative_uri(node["refdoc"], "index")
    elif REPOSITORY:
        uri = f"{REPOSITORY}/{path.relative_to(ROOT).as_posix()}"
    else:
        uri = Path(os.path.relpath(path, (app.outdir / node["refdoc"]).parent)).as_posix()
    return nodes.reference("", "", shown, refuri=uri + (f"#{anchor}" if anchor else ""), internal=False)


def as_plain_text(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text: nothing in them is markup but names in backticks and indented formulas."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines))
    found: list[str] = []
    for text in paragraphs:
        rows = text.split("\n")
        if all(row.startswith("    ") for row in rows if row):
            found += ["::", "", *rows, ""]
        else:
            found += [*literal(text).split("\n"), ""]
    lines[:] = found


def literal(text: str) -> str:
    """Text with its backticks doubled and what reStructuredText would take for markup escaped."""
    parts = re.split(r"`+([^`]+)`+", text)
    return "".join(f"``{part}``" if i % 2 else re.sub(r"([\\*_|])", r"\\\1", part) for i, part in enumerate(parts))


def is_noise(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Fields of a named tuple that have no text of their own are left out."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", inline_renderers=(show_formula, None), block_renderers=(show_formula, None))
    app.connect("missing-reference", leads_to_a_file)
    app.connect("autodoc-process-docstring", as_plain_text)
    app.connect("autodoc-skip-member", is_noise)
