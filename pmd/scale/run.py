"""What every rank of a torchrun job does: train one entry of `scale:` in params.yaml.

    pmd scale NAME                                                # one process
    torchrun --standalone --nproc-per-node 8 -m pmd scale NAME    # eight GPUs of one machine
    sbatch --nodes 4 scripts/train.slurm NAME                     # four machines

The run is made in runs/<preset>/scale/NAME-work, where a later call goes on from the last checkpoint, on as many ranks
as it then has. notebooks/7-scale.ipynb starts torchrun itself (pmd/scale/launch.py) and moves a finished run to
runs/<preset>/scale/NAME.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

from pmd import params
from pmd.files import ROOT, write_json
from pmd.harness.config import Train
from pmd.harness.problem_sets import architecture as architecture_of
from pmd.harness.problem_sets import tokenizer as tokenizer_of
from pmd.scale import torchrun
from pmd.scale.engines import engine_for
from pmd.scale.entry import Scale, folder, model_path, read_scale, read_sets, tags, work_folder


def train_entry(values: dict[str, Any], name: str, progress: bool = True) -> dict:
    """Train one entry, as the rank of a torchrun job that this process is, or alone; returns result.json's content.

    values: all of params.yaml. ValueError or OSError in one line, before any work, for a bad entry, for missing files,
    for a model that does not fit on this GPU and for prompts of which none fits into the model's context.
    """
    entry, config = read_scale(values, name)
    problems, sets = read_sets(entry)

    from pmd.scale.gpu import check_gpu  # only here: torch takes seconds to load, and a bad entry is refused without it
    from pmd.trainer.loop import train

    architecture = architecture_of(model_path(entry))
    if others := check_gpu(architecture, config, entry.max_prompt_tokens):
        print(others, file=sys.stderr, flush=True)
    counts = _drop_long_prompts(entry, config, architecture, problems, sets)
    out = work_folder(folder(values, name))
    ranks, local = (int(os.environ.get(key, "1")) for key in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if int(os.environ.get("RANK", "0")) == 0:
        write_json(out / "job.json", {"nodes": ranks // local, "ranks": local, "problem_sets": counts})
    evaluation = {part: rows[: config.eval_prompts] for part, rows in sets.items()}
    engine = engine_for(config)
    own = {"tags": tags(entry), "reward": entry.reward, "trusted": entry.trusted}
    return train(config, model_path(entry), problems, evaluation, out, engine, progress=progress, **own)


def _drop_long_prompts(entry: Scale, config: Train, architecture: Any, problems: list, sets: dict) -> dict[str, dict]:
    """Remove from the problem sets, in place, the prompts that are too long; {file: {"prompts": kept, "too_long"}}."""
    from pmd.problems.prompts import fit
    from pmd.sampling.engine import context

    tokenizer, most, counts = tokenizer_of(model_path(entry)), context(architecture), {}
    room = most and most - max(config.max_tokens, config.eval_max_tokens)
    for file, rows in [(entry.problems, problems), *((entry.sets[part], rows) for part, rows in sets.items())]:
        try:
            rows[:], dropped = fit(tokenizer, rows, entry.max_prompt_tokens, room)
        except ValueError as error:
            raise ValueError(f"scale.{entry.name}.max_prompt_tokens: {file}: {error}") from None
        counts[file] = {"prompts": len(rows), "too_long": dropped}
    return counts


def run_rank(name: str, file: Path | None = None) -> None:
    """Train one entry of `scale:` in params.yaml (or `file`), as a rank of a torchrun job or as the only process; what
    goes wrong ends the process with one line."""
    torchrun.tether()
    followed = torchrun.TETHER in os.environ
    try:
        values = params.load(file or ROOT / "params.yaml")
        train_entry(values, name, progress=not followed)
        if not followed and os.environ.get("RANK", "0") == "0":
            work = os.path.relpath(work_folder(folder(values, name)), ROOT)
            print(f"scale.{name}: trained; the policy is {work}/last, and `dvc repro scale@{name}` reports the run")
    except (ValueError, OSError, FloatingPointError) as error:
        torchrun.fail(" ".join(str(error).split()))
    except Exception as error:
        traceback.print_exc()
        torchrun.fail(f"{type(error).__name__}: {' '.join(str(error).split())}"[:500])
