"""Gather what the page is made of in one folder: `python docs/page/stage.py runs/page/source` (a part of `make page`).

Every text keeps its path in the repository, so that links between them stay as they are. A notebook is taken as the
default run executed it, where that copy exists, else as it is committed.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import pmd  # noqa: E402
from pmd.paper import explorer  # noqa: E402

PAGE = Path("docs/page")
REPORT = Path("results/default/report.md")

INDEX = """

```{{toctree}}
:hidden:

docs/page/playground
```

```{{toctree}}
:caption: Notebooks
:hidden:

{notebooks}
```

```{{toctree}}
:caption: How to
:hidden:

README
{docs}
```

```{{toctree}}
:caption: Reference
:hidden:

docs/page/api
```
"""

LINKS = """\
[The theory, to play with](docs/page/playground.md) · [The notebooks, executed](notebooks/0-theory.ipynb) ·
[How to run it](README.md) · [The public names](docs/page/api.md) ·
<a href="report.html">This page as one file</a> · [The paper](https://arxiv.org/abs/2602.05933)
"""


def gather(root: Path, source: Path) -> None:
    """Write the page's sources to the folder `source`, which is emptied first. root: the repository."""
    shutil.rmtree(source, ignore_errors=True)
    docs = sorted(path.relative_to(root) for path in (root / "docs").glob("*.md"))
    notebooks = sorted(path.relative_to(root) for path in (root / "notebooks").glob("*.ipynb"))
    figures = [
        path.relative_to(root) for part in ("default", "study") for path in (root / "results" / part).rglob("*.svg")
    ]
    for path in [Path("README.md"), *docs, *figures, PAGE / "playground.md"]:
        copy(root / path, source / path)
    api = (root / PAGE / "api.md").read_text(encoding="utf-8")
    write(source / PAGE / "api.md", api.replace("<!-- the names of pmd.__all__ -->", public_names()))
    stages = executed_as((root / "dvc.yaml").read_text(encoding="utf-8"))
    for path in notebooks:
        copy(newest(root, stages.get(path.as_posix())) or root / path, source / path)
    around = (root / PAGE / "explorer.html").read_text(encoding="utf-8")
    write(source / "files" / "explorer.html", around.replace("<!-- explorer -->", explorer.part()))
    write(source / PAGE / "explorer-part.html", explorer.part())
    alone = (root / REPORT.with_suffix(".html")).read_text(encoding="utf-8")
    write(source / "files" / "report.html", re.sub(r'<a href="(?!https:|#)[^"]*">(.*?)</a>', r"\1", alone))
    title, _, story = moved((root / REPORT).read_text(encoding="utf-8"), REPORT.parent.as_posix()).partition("\n")
    names = {"notebooks": notebooks, "docs": docs}
    entries = {name: "\n".join(path.with_suffix("").as_posix() for path in paths) for name, paths in names.items()}
    write(source / "index.md", f"{title}\n\n{LINKS}\n{story}{INDEX.format(**entries)}")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, to)


def public_names() -> str:
    """Directives for the names that pmd offers, by module; those of the theory have a section of their own."""
    by_module: dict[str, list[str]] = {}
    for name, module in pmd._MODULES.items():
        if not module.startswith("pmd.theory."):
            by_module.setdefault(module, []).append("load" if name == "load_params" else name)
    return "\n".join(f".. automodule:: {module}\n   :members: {', '.join(by_module[module])}\n" for module in by_module)


def executed_as(pipeline: str) -> dict[str, str]:
    """{notebook: its stage} of the text of dvc.yaml; a stage of several entries has `*` for the entry's name."""
    pairs = re.findall(r"pmd notebook (notebooks/\S+)\s+--stage (\S+)", pipeline)
    return {notebook: re.sub(r"\$\{\w+\}", "*", stage) for notebook, stage in pairs}


def newest(root: Path, stage: str | None) -> Path | None:
    """The executed copy of a notebook in the default run, of several entries the newest; None where there is none."""
    found = (root / "runs" / "default" / "notebooks").glob(f"{stage}.ipynb") if stage else []
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def moved(text: str, folder: str) -> str:
    """Markdown of a folder of the repository with its relative links as the repository's root needs them."""

    def link(match: re.Match) -> str:
        target = match[2]
        if re.match(r"[a-z]+:|#|/", target):
            return match[0]
        return match[1] + posixpath.normpath(posixpath.join(folder, target)) + match[3]

    text = re.sub(r"(\]\()([^)\s]+)(\))", link, text)
    return re.sub(r"((?:src|href)=\")([^\"]+)(\")", link, text)


if __name__ == "__main__":
    gather(ROOT, Path(sys.argv[1]))
