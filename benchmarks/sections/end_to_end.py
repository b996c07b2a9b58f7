"""PMD-mean from a base model to better answers, on the embedded task with two and three terms.

The base model is trained here, so nothing needs to be downloaded. One run is whole; another is stopped behind its
middle, between two checkpoints, and goes on: both must end with the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator

from pmd.experiments.base_model import train_base
from pmd.files import read_jsonl
from pmd.harness.clock import PHASES
from pmd.harness.config import train_config
from pmd.model.settings import Base, read_bases
from pmd.params import load
from pmd.problems.arithmetic import splits
from pmd.sampling.torch_engine import TorchEngine
from pmd.trainer.loop import train
from sections.common import Context, Row, equal, fact, fresh, goal, seconds


class Stopped(Exception):
    """A run's process has died, so to speak."""


def stopping(calls: int):
    """An engine that dies at its n-th call; the first is the evaluation of the base model, then one a step."""

    class Stopping(TorchEngine):
        left = calls

        def sample(self, *arguments, **named):
            Stopping.left -= 1
            if Stopping.left == 0:
                raise Stopped
            return super().sample(*arguments, **named)

    return Stopping


def rows(context: Context) -> Iterator[Row]:
    """Seconds of the base, accuracy before and after, seconds by phase, and the stopped run's bits."""
    every = 4 if context.quick else 24
    blocks = [
        ("val", {2: 20, 3: 20} if context.quick else {2: 60, 3: 140}),
        ("rl", {2: 50, 3: 50} if context.quick else {2: 1000, 3: 3000}),
        ("sft", {2: 100, 3: 100} if context.quick else {2: 3000, 3: 17000}),
    ]
    problems = splits(0, blocks)
    ready = {name: [{"rule": "exact"} | row for row in problems[name]] for name in ("val", "rl")}
    base = context.scratch / "base"
    spent, metrics = seconds(context.device, lambda: train_base(base_config(context), problems["sft"], base, False))
    yield fact("base model: parameters", metrics["parameters"])
    yield fact("base model: seconds", spent, "s")
    yield fact("base model: loss", metrics["loss"], "nats")
    fresh(context.device)
    config = run_config(context, every)
    sets = {"val": ready["val"]}

    def run(name: str, engine=None):
        return train(config, base, ready["rl"], sets, context.scratch / name, engine, progress=False)

    spent, _ = seconds(context.device, lambda: run("whole"))
    yield fact("whole run", spent, "s")
    before, after = (accuracy(context.scratch / "whole", step) for step in (0, every))
    yield fact("validation accuracy before", before)
    yield fact("validation accuracy after", after)
    yield goal("validation accuracy gained", after - before, least=0.05)
    timing = read_jsonl(context.scratch / "whole" / "timing.jsonl")[every // 2 :]
    for phase in PHASES:
        yield fact(f"a step: {phase}", sum(row[f"{phase}_s"] for row in timing) / len(timing), "s")
    try:
        run("stopped", stopping(every * 5 // 8 + 2))
        raise RuntimeError("the run that was to be stopped was not")
    except Stopped:
        pass
    run("stopped")
    for file in ("log.jsonl", "eval.jsonl", "last/model.safetensors"):
        bits = [(context.scratch / name / file).read_bytes() for name in ("whole", "stopped")]
        yield equal(f"stopped and gone on: {file}", bits[0] == bits[1])


def accuracy(out, step: int) -> float:
    """avg@k on validation at a step."""
    row = next(row for row in read_jsonl(out / "eval.jsonl") if row["step"] == step)
    return sum(row["correct"]) / (len(row["correct"]) * row["k"])


def base_config(context: Context) -> Base:
    """The committed base model's settings, larger and shorter; smallest if quick."""
    changes = {"layers": 4, "width": 256, "heads": 4, "kv_heads": 2, "feedforward": 768}
    changes |= {"steps": 800, "warmup": 50, "lr": 1.5e-3, "dtype": "bfloat16"}
    if context.quick:
        changes = {"layers": 2, "width": 32, "heads": 2, "kv_heads": 1, "feedforward": 64}
        changes |= {"steps": 6, "warmup": 2, "batch": 16, "threads": 1, "dtype": "float32"}
    return read_bases(load()["base"] | changes | {"device": context.device, "seeds": [0]})[0]


def run_config(context: Context, steps: int):
    """PMD-mean with the committed settings; a checkpoint each quarter of the run."""
    changes = {"steps": steps, "eval_every": steps, "checkpoint_every": steps // 4, "device": context.device}
    if context.quick:
        small = {"prompts": 4, "minibatches": 2, "group_size": 4, "max_tokens": 12, "eval_max_tokens": 12, "eval_k": 2}
        return train_config("pmd-mean", 1, **changes, **small, probe=1, dtype="bfloat16")
    return train_config("pmd-mean", 1, **changes, prompts=64, dtype="bfloat16", eval_k=8, eval_max_tokens=48)
