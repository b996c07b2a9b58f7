"""Evidence with known effects, for tests of claims, tables and figures."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pmd.experiments import evidence as columns

PROBLEMS = {"val": 20, "test": 40, "ood": 20}
K_SAMPLES = 200  # more than a byte holds when summed


def frames(
    accuracy,
    bases=(1, 2, 3, 4),
    seeds=(1,),
    rates=(1e-4, 1e-3),
    ks=(8, 40),
    variants=("pmd-mean", "pmd-part", "grpo", "gspo", "rloo"),
    on_policy=("pmd-mean", "grpo"),
    speed=lambda variant, k: 10.0,
    cpu=lambda base, variant: "a processor",
    noise=0.001,
    seed=0,
) -> dict[str, pd.DataFrame]:
    """Frames like those of pmd/experiments/evidence.py.

    accuracy: of (variant, k, rate), the final accuracy in [0, 1]; a run begins at 0.4 and moves there linearly in four
    evaluations. speed: seconds of a whole run. noise: standard deviation of a base model's and of a problem's effect.
    """
    g = np.random.default_rng(seed)
    runs, steps, evals = [], [], []
    of_problem = {name: g.normal(0, noise, count) for name, count in PROBLEMS.items()}
    for variant in variants:
        for k in (*ks, *([1] if variant in on_policy else [])):
            for rate in rates:
                for base in bases:
                    for s in seeds:
                        name, shift = (
                            f"{variant}/K-{k}/lr-{rate:g}/base-{base}-seed-{100 * base + s}",
                            g.normal(0, noise),
                        )
                        end, took = accuracy(variant, k, rate), speed(variant, k)
                        method, _, own = variant.partition(" tau=")
                        runs.append(dict(zip(columns.RUN, (
                            name, variant, method, float(own or 0.05), rate, k, 0, 64, 8, 3, base, 100 * base + s,
                            cpu(base, variant), took, 3000, "{}"), strict=True)))  # fmt: skip
                        for step in range(4):
                            level = 0.4 + (end - 0.4) * step / 3
                            measured = dict.fromkeys(columns.STEP, 0.5) | {"run": name, "step": step, "kl": 0.1}
                            measured |= {"seconds": took * step / 3, "tokens": 1000 * step, "lambda": 0.1 + 0.01 * step}
                            measured |= {"lambda_theory": 0.2 if method.startswith("pmd-mean") else np.nan}
                            steps += [measured] if step else []
                            for kind in [False] + [True] * (step == 3):
                                for part, effect in of_problem.items():
                                    share = np.clip(level + effect + shift * (step > 0), 0, 1)
                                    right = np.round(share * K_SAMPLES).astype(np.uint8)
                                    evals.append({"run": name, "step": step, "set": part, "k": K_SAMPLES,
                                                  "correct": right, "majority": (share > 0.5).astype(np.uint8),
                                                  "length": 20.0, "truncated": 0.0, "final": kind})  # fmt: skip
    return {
        "runs": pd.DataFrame(runs)[columns.RUN],
        "steps": pd.DataFrame(steps)[columns.STEP],
        "evals": pd.DataFrame(evals)[columns.EVAL],
        "bases": pd.DataFrame(bases_of(bases, of_problem))[columns.BASE],
    }


def bases_of(bases, of_problem) -> list[dict]:
    """The base models at 0.4 and each problem's effect."""
    share = {part: np.clip(0.4 + effect, 0, 1) for part, effect in of_problem.items()}
    return [
        {"base": base, "set": part, "k": K_SAMPLES, "correct": np.round(x * K_SAMPLES).astype(np.uint8),
         "majority": (x > 0.5).astype(np.uint8)}
        for base in bases for part, x in share.items()
    ]  # fmt: skip


def law(ratio=1.0, order=1.0, bases=(1, 2, 3, 4), noise=0.01, seed=0) -> pd.DataFrame:
    """Rows like those of pmd/experiments/law.py; order: 1 for −mean(s) in the order of λ, −1 for the reverse."""
    g, rows = np.random.default_rng(seed), []
    for base in bases:
        scale = ratio + g.normal(0, noise)
        for tau in (0.1, 0.5):
            lam = np.linspace(0.1, 2, 16) * 0.1 / tau
            for how, step, share in (("practice", 8, 0.2), ("solved", 1, 0.3), ("solved", 40, 1.0)):
                moved = scale * share * (lam if order > 0 else lam[::-1])
                for name in ("batch", "held out"):
                    rows.append(pd.DataFrame({
                        "base": base, "seed": 1, "tau": tau, "normalise": "constant", "how": how, "step": step,
                        "set": name, "prompt": [f"p{i}" for i in range(16)], "n": 64, "successes": 32, "length": 20.0,
                        "p": np.linspace(0.05, 0.95, 16), "s_success": 0.5, "s_failure": -0.5, "minus_mean_s": moved,
                        "lam": lam, "s1": 0.5, "s0": -0.5}))  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def finite(gain=0.05, bases=(1, 2, 3, 4), noise=0.005, seed=0) -> pd.DataFrame:
    """Rows like those of pmd/experiments/finite.py; gain: of the mean over the partition on other prompts, twice it on
    the same."""
    g, rows = np.random.default_rng(seed), []
    for base in bases:
        for n in (4, 8):
            for tau_b in (0.1, 0.4, np.inf, -0.4):
                for name, times in (("same", 2), ("other", 1)):
                    rate = 0.4 + times * gain * (tau_b == np.inf) + g.normal(0, noise)
                    rows.append(pd.DataFrame({
                        "base": base, "seed": 1, "n": n, "tau": 0.1, "tau_b": tau_b, "lam": 1.0, "kl": 1.0, "chi2": 1.0,
                        "set": name, "prompt": [f"p{i}" for i in range(10)], "samples": 1000, "p": 0.4,
                        "after": round(1000 * rate), "before": 400}))  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def write(folder, **given) -> None:
    """Write NAME.parquet for each frame into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in given.items():
        frame.to_parquet(folder / f"{name}.parquet")
