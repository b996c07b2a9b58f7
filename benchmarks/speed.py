"""Speed of training and sampling at the sizes of Qwen2.5, random weights, on the device that is here.

    python benchmarks/speed.py --device cuda --shape 1.5b [--peak 790 --bandwidth 4.3] [--out benchmarks/speed/cuda]

Writes OUT.json and OUT.md, one row a shape: a shape measured again on the same machine replaces its row, and a shape
that was not measured there, or that the machine cannot run, says so.

Training is one optimizer step of PMD-mean by the trainer's own functions (`pack`, `log_probs`, the objective, AdamW):
fp32 weights, products in bf16 (in fp32 on a CPU), activations recomputed. Its floating-point operations are counted as

    6 · W_body · N + 6 · W_head · M + 12 · layers · heads · d · pairs

with W_body and W_head the matrix entries of the layers and of the head, N the packed tokens, M the response tokens, and
pairs the (query, key) pairs that attention looks at, a prompt counted once for all its responses. What activations cost
to compute again is not counted, nor is padding: model-FLOPs utilisation (MFU) is that number a second, over the peak:
--peak in TFLOP/s, else the fastest large matrix product that was measured here.

Sampling is bounded from below by the bytes that must be read: each step all matrices once, and the keys and values of
every sequence so far, over --bandwidth in TB/s, else the fastest copy measured here. Reported is the second of two
calls (the first records CUDA graphs). Random weights seldom end a response; what counts are the tokens that were made.
The prefill counts in the time, not in the bound; so does, with vLLM, the check of its log-probabilities.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from pmd.files import ROOT, read_json, write_json, write_text
from pmd.model.attention import PACKED
from pmd.model.device import check_device
from pmd.model.forward import checkpoint_activations, log_probs
from pmd.model.packing import Packed, pack
from pmd.params import require
from pmd.sampling.engine import Engine, Sampling
from pmd.sampling.static_decoder import budget
from pmd.sampling.torch_engine import TorchEngine
from pmd.trainer.objectives import OBJECTIVES, Hyper, Minibatch


@dataclass(frozen=True)
class Shape:
    """A model's sizes, and the work that is measured: a prompt's tokens, responses of `shortest` to `longest` tokens in
    one pass of `packed` tokens, `passes` passes an update; `rows` sequences sampled at once, of `sampled` tokens."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    feedforward: int
    tied: bool
    prompt: int = 512
    shortest: int = 3584
    longest: int = 9728
    packed: int = 32_768
    passes: int = 4
    rows: int = 128
    sampled: int = 2048

    @property
    def config(self) -> Qwen2Config:
        return Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.feedforward,
            max_position_embeddings=32_768,
            tie_word_embeddings=self.tied,
        )


SHAPES = {
    "tiny": Shape(256, 128, 2, 4, 2, 256, True, 8, 24, 56, 512, 2, 16, 64),
    "0.5b": Shape(151_936, 896, 24, 14, 2, 4_864, True),
    "1.5b": Shape(151_936, 1_536, 28, 12, 2, 8_960, True),
    "7b": Shape(152_064, 3_584, 28, 28, 4, 18_944, False),
}
"""The published configurations of Qwen2.5, and one that a CPU runs in seconds."""

ENGINES = ("torch", "vllm")


# --- what must be computed and read --------------------------------------------------------------------------------


def matrices(model: PreTrainedModel) -> tuple[int, int]:
    """Entries of the matrices that a token is multiplied by: (in the layers, in the head)."""
    body = sum(m.weight.numel() for m in model.base_model.modules() if isinstance(m, nn.Linear))
    return body, model.get_output_embeddings().weight.numel()


def seen_pairs(prompts: list[list[int]], responses: list[list[list[int]]]) -> int:
    """(query, key) pairs of packed causal attention: each prompt once, each fed response token behind its prompt."""
    pairs = sum(len(p) * (len(p) + 1) // 2 for p in prompts)
    for prompt, group in zip(prompts, responses, strict=True):
        for fed in (len(response) - 1 for response in group):
            pairs += fed * len(prompt) + fed * (fed + 1) // 2
    return pairs


def training_flops(model: PreTrainedModel, prompts: list[list[int]], responses: list[list[list[int]]]) -> int:
    """Floating-point operations of a forward and backward pass, recomputation not counted (see the top of the file)."""
    body, head = matrices(model)
    tokens = sum(map(len, prompts)) + sum(len(r) - 1 for group in responses for r in group)
    scored = sum(len(r) for group in responses for r in group)
    config = model.config
    d = config.hidden_size // config.num_attention_heads
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * d * seen_pairs(prompts, responses)
    return 6 * body * tokens + 6 * head * scored + attention


def sampling_bytes(model: PreTrainedModel, prompt: int, lengths: list[int], itemsize: int) -> int:
    """Bytes that decoding must read: a step all matrices once, and the keys and values of the sequences still open.

    The first token of a response comes from the prefill; of the last, nothing is read any more.
    """
    config = model.config
    token = 2 * config.num_hidden_layers * config.hidden_size * config.num_key_value_heads // config.num_attention_heads
    places = sum(prompt + t for length in lengths for t in range(1, length))
    return itemsize * ((max(lengths) - 1) * sum(matrices(model)) + places * token)


# --- clocks --------------------------------------------------------------------------------------------------------


def timed(device: str, work: Callable[[], object]) -> float:
    """Seconds of `work`, the device's own included."""
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def synchronise(device: str) -> None:
    """Wait for what was asked of the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def ceilings(device: str) -> tuple[float, float]:
    """(FLOP/s of the fastest large matrix product, bytes/s of the fastest copy, read and written) seen here."""
    n, size = (8192, 2**30) if device.startswith("cuda") else (1024, 2**26)
    a, b = (torch.randn(n, n, device=device, dtype=product_type(device)) for _ in range(2))
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    products = [timed(device, lambda: a @ b) for _ in range(10)]
    copies = [timed(device, lambda: target.copy_(source)) for _ in range(10)]
    return 2 * n**3 / min(products), 2 * size / min(copies)


def peak_bytes(device: str) -> int:
    """The most memory held so far: PyTorch's on a GPU, the process's on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine(device: str) -> str:
    """The device's name, by which a table is known."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


# --- training ------------------------------------------------------------------------------------------------------


def product_type(device: str) -> torch.dtype:
    """What matrix products are made in: few CPUs have instructions for bf16."""
    return torch.bfloat16 if device.startswith("cuda") else torch.float32


def build(shape: Shape, device: str) -> PreTrainedModel:
    """Random fp32 weights, made on the device; products in its `product_type`."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape.config, attn_implementation=PACKED, dtype=torch.float32)
    model.compute_dtype = product_type(device)
    return model.eval()  # as a loaded policy is: in training mode layers that recompute drop the cache


def work(shape: Shape, seed: int) -> tuple[list[list[int]], list[list[list[int]]]]:
    """One pass: a prompt and random responses behind it, up to `packed` tokens in all."""
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int) -> list[int]:
        return torch.randint(3, shape.vocabulary, (n,), generator=generator).tolist()

    responses, left = [], shape.packed - shape.prompt
    while left >= shape.shortest:
        n = int(torch.randint(shape.shortest, shape.longest + 1, (1,), generator=generator))
        responses.append(ids(min(n, left)))
        left -= len(responses[-1])
    return [ids(shape.prompt)], [responses]


def update(model: PreTrainedModel, optimizer: torch.optim.Optimizer, passes: list[Packed], old: list) -> None:
    """One optimizer step on all passes, as pmd/trainer/update.py does it."""
    optimizer.zero_grad(set_to_none=True)
    whole = sum(len(p.lengths) for p in passes), sum(len(p.target) for p in passes)
    longest = max(int(p.lengths.max()) for p in passes)
    for packed, before in zip(passes, old, strict=True):
        new, _ = log_probs(model, packed)
        advantage = torch.linspace(-1, 1, len(packed.lengths), device=new.device)
        seen = Minibatch(new - before, advantage, packed.sequence, packed.lengths, longest, whole)
        loss, _ = OBJECTIVES["pmd-mean"].loss(seen, Hyper(tau=0.1))
        loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def train_speed(shape: Shape, device: str, model: PreTrainedModel, peak: float, repeats: int) -> dict:
    """Tokens a second, MFU and peak memory of an update (the median of `repeats` after one to warm up)."""
    checkpoint_activations(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-6, fused=True)
    made = [work(shape, seed) for seed in range(shape.passes)]
    passes = [pack(prompts, responses, device) for prompts, responses in made]
    with torch.no_grad():
        old = [log_probs(model, packed)[0] for packed in passes]
    seconds = [timed(device, lambda: update(model, optimizer, passes, old)) for _ in range(repeats + 1)][1:]
    spent = statistics.median(seconds)
    flops = sum(training_flops(model, *one) for one in made)
    tokens = sum(sum(map(len, p)) + sum(len(r) - 1 for g in rs for r in g) for p, rs in made)
    optimizer.zero_grad(set_to_none=True)
    return {
        "tokens": tokens,
        "seconds": spent,
        "tokens_per_s": tokens / spent,
        "tflop": flops / 1e12,
        "mfu": flops / spent / peak,
        "peak_bytes": peak_bytes(device),
    }


# --- sampling ------------------------------------------------------------------------------------------------------


def engine_of(name: str, model: PreTrainedModel, shape: Shape) -> Engine:
    """The engine, with room for the work, kept from call to call; ImportError in one line without vLLM."""
    if name == "torch":
        return TorchEngine(model, 0, kv_bytes=budget(model.device) if model.device.type == "cuda" else None)
    from pmd.scale.vllm_engine import VLLMEngine

    return VLLMEngine(model, 0, max_model_len=shape.prompt + shape.sampled)


def sample_speed(name: str, shape: Shape, device: str, model: PreTrainedModel, bandwidth: float) -> dict:
    """Tokens a second of one engine, and its time as a multiple of the bound; {"not_run": why} if it cannot run."""
    prompts, calls, lengths = work(shape, 0)[0], [], []
    try:
        engine = engine_of(name, model, shape)
        for seed in (1, 2):
            found: list = []
            sample = partial(engine.sample, prompts, shape.rows, Sampling(shape.sampled), seed)
            calls.append(timed(device, lambda sample=sample, found=found: found.extend(sample())))
            lengths = [len(response) for response in found[0]]
    except (ImportError, RuntimeError, ValueError) as error:
        return {"not_run": " ".join(str(error).split())[:200]}
    spent = calls[1] - engine.handover_s
    bound = sampling_bytes(model, len(prompts[0]), lengths, model.compute_dtype.itemsize) / bandwidth
    return {
        "rows": shape.rows,
        "tokens": sum(lengths),
        "seconds": spent,
        "first_call_s": calls[0],
        "tokens_per_s": sum(lengths) / spent,
        "bound_s": bound,
        "over_bound": spent / bound,
        "handover_s": engine.handover_s,
        "peak_bytes": peak_bytes(device),
    }


# --- a row, the table ----------------------------------------------------------------------------------------------


def measure(shape: Shape, device: str, peak: float | None, bandwidth: float | None, repeats: int) -> dict:
    """One row; {"not_run": why} where the machine has not the memory."""
    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(shape.config).num_parameters()
    least, room = 16 * parameters, memory(device)
    row = {"shape": asdict(shape), "parameters": parameters, "versions": versions()}
    if least > room:
        needs = f"weights, gradients and AdamW take {least / 2**30:.0f} GiB"
        return row | {"not_run": f"{needs}, the device has {room / 2**30:.0f}"}
    flops, moved = ceilings(device)
    row["peak_flops"], row["bandwidth"] = (peak or flops), (bandwidth or moved)
    row["ceilings"] = {"flops": "measured" if peak is None else "stated"}
    row["ceilings"]["bandwidth"] = "measured" if bandwidth is None else "stated"
    try:
        model = build(shape, device)
        row["train"] = train_speed(shape, device, model, row["peak_flops"], repeats)
    except torch.OutOfMemoryError as error:
        return row | {"not_run": " ".join(str(error).split())[:200]}
    for engine in ENGINES:
        free(device)
        row[engine] = sample_speed(engine, shape, device, model, row["bandwidth"])
    return row


def memory(device: str) -> int:
    """Bytes of the device."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free(device: str) -> None:
    """Give back what is not held any more, and start measuring the peak anew."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}


def table(results: dict) -> str:
    """The Markdown page of the results: every shape, measured here or not."""
    rows, cuda = results["shapes"], results["device"] == "cuda"
    product, peak = ("bf16", "an update") if cuda else ("fp32", "the whole process")
    training = [training_cells(name, rows.get(name)) for name in SHAPES]
    sampling = [sampling_cells(name, engine, rows.get(name)) for name in SHAPES for engine in ENGINES]
    ceilings = [ceiling_cells(name, row) for name, row in rows.items() if "ceilings" in row]
    return f"""# Speed on {results["machine"]}

Written by `python benchmarks/speed.py --device {results["device"]} --shape NAME`, which says how operations and bounds
are counted. Random weights in the sizes of Qwen2.5, kept in fp32, products in {product}, activations recomputed.

{grid(["shape", "parameters", "tokens in an update", "s an update", "tokens/s", "MFU", "peak memory, GiB"], training)}

Training; the peak is that of {peak}.

{grid(["shape", "engine", "rows", "tokens", "tokens/s", "time / bound", "hand-over, s"], sampling)}

Sampling; the bound is the time to read the matrices and the cache, the time is without the hand-over of the weights.

{grid(["shape", "peak, TFLOP/s", "bandwidth, TB/s", "torch", "transformers"], ceilings)}

What MFU and bound refer to.
"""


def grid(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; a row that is cut short says in its last cell why."""
    filled = [row + [""] * (len(head) - len(row)) for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *filled])


def training_cells(name: str, row: dict | None) -> list[str]:
    """A shape's training."""
    if row is None:
        return [name, "", "not measured"]
    size = f"{row['parameters']:,}"
    if "train" not in row:
        return [name, size, f"cannot run: {row['not_run']}"]
    train = row["train"]
    speed = [f"{train['tokens']:,}", f"{train['seconds']:.3g}", f"{train['tokens_per_s']:,.0f}"]
    return [name, size, *speed, f"{train['mfu']:.1%}", f"{train['peak_bytes'] / 2**30:.2f}"]


def sampling_cells(name: str, engine: str, row: dict | None) -> list[str]:
    """A shape's sampling by one engine."""
    if row is None:
        return [name, engine, "not measured"]
    found = row.get(engine, row)
    if "not_run" in found:
        return [name, engine, f"cannot run: {found['not_run']}"]
    speed = [f"{found['rows']}", f"{found['tokens']:,}", f"{found['tokens_per_s']:,.0f}"]
    return [name, engine, *speed, f"{found['over_bound']:.2f}", f"{found['handover_s']:.2g}"]


def ceiling_cells(name: str, row: dict) -> list[str]:
    """What a row refers to, and where from."""
    flops, bandwidth = (f"{row[key] / 1e12:.3g}" for key in ("peak_flops", "bandwidth"))
    how = row["ceilings"]
    stated = [f"{flops} ({how['flops']})", f"{bandwidth} ({how['bandwidth']})"]
    return [name, *stated, row["versions"]["torch"], row["versions"]["transformers"]]


# --- the command ---------------------------------------------------------------------------------------------------


def run(device: str, shape: str, out: Path, peak: float | None, bandwidth: float | None, repeats: int) -> str:
    """Measure one shape and put its row into OUT.json and OUT.md; returns the table. ValueError before any work."""
    require(shape in SHAPES, "--shape", shape, f"one of {', '.join(SHAPES)}")
    require(re.fullmatch(r"cpu|cuda(:\d+)?", device) is not None, "--device", device, "cpu, cuda or cuda:N")
    for name, value in (("--peak", peak), ("--bandwidth", bandwidth), ("--repeats", repeats)):
        require(value is None or value > 0, name, value, "> 0")
    check_device(device)
    file, here = out.with_name(f"{out.name}.json"), machine(device)
    results = read_json(file) if file.exists() else {"machine": here, "device": device.partition(":")[0], "shapes": {}}
    require(results["machine"] == here, "--out", str(out), f"another file: this one is of {results['machine']}")
    units = [None if value is None else 1e12 * value for value in (peak, bandwidth)]
    results["shapes"][shape] = measure(SHAPES[shape], device, *units, repeats)
    write_json(file, results)
    write_text(out.with_name(f"{out.name}.md"), table(results))
    return table(results)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("--device", required=True, help="cpu, cuda or cuda:N")
    parser.add_argument("--shape", required=True, help=", ".join(SHAPES))
    parser.add_argument("--out", type=Path, help="default: benchmarks/speed/cpu or benchmarks/speed/cuda")
    parser.add_argument("--peak", type=float, help="TFLOP/s that MFU refers to (default: measured)")
    parser.add_argument("--bandwidth", type=float, help="TB/s that the bound of sampling refers to (default: measured)")
    parser.add_argument("--repeats", type=int, default=3, help="updates measured, after one to warm up")
    options = parser.parse_args()
    out = options.out or ROOT / "benchmarks" / "speed" / options.device.partition(":")[0]
    try:
        print(run(options.device, options.shape, out, options.peak, options.bandwidth, options.repeats))
    except (ValueError, OSError) as error:
        sys.exit(f"speed: {error}")


if __name__ == "__main__":
    main()
