"""The README's examples run, and whatever file or name of pmd a text names is there."""

from __future__ import annotations

import pkgutil
import re
import subprocess

import pandas as pd
import pytest

from pmd.files import ROOT
from pmd.problems import arithmetic

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_loss_alone():
    space: dict = {}
    exec(BLOCKS[1], space)
    weight = -space["advantage"].repeat_interleave(space["lengths"]) / 3 / 4
    assert space["log_ratio"].grad.tolist() == pytest.approx(weight.tolist())


def test_training_on_ones_own_task(tiny_dir, tmp_path):
    arithmetic.generate(tmp_path / "data")
    block = BLOCKS[0]
    for name, here in (
        ("bases/base-1", tiny_dir),
        ("data/", f"{tmp_path}/data/"),
        ("runs/mine", tmp_path / "mine"),
    ):
        assert f'"{name}' in block
        block = block.replace(f'"{name}', f'"{here}')
    block = block.replace("steps=20", "steps=1, eval_k=1")
    exec(block, {})
    assert (tmp_path / "mine" / "last" / "model.safetensors").is_file()


def test_what_was_found_is_what_the_claims_table_says():
    said = " ".join(README.partition("**What was found, at this size.**")[2].partition("\n## ")[0].split())
    rows = pd.read_csv(ROOT / "results" / "default" / "tables" / "T1.csv", index_col=0)
    verdict = rows["verdict (study)"].str.partition(" (")[0]
    assert verdict[["e1", "b1", "b2", "a1", "a3"]].tolist() == ["supported"] * 3 + ["contradicted", "undecided"]
    for row, words in (
        (
            "b1",
            "more stable over learning rates than RLOO, which is PMD-mean without its regulariser, by {:.1f} points",
        ),
        ("b2", "and than PMD-part, which estimates the partition function, by {:.1f}."),
        ("a1", "it ends {:.1f} points lower; with forty the difference is undecided"),
    ):
        assert words.format(abs(float(rows.effect[row]))) in said
    assert " K = 8 " in rows.why["a1"]
    assert " K = 40 " in rows.why["a3"]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_lead_somewhere(target):
    assert target.startswith("https://") or (ROOT / target).exists()


def tracked() -> list[str]:
    """Every file of the repository that git tracks or would add, relative to its root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")[:-1]


FILES = tracked()
TEXTS = [
    path
    for path in FILES
    if (
        path.endswith((".py", ".md", ".ipynb", ".slurm", "Makefile", "params.yaml", "dvc.yaml", "data.dvc"))
        and not path.startswith(("tests/", "results/", "runs/"))
    )
    or path.startswith("presets/")
]
CODE = re.compile(r"(?<![\w*/.<-])(?:\.\./)?((?:[\w-]+/)*[\w-]+\.(?:py|ipynb))\b")
OTHERS = re.compile(r"(?<![\w/*.])(?:\.\./)?((?:docs|tests|presets|scripts)/[\w/.-]+\.(?:md|txt|slurm|json))\b")
MODULE = re.compile(r"\bpmd(?:\.[A-Za-z_]\w*)+")


@pytest.mark.parametrize("path", TEXTS)
def test_the_files_and_names_that_a_text_refers_to_exist(path):
    """A file may be named from the repository's root or by the end of its path, a name of pmd by its dotted path.

    What is below runs/ is made by the pipeline.
    """
    text = (ROOT / path).read_text(encoding="utf-8")
    named = {name for name in (*CODE.findall(text), *OTHERS.findall(text)) if not name.startswith("runs/")}
    assert not [name for name in named if not any(f"/{file}".endswith(f"/{name}") for file in FILES)]
    assert not [name for name in set(MODULE.findall(text)) if not leads_somewhere(name)]


def leads_somewhere(name: str) -> bool:
    """Is this dotted path a module of pmd, or what its modules and classes define?"""
    if (ROOT / name.replace(".", "/")).with_suffix(".py").is_file():  # a plug-in's stack need not be installed here
        return True
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True
