"""Tokens per second of this package's trainer beside TRL's GRPOTrainer, measured alternately in one run.

    python benchmarks/compare.py [--model FOLDER] [--rounds 3]

Both sides train the same model on the same prompts in the same order, fp32, on the same number of threads, each in
a process of its own that waits while the other makes its step, so that a slow moment of the machine hits both. The
ratio is the median over such pairs of steps. Both are measured on one thread, which is how the pipeline trains (a run
a core; either side makes more of two cores that way), and on two. Tokens are prompt and response tokens of the
rollouts. The peer is installed on first use, in benchmarks/.venv. Without --model, a model of the same size with random
weights is used: its responses are short, but one in every batch runs to the limit, which costs the peer more than a
trained model would. Writes benchmarks/results.json and benchmarks/results.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from pmd.files import ROOT, read_json, write_json, write_jsonl, write_text
from pmd.model.from_scratch import build_policy
from pmd.model.loading import save_policy
from pmd.problems.arithmetic import SYMBOLS, splits
from pmd.sampling.seeds import prompt_order

HERE = ROOT / "benchmarks"
PEER = HERE / ".venv"
PINS = [["torch==2.13.0"], ["trl==1.16.0", "transformers==5.19.0"]]
"""Two pip calls: with torch there, nothing that TRL needs can pull another build of it."""

SHAPE = {
    "prompts": 64,
    "rollouts": 8,
    "updates": 8,
    "max_tokens": 48,
    "lr": 1e-4,
    "warmup": 2,
    "steps": 8,
}
THREADS = (1, 2)
MODEL = {"layers": 3, "width": 96, "heads": 3, "kv_heads": 1, "feedforward": 256, "seed": 0}


def install_peer() -> Path:
    """The peer environment's Python, made on first use."""
    python = PEER / "bin" / "python"
    marker = PEER / "installed.json"
    if not marker.exists() or read_json(marker) != PINS:
        print("installing TRL in benchmarks/.venv (once)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", PEER], check=True)
        for pins in PINS:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *pins], check=True)
        write_json(marker, PINS)
    return python


def in_turns(commands: dict[str, list[str | Path]], threads: int) -> dict[str, list[dict]]:
    """{side: its steps}: a side says "ready" before each step and waits for a line; its last line is JSON."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment, "cwd": ROOT}
    running = {side: subprocess.Popen(command, **pipes) for side, command in commands.items()}
    said = {side: heard(process) for side, process in running.items()}
    while READY in said.values():
        for side, process in running.items():
            if said[side] == READY:
                process.stdin.write("\n")
                process.stdin.flush()
                said[side] = heard(process)
    return {side: json.loads(line)["steps"] for side, line in said.items()}


READY = "ready\n"


def heard(process: subprocess.Popen) -> str:
    """What a side says next: READY, or its result when it is done."""
    line = ""
    for line in process.stdout:
        if line == READY:
            return line
    if process.wait() != 0:
        raise RuntimeError(f"{process.args[1]} failed, its message is above")
    return line


def rate(step: dict) -> float:
    """Prompt and response tokens a second of one step."""
    return (step["prompt_tokens"] + step["response_tokens"]) / step["seconds"]


def summary(steps: list[dict]) -> dict:
    """Medians over steps, and the fastest step, which is the least disturbed one on a shared machine."""
    return {
        "tokens_per_s": statistics.median(map(rate, steps)),
        "tokens_per_s_best": max(map(rate, steps)),
        "seconds_per_step": statistics.median(step["seconds"] for step in steps),
        "tokens_per_step": statistics.median(step["prompt_tokens"] + step["response_tokens"] for step in steps),
    }


def processor() -> str:
    """The CPU's name, where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def run(model: Path, rounds: int, threads: int) -> dict[str, list[list[dict]]]:
    """{side: [round][step]}, both sides in turns on the same prompts in the same order."""
    python, steps = install_peer(), SHAPE["warmup"] + SHAPE["steps"]
    problems = splits()["rl"][: SHAPE["prompts"] * steps]
    order = [i for step in range(steps) for i in prompt_order(0, step + 1, SHAPE["prompts"], len(problems))]
    sides: dict[str, list[list[dict]]] = {"ours": [], "trl": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_jsonl(folder / "ours.jsonl", problems)  # the trainer shuffles by itself
        write_jsonl(folder / "trl.jsonl", [problems[i] for i in order])
        shared = ["--model", model, "--shape", json.dumps(SHAPE | {"threads": threads}), "--problems"]
        commands = {
            "ours": [sys.executable, HERE / "ours.py", *shared, folder / "ours.jsonl"],
            "trl": [python, HERE / "trl_peer.py", *shared, folder / "trl.jsonl", "--scratch", folder / "trl"],
        }
        for _ in range(rounds):
            for side, measured in in_turns(commands, threads).items():
                sides[side].append(measured)
    return sides


def compare(sides: dict[str, list[list[dict]]], threads: int) -> dict:
    """What was measured on so many threads, for results.json."""
    steps = {side: [step for round_ in rounds for step in round_] for side, rounds in sides.items()}
    ours, trl = summary(steps["ours"]), summary(steps["trl"])
    pairs = [
        [rate(a) / rate(b) for a, b in zip(*both, strict=True)]
        for both in zip(sides["ours"], sides["trl"], strict=True)
    ]  # [round][step]
    every = [ratio for round_ in pairs for ratio in round_]
    return {
        "threads": threads,
        "ours": ours,
        "trl": trl,
        "ratio": statistics.median(every),
        "ratio_quartiles": statistics.quantiles(every)[::2],
        "ratio_best": ours["tokens_per_s_best"] / trl["tokens_per_s_best"],
        "ratio_by_round": [statistics.median(round_) for round_ in pairs],
        "phases_s": {
            phase: statistics.median(step["phases"][phase] for step in steps["ours"])
            for phase in steps["ours"][0]["phases"]
        },
        "distinct": statistics.median(step["distinct"] for step in steps["ours"]),
    }


def setting(described: str) -> dict:
    """What was measured and where, for results.json."""
    return {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {
            "python": platform.python_version(),
            "torch": metadata.version("torch"),
            "transformers": metadata.version("transformers"),
            "trl": PINS[1][0].removeprefix("trl=="),
        },
        "shape": SHAPE,
        "model": described,
    }


def table(results: dict) -> str:
    """results.md."""
    shape, machine, versions = results["shape"], results["machine"], results["versions"]
    names = {"ours": "this package", "trl": f"TRL {versions['trl']} GRPOTrainer"}
    rows, notes = [], []
    for measured in results["measured"]:
        threads = measured["threads"]
        for side, name in names.items():
            r = measured[side]
            rows.append(
                f"| {threads} | {name} | {r['seconds_per_step']:.2f} | {r['tokens_per_step']:,.0f} "
                f"| {r['tokens_per_s']:,.0f} | {r['tokens_per_s_best']:,.0f} |"
            )
        rows.append(f"| {threads} | **ratio** | | | **{measured['ratio']:.2f}** | {measured['ratio_best']:.2f} |")
        low, high = measured["ratio_quartiles"]
        rounds = ", ".join(f"{ratio:.2f}" for ratio in measured["ratio_by_round"])
        phases = ", ".join(f"{phase} {seconds:.3f}" for phase, seconds in measured["phases_s"].items())
        notes.append(
            f"- threads {threads}: quartiles of the ratio {low:.2f} and {high:.2f}, median by round {rounds}; "
            f"our seconds by phase: {phases}; {measured['distinct']:.0%} of the response tokens distinct."
        )
    rounds = len(results["measured"][0]["ratio_by_round"])
    return f"""# Speed beside TRL

Written by `python benchmarks/compare.py`. {shape["prompts"]} prompts x {shape["rollouts"]} rollouts of at most
{shape["max_tokens"]} tokens and {shape["updates"]} updates a step, fp32. Model: {results["model"]};
{machine["processor"]}, {machine["cores"]} cores; torch {versions["torch"]}. Prompt and response tokens; medians of
{shape["steps"]} steps x {rounds} rounds. The two sides make their steps in turns; the ratio is the median over such
pairs of steps. The pipeline trains on one thread a run and a run a core. This package computes once what the responses
to a prompt begin with alike, so the ratio depends on the policy: on how many of the tokens are distinct.

| threads | | s a step | tokens a step | tokens/s | tokens/s, fastest step |
|---|---|---|---|---|---|
{chr(10).join(rows)}

{chr(10).join(notes)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokens per second beside TRL's GRPOTrainer.")
    parser.add_argument("--model", type=Path, help="a trained model folder (default: random weights)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model.resolve() if options.model else Path(scratch) / "model"
        if not options.model:
            save_policy(*build_policy(SYMBOLS, **MODEL), model)
        measured = [compare(run(model, options.rounds, threads), threads) for threads in THREADS]
    results = setting(options.model.name if options.model else "random weights") | {"measured": measured}
    write_json(HERE / "results.json", results)
    write_text(HERE / "results.md", table(results))
    print(table(results))


if __name__ == "__main__":
    main()
