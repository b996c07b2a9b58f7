"""Two gloo ranks for real: the same training as one process, shards, resume on other numbers of ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from pmd.files import ROOT, read_jsonl
from pmd.harness.config import Train
from pmd.model import checkpoint, distributed
from pmd.model.loading import load_policy
from pmd.problems.verifier import Verdict
from pmd.sampling import scoring
from pmd.trainer import loop
from pmd.trainer.loop import train
from tests.test_loop import PROBLEMS, SETS, config

WORKER = """
import json, sys
from tests.test_distributed import job
for spec in json.load(open(sys.argv[1])):
    job(spec)
"""


def low(rules, responses, golds, ended):
    """A reward that an untrained policy often reaches."""
    return [Verdict(text, text[:1] < "5", float(text[:1] < "5"), False) for text in responses]


def job(spec: dict) -> None:
    """What a rank does."""
    scoring.verify = low
    torch.set_num_threads(1)
    train(Train(**spec["config"]), spec["base"], PROBLEMS, SETS, spec["out"], progress=False)


def two_ranks(jobs: dict[Path, tuple[Path, dict]]) -> None:
    """Run `job` on two gloo ranks for each {folder: (base model, changes)}, in one torchrun job."""
    folder = next(iter(jobs)).parent
    specs = [
        {"config": config(**changes).model_dump(), "base": str(base), "out": str(out)}
        for out, (base, changes) in jobs.items()
    ]
    (folder / "specs.json").write_text(json.dumps(specs))
    (folder / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command += [str(folder / "worker.py"), str(folder / "specs.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:6000]


@pytest.fixture
def one_rank(tiny_dir, monkeypatch):
    """The same run in this process."""
    monkeypatch.setattr(scoring, "verify", low)

    def run(out: Path, changes: dict, base: Path = tiny_dir) -> None:
        train(config(**changes), base, PROBLEMS, SETS, out, progress=False)

    return run


STEPS = {"steps": 3, "eval_every": 3, "checkpoint_every": 1}
VARIANTS = {
    "pmd-mean": {"method": "pmd-mean"},
    "grpo": {"method": "grpo", "microbatch_tokens": 24, "checkpoint_activations": True},
    "stale": {"method": "pmd-mean", "staleness": 1, "group_size": 3},
}

SUMS = ("loss", "grad_norm", "entropy")


def test_two_ranks_train_as_one_process_does(tiny_dir, folder_of, tmp_path, one_rank):
    """Losses, gradient norms and weights after three steps, to 1e-5; what is counted is equal.

    Architectures with other names are among them, recomputed: OPT's layers would drop out of what they add.
    """
    jobs = {name: (tiny_dir, STEPS | changes) for name, changes in VARIANTS.items()}
    jobs |= {kind: (folder_of(kind), STEPS | {"checkpoint_activations": True}) for kind in ("gpt2", "opt")}
    two_ranks({tmp_path / f"{name}-2": job for name, job in jobs.items()})
    start = load_file(tiny_dir / "model.safetensors")
    for name, (base, changes) in jobs.items():
        one_rank(tmp_path / f"{name}-1", changes, base)
        folders = [tmp_path / f"{name}-{count}" for count in (1, 2)]
        rows = [read_jsonl(folder / "log.jsonl") for folder in folders]
        for a, b in zip(*rows, strict=True):
            assert a["grad_norm"] > 0
            assert [b[key] for key in SUMS] == pytest.approx([a[key] for key in SUMS], rel=1e-5)
        if name not in VARIANTS:  # a key's bias changes no loss, and Adam makes steps of the rounding in its gradient
            continue
        for a, b in zip(*rows, strict=True):
            for key, value in a.items():
                assert b[key] == (pytest.approx(value, rel=1e-5, abs=1e-6) if isinstance(value, float) else value), key
        evals = [read_jsonl(folder / "eval.jsonl") for folder in folders]
        assert evals[0] == evals[1]
        one, two = (load_file(folder / "last" / "model.safetensors") for folder in folders)
        for key, weight in one.items():
            assert_close(two[key], weight, atol=1e-5, rtol=0)
        assert max((one[key] - start[key]).abs().max() for key in one) > 1e-3  # three steps of lr 1e-3


def shorten(out: Path, steps: int) -> None:
    """Make a finished run one that was stopped at its last checkpoint, of so many steps in all."""
    (out / "result.json").unlink()
    run = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(run | {"steps": steps}))


def test_a_checkpoint_is_sharded_and_read_by_any_number_of_ranks(tiny_dir, tmp_path, one_rank):
    """One step on one rank, the second on two, the third on one: as three on one, to rounding."""
    out, every = tmp_path / "moved", STEPS | {"eval_every": 1}
    for steps, count in ((1, 1), (2, 2), (3, 1)):
        changes = every | {"steps": steps}
        one_rank(out, changes) if count == 1 else two_ranks({out: (tiny_dir, changes)})
        names = {path.name for path in checkpoint.latest(out).glob("*.safetensors")}
        assert names == {f"{what}-{r}-of-{count}.safetensors" for what in ("weights", "moments") for r in range(count)}
        if count == 2:
            shards = [load_file(checkpoint.latest(out) / f"weights-{r}-of-2.safetensors") for r in (0, 1)]
            rows = dict(load_policy(tiny_dir)[0].named_parameters())
            assert all(0 < len(shards[0][n]) < len(p) == len(shards[0][n]) + len(shards[1][n]) for n, p in rows.items())
        shorten(out, steps + 1)
    one_rank(tmp_path / "1", every)
    moved, whole = (load_file(folder / "last" / "model.safetensors") for folder in (out, tmp_path / "1"))
    for name, weight in whole.items():
        assert_close(moved[name], weight, atol=1e-5, rtol=0)


def test_stale_rollouts_are_the_old_policys_and_wait_in_the_checkpoint(tmp_path, one_rank, monkeypatch):
    """Batch t is sampled s steps before it is used; a run stopped between goes on with the same bits."""
    changes = STEPS | {"steps": 4, "staleness": 2, "checkpoint_every": 3, "eval_every": 4}
    one_rank(tmp_path / "whole", changes)
    rows = read_jsonl(tmp_path / "whole" / "log.jsonl")
    fresh = STEPS | {"steps": 4, "staleness": 0, "checkpoint_every": 3, "eval_every": 4}
    one_rank(tmp_path / "fresh", fresh)
    first = read_jsonl(tmp_path / "fresh" / "log.jsonl")
    assert rows[0]["successes"] == first[0]["successes"]  # both from θ_1
    assert rows[0]["grad_norm"] == pytest.approx(first[0]["grad_norm"], rel=1e-5)
    assert rows[1]["lambda"] > rows[0]["lambda"]  # two updates away from the policy that sampled
    kept = tmp_path / "part"
    stopped = loop.learn

    def stop(config, step, *rest):
        if step == 4:
            raise KeyboardInterrupt
        return stopped(config, step, *rest)

    monkeypatch.setattr(loop, "learn", stop)
    with pytest.raises(KeyboardInterrupt):
        one_rank(kept, changes)
    monkeypatch.setattr(loop, "learn", stopped)
    waiting = {path.name for path in checkpoint.latest(kept).glob("waiting-*")}
    assert waiting == {"waiting-4.safetensors", "waiting-5.safetensors"}  # as if there were more steps to come
    one_rank(kept, changes)
    for name in ("log.jsonl", "eval.jsonl", "last/model.safetensors"):
        assert (kept / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_ranks_with_different_parameters_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "gather", lambda value: [value, value | {"tau": 0.25}])
    with pytest.raises(ValueError, match=r"ranks: rank 1 has tau = 0\.25, rank 0 has 0\.5; start") as caught:
        distributed.agree("ranks", {"tau": 0.5, "lr": 1.0})
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    distributed.agree("ranks", {"tau": 0.5})


@pytest.mark.parametrize(("size", "copies"), [(1, 1), (2, 1), (3, 1), (4, 2), (4, 4)])
@pytest.mark.parametrize("items", [0, 1, 2, 7])
def test_spread_gives_every_rank_everything_in_order(monkeypatch, size, copies, items):
    """All ranks' shares, computed one after the other; copies share theirs."""
    seen = {}

    def work(share, first):
        seen[rank] = (share, first)
        return [10 * x for x in share]

    shares = []
    for rank in range(size):
        monkeypatch.setattr(distributed, "world", lambda rank=rank: (rank, size))
        monkeypatch.setattr(distributed, "gather", lambda value: shares.append(value) or [])
        distributed.spread(work, list(range(items)), copies)
    monkeypatch.setattr(distributed, "gather", lambda value: shares)
    assert distributed.spread(work, list(range(items)), copies) == [10 * x for x in range(items)]
    for share, first in seen.values():
        assert share == list(range(items))[first : first + len(share)]
    assert all(seen[r] == seen[r - r % copies] for r in seen)


def test_copies_that_do_not_divide_the_ranks_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: (0, 4))
    with pytest.raises(ValueError, match=r"tensor_parallel_size: got 3, must be a divisor of the 4 ranks"):
        distributed.spread(lambda share, first: share, [1], 3)
