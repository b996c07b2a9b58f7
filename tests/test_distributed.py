"""Two gloo ranks for real: the same training as one process, shards, resume on other numbers of ranks."""

from __future__ import annotations

import json
import os
import shutil
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
from pmd.model.loading import load_policy, save_policy
from pmd.problems.verifier import Verdict
from pmd.sampling import scoring
from pmd.trainer import loop
from pmd.trainer.loop import train
from tests.conftest import save_other
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


def one_rank(out: Path, changes: dict, base: Path) -> None:
    """The same run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "verify", low)
        train(config(**changes), base, PROBLEMS, SETS, out, progress=False)


STEPS = {"steps": 3, "eval_every": 3, "checkpoint_every": 1}
VARIANTS = {
    "pmd-mean": {"method": "pmd-mean"},
    "grpo": {"method": "grpo", "microbatch_tokens": 24, "checkpoint_activations": True},
    "stale": {"method": "pmd-mean", "staleness": 1, "group_size": 3},
}
RECOMPUTED = STEPS | {"checkpoint_activations": True}
MOVED = STEPS | {"eval_every": 1}

SUMS = ("loss", "grad_norm", "entropy")


@pytest.fixture(scope="module")
def jobs(tiny, tmp_path_factory):
    """{folder: (base model, changes)} of what two ranks have trained, in one job, since to start one takes 15 s.

    `moved` had made its first step on one rank and has made its second on two.
    """
    folder = tmp_path_factory.mktemp("ranks")
    save_policy(*tiny, folder / "model")
    jobs = {folder / name: (folder / "model", STEPS | changes) for name, changes in VARIANTS.items()}
    jobs |= {folder / f"{kind}-2": (save_other(kind, tiny[1], folder), RECOMPUTED) for kind in ("gpt2", "opt")}
    one_rank(folder / "moved", MOVED | {"steps": 1}, folder / "model")
    assert saved(folder / "moved") == shards(1)
    shorten(folder / "moved", 2)
    jobs[folder / "moved"] = (folder / "model", MOVED | {"steps": 2})
    two_ranks(jobs)
    return jobs


def shorten(out: Path, steps: int) -> None:
    """Make a finished run one that was stopped at its last checkpoint, of so many steps in all."""
    (out / "result.json").unlink()
    run = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(run | {"steps": steps}))


def saved(out: Path) -> set[str]:
    """The tensor files of a run's last checkpoint."""
    return {path.name for path in checkpoint.latest(out).glob("*.safetensors")}


def shards(count: int) -> set[str]:
    """What they are called that so many ranks write."""
    return {f"{what}-{r}-of-{count}.safetensors" for what in ("weights", "moments") for r in range(count)}


def test_two_ranks_train_as_one_process_does(jobs, tmp_path):
    """Losses, gradient norms and weights after three steps, to 1e-5; what is counted is equal.

    Architectures with other names are among them, recomputed: OPT's layers would drop out of what they add.
    """
    for two, (base, changes) in jobs.items():
        if two.name == "moved":
            continue
        one = tmp_path / two.name
        one_rank(one, changes, base)
        rows = [read_jsonl(folder / "log.jsonl") for folder in (one, two)]
        for a, b in zip(*rows, strict=True):
            assert a["grad_norm"] > 0
            assert [b[key] for key in SUMS] == pytest.approx([a[key] for key in SUMS], rel=1e-5)
        if two.name not in VARIANTS:
            continue  # a key's bias changes no loss, and Adam makes steps of the rounding in its gradient
        for a, b in zip(*rows, strict=True):
            for key, value in a.items():
                assert b[key] == (pytest.approx(value, rel=1e-5, abs=1e-6) if isinstance(value, float) else value), key
        assert read_jsonl(one / "eval.jsonl") == read_jsonl(two / "eval.jsonl")
        start, alone, both = (load_file(folder / "model.safetensors") for folder in (base, one / "last", two / "last"))
        for key, weight in alone.items():
            assert_close(both[key], weight, atol=1e-5, rtol=0)
        assert max((alone[key] - start[key]).abs().max() for key in alone) > 1e-3  # three steps of lr 1e-3


def test_a_checkpoint_is_sharded_and_read_by_any_number_of_ranks(jobs, tmp_path):
    """One step on one rank, the second on two, the third on one: as three on one, to rounding."""
    [(two, (base, _))] = [(out, job) for out, job in jobs.items() if out.name == "moved"]
    out = shutil.copytree(two, tmp_path / "moved")
    assert saved(out) == shards(2)
    halves = [load_file(checkpoint.latest(out) / f"weights-{r}-of-2.safetensors") for r in (0, 1)]
    rows = dict(load_policy(base)[0].named_parameters())
    assert all(0 < len(halves[0][n]) < len(p) == len(halves[0][n]) + len(halves[1][n]) for n, p in rows.items())
    shorten(out, 3)
    one_rank(out, MOVED, base)
    assert saved(out) == shards(1)
    one_rank(tmp_path / "1", MOVED, base)
    moved, whole = (load_file(folder / "last" / "model.safetensors") for folder in (out, tmp_path / "1"))
    for name, weight in whole.items():
        assert_close(moved[name], weight, atol=1e-5, rtol=0)


def test_stale_rollouts_are_the_old_policys_and_wait_in_the_checkpoint(tiny_dir, tmp_path, monkeypatch):
    """Batch t is sampled s steps before it is used; a run stopped between goes on with the same bits."""
    changes = STEPS | {"steps": 4, "staleness": 2, "checkpoint_every": 3, "eval_every": 4}
    one_rank(tmp_path / "whole", changes, tiny_dir)
    rows = read_jsonl(tmp_path / "whole" / "log.jsonl")
    fresh = STEPS | {"steps": 4, "staleness": 0, "checkpoint_every": 3, "eval_every": 4}
    one_rank(tmp_path / "fresh", fresh, tiny_dir)
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
        one_rank(kept, changes, tiny_dir)
    monkeypatch.setattr(loop, "learn", stopped)
    waiting = {path.name for path in checkpoint.latest(kept).glob("waiting-*")}
    assert waiting == {"waiting-4.safetensors", "waiting-5.safetensors"}  # as if there were more steps to come
    one_rank(kept, changes, tiny_dir)
    for name in ("log.jsonl", "eval.jsonl", "last/model.safetensors"):
        assert (kept / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_ranks_with_different_parameters_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "gather", lambda value: [value, value | {"tau": 0.25}])
    with pytest.raises(ValueError, match=r"ranks: rank 1 has tau = 0\.25, rank 0 has 0\.5; start") as caught:
        distributed.agree({"tau": 0.5, "lr": 1.0})
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    distributed.agree({"tau": 0.5})


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
