"""The validated view of params.yaml: each namespace is a frozen dataclass, every value is checked before any work."""

from __future__ import annotations

import re
import types
import typing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pmd.files import ROOT, write_text

OPEN = ("tasks", "sets", "hub_sets", "benchmark", "scale")
"""Namespaces whose entries a preset may add to: they are named by whoever writes them."""

DTYPES = ("float32", "bfloat16", "float16")
TRAIN_DTYPES = ("float32", "bfloat16")  # float16 gradients underflow without a loss scale
TRAIN_ENGINES = ("torch", "vllm")


def require(condition: bool, key: str, value: Any, allowed: str) -> None:
    """ValueError `key: got value, must be allowed` unless the condition holds."""
    if not condition:
        raise ValueError(f"{key}: got {value!r}, must be {allowed}")


def known_engines() -> list[str]:
    """The names of the engines a benchmark can sample with; imported late, as the objectives are."""
    from pmd.evaluators.benchmark import ENGINES

    return sorted(ENGINES)


def known_methods() -> list[str]:
    """The names of the objectives; imported late because torch takes seconds to load and nothing else here needs it."""
    from pmd.trainer.objectives import OBJECTIVES

    return sorted(OBJECTIVES)


@dataclass(frozen=True)
class Base:
    """The base model: architecture and supervised training."""

    seed: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    feedforward: int
    steps: int
    batch: int
    lr: float
    warmup: int
    device: str
    threads: int

    def __post_init__(self):
        for key in ("layers", "width", "heads", "kv_heads", "feedforward", "steps", "batch", "threads"):
            require(getattr(self, key) >= 1, f"base.{key}", getattr(self, key), "at least 1")
        require(self.width % self.heads == 0, "base.heads", self.heads, f"a divisor of base.width = {self.width}")
        require(
            self.heads % self.kv_heads == 0,
            "base.kv_heads",
            self.kv_heads,
            f"a divisor of base.heads = {self.heads}",
        )
        require(self.lr > 0, "base.lr", self.lr, "> 0")
        require(0 <= self.warmup <= self.steps, "base.warmup", self.warmup, f"in 0..base.steps = {self.steps}")


@dataclass(frozen=True)
class Train:
    """One reinforcement-learning run; the paper's symbols in brackets.

    prompts x group_size [n] rollouts a step, minibatches [K] optimizer steps on them, each of whole groups;
    warmup: steps of linear learning-rate warm-up; tau [τ] refers to rewards in {0, 1};
    filter_low, filter_high: groups kept by mean reward, null being no bound; normalise: "length" (1/L) or
    "constant" (1/max_tokens); temperature, max_tokens: of the rollouts (top-p is 1: log-ratios of truncated samples
    are biased); probe: minibatches on which −mean(s) is measured; eval_*: the evaluations during training.
    microbatch_tokens: packed tokens of a forward pass, null being the whole minibatch in one; dtype: of the products in
    it (weights and optimizer stay float32); checkpoint_activations: keep layers' inputs only, compute the rest again.
    microbatch_tokens and checkpoint_activations change a gradient by rounding alone; so does compile, which lets
    torch.compile fuse the layers (on a CPU it needs a C++ compiler). engine: what samples, with engine_options of its
    own; importance_cap: the bound C of the truncated importance weights min(π_t/π_engine, C), null for none;
    staleness: rollouts are this many steps old when they are trained on; rollout_device: where a copy of the policy
    samples them while the update runs, null being the policy itself, before the update.
    """

    method: str
    seed: int
    steps: int
    prompts: int
    group_size: int
    minibatches: int
    lr: float
    warmup: int
    beta1: float
    beta2: float
    weight_decay: float
    grad_clip: float
    tau: float
    clip_low: float
    clip_high: float
    normalise: str
    filter_low: float | None
    filter_high: float | None
    max_tokens: int
    temperature: float
    probe: int
    eval_every: int
    eval_prompts: int
    eval_k: int
    eval_max_tokens: int
    eval_top_p: float
    checkpoint_every: int
    device: str
    dtype: str
    microbatch_tokens: int | None
    checkpoint_activations: bool
    compile: bool
    engine: str
    engine_options: dict
    importance_cap: float | None
    staleness: int
    rollout_device: str | None
    threads: int

    def __post_init__(self):
        def check(condition: bool, key: str, allowed: str) -> None:
            require(condition, f"train.{key}", getattr(self, key), allowed)

        check(self.method in known_methods(), "method", f"one of {', '.join(known_methods())}")
        for key in (
            "prompts",
            "minibatches",
            "max_tokens",
            "eval_every",
            "eval_prompts",
            "eval_k",
            "eval_max_tokens",
            "checkpoint_every",
            "threads",
        ):
            check(getattr(self, key) >= 1, key, "at least 1")
        check(self.seed >= 0, "seed", "at least 0")
        check(self.steps >= 0, "steps", "at least 0")
        check(self.warmup >= 0, "warmup", "at least 0")
        check(self.group_size >= 2, "group_size", "at least 2 (a baseline needs group-mates)")
        check(
            self.prompts % self.minibatches == 0,
            "minibatches",
            f"a divisor of train.prompts = {self.prompts}",
        )
        check(1 <= self.probe <= self.minibatches, "probe", f"in 1..train.minibatches = {self.minibatches}")
        for key in ("lr", "tau", "grad_clip", "temperature"):
            check(getattr(self, key) > 0, key, "> 0")
        for key in ("beta1", "beta2"):
            check(0 <= getattr(self, key) < 1, key, "in [0, 1)")
        check(self.weight_decay >= 0, "weight_decay", "at least 0")
        check(0 <= self.clip_low <= 1, "clip_low", "in [0, 1]")
        check(self.clip_high >= 0, "clip_high", "at least 0")
        check(self.normalise in ("length", "constant"), "normalise", "length or constant")
        low, high = (self.filter_low, self.filter_high)
        check(low is None or high is None or low < high, "filter_low", f"below train.filter_high = {high}")
        check(0 < self.eval_top_p <= 1, "eval_top_p", "in (0, 1]")
        check(self.dtype in TRAIN_DTYPES, "dtype", f"one of {', '.join(TRAIN_DTYPES)}")
        check(self.microbatch_tokens is None or self.microbatch_tokens >= 1, "microbatch_tokens", "at least 1 or null")
        check(self.engine in TRAIN_ENGINES, "engine", f"one of {', '.join(TRAIN_ENGINES)}")
        check(self.engine != "torch" or not self.engine_options, "engine_options", "{}: the torch engine has none")
        check(self.staleness >= 0, "staleness", "at least 0")
        check(self.rollout_device is None or self.staleness > 0, "rollout_device", "null unless train.staleness is > 0")
        weighted = self.importance_cap is not None
        check(not weighted or self.importance_cap > 0, "importance_cap", "> 0 or null")
        check(not weighted or self.engine == "vllm", "importance_cap", "null unless train.engine is vllm")
        check(not weighted or self.temperature == 1, "importance_cap", "null unless train.temperature is 1")


@dataclass(frozen=True)
class Scale:
    """A run of any size, by torchrun: an entry of `scale:`, named by its key.

    model: a Hugging Face model directory, relative to the repository or absolute, or `owner/name@revision` of the hub;
    problems: the JSONL file to train on; sets: {name: JSONL file} to evaluate on, "val" among them; max_prompt_tokens:
    longer prompts are left out and counted; ranks: processes a node, one a GPU (on a CPU they share the cores);
    train: what differs from the namespace `train`.
    """

    name: str
    model: str
    problems: str
    sets: dict
    max_prompt_tokens: int
    method: str
    seed: int
    nodes: int
    ranks: int
    train: dict

    def __post_init__(self):
        def check(condition: bool, key: str, allowed: str) -> None:
            require(condition, f"scale.{self.name}.{key}", getattr(self, key), allowed)

        check(re.fullmatch(r"[\w-]+", self.name) is not None, "name", "letters, digits, - and _: it names files")
        check("val" in self.sets, "sets", "a mapping of names to files with val among them")
        check(all(isinstance(path, str) for path in self.sets.values()), "sets", "a mapping of names to files")
        for key in ("max_prompt_tokens", "nodes", "ranks"):
            check(getattr(self, key) >= 1, key, "at least 1")


def identity(config: Train, tags: dict[str, Any]) -> dict[str, Any]:
    """What run.json holds and two runs must share to be one: every parameter, the ablation axis, the tags."""
    return asdict(config) | {"axis": None} | tags


@dataclass(frozen=True)
class Evaluate:
    """Sampling of a checkpoint on the test sets."""

    sets: list[str]
    k: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    device: str

    def __post_init__(self):
        require(len(self.sets) > 0, "evaluate.sets", self.sets, "at least one problem set")
        require(self.k >= 1, "evaluate.k", self.k, "at least 1")
        require(self.max_tokens >= 1, "evaluate.max_tokens", self.max_tokens, "at least 1")
        require(self.temperature > 0, "evaluate.temperature", self.temperature, "> 0")
        require(0 < self.top_p <= 1, "evaluate.top_p", self.top_p, "in (0, 1]")


@dataclass(frozen=True)
class Benchmark:
    """One model on one problem set: an entry of `benchmark:`, named by its key.

    model, against: Hugging Face model directories, relative to the repository or absolute; the two are compared
    problem by problem, and the same folder twice means no comparison (DVC's dependencies cannot be null);
    problems: a JSONL file; limit: its first problems only, null for all; max_prompt_tokens: longer ones are left out
    and counted.
    """

    name: str
    model: str
    against: str
    problems: str
    limit: int | None
    engine: str
    device: str
    dtype: str
    k: int
    temperature: float
    top_p: float
    max_tokens: int
    max_prompt_tokens: int
    seed: int

    def __post_init__(self):
        def check(condition: bool, key: str, allowed: str) -> None:
            require(condition, f"benchmark.{self.name}.{key}", getattr(self, key), allowed)

        check(re.fullmatch(r"[\w-]+", self.name) is not None, "name", "letters, digits, - and _: it names files")
        check(self.engine in known_engines(), "engine", f"one of {', '.join(known_engines())}")
        for key in ("k", "max_tokens", "max_prompt_tokens"):
            check(getattr(self, key) >= 1, key, "at least 1")
        check(self.limit is None or self.limit >= 1, "limit", "at least 1 or null")
        check(self.seed >= 0, "seed", "at least 0")
        check(self.temperature > 0, "temperature", "> 0")
        check(0 < self.top_p <= 1, "top_p", "in (0, 1]")
        check(self.dtype in DTYPES, "dtype", f"one of {', '.join(DTYPES)}")


def strict(cls: type, namespace: str, values: dict[str, Any]) -> Any:
    """`cls(**values)`, every field present, none unknown, each of its declared type; ValueError names the key."""
    hints = typing.get_type_hints(cls)
    require(isinstance(values, dict), namespace, values, f"a mapping with {', '.join(hints)}")
    for key in values:
        require(key in hints, f"{namespace}.{key}", values[key], f"left out: the keys are {', '.join(hints)}")
    for key, hint in hints.items():
        if key not in values:
            raise ValueError(f"{namespace}.{key}: missing, must be {_name(hint)}")
        require(_fits(values[key], hint), f"{namespace}.{key}", values[key], _name(hint))
    return cls(**{key: float(v) if hints[key] is float else v for key, v in values.items()})


def _fits(value: Any, hint: Any) -> bool:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        kind = typing.get_origin(option) or option
        if (
            kind is float
            and isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) != float("inf")
        ):
            return value == value  # NaN fits no field
        if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
            return True
    return False


def _name(hint: Any) -> str:
    names = {
        float: "a number",
        int: "an integer",
        str: "a string",
        bool: "true or false",
        type(None): "null",
        dict: "a mapping",
    }
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return " or ".join(names.get(option, "a list") for option in options)


def base(values: dict[str, Any]) -> Base:
    """The `base` namespace, checked."""
    return strict(Base, "base", values)


def evaluate(values: dict[str, Any]) -> Evaluate:
    """The `evaluate` namespace, checked."""
    return strict(Evaluate, "evaluate", values)


def benchmark(entries: dict[str, Any], name: str) -> Benchmark:
    """The entry `name` of the `benchmark` namespace, checked."""
    require(name in entries, "benchmark", name, f"one of its entries: {', '.join(entries) or 'there is none'}")
    require(isinstance(entries[name], dict), f"benchmark.{name}", entries[name], "a mapping")
    return strict(Benchmark, f"benchmark.{name}", {"name": name} | entries[name])


def scale(values: dict[str, Any], name: str) -> tuple[Scale, Train]:
    """The entry `name` of the `scale` namespace and the run that it describes; values: all of params.yaml."""
    entries = values["scale"]
    require(name in entries, "scale", name, f"one of its entries: {', '.join(entries) or 'there is none'}")
    require(isinstance(entries[name], dict), f"scale.{name}", entries[name], "a mapping")
    entry = strict(Scale, f"scale.{name}", {"name": name} | entries[name])
    return entry, train(values["train"], values["methods"], entry.method, entry.seed, **entry.train)


def train(values: dict[str, Any], methods: dict[str, dict], method: str, seed: int, **changes: Any) -> Train:
    """One run: the shared `train` namespace, overridden by the method's own entry, then by `changes`."""
    require(method in known_methods(), "method", method, f"one of {', '.join(known_methods())}")
    if method not in methods:
        raise ValueError(f"methods.{method}: missing, must be a mapping of train's keys (at least lr)")
    shared = {key: value for key, value in values.items() if key != "seeds"}
    return strict(Train, "train", shared | methods[method] | changes | {"method": method, "seed": seed})


def seeds(values: dict[str, Any], key: str = "train.seeds") -> list[int]:
    """A namespace's `seeds`, checked: at least one, all different."""
    found = values.get("seeds")
    good = isinstance(found, list) and found and all(type(s) is int and s >= 0 for s in found)
    require(bool(good) and len(set(found)) == len(found), key, found, "a list of different integers >= 0")
    return found


def load(path: str | Path = ROOT / "params.yaml") -> dict[str, Any]:
    """params.yaml as plain dictionaries; ValueError naming the file if it is not a YAML mapping."""
    try:
        values = YAML(typ="safe").load(Path(path).read_text(encoding="utf-8"))
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    require(isinstance(values, dict), str(path), values, "a mapping of namespaces")
    return values


def overlay(values: Any, changes: dict[str, Any], where: str) -> None:
    """Write `changes` into `values` in place, key by key; ValueError if a key is not there already.

    The namespaces in OPEN name their entries freely: there a new one is added.
    """
    for key, change in changes.items():
        require(
            key in values or where.rpartition(".")[2] in OPEN,
            f"{where}.{key}",
            change,
            f"one of the keys of params.yaml there: {', '.join(values)}",
        )
        if isinstance(change, dict) and isinstance(values.get(key), dict):
            overlay(values[key], change, f"{where}.{key}")
        else:
            values[key] = change


def apply_preset(name: str, root: Path = ROOT) -> None:
    """Apply presets/NAME.yaml to params.yaml in place, comments kept."""
    known = sorted(path.stem for path in (root / "presets").glob("*.yaml"))
    require(name in known, "preset", name, f"one of {', '.join(known)}")
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 1000
    values = yaml.load((root / "params.yaml").read_text(encoding="utf-8"))
    overlay(values, load(root / "presets" / f"{name}.yaml"), name)

    class Text(list):
        def write(self, piece):
            self.append(piece)

    text = Text()
    yaml.dump(values, text)
    write_text(root / "params.yaml", "".join(piece if isinstance(piece, str) else piece.decode() for piece in text))
