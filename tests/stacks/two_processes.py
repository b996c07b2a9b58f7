"""One optimizer step of PMDTrainer on this rank of two; writes what it saw as JSON. Started by test_trl.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.stacks.test_trl import digits, settings, trainer

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
seen: dict = {}


def noted(prompts, completions, **columns):
    seen.update(prompts=prompts, rewards=digits(completions))
    return seen["rewards"]


policy = tuple(kind.from_pretrained(folder / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
run = trainer(policy, settings(folder / "out", per_device_train_batch_size=6, max_steps=1), noted)
score = run._generate_and_score_completions
run._generate_and_score_completions = lambda rows: seen.setdefault("batch", score(rows))
run.train()
[log] = [entry for entry in run.state.log_history if "pmd/lambda" in entry] or [{}]
seen["advantages"] = seen.pop("batch")["advantages"].tolist()
seen["log"] = {key: value for key, value in log.items() if key.startswith("pmd/")}
(folder / f"{rank}.json").write_text(json.dumps(seen))
