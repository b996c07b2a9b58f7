"""What tests/vllm/test_ranks.py starts by torchrun, as `-m tests.vllm.ranks CASE FOLDER`, in two ranks.

Every rank writes what it saw to FOLDER/RANK.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from pmd.files import write_json
from pmd.model import distributed
from pmd.model.from_scratch import build_policy
from pmd.model.sharding import shard
from pmd.problems.arithmetic import SYMBOLS
from pmd.sampling.engine import Sampling
from pmd.scale.vllm_engine import VLLMEngine

SMALL = {"kv_cache_memory_bytes": 64 << 20}
PROMPTS = [[3, 4, 15], [5, 13, 6, 7, 15], [9, 15]]
EOS = 1
GROUP, SAMPLING, SEED = 8, Sampling(8), 4


def build():
    """vLLM's attention on a CPU wants heads of width 32 or more."""
    return build_policy(SYMBOLS, layers=2, width=64, heads=2, kv_heads=1, feedforward=64, seed=3)


@torch.no_grad()
def grow(model) -> None:
    """A change of every weight that is the same for a whole tensor and for a rank's rows of it."""
    for p in model.parameters():
        p.mul_(1.25)


def die(engine: VLLMEngine) -> None:
    def dying(*args, **kwargs):
        raise MemoryError("the device\nis gone")

    engine.llm.llm_engine.model_executor.execute_model = dying


def error(call) -> str:
    try:
        call()
    except RuntimeError as caught:
        return str(caught)
    return "none"


def sampled(engine: VLLMEngine, prompts: list[list[int]]) -> dict:
    """The whole batch, each rank sampling its share, and what this rank measured."""

    def work(share: list, first: int) -> list:
        return list(zip(*engine.sample_scored(share, GROUP, SAMPLING, SEED, first), strict=True))

    found = distributed.spread(work, prompts, engine.ranks_per_engine)
    drift = vars(engine.drift) if engine.drift else None
    return {"responses": [r for r, _ in found], "scores": [s for _, s in found], "drift": drift}


def run(model, tensor_parallel: int) -> dict:
    """Three prompts, a change of the weights, one prompt: with an engine a rank, one rank's share is empty."""
    engine = VLLMEngine(model, EOS, tensor_parallel_size=tensor_parallel, **SMALL)
    seen = {"three": sampled(engine, PROMPTS)}
    grow(model)
    seen |= {"one": sampled(engine, PROMPTS[:1]), "handovers": engine.handovers}
    if tensor_parallel == 1:
        seen |= failures(model, engine)
    engine.llm.llm_engine.engine_core.shutdown()
    return seen | {"sum": ones()}


def failures(model, engine: VLLMEngine) -> dict:
    """Rank 1 alone keeps old weights, then rank 1 alone dies; rank 0 has no prompt in the second case."""
    rank, _ = distributed.world()
    share = [PROMPTS[:2], PROMPTS[2:]][rank]
    grow(model)
    rpc = engine.llm.collective_rpc
    if rank == 1:
        engine.llm.collective_rpc = lambda *_, **__: None
    stale = error(lambda: engine.sample(share, GROUP, SAMPLING, SEED))
    engine.llm.collective_rpc = rpc
    if rank == 1:
        die(engine)
    dead = error(lambda: engine.sample(share if rank == 1 else [], GROUP, SAMPLING, SEED))
    return {"stale": stale, "dead": dead}


def ones() -> float:
    """A sum over ranks in the trainer's own group."""
    x = torch.ones(1)
    dist.all_reduce(x)
    return x.item()


def main(case: str, folder: str) -> None:
    distributed.start("cpu")
    model, _ = build()
    model.compute_dtype = torch.float32
    shard(model, "cpu")
    if case == "sample":
        seen = {"1": run(model, 1), "2": run(model, 2)}
        write_json(Path(folder) / f"{distributed.world()[0]}.json", seen)
    else:  # one of the two ranks of a tensor-parallel engine dies, while the other waits for it within vLLM
        engine = VLLMEngine(model, EOS, tensor_parallel_size=2, **SMALL)
        if distributed.world()[0] == 1:
            die(engine)
        engine.sample(PROMPTS, GROUP, SAMPLING, SEED)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
