"""The speed script: its counts of operations and bytes are exact, it measures for real, and it says what it did not."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from pmd.files import ROOT, read_json
from pmd.model.forward import log_probs
from pmd.model.packing import pack

SCRIPT = ROOT / "benchmarks" / "speed.py"


@pytest.fixture(scope="module")
def speed():
    spec = importlib.util.spec_from_file_location("speed", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["speed"] = module
    spec.loader.exec_module(module)
    module.SHAPES["tiny"] = replace(module.SHAPES["tiny"], packed=128, passes=1, rows=2, sampled=6)
    module.ceilings = lambda device: (2e9, 1e9)
    return module


def test_the_operations_of_training_are_those_that_pytorch_counts(speed):
    """Matrix products of forward and backward, to the operation; of attention, the pairs that its mask shows."""
    model = speed.build(speed.SHAPES["tiny"], "cpu")
    prompts, responses = [[5] * 7, [6] * 3], [[[7] * 4, [8]], [[9] * 11]]
    packed = pack(prompts, responses)
    with FlopCounterMode(display=False) as counter:
        log_probs(model, packed)[0].sum().backward()
    counted = {str(name): flops for name, flops in counter.get_flop_counts()["Global"].items()}
    products = counted["aten.mm"] + counted.get("aten.addmm", 0)
    mask = pack(prompts, responses, attention="flex").mask.mask_mod
    place = torch.arange(packed.ids.shape[1])
    pairs = int(mask(0, 0, place[:, None], place).sum())
    assert speed.seen_pairs(prompts, responses) == pairs
    # two products forward and four backward, of two operations an entry: layers 2, heads 4, width 32
    assert speed.training_flops(model, prompts, responses) == products + 12 * 2 * 4 * 32 * pairs


def test_the_bytes_of_sampling_are_all_weights_a_step_and_the_cache_so_far(speed):
    model = speed.build(speed.SHAPES["tiny"], "cpu")
    body = sum(w.numel() for name, w in model.named_parameters() if w.dim() == 2 and "embed" not in name)
    head = model.get_input_embeddings().weight.numel()
    assert speed.matrices(model) == (body, head)
    # a response of 3 tokens is read behind 5 + 1 and 5 + 2 places, one of 1 never; 2 layers x (k, v) x 2 heads x 32
    assert speed.sampling_bytes(model, 5, [3, 1], 2) == 2 * (2 * (body + head) + (6 + 7) * 2 * 2 * 2 * 32)


def test_the_shapes_are_the_published_models(speed):
    """Parameters of Qwen2.5-0.5B, 1.5B and 7B as their model cards give them, cut off after two digits."""
    billions = {}
    for name in ("0.5b", "1.5b", "7b"):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(speed.SHAPES[name].config)
        billions[name] = model.num_parameters() // 10**7 / 100
    assert billions == {"0.5b": 0.49, "1.5b": 1.54, "7b": 7.61}


def test_a_pass_fills_its_budget_with_whole_responses(speed):
    shape = speed.SHAPES["1.5b"]
    [prompt], [responses] = speed.work(shape, 0)
    lengths = [len(r) for r in responses]
    assert len(prompt) == 512
    assert all(shape.shortest <= n <= shape.longest for n in lengths)
    assert shape.packed - shape.shortest < len(prompt) + sum(lengths) <= shape.packed


def test_it_measures_this_machine_and_says_what_it_did_not(speed, tmp_path):
    page = speed.run("cpu", "tiny", tmp_path / "cpu", None, 0.5, 1)
    assert (tmp_path / "cpu.md").read_text() == page
    results = read_json(tmp_path / "cpu.json")
    row = results["shapes"]["tiny"]
    train = row["train"]
    assert train["mfu"] == pytest.approx(1e12 * train["tflop"] / train["seconds"] / 2e9)
    assert train["tokens_per_s"] * train["seconds"] == pytest.approx(train["tokens"])
    assert 70 < train["tokens"] <= 128
    found = row["torch"]
    assert 2 <= found["tokens"] <= 12
    assert found["over_bound"] == pytest.approx(found["seconds"] / found["bound_s"])
    assert row["ceilings"] == {"flops": "measured", "bandwidth": "stated"}
    assert row["bandwidth"] == 0.5e12
    lines = page.splitlines()
    assert sum("not measured" in line for line in lines) == 9  # three shapes, training and two engines
    assert f"# Speed on {results['machine']}" in lines
    if importlib.util.find_spec("vllm") is None:
        assert any("| tiny | vllm | cannot run: vLLM cannot be imported" in line for line in lines)
    (tmp_path / "cpu.json").write_text((tmp_path / "cpu.json").read_text().replace(results["machine"], "another"))
    with pytest.raises(ValueError, match=r"^--out: got .*, must be another file: this one is of another$"):
        speed.run("cpu", "tiny", tmp_path / "cpu", None, None, 1)


def test_a_model_too_large_for_the_machine_is_a_row_that_says_so(speed, monkeypatch):
    monkeypatch.setattr(speed, "memory", lambda device: 2**34)
    row = speed.measure(speed.SHAPES["7b"], "cpu", None, None, 1)
    assert row["not_run"] == "weights, gradients and AdamW take 113 GiB, the device has 16"
    results = {"machine": "m", "device": "cpu", "shapes": {"7b": row}}
    cells = [line for line in speed.table(results).splitlines() if line.startswith("| 7b ")]
    assert len(cells) == 3
    assert all("cannot run: weights, gradients and AdamW take 113 GiB, the device has 16" in line for line in cells)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--device", "cpu", "--shape", "3b"], "speed: --shape: got '3b', must be one of tiny, 0.5b, 1.5b, 7b"),
        (["--device", "gpu", "--shape", "tiny"], "speed: --device: got 'gpu', must be cpu, cuda or cuda:N"),
        (["--device", "cpu", "--shape", "tiny", "--peak", "0"], "speed: --peak: got 0.0, must be > 0"),
        (["--device", "cpu"], "speed.py: error: the following arguments are required: --shape"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(speed, arguments, line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["speed.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        speed.main()
    said = caught.value.code if isinstance(caught.value.code, str) else capsys.readouterr().err.rstrip("\n")
    assert said == line
