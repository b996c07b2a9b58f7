"""The training loop of policy mirror descent (arXiv:2602.05933), one for every method and every scale.

Step t of `train` starts from the policy π_t, that is from the weights θ_t, and makes π_{t+1}:

1. Sample (rollouts.py, staleness.py). A batch of `prompts` problems is drawn, and the engine samples n = `group_size`
   responses y_1 … y_n to each from π_t. The verifier gives each response its reward r_i.
2. Freeze (update.py, `freeze`). A forward pass gives log π_t of every token of every response. These numbers stay as
   they are while the weights move.
3. Advantages (objectives.py). A group's rewards become advantages A_i; those of PMD-mean are r_i − mean_{j≠i} r_j.
4. Update (update.py, `update`). The groups are divided into K = `minibatches` parts. Each part in turn gives the
   log-ratios s_i = log π_θ(y_i) − log π_t(y_i), a loss, which for PMD-mean is the mean of τ/2 (A_i/τ − s_i)² / L_i with
   L_i the length of y_i, and one step of AdamW on its gradient. From the second part on, θ is not θ_t any more.
5. Measure (measurements.py). −mean(s) estimates λ, the weight in the regulariser KL + (λ/2) χ² that PMD-mean has in
   effect; KL and χ² say how far π_{t+1} is from π_t. Beside them stands what the theory predicts for the same groups.
6. Every `eval_every` steps the policy is evaluated; every `checkpoint_every` steps the run is saved.

In a torchrun job every rank runs this loop; pmd/model/distributed.py says what is divided among them. What a run needs
besides the algorithm, its settings, its folder and its passes, is in pmd/harness.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from pmd.bar import progress_bar
from pmd.files import read_json, write_json
from pmd.harness import run_folder
from pmd.harness.clock import Clock, timing
from pmd.harness.config import Train, identity
from pmd.harness.evaluation import evaluate
from pmd.harness.policy import Policy, make_policy
from pmd.harness.problem_sets import usable
from pmd.model import checkpoint, distributed
from pmd.model.loading import directory, save_policy
from pmd.model.threads import use_threads
from pmd.problems.reward import RewardFunction, read_reward, try_out
from pmd.sampling.accuracy import score
from pmd.sampling.engine import MakeEngine
from pmd.trainer.measurements import of_engine
from pmd.trainer.rollouts import Rollouts
from pmd.trainer.staleness import batch_of_step, from_tensors, to_tensors
from pmd.trainer.update import learn


def train(
    config: Train,
    base: str | Path,
    problems: list[dict],
    sets: dict[str, list[dict]],
    out: str | Path,
    engine: MakeEngine | None = None,
    progress: bool = True,
    tags: dict | None = None,
    reward: str | RewardFunction | None = None,
    trusted: bool = False,
) -> dict:
    """Train the policy in model folder `base` on `problems`, evaluate it on `sets`, write everything to `out`.

    config: of pmd.harness.config.train_config. problems, sets: of pmd's read_problems, without those that do not fit
    into the model's context (pmd/harness/problem_sets.py); `sets` has "val", whose best policy is kept. engine: makes
    what samples; None: TorchEngine. In a torchrun job every rank calls this alike, and rank 0 writes. tags: what else
    identifies the run, for run.json. reward: a function of your own, or its name module:function, in the verifier's
    place; a trusted one runs in this process (pmd/problems/reward.py).

    Returns result.json's content: last_step, best_step, val_last and val_best: accuracies in [0, 1], with a reward of
    your own its means. A run that stopped goes on from its last checkpoint and ends with the bits it would have had, on
    as many ranks; more steps and other settings of run_folder.ADJUSTABLE are allowed. ValueError in one line before
    any work if problems are missing, the reward cannot be called, `out` holds another run (by settings, tags, problems,
    model or reward) or ranks differ; FloatingPointError at a loss that is not finite.
    """
    out, device = Path(out), distributed.start(config.device)
    problems, sets = usable(config, base, problems, sets, judged=reward is None)
    own = read_reward(reward, trusted)
    try_out(own, problems, *sets.values())
    content = {"model_md5": run_folder.model_digest(directory(base)), "reward": own and own.identity}
    content["problems_md5"] = run_folder.problems_digest(problems, whole=own is not None)
    wanted = identity(config, content | (tags or {}))
    distributed.agree(wanted | {"torch": torch.__version__})
    if run_folder.finished(out, wanted):
        return read_json(out / "result.json")
    use_threads(config.threads)
    policy, main = make_policy(config, base, device, engine, own), distributed.world()[0] == 0
    state, waiting = _start(out, wanted, policy)
    hidden, name = not (progress and main), f"{config.method}/{config.seed}"
    bar = progress_bar(total=config.steps, initial=max(0, state["step"]), disable=hidden, desc=name)

    def write(name: str, row: dict) -> None:
        if main:
            run_folder.append(out / name, row)

    carried = 0.0  # seconds of the last checkpoint: it holds the row of its own step already
    for step in range(state["step"] + 1, config.steps + 1):
        clock = Clock({"checkpoint": carried})
        if step > 0:
            rollouts = batch_of_step(config, step, policy, problems, waiting, clock)
            row = learn(config, step, policy.model, policy.optimizer, rollouts, clock) | of_engine(policy.engine)
            state["tokens"] += rollouts.tokens
            state["rollouts"] += config.prompts * config.group_size
            write("log.jsonl", {"step": step, **row, "tokens": state["tokens"], "rollouts": state["rollouts"]})
        if step % config.eval_every == 0 or step == config.steps:
            with clock.phase("eval"):
                for evaluation in evaluate(config, step, policy, sets):
                    write("eval.jsonl", evaluation)
                    if evaluation["set"] == "val":
                        _keep_best(out, step, policy, score(evaluation), state)
        if step > 0:
            seconds = timing(clock, step, row, state["wall_s"])
            state["wall_s"] = seconds["wall_s"]
            write("timing.jsonl", seconds)
            bar.update()
            shown = {"reward": f"{row['reward']:.3f}", "val": f"{state['val']:.3f}"}
            bar.set_postfix(**shown, tok_s=f"{seconds['tokens_per_s']:.0f}")
            if step % config.checkpoint_every == 0 or step == config.steps:
                start = time.perf_counter()
                kept = {later: to_tensors(batch) for later, batch in waiting.items()}
                checkpoint.save(out, step, policy.model, policy.optimizer, state | {"step": step}, kept)
                carried = time.perf_counter() - start
    bar.close()
    save_policy(policy.model, policy.tokenizer, out / "last")
    result = {"last_step": config.steps, "best_step": state["best_step"]}
    result |= {"val_last": state["val"], "val_best": state["best"]}
    if main:
        write_json(out / "result.json", result)
    distributed.barrier()
    return result


def _start(out: Path, wanted: dict, policy: Policy) -> tuple[dict, dict[int, Rollouts]]:
    """(state, waiting batches) of a run's beginning or of its last checkpoint, with the folder made ready for it.

    state["step"] is the last step done; −1 says that not even step 0, the evaluation of the base model, is.
    """
    found, main = checkpoint.latest(out), distributed.world()[0] == 0
    distributed.barrier()  # rank 0 changes the folder only after every rank has looked
    if found is None:
        if main:
            run_folder.begin(out, wanted)
        return {"step": -1, "tokens": 0, "rollouts": 0, "wall_s": 0.0, "val": 0.0, "best": None, "best_step": 0}, {}
    state, kept = checkpoint.load(found, policy.model, policy.optimizer)
    if main:
        run_folder.go_on(out, wanted, state["step"])
    return state, {later: from_tensors(tensors) for later, tensors in kept.items()}


def _keep_best(out: Path, step: int, policy: Policy, val: float, state: dict) -> None:
    """Note a validation score; the policy with the best one so far stays in `best/`."""
    state["val"] = val
    if state["best"] is None or val > state["best"]:
        state.update(best=val, best_step=step)
        save_policy(policy.model, policy.tokenizer, out / "best")
