"""What needs more than torch and numpy says in one line which extra of pyproject.toml installs it.

The extras: `trl`, `verl` and `vllm`, other people's programs that this package plugs into; `artifact`, everything from
problem sets to the report; `test`.
"""

from __future__ import annotations

from importlib import import_module

TESTED = {"trl": "1.16", "verl": "0.9"}
"""The minor version of each stack whose tests pass: tests/stacks, `make test-stacks`."""


def missing(what: str, error: ModuleNotFoundError, extra: str = "artifact") -> ModuleNotFoundError:
    """The error to raise in place of `error`, which loading `what` met: the extra that holds the missing package.

    `error` itself if it is a module of pmd that is missing, which no extra brings.
    """
    package = (error.name or "").partition(".")[0]
    if package in ("", "pmd"):
        return error
    text = f"{what}: needs {package}, which is not installed: pip install 'pmd[{extra}]'"
    return ModuleNotFoundError(text, name=error.name)


def check_stack(name: str) -> None:
    """ImportError in one line unless the package `name`, a key of TESTED, is installed in a version that was tested."""
    try:
        version = import_module(name).__version__
    except ModuleNotFoundError as error:
        raise missing(f"pmd.{name}", error, name) from None
    tested = TESTED[name]
    if version.split(".")[:2] != tested.split("."):
        raise ImportError(f"{name}: got version {version}, must be {tested}.*: pip install '{name}=={tested}.*'")
