"""One vLLM engine in each of two torchrun ranks with a sharded policy (tests/vllm/ranks.py), for real, on a CPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

from pmd.files import ROOT, read_json
from pmd.scale.vllm_engine import VLLMEngine
from tests.vllm.ranks import EOS, GROUP, PROMPTS, SAMPLING, SEED, SMALL, build, grow

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here: make test-vllm"
)


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.vllm.ranks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What each of the two ranks saw, by tensor_parallel_size."""
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun("sample", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return [read_json(folder / f"{rank}.json") for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> list[tuple]:
    """The same batches of one process, as (responses, scores), by tensor_parallel_size − 1: three prompts, then one
    after a change. The ranks' run with size 2 begins with the weights that the one with size 1 left, two changes on.
    """
    model, _ = build()
    engine = VLLMEngine(model, EOS, **SMALL)
    found = {}
    for changes in range(4):
        found[changes] = [engine.sample_scored(prompts, GROUP, SAMPLING, SEED) for prompts in (PROMPTS, PROMPTS[:1])]
        grow(model)
    return [(found[0][0], found[1][1]), (found[2][0], found[3][1])]


@pytest.mark.parametrize("size", [1, 2])
def test_two_ranks_sample_what_one_process_does(ranks, alone, size):
    """Unequal shares, an empty one, and new weights; every rank ends with the whole batch."""
    for rank in ranks:
        for key, (responses, scores) in zip(("three", "one"), alone[size - 1], strict=True):
            assert rank[str(size)][key]["responses"] == responses
            ours = [x for group in rank[str(size)][key]["scores"] for row in group for x in row]
            expected = [x for group in scores for row in group for x in row]
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(expected), rtol=0, atol=1e-5)
    assert alone[size - 1][0][0][0] != alone[size - 1][1][0][0]  # the change of the weights shows


def test_each_rank_proves_its_own_share(ranks):
    """Tokens of share 0 (one prompt) and 1 (two), then of none and one; all weights were the present ones."""
    first, second = (rank["1"]["three"] for rank in ranks)
    tokens = [sum(map(len, group)) for group in first["responses"]]
    assert [first["drift"]["tokens"], second["drift"]["tokens"]] == [tokens[0], tokens[1] + tokens[2]]
    assert [rank["1"]["one"]["drift"] is None for rank in ranks] == [True, False]
    drifts = [rank[size][key]["drift"] for rank in ranks for size in ("1", "2") for key in ("three", "one")]
    assert all(drift["largest"] < 1e-5 for drift in drifts if drift)
    assert [rank[size]["handovers"] for rank in ranks for size in ("1", "2")] == [2] * 4


def test_both_ranks_of_a_tensor_parallel_engine_compare_the_same(ranks):
    first, second = (rank["2"]["one"]["drift"] for rank in ranks)
    assert first["tokens"] == second["tokens"] == sum(map(len, ranks[0]["2"]["one"]["responses"][0]))


def test_a_drift_on_one_rank_stops_all_with_the_same_line(ranks):
    first, second = (rank["1"]["stale"] for rank in ranks)
    assert first == second
    assert first.startswith("rank 1: hand-over ")
    assert "does not sample from the present policy" in first
    assert "\n" not in first


def test_an_engine_that_dies_on_one_rank_stops_all_with_the_same_line(ranks):
    first, second = (rank["1"]["dead"] for rank in ranks)
    assert first == second
    assert first.startswith("rank 1: vLLM failed while sampling (MemoryError: the device is gone); start the run again")
    assert "\n" not in first


def test_the_trainers_process_group_outlives_the_engines(ranks):
    assert [rank[size]["sum"] for rank in ranks for size in ("1", "2")] == [2.0] * 4


def test_a_tensor_parallel_engine_that_dies_on_one_rank_ends_the_job(tmp_path):
    """The other rank waits within vLLM, where no line can reach it: torchrun ends it."""
    done = torchrun("dying", str(tmp_path))
    assert done.returncode != 0
    assert "RuntimeError: vLLM failed while sampling (MemoryError: the device is gone); start the run" in done.stderr
