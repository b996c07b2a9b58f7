"""params.yaml: reading it, checking a namespace against its class, applying a preset.

The classes stand beside the code that reads them: `Base` (pmd/model/settings.py), `Train` (pmd/harness/config.py),
`Law` and `Finite` (pmd/experiments/settings.py), `Grid` (pmd/experiments/training_map.py), `Evaluate` and `Benchmark`
(pmd/evaluators), `Scale` (pmd/scale/entry.py), `Task` (pmd/problems/arithmetic.py) and `ProblemSet`
(pmd/foreign_sets/formats.py). `pmd.settings.check` checks all of them.
"""

from __future__ import annotations

import difflib
import io
import re
import typing
import warnings
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError

from pmd.files import ROOT, write_text

S = TypeVar("S", bound="Settings")

OPEN = ("tasks", "train_bases", "sets", "hub_sets", "benchmark", "scale")
"""Namespaces to which a preset may add entries: whoever writes an entry chooses its name."""


def require(condition: bool, key: str, value: Any, allowed: str) -> None:
    """ValueError `key: got value, must be allowed` unless the condition holds."""
    if not condition:
        raise ValueError(f"{key}: got {value!r}, must be {allowed}")


# --- settings as pydantic models ------------------------------------------------------------------------------------


class Settings(BaseModel):
    """A namespace of params.yaml, or an entry of one: every value is checked before any work.

    Every key must be there unless its field has a default, and none other. Values keep their type (an integer is a
    number too, true and false are not); numbers are finite; the object cannot be changed. A validator of several
    fields calls `require` with a field's name as the key; `read` puts the namespace before it.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    def replace(self, **changes: Any) -> Self:
        """The same with other values, which are checked like the first ones."""
        return read(type(self), type(self).__name__.lower(), self.model_dump() | changes)


def must(good: Callable[[Any], bool], allowed: str) -> AfterValidator:
    """For `Annotated[str, must(good, "what it must be")]`: a value of the type for which `good` holds."""

    def check(value: Any) -> Any:
        if not good(value):
            raise ValueError(allowed)
        return value

    return AfterValidator(check)


def one_of(names: Collection[str]) -> AfterValidator:
    """For `Annotated[str, one_of(names)]`: one of these names and no other string."""
    return must(names.__contains__, f"one of {', '.join(names)}")


def greedy_once(values: Any) -> Any:
    """For `model_validator(mode="before")`: at temperature 0 all k responses to a problem are the same, so k is 1."""
    greedy = isinstance(values, dict) and type(values.get("temperature")) in (int, float) and not values["temperature"]
    if not greedy or type(values.get("k")) is not int or values["k"] <= 1:
        return values
    warnings.warn(f"k: got {values['k']}, taken as 1, since temperature 0 is greedy decoding", stacklevel=2)
    return values | {"k": 1}


Device = Annotated[str, must(re.compile(r"cpu|mps|cuda(:\d+)?").fullmatch, "cpu, cuda, cuda:1 or the like")]
"""The type of a device's name in PyTorch."""

FileName = Annotated[str, must(re.compile(r"[\w-]+").fullmatch, "letters, digits, - and _: it names files")]
"""The type of an entry's name that becomes the name of a file or folder."""


def read(cls: type[S], namespace: str, values: Any) -> S:
    """`cls` made of a mapping; ValueError `namespace.key: got value, must be …` in one line for the first bad key."""
    fields = cls.model_fields
    require(isinstance(values, dict), namespace, values, f"a mapping with {', '.join(fields)}")
    for key in (key for key in values if key not in fields):  # what is listed takes time
        require(False, f"{namespace}.{key}", values[key], f"left out: the keys are {listed(fields, key)}")
    try:
        return cls.model_validate(values)
    except ValidationError as caught:
        error = caught.errors()[0]
    if not error["loc"]:  # from a validator of several fields, which says all but the namespace
        raise ValueError(f"{namespace}.{error['ctx']['error']}")
    key = error["loc"][0]
    if error["type"] == "missing":
        raise ValueError(f"{namespace}.{key}: missing, must be {_kind(fields[key].annotation)}")
    raise ValueError(f"{namespace}.{key}: got {values[key]!r}, must be {_allowed(fields[key], error)}")


def read_entry(cls: type[S], namespace: str, entries: dict[str, Any], name: str) -> S:
    """The entry `name` of a namespace whose entries are named freely; `cls` has a field `name` for it."""
    require(isinstance(entries, dict), namespace, entries, "a mapping")
    known = f"one of its entries: {listed(entries, name) or 'there is none'}"
    require(name in entries, namespace, name, known)
    require(isinstance(entries[name], dict), f"{namespace}.{name}", entries[name], "a mapping")
    return read(cls, f"{namespace}.{name}", {"name": name} | entries[name])


def mapping(values: dict[str, Any], key: str, where: str = "") -> dict[str, Any]:
    """`values[key]`; ValueError `where + key: got value, must be a mapping` if it is missing or anything else."""
    require(isinstance(values.get(key), dict), where + key, values.get(key), "a mapping")
    return values[key]


def listed(names: Iterable[str], meant: str) -> str:
    """Names for an error message, and the one of them that looks most like what was given."""
    names = list(map(str, names))
    nearest = difflib.get_close_matches(str(meant), names, 1)
    return ", ".join(names) + (f"; did you mean {nearest[0]}?" if nearest else "")


def _allowed(field: FieldInfo, error: ErrorDetails) -> str:
    """What the value of a field must be, of which `error` is what it is not."""
    if error["type"] == "value_error":  # from a validator of this field, such as `one_of`
        return str(error["ctx"]["error"])
    if error["type"] in ("too_short", "too_long"):
        least = error["ctx"].get("min_length")
        many = f"at most {error['ctx']['max_length']}" if least is None else f"at least {least}"
        return f"{_kind(field.annotation)} ({many} of them)"
    bounded = error["type"] in ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
    if not bounded or len(error["loc"]) > 1:  # a list's bound is that of its elements
        return _kind(field.annotation)
    return _bounds(field) + (" or null" if type(None) in typing.get_args(field.annotation) else "")


def _bounds(field: FieldInfo) -> str:
    """The bounds of a number, as words: "at least 2", "> 0", "in 1..8" for an integer, "in (0, 1]"."""
    bounds = {
        name: getattr(bound, name)
        for bound in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if hasattr(bound, name)
    }
    least, most = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if "ge" in bounds and "le" in bounds and field.annotation is int:
        return f"in {least}..{most}"
    if most is None:
        return f"at least {least}" if "ge" in bounds else f"> {least}"
    return f"in {'[' if 'ge' in bounds else '('}{least}, {most}{']' if 'le' in bounds else ')'}"


_KINDS = {int: "an integer", float: "a number", str: "a string", bool: "true or false", type(None): "null"}


def _kind(hint: Any) -> str:
    """The name of a type in an error, for someone who writes YAML."""
    inner, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin is typing.Literal:
        return " or ".join(map(str, inner))
    if origin is Annotated:  # of a list's elements, with their bounds
        return f"{_kind(inner[0])} {_bounds(inner[1])}"
    if origin in (list, dict):
        kind = {list: "a list", dict: "a mapping"}[origin]
        return kind if inner[-1] is Any else f"{kind}, each {'' if origin is list else 'value '}{_kind(inner[-1])}"
    return " or ".join(_kind(option) for option in inner) if inner else _KINDS.get(hint, str(hint))


def load(path: str | Path = ROOT / "params.yaml") -> dict[str, Any]:
    """params.yaml, or a preset, as plain dictionaries; ValueError naming the file if it is missing or no YAML mapping,
    and the line of a key that stands twice.

    Namespaces of OPEN that params.yaml does not have are empty, as dvc.yaml's `vars` say too.
    """
    try:
        values = YAML(typ="safe").load(Path(path).read_text(encoding="utf-8"))
    except DuplicateKeyError as error:
        key = re.findall(r'"([^"]*)"', str(error.problem))[0]
        where = f"{path}:{error.problem_mark.line + 1}"
        raise ValueError(f"{where}: {key} stands above already; move its entries there") from None
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file (params.yaml is in a clone of the repository, no wheel has it)"
        ) from None
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    require(isinstance(values, dict), str(path), values, "a mapping of namespaces")
    return {name: {} for name in OPEN} | values if Path(path).name == "params.yaml" else values


def overlay(values: Any, changes: dict[str, Any], where: str) -> None:
    """Write `changes` into `values` in place, key by key; where: the name of `values` in an error.

    ValueError if a key is not there already, but in the namespaces of OPEN a new entry is added.
    """
    for key, change in changes.items():
        require(
            key in values or where.rpartition(".")[2] in OPEN,
            f"{where}.{key}",
            change,
            f"one of the keys of params.yaml there: {listed(values, key)}",
        )
        if isinstance(change, dict) and isinstance(values.get(key), dict):
            overlay(values[key], change, f"{where}.{key}")
        else:
            values[key] = change


def of_preset(name: str, root: Path = ROOT) -> dict[str, Any]:
    """params.yaml with presets/NAME.yaml laid over it, as plain dictionaries; the file itself stays as it is.

    A name that params.yaml has already needs no file. ValueError in one line for a name that is no preset.
    """
    values = load(root / "params.yaml")
    if name != values["preset"]:
        known = sorted(path.stem for path in (root / "presets").glob("*.yaml"))
        require(name in known, "preset", name, f"one of {listed(known, name)}")
        overlay(values, load(root / "presets" / f"{name}.yaml"), name)
    return values


def apply_preset(name: str, root: Path = ROOT) -> None:
    """Apply presets/NAME.yaml to params.yaml in place, comments kept."""
    known = sorted(path.stem for path in (root / "presets").glob("*.yaml"))
    require(name in known, "preset", name, f"one of {listed(known, name)}")
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 1000
    load(root / "params.yaml")  # for its errors
    values = yaml.load((root / "params.yaml").read_text(encoding="utf-8"))
    changes = load(root / "presets" / f"{name}.yaml")
    for key in filter(changes.__contains__, OPEN):
        values.setdefault(key, {})
    overlay(values, changes, name)
    text = io.StringIO()
    yaml.dump(values, text)
    write_text(root / "params.yaml", text.getvalue())
