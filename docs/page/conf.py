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
from latex2mathml.converter import convert
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.ext.autodoc.mock import _MockObject
from sphinx.transforms.post_transforms import SphinxPostTransform

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
REPORT = ROOT / "results" / "default" / "report.md"  # which is the site's first page
REPOSITORY = os.environ.get("PAGE_REPOSITORY", "")

project = "PMD-mean, from clone to paper"
html_title = "PMD-mean"
html_theme = "furo"
html_copy_source = False
html_show_copyright = False
exclude_patterns = ["files"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_math_renderer = "mathml"

nb_ipywidgets_js = {}  # sliders need a kernel; their scripts would come from another site
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4

viewcode_follow_imported_members = False  # names are listed under the modules that define them
highlight_language = "none"  # of what is indented in a docstring
autodoc_member_order = "bysource"
autodoc_default_options = {"no-value": True}
autodoc_mock_imports = ["huggingface_hub", "safetensors", "tokenizers", "torch", "tqdm", "transformers"]
"""What pmd imports and the page's environment lacks: signatures and docstrings do not need it."""
_MockObject.__or__ = lambda self, other: self  # Tensor | None, where it is not an annotation


def show_formula(visitor: Any, node: nodes.Element) -> None:
    """A formula as MathML, which every browser draws without a script."""
    tex = node.astext().replace(r"\arg", r"\operatorname{arg}")
    drawn = convert(tex, display="block" if isinstance(node, nodes.math_block) else "inline")
    if "\\" in drawn:
        raise ValueError(f"a formula has a command that latex2mathml does not know: {tex}")
    visitor.body.append(drawn)
    raise nodes.SkipNode


class FilesOfTheRepository(SphinxPostTransform):
    """A link to a file of the repository that is no page of the site; of one that is not there, Sphinx warns."""

    default_priority = 5  # before MyST's own resolver, at 9

    def run(self, **_: Any) -> None:
        for node in list(self.document.findall(pending_xref)):
            if node["reftype"] != "myst":
                continue
            path = (ROOT / node["refdoc"]).parent / node["reftarget"]
            if path.exists():
                uri = self.address(Path(os.path.normpath(path)), node["refdoc"])
                node.replace_self(nodes.reference("", "", *node.children, refuri=uri, internal=False))

    def address(self, path: Path, page: str) -> str:
        if path == REPORT:
            return self.app.builder.get_relative_uri(page, "index")
        if REPOSITORY:
            return f"{REPOSITORY}/{path.relative_to(ROOT).as_posix()}"
        return Path(os.path.relpath(path, (self.app.outdir / page).parent)).as_posix()


def as_plain_text(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text: names in backticks and items are markup, whatever is indented stays as it is."""
    found: list[str] = []
    for text in re.split(r"\n\s*\n", "\n".join(lines)):
        rows = text.split("\n")
        if any(row.startswith(" ") for row in rows) and not text.startswith("- "):
            rows = ["::", "", *(f"    {row}" for row in rows)]
        else:
            rows = literal(text).split("\n")
        found += [*rows, ""]
    lines[:] = found


def literal(text: str) -> str:
    """Text with its backticks doubled and what reStructuredText would take for markup escaped."""
    parts = re.split(r"`+([^`]+)`+", text)
    return "".join(f"``{part}``" if i % 2 else re.sub(r"([\\*_|])", r"\\\1", part) for i, part in enumerate(parts))


def is_noise(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Fields of a named tuple that have no text of their own are left out."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def setup(app: Sphinx) -> None:
    app.config.html_extra_path = [str(app.srcdir / "files")]  # in the file it would be relative to this folder
    app.add_html_math_renderer("mathml", inline_renderers=(show_formula, None), block_renderers=(show_formula, None))
    app.add_post_transform(FilesOfTheRepository)
    app.connect("autodoc-process-docstring", as_plain_text)
    app.connect("autodoc-skip-member", is_noise)
