"""The reinforcement-learning loop, one for every scale and method.

A step: rollouts from π_t → rewards → log π_t from the trainer's own forward pass → advantages → K minibatches of
whole groups, one optimizer step each → measurements → evaluation → checkpoint. log π_t is frozen for the whole
batch, so minibatches 2..K are off-policy by design (arXiv:2602.05933, practical algorithm). A minibatch too large for
one forward and backward pass is cut into microbatches whose gradients add up to its own.
"""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pmd import checkpoint, theory
from pmd.evaluate import accuracy, respond, score, summarise
from pmd.files import read_json, read_jsonl, write_json, write_jsonl
from pmd.forward import checkpoint_activations, log_probs
from pmd.objectives import OBJECTIVES, Hyper, Minibatch, group_mean, keep_groups, leave_one_out_mean
from pmd.packing import Packed, pack
from pmd.params import Train, identity
from pmd.policy import load_policy, save_policy
from pmd.prompts import encode
from pmd.rollout import Engine, Sampling, TorchEngine
from pmd.seeds import derive, prompt_order

LOGS = ("log.jsonl", "timing.jsonl", "eval.jsonl")


@dataclass(frozen=True)
class Rollouts:
    """A step's G groups of n responses: token ids and rewards [G, n]."""

    prompts: list[list[int]]
    responses: list[list[list[int]]]
    rewards: Tensor
    truncated: float

    @property
    def tokens(self) -> int:
        return sum(len(response) for group in self.responses for response in group)


@dataclass(frozen=True)
class Microbatch:
    """S responses for one forward and backward pass, and their advantages [S]."""

    packed: Packed
    advantage: Tensor


@dataclass
class Clock:
    """Seconds by phase."""

    seconds: dict[str, float]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def train(
    config: Train,
    base: str | Path,
    problems: list[dict],
    sets: dict[str, list[dict]],
    out: str | Path,
    engine: Callable[..., Engine] = TorchEngine,
    progress: bool = True,
    tags: dict | None = None,
) -> dict:
    """Train the policy in folder `base` on `problems`; evaluate on `sets` (which has "val"); write everything to `out`.

    A run that stopped goes on from its last checkpoint and ends with the bits it would have had. Returns result.json's
    content. ValueError before any work if `out` holds another run; FloatingPointError at a loss that is not finite.
    """
    out, tags = Path(out), tags or {}
    if (out / "result.json").exists():
        _same_run(out, config, tags)
        return read_json(out / "result.json")
    torch.set_num_threads(config.threads)
    model, tokenizer = load_policy(base, config.device, compute=config.dtype)
    if config.checkpoint_activations:
        checkpoint_activations(model)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        config.lr,
        (config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )
    state = _begin(out, config, tags, model, optimizer)
    sampler = engine(model, tokenizer.eos_token_id)
    first, carried = state["step"], 0.0
    bar = tqdm(
        total=config.steps,
        initial=max(0, first - 1),
        disable=not progress,
        desc=f"{config.method}/{config.seed}",
    )
    for step in range(first, config.steps + 1):
        clock = Clock({"checkpoint": carried})
        if step > 0:
            row = _step(config, step, model, tokenizer, optimizer, sampler, problems, clock)
            state["tokens"] += row.pop("step_tokens")
            state["rollouts"] += config.prompts * config.group_size
            _append(
                out / "log.jsonl",
                {"step": step, **row, "tokens": state["tokens"], "rollouts": state["rollouts"]},
            )
        if step % config.eval_every == 0 or step == config.steps:
            with clock.phase("eval"):
                _evaluate(config, step, model, tokenizer, sampler, sets, out, state)
        if step > 0:
            timing = _timing(clock, step, row, state)
            _append(out / "timing.jsonl", timing)
            bar.update()
            bar.set_postfix(
                reward=f"{row['reward']:.3f}",
                val=f"{state['val']:.3f}",
                tok_s=f"{timing['tokens_per_s']:.0f}",
            )
            if step % config.checkpoint_every == 0 or step == config.steps:
                start = time.perf_counter()
                checkpoint.save(out, step, model, optimizer, state | {"step": step})
                carried = (
                    time.perf_counter() - start
                )  # logged with the next step: this one's row must be complete first
    bar.close()
    save_policy(model, tokenizer, out / "last")
    result = {
        "last_step": config.steps,
        "best_step": state["best_step"],
        "val_last": state["val"],
        "val_best": state["best"],
    }
    write_json(out / "result.json", result)
    return result


def _step(
    config: Train, step: int, model, tokenizer, optimizer, engine: Engine, problems: list[dict], clock: Clock
) -> dict:
    """One step of policy mirror descent; returns its row of the log."""
    chosen = [problems[i] for i in prompt_order(config.seed, step, config.prompts, len(problems))]
    with clock.phase("rollout"):
        prompts = [encode(tokenizer, problem["prompt"]) for problem in chosen]
        sampling = Sampling(config.max_tokens, config.temperature)
        responses = engine.sample(prompts, config.group_size, sampling, derive(config.seed, step, "rollout"))
    with clock.phase("reward"):
        rollouts = judge(chosen, prompts, responses, tokenizer)
    objective = OBJECTIVES[config.method]
    advantages = objective.advantage(rollouts.rewards.double(), config.tau).float()
    kept = keep_groups(rollouts.rewards, config.filter_low, config.filter_high).nonzero()[:, 0].tolist()
    with clock.phase("old"):
        parts = [part for part in _split(kept, config.minibatches) if part]
        minibatches = [_microbatches(rollouts, advantages, part, config) for part in parts]
        batches = [batch for minibatch in minibatches for batch in minibatch]
        # the first minibatch is met at θ = θ_t: the forward pass of its update, if it is one, is also its log π_t
        first = [minibatch[0] for minibatch in minibatches[:1] if len(minibatch) == 1]
        forward = [log_probs(model, batch.packed, config.temperature) for batch in first]
        old = [(log_p.detach(), entropy.mean().item()) for log_p, entropy in forward]
        old += [_old_log_probs(model, batch.packed, config) for batch in batches[len(old) :]]
    with clock.phase("update"):
        before = iter([log_p for log_p, _ in old])
        updates = [
            _update(config, step, model, optimizer, [(batch, next(before)) for batch in minibatch], forward)
            for minibatch in minibatches
        ]
    with clock.phase("probe"):
        probed = [g for part in parts[: config.probe] for g in part]
        measured = _measure(model, batches[: sum(map(len, minibatches[: config.probe]))], old, config)
    return {
        **_rollout_metrics(rollouts),
        "kept": len(kept) / len(chosen),
        "entropy": _mean([entropy for _, entropy in old], [len(batch.packed.target) for batch in batches]),
        **{key: _mean([u[key] for u in updates]) for key in ("loss", "grad_norm", "clip_fraction")},
        **measured,
        **_predicted(config, rollouts.rewards[probed]),
        "step_tokens": rollouts.tokens,
    }


def judge(problems: list[dict], prompts: list[list[int]], responses: list[list[list[int]]], tokenizer) -> Rollouts:
    """Score every response, all in one batch."""
    scores = score(problems, responses, tokenizer)
    rewards = torch.tensor([s["reward"] for s in scores]).reshape(len(problems), -1)
    truncated = sum(s["truncated"] for s in scores) / len(scores)
    return Rollouts(prompts, responses, rewards, truncated)


def _split(groups: list[int], parts: int) -> list[list[int]]:
    """K minibatches of whole groups, as equal as can be."""
    return [groups[len(groups) * i // parts : len(groups) * (i + 1) // parts] for i in range(parts)]


def _cut(rollouts: Rollouts, groups: list[int], budget: int | None) -> list[dict[int, list[int]]]:
    """A minibatch's groups in microbatches {group: its responses} of at most `budget` packed tokens each, None being no
    bound. A group's prompt stands in every microbatch that holds some of it; a response beyond the budget stands alone.
    """
    parts, tokens = [{}], 0
    for g in groups:
        for i, response in enumerate(rollouts.responses[g]):
            prompt, fed = len(rollouts.prompts[g]), len(response) - 1
            more = fed + (0 if g in parts[-1] else prompt)
            if parts[-1] and budget is not None and tokens + more > budget:
                parts.append({})
                tokens, more = 0, fed + prompt
            parts[-1].setdefault(g, []).append(i)
            tokens += more
    return parts


def _microbatches(rollouts: Rollouts, advantages: Tensor, groups: list[int], config: Train) -> list[Microbatch]:
    """A minibatch of whole groups, packed for one pass after another; advantages: [G, n], from the whole groups."""
    batches = []
    for part in _cut(rollouts, groups, config.microbatch_tokens):
        responses = [[rollouts.responses[g][i] for i in chosen] for g, chosen in part.items()]
        packed = pack([rollouts.prompts[g] for g in part], responses, config.device)
        advantage = torch.cat([advantages[g, chosen] for g, chosen in part.items()])
        batches.append(Microbatch(packed, advantage.to(config.device)))
    return batches


@torch.no_grad()
def _old_log_probs(model, packed: Packed, config: Train) -> tuple[Tensor, float]:
    log_p, entropy = log_probs(model, packed, config.temperature)
    return log_p, entropy.mean().item()


def _update(
    config: Train, step: int, model, optimizer, batches: list[tuple[Microbatch, Tensor]], forward: list[tuple]
) -> dict:
    """One optimizer step on one minibatch, given as microbatches with their log π_t.

    forward: log-probabilities already computed with their graph; taken from the list, so that it is freed.
    """
    whole = (sum(len(b.packed.lengths) for b, _ in batches), sum(len(b.packed.target) for b, _ in batches))
    optimizer.zero_grad(set_to_none=True)
    total, active = 0.0, []
    for batch, before in batches:
        packed = batch.packed
        new, _ = forward.pop() if forward else log_probs(model, packed, config.temperature)
        seen = Minibatch(new - before, batch.advantage, packed.sequence, packed.lengths, config.max_tokens, whole)
        loss, clipped = OBJECTIVES[config.method].loss(seen, hyper(config))
        loss.backward()
        total += loss.item()
        active += [] if clipped is None else [clipped]
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip).item()
    if not (math.isfinite(total) and math.isfinite(norm)):
        raise FloatingPointError(
            f"step {step}: the loss is {total} and its gradient norm {norm} (method {config.method}, "
            f"lr {config.lr}, tau {config.tau}); training stopped before the update, the last checkpoint is kept"
        )
    for group in optimizer.param_groups:
        group["lr"] = config.lr * min(1.0, step / (config.warmup + 1))
    optimizer.step()
    clip_fraction = torch.cat(active).float().mean().item() if active else None
    return {"loss": total, "grad_norm": norm, "clip_fraction": clip_fraction}


def hyper(config: Train) -> Hyper:
    """The loss's hyper-parameters of a run."""
    return Hyper(config.tau, config.clip_low, config.clip_high, config.normalise)


@torch.no_grad()
def _measure(model, batches: list[Microbatch], old: list[tuple[Tensor, float]], config: Train) -> dict:
    """−mean(s), which estimates λ, and KL(π_{t+1}‖π_t), χ²(π_{t+1}‖π_t) from π_t's own rollouts, in nats.

    KL is the mean of ρ s − ρ + 1 and χ² of (ρ − 1)²: the unbiased estimators that cannot be negative.
    """
    if not batches:
        return {"lambda": 0.0, "kl": 0.0, "chi2": 0.0}
    s = []
    for batch, (before, _) in zip(batches, old, strict=False):
        after, _ = log_probs(model, batch.packed, config.temperature)
        s.append(Minibatch(after - before, before, batch.packed.sequence, batch.packed.lengths, 1).s.double())
    s = torch.cat(s)
    # far from π_t, ρ overflows; the log records the largest double rather than stopping the run
    rho = s.clamp(max=300).exp()
    values = {"lambda": -s.mean(), "kl": (rho * s - rho + 1).mean(), "chi2": ((rho - 1) ** 2).mean()}
    return {key: value.item() for key, value in values.items()}


def _predicted(config: Train, rewards: Tensor) -> dict:
    """What the population update predicts for the same groups: for the methods whose baseline is a mean, else None."""
    n = config.group_size
    tau = {leave_one_out_mean: config.tau * (n - 1) / n, group_mean: config.tau}.get(
        OBJECTIVES[config.method].advantage
    )
    if tau is None or "tau" not in OBJECTIVES[config.method].uses or len(rewards) == 0:
        return dict.fromkeys(("lambda_theory", "kl_theory", "chi2_theory"))
    predicted = theory.predicted_lambda(rewards.double().numpy(), tau)
    return {
        f"{key}_theory": float(np.mean(value)) for key, value in zip(("lambda", "kl", "chi2"), predicted, strict=True)
    }


def _rollout_metrics(rollouts: Rollouts) -> dict:
    rewards = rollouts.rewards
    return {
        "reward": rewards.mean().item(),
        "signal": ((rewards != rewards[:, :1]).any(1)).float().mean().item(),
        "length": rollouts.tokens / rewards.numel(),
        "truncated": rollouts.truncated,
        "successes": (rewards == 1).sum(1).tolist(),
        "group_size": rewards.shape[1],
    }


def _mean(values: list[float | None], weights: list[int] | None = None) -> float | None:
    """Weighted mean; None if there is nothing to average."""
    if not values or values[0] is None:
        return None
    weights = weights or [1] * len(values)
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def _evaluate(config: Train, step: int, model, tokenizer, engine: Engine, sets: dict, out: Path, state: dict) -> None:
    """Evaluate on every set; a better validation score keeps the weights in `best/`."""
    sampling = Sampling(config.eval_max_tokens, 1.0, config.eval_top_p)
    for name, problems in sets.items():
        seed = derive(config.seed, step, f"eval/{name}")
        summary = summarise(respond(engine, tokenizer, problems, config.eval_k, sampling, seed), problems)
        _append(out / "eval.jsonl", {"step": step, "set": name, **summary})
        if name == "val":
            state["val"] = accuracy(summary)
    if state["val"] > state["best"]:
        state.update(best=state["val"], best_step=step)
        save_policy(model, tokenizer, out / "best")


def _timing(clock: Clock, step: int, row: dict, state: dict) -> dict:
    """Seconds by phase; wall_s sums what training needs, evaluation and checkpoints left out."""
    seconds = clock.seconds
    spent = sum(value for name, value in seconds.items() if name not in ("eval", "checkpoint"))
    state["wall_s"] += spent
    return {
        "step": step,
        **{
            f"{name}_s": seconds.get(name, 0.0)
            for name in ("rollout", "reward", "old", "update", "probe", "eval", "checkpoint")
        },
        "wall_s": state["wall_s"],
        "tokens_per_s": row["length"] * len(row["successes"]) * row["group_size"] / spent,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


# --- starting and going on -----------------------------------------------------------------------------------------


def _begin(out: Path, config: Train, tags: dict, model, optimizer) -> dict:
    """A fresh start, or the state of the last checkpoint with the logs cut back to it."""
    found = checkpoint.latest(out)
    if found is None:
        for name in LOGS:
            (out / name).unlink(missing_ok=True)
        write_json(out / "run.json", identity(config, tags))
        return {
            "step": 0,
            "tokens": 0,
            "rollouts": 0,
            "wall_s": 0.0,
            "val": 0.0,
            "best": -1.0,
            "best_step": 0,
        }
    _same_run(out, config, tags)
    state = checkpoint.load(found, model, optimizer)
    for name in LOGS:
        write_jsonl(out / name, [row for row in _complete_rows(out / name) if row["step"] <= state["step"]])
    return state | {"step": state["step"] + 1}


def _complete_rows(path: Path) -> list[dict]:
    """The rows of a log whose last line may be cut off; the cut line is dropped."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
    return read_jsonl(path)


def _same_run(out: Path, config: Train, tags: dict) -> None:
    """ValueError naming the first difference if `out` holds a run with other parameters."""
    was, now = read_json(out / "run.json"), identity(config, tags)
    for key in now:
        if was.get(key) != now[key]:
            raise ValueError(
                f"{out}: holds a run with {key} = {was.get(key)!r}, not {now[key]!r}; "
                "delete it or choose another folder"
            )


def _append(path: Path, row: dict) -> None:
    """Append one line at once, so that a kill leaves at most one cut line, which `_complete_rows` drops."""
    line = json.dumps(row, allow_nan=False) + "\n"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise OSError(
            f"{path}: step {row['step']} could not be logged ({error}); the last checkpoint is kept"
        ) from error
