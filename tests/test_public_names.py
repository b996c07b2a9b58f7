"""`import pmd`: quick, without torch, and every public name is the object that its module defines."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module

import pytest

import pmd
from pmd.files import ROOT

PUBLIC = {
    "OBJECTIVES", "Hyper", "Minibatch", "Sampling", "TorchEngine", "binary_update", "evaluate", "finite_sample",
    "load_params", "loss", "population_update", "read_problems", "train", "train_config", "verify",
}  # fmt: skip


def test_importing_takes_less_than_a_fifth_of_a_second_and_loads_no_library():
    code = (
        "import sys, time; start = time.process_time(); import pmd; seconds = time.process_time() - start;"
        "print(seconds, *sorted({name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    seconds, *loaded = done.stdout.split()
    assert float(seconds) < 0.2
    assert set(loaded) <= {"__main__", "pmd"}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_is_the_object_that_its_module_defines(name):
    module = import_module(pmd._MODULES[name])
    value = getattr(pmd, name)
    assert value is getattr(module, "load" if name == "load_params" else name)
    assert getattr(value, "__module__", pmd._MODULES[name]) == pmd._MODULES[name]


def test_the_names_are_listed_and_type_checkers_see_the_same():
    assert set(pmd._MODULES) == set(pmd.__all__) == PUBLIC
    assert set(dir(pmd)) >= PUBLIC
    [block] = [node for node in ast.parse((ROOT / "pmd" / "__init__.py").read_text()).body if isinstance(node, ast.If)]
    typed = {(alias.asname or alias.name, node.module) for node in block.body for alias in node.names}
    assert typed == set(pmd._MODULES.items())
    assert (ROOT / "pmd" / "py.typed").exists()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'pmd' has no attribute 'trane'"):
        _ = pmd.trane
    with pytest.raises(ImportError, match="cannot import name 'trane'"):
        from pmd import trane  # noqa: F401
