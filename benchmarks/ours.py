"""Our side of the benchmark: `pmd.trainer.loop.train` with GRPO, so that both sides do the same arithmetic (see
compare.py).

Prints one line of JSON: seconds, tokens, the share of distinct ones and seconds by phase of every measured step. A step
lasts from one call of the rollout engine to the next, so logging and our own measurements (KL, χ², λ) count; evaluation
and saving come after.
Before each step it prints "ready" and waits for a line of input, so that the two sides take turns.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from pmd import params
from pmd.files import read_jsonl
from pmd.harness.config import train_config
from pmd.problems.reader import read_problems
from pmd.sampling.engine import Responses
from pmd.sampling.torch_engine import TorchEngine
from pmd.trainer.loop import train

PHASES = ("rollout", "reward", "old", "update", "probe")


def distinct(responses: Responses) -> float:
    """The share of the response tokens that is left if what the responses to a prompt begin with alike counts once."""
    beginnings = [[tuple(r[: t + 1]) for r in group for t in range(len(r))] for group in responses]
    return sum(len(set(group)) for group in beginnings) / sum(map(len, beginnings))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--problems", type=Path, required=True)
    parser.add_argument("--shape", type=json.loads, required=True, help="JSON, see SHAPE in compare.py")
    options = parser.parse_args()
    shape = options.shape
    steps = shape["warmup"] + shape["steps"]
    problems = read_problems(options.problems, shape["prompts"] * steps)
    values = params.load()
    changes = {
        "steps": steps,
        "prompts": shape["prompts"],
        "group_size": shape["rollouts"],
        "minibatches": shape["updates"],
        "probe": 1,  # minibatch of 8 groups, as many groups as the default measures
        "max_tokens": shape["max_tokens"],
        "lr": shape["lr"],
        "warmup": 0,
        "filter_low": None,
        "filter_high": None,
        "temperature": 1.0,
        "eval_every": steps,
        "eval_k": 1,
        "checkpoint_every": steps,
        "device": "cpu",
        "dtype": "float32",
        "threads": shape["threads"],
    }
    config = train_config("grpo", 0, values, **changes)
    calls: list[tuple[float, float, int]] = []
    sampled: list[Responses] = []

    class Timed(TorchEngine):
        """Notes when each call came and, after our turn, began, and how many prompt tokens it decodes."""

        def sample(self, prompts, n, sampling, seed, first=0):
            came = time.perf_counter()
            if calls:  # the first call is an evaluation
                print("ready", flush=True)
                sys.stdin.readline()
            calls.append((came, time.perf_counter(), n * sum(map(len, prompts))))
            sampled.append(super().sample(prompts, n, sampling, seed, first))
            return sampled[-1]

    with tempfile.TemporaryDirectory() as scratch:
        train(config, options.model, problems, {"val": problems[:1]}, scratch, engine=Timed, progress=False)
        log, timing = (read_jsonl(Path(scratch) / name) for name in ("log.jsonl", "timing.jsonl"))
    # calls: the first evaluation, each step, the last evaluation
    measured = [
        {
            "seconds": came - began,
            "prompt_tokens": prompt_tokens,
            "response_tokens": round(row["length"] * shape["prompts"] * shape["rollouts"]),
            "distinct": distinct(responses),
            "phases": {phase: clock[f"{phase}_s"] - (phase == "rollout") * (began - waits_from) for phase in PHASES},
        }
        for (waits_from, began, prompt_tokens), (came, *_), responses, row, clock in zip(
            calls[1:], calls[2:], sampled[1:], log, timing, strict=False
        )
    ]
    print(json.dumps({"steps": measured[shape["warmup"] :]}))


if __name__ == "__main__":
    main()
