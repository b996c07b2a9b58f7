"""What `import pmd.verl` registers, called as verl calls it, on verl's padded tensors (`make test-stacks`)."""

from __future__ import annotations

import importlib
import math
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
import verl
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig
from verl.workers.config.actor import PolicyLossConfig

import pmd.verl
from pmd.files import ROOT
from pmd.trainer.objectives import OBJECTIVES, Hyper, Minibatch, leave_one_out_tilted, moved

TAU = 0.3
UID = np.array(["b", "a", "a", "b", "b", "a"], dtype=object)  # as verl makes them; a group need not be contiguous
REWARDS = torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0, 1.0])
LENGTHS = torch.tensor([3, 1, 4, 2, 5, 2])
MASK = (torch.arange(7) < LENGTHS[:, None]).long()
GROUPS = {"a": [1, 2, 5], "b": [0, 3, 4]}


def token_rewards() -> torch.Tensor:
    """[S, T]: the reward stands on a response's last token."""
    return torch.zeros(6, 7).scatter(1, LENGTHS[:, None] - 1, REWARDS[:, None])


def estimated(name: str, **settings) -> torch.Tensor:
    advantages, returns = core_algos.get_adv_estimator_fn(name)(
        token_level_rewards=token_rewards(), response_mask=MASK, index=UID, config=OmegaConf.create(settings)
    )
    assert torch.equal(advantages, returns)
    return advantages


def expected(function, tau: float) -> torch.Tensor:
    """[S]: pmd's advantages of the two groups."""
    out = torch.empty(6)
    for rows in GROUPS.values():
        out[rows] = function(REWARDS[rows].double()[None], tau)[0].float()
    return out


def actor(mode: str = "seq-mean-token-mean", tau: float | None = TAU, **changes) -> ActorConfig:
    policy_loss = PolicyLossConfig(loss_mode="pmd", dro_beta=tau)
    return ActorConfig(
        strategy="fsdp",
        rollout_n=3,
        ppo_micro_batch_size_per_gpu=6,
        loss_agg_mode=mode,
        policy_loss=policy_loss,
        **changes,
    )


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    """log π_θ, with a gradient, and log π_t [S, T], with NaN in the padding of the latter."""
    generator = torch.Generator().manual_seed(0)
    new, old = (-torch.rand(6, 7, generator=generator) for _ in range(2))
    return new.requires_grad_(), old.masked_fill(MASK == 0, math.nan)


def call(config: ActorConfig, rows: slice = slice(None), weights: torch.Tensor | None = None, mask=MASK):
    """(loss, its gradient, metrics), as verl's actor calls a policy loss."""
    new, old = tensors()
    loss, metrics = core_algos.get_policy_loss_fn(config.policy_loss.loss_mode)(
        old_log_prob=old[rows],
        log_prob=new[rows],
        advantages=estimated("pmd_mean")[rows],
        response_mask=mask[rows].bool(),
        loss_agg_mode=config.loss_agg_mode,
        config=config,
        rollout_is_weights=weights,
    )
    return loss, torch.autograd.grad(loss, new)[0], metrics


def ours(normalise: str, max_tokens: int, weight: torch.Tensor | None = None, mask=MASK):
    """(loss, its gradient) of pmd's objective on the same tokens, flat."""
    new, old = tensors()
    log_ratio, lengths = (new - old)[mask.bool()], mask.sum(1)
    advantage = expected(OBJECTIVES["pmd-mean"].advantage, TAU)
    batch = Minibatch(log_ratio, advantage, torch.repeat_interleave(lengths), lengths, max_tokens, weight=weight)
    loss, _ = OBJECTIVES["pmd-mean"].loss(batch, Hyper(tau=TAU, normalise=normalise))
    return loss, torch.autograd.grad(loss, new)[0]


def test_advantages_equal_pmds_on_every_token_and_are_zero_on_padding():
    cases = [
        (estimated("pmd_mean"), OBJECTIVES["pmd-mean"].advantage, 1.0),
        (estimated("pmd_part", tau=0.2), OBJECTIVES["pmd-part"].advantage, 0.2),
        (estimated("pmd_tilted", tau_b=1.5), leave_one_out_tilted, 1.5),
        (estimated("pmd_tilted", tau_b=-0.4), leave_one_out_tilted, -0.4),
    ]
    for got, function, tau in cases:
        torch.testing.assert_close(got, expected(function, tau)[:, None] * MASK)
    rloo, _ = core_algos.get_adv_estimator_fn("rloo")(token_rewards(), MASK, UID)
    torch.testing.assert_close(estimated("pmd_mean"), rloo)  # verl's own leave-one-out mean
    everywhere = (REWARDS / LENGTHS)[:, None] * MASK  # a reward may come in parts
    parts, _ = core_algos.get_adv_estimator_fn("pmd_mean")(everywhere, MASK, UID)
    torch.testing.assert_close(parts, rloo)


@pytest.mark.parametrize(
    ("mode", "normalise", "factor", "max_tokens"),
    [
        ("seq-mean-token-mean", "length", None, 0),
        ("seq-mean-token-sum-norm", "constant", None, 7),
        ("seq-mean-token-sum-norm", "constant", 16, 16),
    ],
)
def test_loss_and_gradient_equal_pmds(mode, normalise, factor, max_tokens):
    config = actor(mode, loss_scale_factor=factor)
    config.global_batch_info["loss_scale_factor"] = factor
    loss, gradient, metrics = call(config)
    reference, expected_gradient = ours(normalise, max_tokens)
    torch.testing.assert_close(loss, reference, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-8)
    new, old = tensors()
    s = torch.where(MASK.bool(), new - old, 0).sum(1)
    assert metrics == pytest.approx({f"actor/pmd_{key}": value for key, value in moved(s).items()}, rel=1e-5)


def test_passes_and_processes_add_up_to_the_minibatch():
    """verl says how many responses the optimizer step has; FSDP averages over processes."""
    config = actor()
    config.global_batch_info.update(dp_size=2, batch_num_tokens=17, global_batch_size=6, loss_scale_factor=None)
    parts = [call(config, rows) for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    reference, expected_gradient = ours("length", 0)
    torch.testing.assert_close(sum(loss for loss, *_ in parts) / 2, reference)
    torch.testing.assert_close(sum(gradient for _, gradient, _ in parts) / 2, expected_gradient)
    del config.global_batch_info["global_batch_size"]
    with pytest.raises(ValueError, match="global_batch_size: got None, must be the optimizer step's responses on"):
        call(config)


def test_tokens_that_a_tool_wrote_are_left_out_wherever_they_stand():
    masked = MASK.clone()
    masked[[2, 2, 4], [0, 1, 2]] = 0
    loss, gradient, _ = call(actor(), mask=masked)
    reference, expected_gradient = ours("length", 0, mask=masked)
    torch.testing.assert_close(loss, reference)
    torch.testing.assert_close(gradient, expected_gradient)


def test_weights_of_a_response_multiply_its_term_and_those_of_tokens_are_refused():
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0, 0.1])
    loss, gradient, _ = call(actor(), weights=weight[:, None] * MASK)
    reference, expected_gradient = ours("length", 0, weight)
    torch.testing.assert_close(loss, reference)
    torch.testing.assert_close(gradient, expected_gradient)
    with pytest.raises(ValueError, match="rollout_is: got weights that differ within a response, must be 'sequence'"):
        call(actor(), weights=torch.rand(6, 7))


def test_a_response_without_tokens_is_left_out_of_the_mean_as_in_verls_own_losses():
    masked = MASK.clone()
    masked[4] = 0
    loss, *_ = call(actor(), mask=masked)
    terms, *_ = call(actor(), rows=torch.tensor([0, 1, 2, 3, 5]))
    torch.testing.assert_close(loss, terms)


def test_the_reference_codes_formula_agrees_where_it_does_not_clamp_and_differs_where_it_does():
    """Its PMD-part takes τ log max(mean exp((r − r_max)/τ), 1e-8) + r_max, r_max being the whole group's."""

    def reference(rewards: torch.Tensor, tau: float) -> torch.Tensor:
        top = rewards.max()
        powers = ((rewards - top) / tau).exp()
        mean = (powers.sum() - powers) / (len(rewards) - 1)
        return rewards - top - tau * mean.clamp(min=1e-8).log()

    advantage = OBJECTIVES["pmd-part"].advantage
    rewards = REWARDS[GROUPS["b"]].double()  # one success, two failures
    torch.testing.assert_close(advantage(rewards[None], 0.2)[0], reference(rewards, 0.2))
    assert advantage(rewards[None], 0.02)[0, 0].item() == pytest.approx(1.0)
    assert reference(rewards, 0.02)[0].item() == pytest.approx(0.02 * 8 * math.log(10))  # 18.4 τ


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (
            lambda: call(actor("token-mean")),
            r"loss_agg_mode: got 'token-mean', must be one of seq-mean-token-mean, seq-",
        ),
        (lambda: call(actor(tau=None)), r"policy_loss\.dro_beta: got None, must be τ"),
        (lambda: call(actor(tau=-1.0)), r"tau: got -1\.0, must be a finite number above 0"),
        (lambda: estimated("pmd_part"), r"tau: got None, must be a finite number above 0"),
        (lambda: estimated("pmd_tilted"), r"tau_b: got None, must be a number where baseline is 'tilted'"),
        (lambda: pmd.verl.groups(UID[:5]), r"uid: got groups of \[2, 3\] responses, must be of one size, 2 or more"),
        (lambda: pmd.verl.groups(UID[:2]), r"uid: got groups of \[1\] responses, must be of one size"),
        (
            lambda: pmd.verl.register(core_algos.POLICY_LOSS_REGISTRY, "gspo", pmd.verl.pmd_loss),
            r"gspo: got a second function of this name beside verl\.trainer\.ppo\.core_algos's, must be one",
        ),
    ],
)
def test_what_contradicts_the_objective_is_refused_in_one_line(work, message):
    with pytest.raises(ValueError, match=message) as refusal:
        work()
    assert "\n" not in str(refusal.value)


def documented() -> tuple[dict[str, str], list[str]]:
    """(environment, arguments) of the command in docs/stacks.md."""
    text = (ROOT / "docs" / "stacks.md").read_text(encoding="utf-8")
    [command] = re.findall(r"^(VERL_.*?)```", text, re.S | re.M)
    first, *words = shlex.split(command.replace("\\\n", ""))
    assert words[:3] == ["python", "-m", "verl.trainer.main_ppo"]
    return dict([first.split("=")]), words[3:]


def test_the_settings_of_the_documentation_are_verls_own_and_name_what_is_registered():
    """A key that verl's configuration lacks would be refused by hydra, as verl's own command would."""
    _, arguments = documented()
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", [*arguments, "+algorithm.tau=0.1", "+algorithm.tau_b=-0.4"])
    settings = config.actor_rollout_ref.actor
    assert core_algos.get_policy_loss_fn(settings.policy_loss.loss_mode) is pmd.verl.pmd_loss
    assert core_algos.get_adv_estimator_fn(config.algorithm.adv_estimator).__module__ == "pmd.verl"
    assert settings.policy_loss.dro_beta == 0.05
    assert settings.loss_agg_mode in pmd.verl.NORMALISE
    for name, function, tau in (("pmd_part", OBJECTIVES["pmd-part"].advantage, 0.1),
                                ("pmd_tilted", leave_one_out_tilted, -0.4)):  # fmt: skip
        got, _ = core_algos.get_adv_estimator_fn(name)(token_rewards(), MASK, UID, config=config.algorithm)
        torch.testing.assert_close(got, expected(function, tau)[:, None] * MASK)


def test_verl_imports_it_where_the_environment_names_it():
    environment, _ = documented()
    code = "from verl.trainer.ppo.core_algos import get_policy_loss_fn as get; print(get('pmd').__module__)"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, cwd=ROOT, capture_output=True)
    assert done.stdout.decode().splitlines()[-1:] == ["pmd.verl"], done.stderr.decode()


def test_it_may_be_imported_twice_but_not_with_another_version(monkeypatch):
    importlib.reload(pmd.verl)
    monkeypatch.setattr(verl, "__version__", "0.8.0")
    with pytest.raises(ImportError, match=r"^verl: got version 0\.8\.0, must be 0\.9\.\*: pip install 'verl=="):
        importlib.reload(pmd.verl)
