"""What the package can do with torch and numpy alone. test_package.py runs this where nothing else is installed."""

from __future__ import annotations

import importlib.util
import math
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

import pmd
from pmd.any_loop import advantages
from pmd.theory import binary, chain, lambert, population, statements, weighted

for name in ("pandas", "pydantic", "scipy", "transformers", "click", "tqdm"):
    assert importlib.util.find_spec(name) is None, f"{name} is installed: this proves nothing"
assert pmd.__version__ == version("pmd") == sys.argv[1]

# One right response of two tokens with s = 0.3, one wrong of one token with s = −0.4: A = ±1, A/τ − s = 1.7 and −1.6.
TAU, LOSS, GRADIENT = 0.5, (0.25 * 1.7**2 / 2 + 0.25 * 1.6**2) / 2, [-0.2125, -0.2125, 0.4]
log_probs = torch.tensor([-0.9, -0.8, -1.4], requires_grad=True)
rewards, lengths = torch.tensor([[1.0, 0.0]]), torch.tensor([2, 1])
loss = pmd.loss(log_probs, torch.full((3,), -1.0), rewards, lengths, tau=TAU)
assert math.isclose(loss.item(), LOSS, rel_tol=1e-6), loss
torch.testing.assert_close(torch.autograd.grad(loss, log_probs)[0], torch.tensor(GRADIENT))

objective = pmd.OBJECTIVES["pmd-mean"]
log_ratio = torch.tensor([0.1, 0.2, -0.4], requires_grad=True)
batch = pmd.Minibatch(log_ratio, objective.advantage(rewards, TAU)[0], torch.tensor([0, 0, 1]), lengths, max_tokens=2)
loss, _ = objective.loss(batch, pmd.Hyper(tau=TAU))
assert math.isclose(loss.item(), LOSS, rel_tol=1e-6), loss
torch.testing.assert_close(torch.autograd.grad(loss, log_ratio)[0], torch.tensor(GRADIENT))

others = 0.5 * math.log((math.exp(2) + 1) / 2)  # τ log mean exp(r/τ) of the rewards 1 and 0
got = advantages(torch.tensor([[1.0, 0.0, 0.0]]), TAU, "partition")
torch.testing.assert_close(got, torch.tensor([[1.0, -others, -others]], dtype=torch.float64))

# At p = 1/2, ρ = 3/2 and 1/2 solve ln ρ₁ + λρ₁ = 1/(2τ), ln ρ₀ + λρ₀ = −1/(2τ) for this τ and λ.
lam, tau = -math.log(0.75) / 2, 0.5 / (math.log(1.5) - 0.75 * math.log(0.75))
step = pmd.binary_update(0.5, tau)
np.testing.assert_allclose([step.lam, np.exp(step.log_rho1), step.p_next], [lam, 1.5, 0.75], rtol=1e-12)
for update in (
    pmd.population_update([0.25, 0.25, 0.5], [1.0, 1.0, 0.0], tau),
    weighted.weighted_update([0.25, 0.25, 0.5], [1.0, 1.0, 0.0], np.ones(3), tau),
):
    np.testing.assert_allclose([update.lam, *np.exp(update.log_ratio)], [lam, 1.5, 1.5, 0.5], rtol=1e-12)
np.testing.assert_allclose(population.predicted_lambda([[1.0, 0.0]], tau).lam, lam, rtol=1e-12)
np.testing.assert_allclose(lambert.lambert_log_ratio(0.5 / tau, lam), math.log(1.5), rtol=1e-12)
np.testing.assert_allclose(pmd.finite_sample(0.5, 1.0, 3, "mean")["probability"], [0.25, 0.5, 0.25], rtol=1e-12)
assert binary.finite_sample_summary(0.5, 1.0, 3, "mean")["p_no_signal"] == 0.25
np.testing.assert_allclose(chain.chain_summary(0.1, 0.5, 2, 3)["unseen"], 0.9**6, rtol=1e-12)
assert all(row["holds"] for row in statements.checked_statements())

import_module("pmd.prime_rl")


def refused(load: Callable, *what: Any) -> str:
    """The text of the ModuleNotFoundError that `load(*what)` raises here."""
    try:
        load(*what)
    except ModuleNotFoundError as error:
        return str(error)
    raise AssertionError(f"{what}: could be loaded, must be refused")


for stack in ("trl", "verl"):
    line = f"pmd.{stack}: needs {stack}, which is not installed: pip install 'pmd[{stack}]'"
    assert refused(import_module, f"pmd.{stack}") == line
for name in ("train", "train_config", "load_params", "TorchEngine", "evaluate"):
    line = refused(getattr, pmd, name)
    assert re.fullmatch(rf"pmd\.{name}: needs \w+, which is not installed: pip install 'pmd\[artifact\]'", line), line
done = subprocess.run([sys.executable, "-I", "-m", "pmd", "--help"], capture_output=True, text=True)
assert (done.returncode, done.stdout) == (1, "")
assert done.stderr == "pmd's command: needs click, which is not installed: pip install 'pmd[artifact]'\n", done.stderr
