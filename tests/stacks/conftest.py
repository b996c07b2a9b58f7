"""The tests of a plug-in are collected where its stack is installed (`make test-stacks`)."""

from importlib.util import find_spec

collect_ignore = [f"test_{stack}.py" for stack in ("trl", "verl") if find_spec(stack) is None]
