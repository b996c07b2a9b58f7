"""The check of the GPU path: its counts are exact, its verdicts are right, and on a CPU every line of it runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from pmd.files import ROOT, read_jsonl
from pmd.model.forward import log_probs
from pmd.model.packing import pack
from pmd.trainer.objectives import OBJECTIVES

SCRIPT = ROOT / "benchmarks" / "gpu.py"
sys.path.insert(0, str(SCRIPT.parent))

import gpu  # noqa: E402
from sections import SECTIONS, attention, common, sharding, sizes, work  # noqa: E402

BARE = ("torch", "transformers", "numpy", "scipy", "pandas", "safetensors", "tokenizers", "tqdm", "huggingface_hub")
"""What a machine for PyTorch has before anything is brought to it."""

# --- what must be computed and read --------------------------------------------------------------------------------


@pytest.fixture
def model():
    return common.build(common.TINY, "cpu", torch.float32)


def test_the_operations_of_training_are_those_that_pytorch_counts(model):
    """Matrix products of forward and backward, to the operation; of attention, the pairs that its mask shows."""
    prompts, responses = [[5] * 7, [6] * 3], [[[7] * 4, [8]], [[9] * 11]]
    packed = pack(prompts, responses)
    with FlopCounterMode(display=False) as counter:
        log_probs(model, packed)[0].sum().backward()
    counted = {str(name): flops for name, flops in counter.get_flop_counts()["Global"].items()}
    products = counted["aten.mm"] + counted.get("aten.addmm", 0)
    mask = pack(prompts, responses, attention="flex").mask.mask_mod
    place = torch.arange(packed.ids.shape[1])
    pairs = int(mask(0, 0, place[:, None], place).sum())
    assert work.seen_pairs(prompts, responses) == pairs
    # two products forward and four backward, of two operations an entry: layers 2, heads 4, width 16
    assert work.training_flops(model, prompts, responses) == products + 12 * 2 * 4 * 16 * pairs


def test_the_bytes_of_sampling_are_all_weights_a_step_and_the_cache_so_far(model):
    body = sum(w.numel() for name, w in model.named_parameters() if w.dim() == 2 and "embed" not in name)
    head = model.get_input_embeddings().weight.numel()
    assert work.matrices(model) == (body, head)
    # a response of 3 tokens is read behind 5 + 1 and 5 + 2 places, one of 1 never; 2 layers x (k, v) x 2 heads x 16
    assert work.sampling_bytes(model, 5, [3, 1], 2) == 2 * (2 * (body + head) + (6 + 7) * 2 * 2 * 2 * 16)


def test_the_shapes_are_the_published_models():
    """Parameters of Qwen2.5-0.5B, 1.5B and 7B as their model cards give them, cut off after two digits."""
    context = common.Context("cpu", False, Path(), Path(), 0.0)
    shapes = (sharding.HALF_BILLION, sizes.size(context, "1.5B"), sizes.size(context, "7B"))
    billions = []
    for shape in shapes:
        with torch.device("meta"):
            billions.append(AutoModelForCausalLM.from_config(shape).num_parameters() // 10**7 / 100)
    assert billions == [0.49, 1.54, 7.61]


def test_the_exact_attention_is_pytorchs_in_float64():
    torch.manual_seed(0)
    qkv = [torch.randn(1, heads, 9, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    seen, upstream = torch.ones(9, 9, dtype=torch.bool).tril(), torch.randn(1, 4, 9, 8, dtype=torch.float64)
    out = torch.nn.functional.scaled_dot_product_attention(*qkv, seen, scale=0.3, enable_gqa=True)
    expected = [out, *torch.autograd.grad(out, qkv, upstream)]
    for found, right in zip(attention.exact(qkv, seen, 0.3, upstream), expected, strict=True):
        torch.testing.assert_close(found, right, atol=1e-12, rtol=0)


# --- verdicts ------------------------------------------------------------------------------------------------------


def test_verdicts_say_what_holds_and_by_how_much_a_goal_is_missed():
    assert [common.bound("x", value, 0.1).verdict for value in (0.1, 0.2)] == ["holds", "FAILS: must be at most 0.1"]
    assert common.bound("x", float("nan"), 0.1).verdict.startswith("FAILS")
    assert [common.equal("x", same).verdict for same in (True, False)] == ["holds", "FAILS: they differ"]
    assert common.goal("x", 0.25, least=0.5).verdict == "missed by 50%"
    assert common.goal("x", 3.0, most=2).verdict == "missed by 50%"
    assert common.goal("x", 2.0, most=2).verdict == common.goal("x", 0.5, least=0.5).verdict == "met"
    assert common.goal("x", float("nan"), most=2).verdict == "missed by nan%"
    assert [gpu.shown(x) for x in (True, 1234567, 98765.4, 0.012345)] == ["yes", "1,234,567", "98,765", "0.01235"]
    assert common.error(torch.full((2,), float("nan")), torch.ones(2)) != 0.0


def section(monkeypatch, rows):
    """Let `rows` be the section that is run."""
    monkeypatch.setattr(gpu.importlib, "import_module", lambda name: type("Module", (), {"rows": staticmethod(rows)}))


def test_a_section_that_fails_keeps_its_rows_and_the_next_one_runs(monkeypatch, tmp_path):
    def rows(context):
        yield common.fact("seen", 1)
        raise torch.OutOfMemoryError("no memory\nand more")

    section(monkeypatch, rows)
    assert gpu.main(["--device", "cpu", "--quick", "--only", "ceilings", "trainer", "--out", str(tmp_path)]) == 1
    lines = read_jsonl(tmp_path / "results.jsonl")
    assert [line.get("name", line.get("error")) for line in lines] == ["seen", "OutOfMemoryError", None] * 2
    assert [line["line"] for line in lines if "error" in line] == ["no memory"] * 2
    assert "OutOfMemoryError" in lines[1]["trace"][-2]
    assert (tmp_path / "table.md").read_text().count("| OutOfMemoryError: no memory |  | FAILS |") == 2


def test_a_call_that_is_killed_leaves_a_table(monkeypatch, tmp_path):
    seen = []

    def rows(context):
        yield common.fact("first", 1)
        seen.append((tmp_path / "table.md").read_text())
        raise KeyboardInterrupt

    section(monkeypatch, rows)
    with pytest.raises(KeyboardInterrupt):
        gpu.main(["--device", "cpu", "--quick", "--only", "ceilings", "--out", str(tmp_path)])
    assert "| ceilings | first | 1 |" in seen[0]
    assert seen[0].startswith("# ")


def test_a_broken_bound_fails_the_command_and_a_missed_goal_does_not(monkeypatch, tmp_path):
    section(monkeypatch, lambda context: iter([common.goal("slow", 3.0, most=2)]))
    arguments = ["--device", "cpu", "--only", "ceilings", "--out", str(tmp_path)]
    assert gpu.main(arguments) == 0
    assert "missed by 50%" in (tmp_path / "table.md").read_text()
    section(monkeypatch, lambda context: iter([common.bound("wrong", 3.0, 2.0)]))
    assert gpu.main(arguments) == 1
    assert "FAILS: must be at most 2" in (tmp_path / "table.md").read_text()


def test_a_section_without_time_is_left_out(monkeypatch, tmp_path):
    section(monkeypatch, lambda context: pytest.fail("it ran"))
    arguments = ["--device", "cpu", "--only", "sizes", "--seconds", "10", "--out", str(tmp_path)]
    assert gpu.main(arguments) == 0
    [line] = read_jsonl(tmp_path / "results.jsonl")
    assert line["skipped"] == f"10 s left, {SECTIONS['sizes']} needed"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--only", "speed"], f"gpu: --only: got 'speed', must be among {', '.join(SECTIONS)}"),
        (["--device", "cuda:99"], f"gpu: device: got 'cuda:99', but PyTorch {torch.__version__} sees "),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, line, tmp_path):
    with pytest.raises(SystemExit) as caught:
        gpu.main([*arguments, "--out", str(tmp_path)])
    assert str(caught.value.code).startswith(line)
    assert "\n" not in caught.value.code


def test_a_card_other_than_the_first_is_the_current_one(monkeypatch, tmp_path):
    """Else its events would be recorded, and its shards lie, on the first."""

    def chosen(device):
        raise ValueError(f"{device} is set")

    monkeypatch.setattr("pmd.model.device.check_device", lambda device, dtype: None)
    monkeypatch.setattr(torch.cuda, "set_device", chosen)
    with pytest.raises(SystemExit, match=r"^gpu: cuda:1 is set$"):
        gpu.main(["--device", "cuda:1", "--out", str(tmp_path)])


# --- a bare machine ------------------------------------------------------------------------------------------------

IMPORTS = """
import importlib, sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, path, target)

sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
import gpu
print(gpu.missing())
for name in gpu.SECTIONS:
    importlib.import_module(f"sections.{name}")
"""


def closure(names: set[str]) -> set[str]:
    """These distributions and all that they need, by their canonical names."""
    seen: set[str] = set()
    while names:
        name = canonical(names.pop())
        if name not in seen:
            seen.add(name)
            needed = [Requirement(text) for text in requires(name) or []]
            names |= {need.name for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})}
    return seen


def canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def test_it_imports_where_nothing_is_installed_but_pytorch_and_what_it_lists():
    bare = closure(set(BARE))
    needed = {canonical(package) for packages in gpu.NEEDED.values() for package in packages}
    of_module = packages_distributions()
    hidden = {
        module
        for module, owners in of_module.items()
        if module not in ("pmd", "ruamel") and not {canonical(owner) for owner in owners} & (bare | needed)
    }
    assert {"datasets", "dvc", "papermill", "math_verify", "pyarrow", "sympy_plots"} & hidden
    command = f"HIDDEN = {sorted(hidden)!r}\n{IMPORTS}"
    done = subprocess.run(
        [sys.executable, "-c", command],
        env={"PYTHONPATH": f"{ROOT}:{SCRIPT.parent}", "PATH": "", "OMP_NUM_THREADS": "1", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "[]\n"


def test_what_is_missing_is_named_with_its_version(monkeypatch):
    monkeypatch.setitem(gpu.NEEDED, "no_such_module", ["tqdm", "ruamel.yaml"])
    pins = (ROOT / "requirements.lock").read_text().splitlines()
    assert gpu.missing() == [
        next(pin for pin in pins if pin.startswith(f"{name}==")) for name in ("tqdm", "ruamel.yaml")
    ]
    with pytest.raises(SystemExit, match=r"^gpu: these packages are missing: tqdm=="):
        gpu.main(["--device", "cpu"])


# --- all of it -----------------------------------------------------------------------------------------------------


def test_on_a_cpu_it_runs_from_its_first_line_to_its_last(tmp_path):
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["section"] for line in lines if "seconds" in line] == list(SECTIONS)
    assert not [line for line in lines if "error" in line or "skipped" in line]
    assert not [line for line in lines if str(line.get("value")).startswith("not run")]
    rows = [line for line in lines if "name" in line]
    names = {section: {row["name"] for row in rows if row["section"] == section} for section in SECTIONS}
    assert {f"one update of {method}, fp32: change of the weights" for method in OBJECTIVES} <= names["trainer"]
    assert {variant.name for variant in sizes.VARIANTS} <= {
        name.removeprefix("smallest, for 1.5B, ").partition(":")[0] for name in names["sizes"]
    }
    assert {row["verdict"] for row in rows if row["kind"] == "bound"} == {"holds"}
    assert sum(row["kind"] == "bound" for row in rows) >= 40
    assert "goal" not in {row["kind"] for row in rows}  # nobody asks for speed at the smallest size
    page = (tmp_path / "table.md").read_text().splitlines()
    assert len([line for line in page if line.startswith("| ")]) == len(lines) + 2
    busy = {row["name"]: row["value"] for row in rows if row["name"].endswith("time in kernels while profiled")}
    assert len(busy) == 2
    assert all(
        10 < value <= 400 for value in busy.values()
    )  # % of the time; on a CPU kernels of several threads add up
    for name in ("profile", "profile-decoding", "profile-decoding-compiled"):
        assert len((tmp_path / f"{name}.md").read_text().splitlines()) == 2 + sizes.TOP


def test_the_page_says_of_the_profile_what_is_in_it():
    """Why a goal is missed: every share, added up from the committed profile."""
    folder = ROOT / "benchmarks" / "speed"
    page = (folder / "nvidia-h200.md").read_text(encoding="utf-8").partition("## Why goals are missed")[2]
    said = " ".join(page.split())
    rows = [line.strip("| \n").split(" | ") for line in (folder / "nvidia-h200-profile.md").open(encoding="utf-8")]
    shares = {row[0]: float(row[3].rstrip("%")) for row in rows[2:]}
    kinds = {
        "Matrix products, which utilisation counts, take": "^nvjet",
        "Attention takes": "flex_attention",
        "copies and concatenations take": "copy_kernel|^Memcpy|CatArray",
        "additions and other element-wise kernels": "BinaryFunctor|CUDAFunctor_add",
        "The loss takes": "log_softmax",
        "the optimizer": "multi_tensor_apply",
        "the activation of the gated blocks": "mul_silu",
    }
    left = 100 - sum(shares.values())
    for words, kernels in kinds.items():
        share = sum(value for name, value in shares.items() if re.search(kernels, name))
        assert f"{words} {share:.1f} %" in said
    assert f"leave out {left:.1f} %" in said
    assert sum(1 for name in shares if sum(bool(re.search(kernels, name)) for kernels in kinds.values()) == 1) == 20
