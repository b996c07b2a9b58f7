"""All settings are checked at once: a mistake in any namespace is one line, before any stage works."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pmd import params
from pmd.__main__ import main
from pmd.files import ROOT
from pmd.settings import check

COMMITTED = params.load()


def test_the_committed_settings_and_every_preset_pass():
    check(COMMITTED)
    for path in (ROOT / "presets").glob("*.yaml"):
        check(params.of_preset(path.stem))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trian": {}}, r"^trian: got \{\}, must be left out: .*; did you mean train\?$"),
        ({"train": COMMITTED["train"] | {"tua": 0.1}}, r"^train\.tua: got 0\.1, .*; did you mean tau\?$"),
        ({"methods": {"gspo": {"clip": 1}}}, r"^train\.clip: got 1"),
        ({"base": COMMITTED["base"] | {"heads": 5}}, r"^base\.heads: got 5, must be a divisor"),
        ({"grid": COMMITTED["grid"] | {"methods": ["pmd-men"]}}, r"^grid\.methods: got 'pmd-men', .*mean pmd-mean\?$"),
        ({"grid": COMMITTED["grid"] | {"bases": [9]}}, r"^bases: got 9, must be one of the base models"),
        ({"law": COMMITTED["law"] | {"steps": 0}}, r"^law\.steps: got 0, must be at least 1$"),
        ({"finite": COMMITTED["finite"] | {"tau_b": [0]}}, r"^finite\.tau_b: got 0\.0, must be a number other than 0"),
        ({"evaluate": COMMITTED["evaluate"] | {"top_p": 2.0}}, r"^evaluate\.top_p: got 2\.0"),
        ({"tasks": {"x": {"seed": 1}}}, r"^tasks\.x\.digits: missing"),
        ({"sets": {"x": {"format": "gsm8k"}}}, r"^sets\.x\.path: got None, must be given"),
        ({"sets": {"a.b": {"format": "gsm8k", "path": "x.csv"}}}, r"^sets: got 'a\.b', must be names of letters"),
        ({"benchmark": {"x": {"modle": "m"}}}, r"^benchmark\.x\.modle: .*; did you mean model\?$"),
        ({"scale": {"x": {}}}, r"^scale\.x\.model: missing"),
        ({"train_bases": {"mine": True}}, r"^train_bases: got \{'mine': True\}, must be"),
        (
            {"train_bases": {"own": True}, "bases": "runs/x", "law": COMMITTED["law"] | {"bases": [99]}},
            r"^law\.bases: got 99, must be one of",
        ),
        ({"train_bases": {"own": True}}, r"^bases: got 'bases', must be another folder than the committed one"),
        ({"law": COMMITTED["law"] | {"prompts": 12}}, r"^law\.prompts: got 12, must be a multiple of .* = 8$"),
        (
            {"methods": COMMITTED["methods"] | {"pmd-tilted": {"tau_b": "a"}}},
            r"^train\.tau_b: got 'a', must be a number",
        ),
        ({"methods": COMMITTED["methods"] | {"pmd-tilted": {"tau_b": 0}}}, r"^train\.tau_b: got 0.*, must be a number"),
        ({"preset": None}, r"^preset: got None, must be a string$"),
    ],
)
def test_a_mistake_in_any_namespace_is_found(changes, message):
    with pytest.raises(ValueError, match=message):
        check(COMMITTED | changes)


def test_every_stage_checks_all_namespaces_before_it_works(tmp_path, monkeypatch):
    """A mistake in `benchmark` stops the first notebook, not the last."""
    values = COMMITTED | {"benchmark": {"x": {}}}
    monkeypatch.setattr(params, "load", lambda: values)
    with pytest.raises(SystemExit, match=r"^benchmark\.x\.model: missing, must be a string$"):
        main(["notebook", str(ROOT / "notebooks" / "0-theory.ipynb"), "-p", f"out={tmp_path}/out"])
    assert not list(tmp_path.iterdir())


def test_the_check_loads_no_torch():
    command = (
        "import sys, pmd.params, pmd.settings; pmd.settings.check(pmd.params.load()); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
