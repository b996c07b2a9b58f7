"""The peer: TRL's GRPOTrainer at the benchmark's shape, in an environment of its own (see compare.py).

Prints one line of JSON: seconds and tokens of every measured step. A step is the rollouts, their rewards, old
log-probs and all optimizer updates. TRL's defaults are kept but for those that only cost it time here:
gradient checkpointing and bf16 (both on by default, both slower on a CPU at this size), logging, saving.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Clock(TrainerCallback):
    """When each step (of `updates` optimizer updates) began, after our turn, and ended."""

    def __init__(self, updates: int):
        self.updates, self.began, self.ended = updates, [], []

    def turn(self) -> None:
        print("ready", flush=True)
        sys.stdin.readline()
        self.began.append(time.perf_counter())

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.updates == 0:
            self.ended.append(time.perf_counter())
            self.turn()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--problems", type=Path, required=True)
    parser.add_argument("--shape", type=json.loads, required=True, help="JSON, see SHAPE in compare.py")
    parser.add_argument("--scratch", type=Path, required=True, help="TRL's output directory; stays empty")
    options = parser.parse_args()
    shape = options.shape
    torch.set_num_threads(shape["threads"])
    sequences = shape["prompts"] * shape["rollouts"] // shape["updates"]
    steps = shape["warmup"] + shape["steps"]
    lines = options.problems.read_text().splitlines()[: shape["prompts"] * steps]
    rows = [{key: json.loads(line)[key] for key in ("prompt", "ground_truth")} for line in lines]
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    # eager attention is TRL's fastest here, by about 5 % over sdpa
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, attn_implementation="eager")
    tokens: list[dict[str, int]] = []

    def exact(prompts, completions, completion_ids, ground_truth, **kwargs) -> list[float]:
        tokens.append(
            {
                "prompt": sum(map(len, tokenizer(prompts)["input_ids"])),
                "response": sum(map(len, completion_ids)),
            }
        )
        return [
            float(ids[-1] == tokenizer.eos_token_id and text.rpartition("=")[2] == truth)
            for text, ids, truth in zip(completions, completion_ids, ground_truth, strict=True)
        ]

    config = GRPOConfig(
        output_dir=str(options.scratch),
        num_generations=shape["rollouts"],
        max_completion_length=shape["max_tokens"],
        per_device_train_batch_size=sequences,
        steps_per_generation=shape["updates"],
        gradient_accumulation_steps=1,
        max_steps=steps * shape["updates"],
        learning_rate=shape["lr"],
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        max_grad_norm=1.0,
        beta=0.0,
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    clock = Clock(shape["updates"])
    trainer = GRPOTrainer(model, exact, config, Dataset.from_list(rows), processing_class=tokenizer, callbacks=[clock])
    clock.turn()
    trainer.train()
    seconds = [ended - began for began, ended in zip(clock.began, clock.ended, strict=False)]
    measured = [
        {"seconds": s, "prompt_tokens": t["prompt"], "response_tokens": t["response"]}
        for s, t in list(zip(seconds, tokens, strict=True))[shape["warmup"] :]
    ]
    print(json.dumps({"steps": measured}))


if __name__ == "__main__":
    main()
