"""Synthetic run directories with the schema of real ones: what figures and tables are tested on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from pmd.files import atomic, write_json, write_jsonl

METHODS = ["pmd-mean", "pmd-part", "grpo", "gspo", "rloo", "dr-grpo", "cispo", "kimi"]
PMD = ("pmd-mean", "kimi")
CLIPPED = {"grpo": (0.2, 0.28), "gspo": (0.01, 0.01), "dr-grpo": (0.2, 0.28), "cispo": (1.0, 0.28)}
CEILING = {
    "pmd-mean": 0.9,
    "pmd-part": 0.83,
    "grpo": 0.88,
    "gspo": 0.8,
    "rloo": 0.76,
    "cispo": 0.86,
    "kimi": 0.89,
}


def curve(method, seed, steps, minibatches=8, tau=0.05, start=0.35):
    """A plausible accuracy at every step 0..steps; PMD-part sinks at small τ or stale batches."""
    ceiling = CEILING.get(method, 0.85) - 0.02 * np.log2(minibatches / 8) * (1 if method == "pmd-mean" else 2.2)
    t = np.arange(steps + 1)
    accuracy = start + (ceiling - start) * (1 - np.exp(-t / (0.3 * steps)))
    if method == "pmd-part" and (tau < 0.02 or minibatches > 16):
        accuracy -= np.clip(t / steps - 0.4, 0, None) * 0.7
    noise = np.random.default_rng([seed, METHODS.index(method) if method in METHODS else 99])
    return np.clip(accuracy + 0.012 * noise.normal() + 0.006 * noise.normal(size=steps + 1), 0.02, 0.98)


def evaluation(accuracy, seed, step, problems, k=32):
    """eval.jsonl's three lines of one step: val, test and the harder ood, successes binomial over prompts."""
    for index, (name, shift) in enumerate([("val", 0.0), ("test", 0.05), ("ood", -0.2)]):
        hardness = np.random.default_rng([17, index]).normal(size=problems)
        p = 1 / (1 + np.exp(-(np.log(accuracy / (1 - accuracy)) + 4 * shift + 1.2 * hardness)))
        g = np.random.default_rng([seed, step, index])
        correct = g.binomial(k, p)
        yield {
            "step": step,
            "set": name,
            "k": k,
            "correct": correct.tolist(),
            "majority": (correct > k / 2).astype(int).tolist(),
            "length": (18 + 4 * index + 3 * accuracy + g.normal(size=problems)).round(3).tolist(),
            "truncated": 0.01,
        }


def training(method, seed, accuracy, config):
    """log.jsonl and timing.jsonl of one run."""
    g = np.random.default_rng([seed, *method.encode()])
    pace = 1 + 0.1 * METHODS.index(method) if method in METHODS else 1.0
    steps, per_step = config["steps"], config["prompts"] * config["group_size"]
    log, timing, wall = [], [], 0.0
    for step in range(1, steps + 1):
        p = accuracy[step]
        theory = p * (1 - p) / config["tau"] * 0.4 if method in PMD else None
        measured = (theory if theory is not None else 0.3 * p * pace) * np.exp(0.15 * g.normal()) * 0.6
        wall += 0.6 + 0.002 * config["minibatches"] + 0.03 * g.random()
        log.append(
            {
                "step": step,
                "reward": float(p),
                "signal": 0.7,
                "length": float(18 + 4 * pace * p + g.normal() * 0.2),
                "truncated": 0.01,
                "entropy": float(0.5 - 0.35 * (step / steps) ** pace + 0.01 * g.normal()),
                "loss": 0.1,
                "grad_norm": 1.0,
                "clip_fraction": 0.1 if method in CLIPPED else None,
                "lambda": float(measured),
                "kl": float(measured * 0.8),
                "chi2": float(measured * 2.5),
                "successes": [3] * config["prompts"],
                "group_size": config["group_size"],
                "tokens": int(20 * per_step * step),
                "rollouts": per_step * step,
                "lambda_theory": theory,
                "kl_theory": None if theory is None else theory * 0.5,
                "chi2_theory": None if theory is None else theory * 1.5,
            }
        )
        timing.append({"step": step, "wall_s": wall, "peak_memory_mb": 700.0, "tokens_per_s": 2e4, "eval_s": 0.1})
    return log, timing


def write_run(path, method, seed, steps=20, every=10, problems=50, accuracy=None, **changes):
    """Write one finished run directory; `accuracy` [steps + 1] replaces the plausible curve."""
    low, high = CLIPPED.get(method, (None, None))
    config = {
        "method": method,
        "seed": seed,
        "tau": 0.05,
        "lr": 1e-4,
        "group_size": 8,
        "prompts": 64,
        "minibatches": 8,
        "normalise": "length",
        "clip_low": low,
        "clip_high": high,
        "steps": steps,
        "axis": None,
        "max_tokens": 48,
        "model_md5": "0" * 32,
        "problems_md5": "1" * 32,
        "history": [],
    } | changes
    if accuracy is None:
        accuracy = curve(method, seed, steps, config["minibatches"], config["tau"])
    log, timing = training(method, seed, accuracy, config)
    salt = [seed, *method.encode(), config["minibatches"], config["group_size"], int(1000 * config["tau"])]
    salt = int(np.random.default_rng(salt).integers(1 << 31))
    points = sorted({*range(0, steps + 1, every), steps})
    write_json(path / "run.json", config)
    write_jsonl(path / "log.jsonl", log)
    write_jsonl(path / "timing.jsonl", timing)
    write_jsonl(path / "eval.jsonl", [row for s in points for row in evaluation(accuracy[s], salt, s, problems)])
    write_json(path / "result.json", {"best_step": points[-2], "last_step": steps})
    return accuracy


def write_responses(path, accuracy, salt, problems=50, k=32):
    """Write one parquet of responses whose counts are those of `evaluation`."""
    rows = []
    for line in evaluation(accuracy, salt, 10_000, problems, k):
        if line["set"] == "val":
            continue
        for number, correct in enumerate(line["correct"]):
            for sample in range(k):
                right = sample < correct
                rows.append(
                    {
                        "set": line["set"],
                        "prompt_id": f"{line['set']}-{number:04d}",
                        "sample": sample,
                        "prompt": "1+1=",
                        "response": "1+1=2",
                        "answer": "2" if right else ("3" if sample % 2 else None),
                        "correct": right,
                        "reward": float(right),
                        "killed": False,
                        "tokens": 20 + number % 5,
                        "truncated": False,
                        "seed": salt,
                    }
                )
    atomic(Path(path), lambda temporary: pd.DataFrame(rows).to_parquet(temporary, index=False))


def write_preset(directory, methods=METHODS, seeds=4, steps=60, every=10, problems=50, stale=(8, 32, 128)):
    """Write a whole runs/<preset> directory: main matrix, ablations, responses, base model, stages."""
    directory = Path(directory)
    for method in methods:
        for seed in range(seeds):
            accuracy = write_run(directory / "train" / method / f"seed-{seed}", method, seed, steps, every, problems)
            target = directory / "evaluate" / method / f"seed-{seed}"
            for checkpoint, shift in (("last", 0.0), ("best", 0.01)):
                salt = 1000 * (1 + list(methods).index(method)) + seed
                write_responses(target / f"{checkpoint}.parquet", min(accuracy[-1] + shift, 0.98), salt, problems)
    write_responses(directory / "evaluate/base/last.parquet", 0.35, 7, problems)
    if stale:
        cases = [("tau", m, {"tau": tau}) for m in METHODS[:2] for tau in (0.005, 0.02, 0.2)]
        cases += [("group", m, {"group_size": n, "prompts": 512 // n}) for m in METHODS[:2] for n in (2, 4, 16)]
        rivals = ["pmd-mean", "pmd-part", "grpo", "grpo-unclipped", "rloo"]
        cases += [("stale", m, {"minibatches": k}) for m in rivals for k in stale]
        for axis, method, change in cases:
            rarer = change.get("minibatches", 8) // 8  # the same samples and updates in all
            variant = f"{method}-{next(iter(change.values()))}"
            change = {"prompts": 64 * rarer} | change
            for seed in range(min(seeds, 3)):
                path = directory / "ablate" / axis / variant / f"seed-{seed}"
                often = max(1, every // rarer)
                write_run(path, method, seed, steps // rarer, often, problems, axis=axis, **change)
    for number, stage in enumerate(["problems", "base", "train/grpo", "evaluate", "ablations"], start=1):
        machine = {"cpu": "Synthetic CPU", "cores": 2, "memory_gb": 8, "python": "3.11.7"}
        record = {
            "stage": stage,
            "seconds": 60.0 * number,
            "peak_memory_mb": 500.0 + number,
            "machine": machine,
        }
        write_json(directory / "stages" / f"{stage}.json", record)
