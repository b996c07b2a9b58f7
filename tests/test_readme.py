"""The README's examples run, and the files it names exist."""

from __future__ import annotations

import re

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
        ("runs/default/base", tiny_dir),
        ("data/", f"{tmp_path}/data/"),
        ("runs/mine", tmp_path / "mine"),
    ):
        assert f'"{name}' in block
        block = block.replace(f'"{name}', f'"{here}')
    block = block.replace("steps=20", "steps=1, eval_k=1")
    exec(block, {})
    assert (tmp_path / "mine" / "last" / "model.safetensors").is_file()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_lead_somewhere(target):
    assert target.startswith("https://") or (ROOT / target).exists()
