"""What is not installed, or not in a version that was tested, is said in one line that names the remedy."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

import pmd
from pmd.extras import TESTED, check_stack


def installed(name: str, version: str) -> ModuleType:
    module = ModuleType(name)
    module.__version__ = version
    return module


@pytest.mark.parametrize("name", TESTED)
def test_any_patch_of_the_tested_minor_version_is_accepted_and_no_other_version(monkeypatch, name):
    major, minor = TESTED[name].split(".")
    for patch in ("0", "7", "3.post1"):
        monkeypatch.setitem(sys.modules, name, installed(name, f"{major}.{minor}.{patch}"))
        check_stack(name)
    for version in (f"{major}.{int(minor) - 1}.9", f"{major}.{int(minor) + 1}.0", f"{int(major) + 1}.{minor}.0",
                    f"{major}.{minor}0.0"):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, installed(name, version))
        with pytest.raises(ImportError) as refusal:
            check_stack(name)
        range_ = f"{major}.{minor}.*"
        assert str(refusal.value) == f"{name}: got version {version}, must be {range_}: pip install '{name}=={range_}'"


@pytest.mark.parametrize("name", TESTED)
def test_a_missing_stack_names_its_extra(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError) as refusal:
        check_stack(name)
    assert str(refusal.value) == f"pmd.{name}: needs {name}, which is not installed: pip install 'pmd[{name}]'"


def test_a_missing_module_of_our_own_is_no_missing_extra(monkeypatch):
    monkeypatch.delitem(vars(pmd), "train", raising=False)
    monkeypatch.setitem(pmd._MODULES, "train", "pmd.trainer.lop")
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'pmd\.trainer\.lop'$"):
        _ = pmd.train
