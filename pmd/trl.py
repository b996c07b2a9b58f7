"""PMD-mean in TRL: `PMDConfig` and `PMDTrainer` in place of `GRPOConfig` and `GRPOTrainer`.

Only the advantage and the loss differ from TRL's GRPOTrainer. Reward functions, generation (vLLM too), PEFT,
accelerate, logging, saving and resuming are inherited. log π_t is what TRL calls the old log-probabilities: it is
frozen for a generation batch, which is off-policy from its second optimizer step on (`steps_per_generation` larger
than `gradient_accumulation_steps`, or `num_iterations` larger than 1). docs/stacks.md has an example.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from pmd.any_loop import advantages, check, predicted, regress, sequence_log_ratio
from pmd.extras import check_stack
from pmd.trainer.objectives import moved

check_stack("trl")  # before its names are imported, which another version may not have

from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

__all__ = ["PMDConfig", "PMDTrainer"]

FIXED = {
    "loss_type": "pmd",
    "importance_sampling_level": "sequence",
    "scale_rewards": "none",
    "multi_objective_aggregation": "sum_then_normalize",
    "beta": 0.0,
    "epsilon": 0.2,
    "epsilon_high": None,
    "delta": None,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "use_liger_kernel": False,
}
"""TRL's settings that would change the objective, or that it does not read, and the values that leave it alone."""


@dataclass
class PMDConfig(GRPOConfig):
    """GRPOConfig with the settings of the regression. The settings in `FIXED` cannot be changed."""

    tau: float = field(default=0.1, metadata={"help": "τ, the strength of the regularisation, in units of reward."})
    baseline: str = field(default="mean", metadata={"help": "mean (PMD-mean), partition (PMD-part) or tilted."})
    tau_b: float | None = field(default=None, metadata={"help": "τ_b of the tilted baseline."})
    normalise: str = field(
        default="length",
        metadata={"help": "length: divide a term by its response's length; constant: by max_completion_length."},
    )
    probe: int = field(
        default=1,
        metadata={
            "help": "How many of the steps_per_generation slices of a batch are scored again after the batch's last "
            "update, to log what the update did to the policy (pmd/…). 0: none."
        },
    )
    loss_type: str = field(default="pmd", metadata={"help": "Cannot be changed."})
    importance_sampling_level: str = field(default="sequence", metadata={"help": "Cannot be changed."})
    scale_rewards: str = field(default="none", metadata={"help": "Cannot be changed."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.tau, self.baseline, self.tau_b, self.normalise)
        for name, value in FIXED.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r}, must be {value!r}: PMD's objective has no other"
                )
        if self.normalise == "constant" and self.max_completion_length is None:
            raise ValueError("max_completion_length: got None, must be a number where normalise is 'constant'")
        if self.num_generations_eval == 1:
            raise ValueError("num_generations_eval: got 1, must be 2 or more: a response's baseline is of the others")
        if not isinstance(self.probe, int) or self.probe < 0:
            raise ValueError(f"probe: got {self.probe!r}, must be a whole number, 0 or more")
        weighed = self.use_vllm and self.vllm_importance_sampling_correction
        if weighed and not self.vllm_importance_sampling_mode.startswith("sequence"):
            mode = self.vllm_importance_sampling_mode
            raise ValueError(
                f"vllm_importance_sampling_mode: got {mode!r}, must be 'sequence_mask' or 'sequence_truncate'"
            )


class AfterStep(TrainerCallback):
    """Calls the trainer's `measure` after each optimizer step, before its metrics are logged."""

    def __init__(self, trainer: PMDTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.measure()


class PMDTrainer(GRPOTrainer):
    """TRL's GRPOTrainer with the advantage and the loss of PMD-mean, PMD-part or the tilted family.

    It takes GRPOTrainer's arguments, with a PMDConfig as `args`. Beside TRL's metrics it logs, of every generation
    batch, `pmd/lambda` (−mean(s) after the batch's last update), `pmd/kl` and `pmd/chi2`, and for PMD-mean what theory
    predicts for a full step on the batch's rewards: `pmd/lambda_theory`, `pmd/kl_theory` and `pmd/chi2_theory`.
    ValueError if a completion has no finite reward.
    """

    _tag_names: ClassVar = ["trl", "pmd"]
    _name = "PMD"
    _paper: ClassVar = {
        "title": "Approximation of Log-Partition Function in Policy Mirror Descent Induces Implicit Regularization for "
        "LLM Post-Training",
        "id": "2602.05933",
        "citation": "",
    }

    def __init__(self, model: Any, reward_funcs: Any = None, args: PMDConfig | None = None, *more: Any, **named: Any):
        args = PMDConfig() if args is None else args
        if not isinstance(args, PMDConfig):
            raise TypeError(f"args: got a {type(args).__name__}, must be a PMDConfig")
        super().__init__(model, reward_funcs, args, *more, **named)
        self.add_callback(AfterStep(self))
        self._theory: dict[str, float] = {}

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """The rewards of all processes' completions, by function: [completions, functions]."""
        by_function = super()._calculate_rewards(*args, **kwargs)
        self._rewards = (by_function * self.reward_weights.to(by_function.device)).nansum(1)
        missing = by_function.isnan().all(1) | ~self._rewards.isfinite()
        if missing.any():
            where = int(missing.nonzero()[0])
            values = dict(zip(self.reward_func_names, by_function[where].tolist(), strict=True))
            raise ValueError(f"rewards: got {values} for completion {where} of the batch, must be finite numbers")
        return by_function

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch with PMD's advantages. A group's completions may come from several processes."""
        output = super()._generate_and_score_completions(inputs)
        args, train = self.args, self.model.training
        groups = self._rewards.view(-1, self.num_generations if train else self.num_generations_eval)
        everyone = advantages(groups.cpu(), args.tau, args.baseline, args.tau_b).flatten()
        begin = self.accelerator.process_index * len(inputs)
        output["advantages"] = everyone[begin : begin + len(inputs)].to(output["advantages"])
        logged = self._logs["advantages"]  # the table of completions, where super() has put its own
        for _ in range(min(len(everyone), len(logged))):
            logged.pop()
        logged.extend(everyone.tolist())
        if train:
            self._theory = predicted(groups, args.tau) if args.baseline == "mean" else {}
        return output

    def _log_probs(self, model: Any, inputs: dict[str, Any], **options: bool) -> tuple[Tensor, Tensor | None, Any]:
        """(log π_θ [S, T], entropies [S, T], the router's loss of a mixture of experts) of the completions' tokens."""
        others = ("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
                  "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids")  # fmt: skip
        return self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].shape[1],
            **{name: inputs.get(name) for name in others},
            **options,
        )

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """What these completions add to the loss of an optimizer step."""
        args, mode = self.args, "train" if self.model.training else "eval"
        log_probs, entropies, aux = self._log_probs(
            model, inputs, compute_entropy=True, compute_aux_loss=self.aux_loss_enabled
        )
        # where TRL has no old log-probabilities, the policy has not changed since it sampled
        old = inputs.setdefault("old_per_token_logps", log_probs.detach())
        mask = response_mask(inputs)
        weight = inputs.get("importance_sampling_ratio")
        loss = regress(
            log_probs,
            old,
            mask,
            inputs["advantages"],
            args.tau,
            args.normalise,
            self.max_completion_length,
            None if weight is None else weight.flatten(),
        )
        metrics = self._metrics[mode]
        metrics["policy_loss"].append(self.accelerator.gather(loss.detach()).mean().item())
        amount, count = self.accelerator.reduce(torch.stack([(entropies * mask).sum(), mask.sum().to(entropies)]))
        metrics["entropy"].append((amount / count.clamp(min=1)).item())
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * aux
            metrics["aux_loss"].append(self.accelerator.gather(aux.detach()).mean().item())
        return loss / self.current_gradient_accumulation_steps if mode == "train" else loss

    @torch.no_grad()
    def measure(self) -> None:
        """Note in the metrics what the updates on a generation batch did to the policy, once they are all done."""
        updates = self.args.steps_per_generation * self.num_iterations
        if self.args.probe == 0 or self._step % updates != 0 or not self._buffered_inputs:
            return
        own = []
        for inputs in self._buffered_inputs[: self.args.probe]:
            log_probs, _, _ = self._log_probs(self.model, inputs)
            own.append(sequence_log_ratio(log_probs, inputs["old_per_token_logps"], response_mask(inputs)))
        values = {**moved(self.accelerator.gather(torch.cat(own))), **self._theory}
        for name, value in values.items():
            self._metrics["train"][f"pmd/{name}"].append(value)


def response_mask(inputs: dict[str, Any]) -> Tensor:
    """[S, T], 1 where a token was sampled by the policy: not padding, and not what a tool answered."""
    mask = inputs["completion_mask"]
    return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask
