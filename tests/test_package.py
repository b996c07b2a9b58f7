"""The wheel, built and installed into an environment that has torch and numpy alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pmd.files import ROOT

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def needed(*names: str) -> dict[str, Distribution]:
    """These packages and all that they need, as installed here."""
    found: dict[str, Distribution] = {}
    todo = list(names)
    while todo:
        name = canonicalize_name(todo.pop())
        if name not in found:
            found[name] = distribution(name)
            wanted = map(Requirement, found[name].requires or [])
            todo += [need.name for need in wanted if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


def bare_environment(folder: Path) -> Path:
    """The Python of a new environment into which torch, numpy and what they need are linked: nothing is downloaded."""
    venv.create(folder, symlinks=True)
    [site] = folder.glob("lib/python3*/site-packages")
    for package in needed("torch", "numpy").values():
        for top in {path.parts[0] for path in package.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(package.locate_file(top))))
    return folder / "bin" / "python"


def built(folder: Path) -> Path:
    """The wheel of this checkout, of which a copy is built: setuptools writes beside what it reads."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "pmd", folder / "pmd", ignore=shutil.ignore_patterns("__pycache__"))
    command = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder / "dist", folder]
    subprocess.run(command, check=True)
    [wheel] = (folder / "dist").iterdir()
    return wheel


def test_the_wheel_works_with_torch_and_numpy_alone(tmp_path):
    (tmp_path / "source").mkdir()
    wheel = built(tmp_path / "source")
    with ZipFile(wheel) as opened:
        assert {Path(name).parts[0] for name in opened.namelist()} == {"pmd", f"pmd-{VERSION}.dist-info"}
    python = bare_environment(tmp_path / "venv")
    install = [*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel]
    # a checkout on PYTHONPATH would count as pmd installed already
    subprocess.run(install, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""})
    script = shutil.copy(ROOT / "tests" / "package_alone.py", tmp_path)  # there no pmd stands beside it
    done = subprocess.run([python, "-I", script, VERSION], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    needs = Distribution.at(next(tmp_path.glob("venv/lib/python3*/site-packages/pmd-*.dist-info"))).requires or []
    assert {need.name for need in map(Requirement, needs) if need.marker is None} == {"numpy", "torch"}
