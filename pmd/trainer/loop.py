"""The reinforcement-learning loop, one for every scale and method.

A step: rollouts from π_t → rewards → log π_t from the trainer's own forward pass → advantages → K minibatches of
whole groups, one optimizer step each → measurements (from log π_t on: pmd/trainer/update.py) → evaluation →
checkpoint. In a torchrun job every rank runs this loop; pmd/model/distributed.py says what is divided among them.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pmd.files import digest, read_json, read_jsonl, write_json, write_jsonl
from pmd.harness.config import Train, identity
from pmd.model import checkpoint, distributed, threads
from pmd.model.forward import checkpoint_activations, compile_layers
from pmd.model.loading import load_policy, save_policy
from pmd.model.sharding import trained_sharded
from pmd.problems.prompts import encode
from pmd.sampling.accuracy import accuracy
from pmd.sampling.engine import Engine, Sampling
from pmd.sampling.scoring import respond, score, summarise
from pmd.sampling.seeds import derive, prompt_order
from pmd.sampling.torch_engine import TorchEngine
from pmd.trainer.passes import Rollouts, from_tensors, to_tensors
from pmd.trainer.update import Clock, learn, remember

LOGS = ("log.jsonl", "timing.jsonl", "eval.jsonl")


@dataclass
class Policy:
    """What a rank trains and samples from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    optimizer: torch.optim.Optimizer
    engine: Engine


def train(
    config: Train,
    base: str | Path,
    problems: list[dict],
    sets: dict[str, list[dict]],
    out: str | Path,
    engine: Callable[..., Engine] | None = None,
    progress: bool = True,
    tags: dict | None = None,
) -> dict:
    """Train the policy in folder `base` on `problems`; evaluate on `sets` (which has "val"); write everything to `out`.

    engine(model, end of sequence) makes what samples, None being the one that `config` names. In a torchrun job every
    rank calls this alike, and rank 0 writes. A run that stopped goes on from its last checkpoint and ends with the bits
    it would have had (on as many ranks). Returns result.json's content. ValueError before any work if `out` holds
    another run or ranks differ; FloatingPointError at a loss that is not finite.

    tags: what else run.json says and a run that goes on must agree in; None: the base model's folder and the problems.
    """
    out, tags = Path(out), {"base": str(base), "problems": digest(problems)} if tags is None else tags
    device = distributed.start(config.device)
    distributed.agree("ranks", identity(config, tags) | {"model": str(base), "torch": torch.__version__})
    if (out / "result.json").exists():
        _same_run(out, config, tags)
        return read_json(out / "result.json")
    threads.use(config.threads)
    policy = load(config, base, device, engine)
    state, waiting = _begin(out, config, tags, policy)
    first, carried = state["step"], 0.0
    bar = tqdm(
        total=config.steps,
        initial=max(0, first - 1),
        disable=not (progress and distributed.world()[0] == 0),
        desc=f"{config.method}/{config.seed}",
    )
    for step in range(first, config.steps + 1):
        clock = Clock({"checkpoint": carried})
        if step > 0:
            rollouts = _rollouts(config, step, policy, problems, waiting, clock)
            row = learn(config, step, policy.model, policy.optimizer, rollouts, clock) | _drift(policy.engine)
            state["tokens"] += rollouts.tokens
            state["rollouts"] += config.prompts * config.group_size
            _append(
                out / "log.jsonl",
                {"step": step, **row, "tokens": state["tokens"], "rollouts": state["rollouts"]},
            )
        if step % config.eval_every == 0 or step == config.steps:
            with clock.phase("eval"):
                _evaluate(config, step, policy, sets, out, state)
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
                kept = {at: to_tensors(rollouts) for at, rollouts in waiting.items()}
                checkpoint.save(out, step, policy.model, policy.optimizer, state | {"step": step}, kept)
                carried = (
                    time.perf_counter() - start
                )  # logged with the next step: this one's row must be complete first
    bar.close()
    save_policy(policy.model, policy.tokenizer, out / "last")
    result = {
        "last_step": config.steps,
        "best_step": state["best_step"],
        "val_last": state["val"],
        "val_best": state["best"],
    }
    if distributed.world()[0] == 0:
        write_json(out / "result.json", result)
    distributed.barrier()
    return result


# --- the policy and its engine -------------------------------------------------------------------------------------


def load(config: Train, base: str | Path, device: str, engine: Callable[..., Engine] | None = None) -> Policy:
    """The policy of a run, its optimizer and its engine."""
    model, tokenizer = load_policy(base, device, compute=config.dtype, divided=trained_sharded(device))
    if config.checkpoint_activations:
        checkpoint_activations(model)
    if config.compile:
        compile_layers(model)
    betas = (config.beta1, config.beta2)
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, betas, weight_decay=config.weight_decay, fused=True)
    make = engine or ENGINES[config.engine]
    return Policy(model, tokenizer, optimizer, make(model, tokenizer.eos_token_id, **config.engine_options))


def _vllm_engine(model: PreTrainedModel, eos: int, **options) -> Engine:
    from pmd.scale.vllm_engine import VLLMEngine  # only here: most environments have no vLLM

    return VLLMEngine(model, eos, **options)


ENGINES: dict[str, Callable[..., Engine]] = {"torch": TorchEngine, "vllm": _vllm_engine}


def _drift(engine: Engine) -> dict:
    """How far the engine's log-probs are from the trainer's [nats], for an engine that compares: over all ranks."""
    drifts = [drift for drift in distributed.gather(getattr(engine, "drift", None)) if drift and drift.tokens]
    if not drifts:
        return {}
    tokens = sum(drift.tokens for drift in drifts)
    mean = sum(drift.mean * drift.tokens for drift in drifts) / tokens
    return {"drift": mean, "drift_largest": max(drift.largest for drift in drifts)}


# --- rollouts ------------------------------------------------------------------------------------------------------


def _rollouts(
    config: Train, step: int, policy: Policy, problems: list[dict], waiting: dict[int, Rollouts], clock: Clock
) -> Rollouts:
    """What `step` learns from.

    With staleness s, step t samples the batch of step t + s, which then waits together with the log π_t of the policy
    that sampled it; the first s batches are sampled at the first step.
    """
    if config.staleness == 0:
        return _sample(config, step, policy, problems, clock)
    last = min(step + config.staleness, config.steps)
    for at in range(max(waiting, default=step - 1) + 1, last + 1):
        waiting[at] = _sample_to_wait(config, at, policy, problems, clock)
    return waiting.pop(step)


def _sample_to_wait(config: Train, step: int, policy: Policy, problems: list[dict], clock: Clock) -> Rollouts:
    fresh = _sample(config, step, policy, problems, clock)
    with clock.phase("old"):
        return replace(fresh, **remember(config, policy.model, fresh))


def _sample(config: Train, step: int, policy: Policy, problems: list[dict], clock: Clock) -> Rollouts:
    """The batch of prompts of `step`, answered by the present policy and judged; each rank does its share of both."""
    chosen = [problems[i] for i in prompt_order(config.seed, step, config.prompts, len(problems))]
    prompts = [encode(policy.tokenizer, problem["prompt"]) for problem in chosen]
    how = (config.group_size, Sampling(config.max_tokens, config.temperature), derive(config.seed, step, "rollout"))
    scored = config.importance_cap is not None

    def answer(share: list[list[int]], first: int) -> list:
        if scored:
            return list(zip(*policy.engine.sample_scored(share, *how, first), strict=True))
        return policy.engine.sample(share, *how, first)

    with clock.phase("rollout"):
        found = distributed.spread(answer, prompts, getattr(policy.engine, "ranks_per_engine", 1))
        responses, sampled = map(list, zip(*found, strict=True)) if scored else (found, None)
    with clock.phase("reward"):
        return replace(judge(chosen, prompts, responses, policy.tokenizer), sampled=sampled)


def judge(problems: list[dict], prompts: list[list[int]], responses: list[list[list[int]]], tokenizer) -> Rollouts:
    """Score every response, a rank's share all in one batch."""
    scores = distributed.spread(
        lambda share, first: score(share, responses[first : first + len(share)], tokenizer), problems
    )
    rewards = torch.tensor([s["reward"] for s in scores]).reshape(len(problems), -1)
    truncated = sum(s["truncated"] for s in scores) / len(scores)
    return Rollouts(prompts, responses, rewards, truncated)


# --- evaluation and logs -------------------------------------------------------------------------------------------


def _evaluate(config: Train, step: int, policy: Policy, sets: dict, out: Path, state: dict) -> None:
    """Evaluate on every set; a better validation score keeps the weights in `best/`."""
    sampling = Sampling(config.eval_max_tokens, 1.0, config.eval_top_p)
    for name, problems in sets.items():
        seed = derive(config.seed, step, f"eval/{name}")
        samples = respond(policy.engine, policy.tokenizer, problems, config.eval_k, sampling, seed)
        summary = summarise(samples, problems)
        _append(out / "eval.jsonl", {"step": step, "set": name, **summary})
        if name == "val":
            state["val"] = accuracy(summary)
    if state["val"] > state["best"]:
        state.update(best=state["val"], best_step=step)
        save_policy(policy.model, policy.tokenizer, out / "best")


def _timing(clock: Clock, step: int, row: dict, state: dict) -> dict:
    """Seconds by phase; wall_s sums what training needs, evaluation and checkpoints left out."""
    seconds = clock.seconds
    spent = sum(value for name, value in seconds.items() if name not in ("eval", "checkpoint"))
    state["wall_s"] += spent
    gpu = {"peak_gpu_mb": torch.cuda.max_memory_allocated() / 2**20} if torch.cuda.is_initialized() else {}
    return {
        "step": step,
        **{
            f"{name}_s": seconds.get(name, 0.0)
            for name in ("rollout", "reward", "old", "update", "probe", "eval", "checkpoint")
        },
        "wall_s": state["wall_s"],
        "tokens_per_s": row["length"] * len(row["successes"]) * row["group_size"] / spent,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **gpu,
    }


# --- starting and going on -----------------------------------------------------------------------------------------


def _begin(out: Path, config: Train, tags: dict, policy: Policy) -> tuple[dict, dict[int, Rollouts]]:
    """(state, waiting rollouts) of a fresh start, or of the last checkpoint with the logs cut back to it."""
    found, main = checkpoint.latest(out), distributed.world()[0] == 0
    distributed.barrier()  # rank 0 changes the folder only after every rank has looked
    if found is None:
        if main:
            for name in LOGS:
                (out / name).unlink(missing_ok=True)
            write_json(out / "run.json", identity(config, tags))
        state = {
            "step": 0,
            "tokens": 0,
            "rollouts": 0,
            "wall_s": 0.0,
            "val": 0.0,
            "best": -1.0,
            "best_step": 0,
        }
        return state, {}
    _same_run(out, config, tags)
    state, kept = checkpoint.load(found, policy.model, policy.optimizer)
    if main:
        for name in LOGS:
            write_jsonl(out / name, [row for row in _complete_rows(out / name) if row["step"] <= state["step"]])
    return state | {"step": state["step"] + 1}, {at: from_tensors(made) for at, made in kept.items()}


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
    """Rank 0 appends one line at once, so that a kill leaves at most one cut line, which `_complete_rows` drops."""
    if distributed.world()[0] != 0:
        return
    line = json.dumps(row, allow_nan=False) + "\n"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise OSError(
            f"{path}: step {row['step']} could not be logged ({error}); the last checkpoint is kept"
        ) from error
