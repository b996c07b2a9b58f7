"""Presets without their weights: the paper's settings, published sizes, what fits where; the gpu pipeline, tiny."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from pmd import params
from pmd.evaluators.evaluate import Evaluate, evaluate
from pmd.experiments import ablations
from pmd.experiments.base_model import train_base
from pmd.files import ROOT
from pmd.foreign_sets import formats
from pmd.harness.config import train_config
from pmd.model.attention import PACKED
from pmd.model.from_scratch import Base
from pmd.model.loading import _check_architecture, load_policy
from pmd.problems import arithmetic
from pmd.problems.reader import read_problems
from pmd.scale import plan
from pmd.scale.entry import read_scale
from pmd.scale.plan import GIB
from pmd.trainer import loop

SCALED = {  # preset: (parameters as published with the safetensors, GPUs, GiB of one)
    "gsm8k-1.5b": (1_543_714_304, 1, 48),
    "paper-4b": (4_022_468_096, 8, 80),
    "paper-7b": (7_615_616_512, 8, 80),
    "paper-30b": (30_532_122_624, 32, 80),
}
PAPER = ("paper-4b", "paper-7b", "paper-30b")


def values(preset: str) -> dict:
    """params.yaml with a preset applied."""
    found = params.load()
    params.overlay(found, params.load(ROOT / "presets" / f"{preset}.yaml"), preset)
    return found


@pytest.mark.parametrize("preset", SCALED)
def test_an_llm_preset_is_one_entry_that_fits_its_machine(preset):
    entry, train = read_scale(values(preset), preset.replace(".", "_"))
    assert list(params.load(ROOT / "presets" / f"{preset}.yaml")["scale"]) == [entry.name]
    parameters, gpus, gib = SCALED[preset]
    config = plan.architecture(entry.model)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED)
    _check_architecture(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.supports_gradient_checkpointing
    assert model.is_backend_compatible()
    length = entry.max_prompt_tokens + max(train.max_tokens, train.eval_max_tokens)
    assert length <= config.max_position_embeddings
    assert length == train.engine_options["max_model_len"]
    assert entry.nodes * entry.ranks == gpus
    machine = (entry.max_prompt_tokens, gpus, (1 - plan.RESERVE) * gib * GIB, gib * GIB)
    plan.check_fit(config, train, *machine)
    assert min(plan.shortfall(plan.shape(config), train, *machine[:2], gib * GIB, machine[2]).values()) < 0


@pytest.mark.parametrize("preset", SCALED)
def test_names_of_the_hub_are_pinned_and_files_are_made_by_entries(preset):
    found = values(preset)
    entry, _ = read_scale(found, preset.replace(".", "_"))
    assert re.fullmatch(r"Qwen/[\w.-]+@[0-9a-f]{40}", entry.model)
    made = {f"runs/sets/{formats.problem_set(name, own).name}.jsonl" for name, own in found["hub_sets"].items()}
    assert {entry.problems, *entry.sets.values()} == made


@pytest.mark.parametrize("preset", PAPER)
def test_the_papers_settings(preset):
    found = values(preset)
    entry, train = read_scale(found, preset)
    assert (train.prompts, train.group_size, train.minibatches, train.prompts // train.minibatches) == (512, 16, 16, 32)
    assert (train.lr, train.temperature, entry.max_prompt_tokens, train.max_tokens) == (1e-6, 1.0, 2048, 8192)
    assert (train.eval_k, train.eval_top_p, train.eval_prompts, train.normalise) == (32, 0.7, 30, "length")
    assert (train.method, train.filter_low, train.filter_high, train.importance_cap) == ("pmd-mean", None, None, None)
    assert 0.01 <= train.tau <= 0.1
    assert train.staleness == 0
    rules = {formats.problem_set(name, own).rule for name, own in found["hub_sets"].items()}
    assert rules == {"dapo"}  # its rewards are ±1, so tau is the paper's own


def test_the_public_30b_curves_are_of_this_tau_and_as_many_steps():
    _, train = read_scale(values("paper-30b"), "paper-30b")
    curves = pd.read_csv(ROOT / "results" / "reference" / "reported_30b_curves.csv")
    assert train.tau == 0.1
    assert train.steps == curves["step"].max()


# --- the gpu pipeline ----------------------------------------------------------------------------------------------


def test_the_gpu_preset_is_the_whole_pipeline_on_a_harder_task():
    found = values("gpu")
    base, train = (
        params.read(Base, "base", found["base"]),
        train_config("pmd-mean", 1, found),
    )
    assert {base.device, train.device, params.read(Evaluate, "evaluate", found["evaluate"]).device} == {"cuda"}
    assert train.dtype == "bfloat16"
    assert found["compare"] == params.load()["compare"]
    assert found["data"] == "runs/tasks/hard"
    config, _, _, ranks = plan.entry("gpu")
    assert ranks == 1
    assert 10_000_000 < plan.shape(config).total < 100_000_000
    hard = params.read_entry(arithmetic.Task, "tasks", found["tasks"], "hard")
    assert (hard.digits, hard.quota["ood"]) == (3, {6: 50, 7: 50})
    longest = max(hard.ood)
    worked = sum(4 * (longest - step) for step in range(1, longest))  # `123+456` and `=`: four characters a term
    assert worked <= train.eval_max_tokens
    assert 4 * longest + train.eval_max_tokens <= config.max_position_embeddings


def test_every_gpu_job_has_the_device():
    found = values("gpu")
    for job in ablations.jobs(found["ablate"], found["train"], found["methods"]):
        assert (job.config.device, job.config.dtype) == ("cuda", "bfloat16")


@pytest.fixture(scope="module")
def hard(tmp_path_factory):
    """The gpu preset's task with a few problems."""
    spec = values("gpu")["tasks"]["hard"] | {"val": 8, "test": 8, "rl": 40, "sft": 400}
    out = tmp_path_factory.mktemp("tasks") / "hard"
    arithmetic.generate(out, params.read_entry(arithmetic.Task, "tasks", {"hard": spec}, "hard"))
    return out


def test_the_harder_pipeline_runs_tiny_on_a_cpu(hard, tmp_path):
    """base, train and evaluate as the gpu preset has them but for size and device; bfloat16 products stay."""
    found = values("gpu")
    tiny = {"device": "cpu", "layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "feedforward": 32, "steps": 4,
            "warmup": 1, "batch": 8, "threads": 1}  # fmt: skip
    train_base(
        params.read(Base, "base", found["base"] | tiny),
        read_problems(hard / "sft.jsonl"),
        tmp_path / "base",
        progress=False,
    )
    small = {"device": "cpu", "steps": 1, "prompts": 4, "group_size": 2, "minibatches": 2, "probe": 1, "warmup": 0,
             "eval_prompts": 2, "eval_k": 1, "max_tokens": 16, "eval_max_tokens": 16}  # fmt: skip
    config = train_config("pmd-mean", 1, found, **small)
    sets = {"val": read_problems(hard / "val.jsonl", 2)}
    problems = read_problems(hard / "rl.jsonl")
    loop.train(config, tmp_path / "base", problems, sets, tmp_path / "run", progress=False)
    model, _ = load_policy(tmp_path / "run" / "last")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    how = params.read(Evaluate, "evaluate", found["evaluate"] | {"device": "cpu", "k": 2, "max_tokens": 16})
    samples = evaluate(how, tmp_path / "run" / "last", {"ood": read_problems(hard / "ood.jsonl")})
    assert len(samples) == 16


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_a_gpu_that_is_not_there_is_refused_before_any_work(hard, tmp_path):
    found = values("gpu")
    with pytest.raises(ValueError, match=r"device: got 'cuda', but PyTorch .* sees 0 CUDA devices"):
        train_base(params.read(Base, "base", found["base"]), read_problems(hard / "sft.jsonl"), tmp_path / "base")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"device: got 'cuda'"):
        evaluate(params.read(Evaluate, "evaluate", found["evaluate"]), tmp_path, {})


@pytest.mark.parametrize("preset", ["default", "gpu", "paper-30b"])
def test_dvc_reads_the_pipeline_of_a_preset(preset, tmp_path):
    """In a scratch repository: the stages there are, and where their data comes from."""
    for name in ("dvc.yaml", "params.yaml", "data.dvc", ".dvc/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    if preset != "default":
        params.apply_preset(preset, tmp_path)
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    listed, dag = (
        subprocess.run([*dvc, *ask], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
        for ask in (("stage", "list", "--name-only"), ("dag", "--dot"))
    )
    stages = listed.split()
    assert ("tasks@hard" in stages) == (preset == "gpu")
    assert ("hub-sets@aime25" in stages) == (preset == "paper-30b")
    assert "train@pmd-mean" in stages
    source = '"tasks@hard"' if preset == "gpu" else '"data.dvc"'
    for stage in ("base", "train@pmd-mean", "evaluate", "ablations"):
        assert f'{source} -> "{stage}";' in dag
    assert ('"data.dvc" -> "base"' in dag) == (preset != "gpu")
