"""Presets without their weights: the paper's settings, published sizes, what fits where; the gpu pipeline, tiny."""

from __future__ import annotations

import json
import os
import random
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
from pmd.experiments import preset
from pmd.experiments.base_model import train_base
from pmd.files import ROOT
from pmd.foreign_sets import formats
from pmd.harness.config import train_config
from pmd.model.attention import PACKED
from pmd.model.loading import _check_architecture
from pmd.model.settings import read_bases
from pmd.problems import arithmetic
from pmd.scale import plan
from pmd.scale.entry import read_scale
from pmd.scale.plan import GIB

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
    plan.check_fit(config, train, entry.max_prompt_tokens, gpus, gib * GIB, gib * GIB)


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
    entries = [formats.problem_set(name, own) for name, own in found["hub_sets"].items()]
    rules = {formats.manner(spec, "What is 1 + 1?")["rule"] for spec in entries}
    assert rules == {"dapo"}  # its rewards are ±1, so tau is the paper's own


def test_the_public_30b_curves_are_of_this_tau_and_as_many_steps():
    _, train = read_scale(values("paper-30b"), "paper-30b")
    curves = pd.read_csv(ROOT / "results" / "reference" / "reported_30b_curves.csv")
    assert train.tau == 0.1
    assert train.steps == curves["step"].max()


# --- the gpu pipeline ----------------------------------------------------------------------------------------------


def test_the_gpu_preset_is_the_experiments_on_longer_problems():
    found = values("gpu")
    bases, train = read_bases(found["base"]), train_config("pmd-mean", 1, found)
    assert {found[part]["device"] for part in ("base", "train", "evaluate", "law", "finite")} == {"cuda"}
    assert train.dtype == "bfloat16"
    assert found["data"] == "runs/tasks/long"
    assert {number for part in ("law", "finite", "grid") for number in found[part]["bases"]} == {b.seed for b in bases}
    planned = plan.entry("gpu")
    config = planned.config
    assert planned.ranks == 1
    assert 10_000_000 < plan.shape(config).total < 50_000_000
    task = params.read_entry(arithmetic.Task, "tasks", found["tasks"], "long")
    longest = {terms: sum(3 * (terms - step) for step in range(1, terms)) for terms in (*task.terms, *task.ood)}
    assert [80 < longest[terms] < 300 for terms in longest] == [True] * 4  # `12+34` and `=`: three characters a term
    assert max(longest[terms] for terms in task.terms) <= train.max_tokens
    assert max(longest.values()) <= train.eval_max_tokens <= found["evaluate"]["max_tokens"]
    assert 3 * max(longest) + train.eval_max_tokens <= config.max_position_embeddings


TINY = {
    "train_bases": {"own": True},
    "tasks": {"long": {"val": 8, "test": 8, "rl": 40, "sft": 400}},
    "base": {"device": "cpu", "layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "feedforward": 32, "steps": 4,
             "warmup": 1, "batch": 8},
    "law": {"device": "cpu", "prompts": 2, "rollouts": 4, "held_out": 2, "max_tokens": 12, "steps": 2, "measure": [1]},
    "finite": {"device": "cpu", "prompts": 2, "others": 2, "same_k": 2, "other_k": 2, "max_tokens": 12, "steps": 2,
               "tau_b": ["inf"]},
    "train": {"device": "cpu", "steps": 2, "eval_every": 2, "prompts": 4, "group_size": 2, "minibatches": 2,
              "eval_prompts": 2, "eval_k": 1, "max_tokens": 12, "eval_max_tokens": 12},
    "grid": {"rates": [1.0e-4], "methods": ["pmd-mean"], "regimes": [{"minibatches": 2}]},
    "evaluate": {"device": "cpu", "k": 2, "max_tokens": 12},
}  # fmt: skip
"""The gpu preset at its smallest size, on a CPU; bfloat16 products stay."""


@pytest.fixture
def small(tmp_path):
    """A root folder whose preset `gpu` is tiny."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    found = params.load(ROOT / "presets" / "gpu.yaml")
    changed = {key: found[key] | change if isinstance(found.get(key), dict) else change for key, change in TINY.items()}
    changed["tasks"] = {"long": found["tasks"]["long"] | TINY["tasks"]["long"]}
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "gpu.yaml").write_text(json.dumps(found | changed))
    return tmp_path


def test_the_gpu_experiments_run_tiny_on_a_cpu_and_go_on(small, server):
    said = preset.run("gpu", root=small)
    assert [line.partition(":")[0] for line in said] == ["law", "finite", "train"]
    evidence = small / "results" / "gpu" / "evidence"
    frames = {path.stem: pd.read_parquet(path) for path in evidence.glob("*.parquet")}
    assert set(frames) == {"law", "finite", "runs", "steps", "evals", "bases"}
    assert frames["bases"].groupby("base")["set"].agg(list).to_dict() == {n: ["val", "test", "ood"] for n in (1, 2)}
    assert set(frames["law"]["base"]) == set(frames["finite"]["base"]) == set(frames["runs"]["base"]) == {1, 2}
    assert frames["evals"].query("final")["set"].tolist() == ["val", "test", "ood"] * 2
    before = {path: path.stat().st_mtime_ns for path in evidence.glob("runs.parquet")}
    policies = set((small / "runs" / "gpu" / "train").rglob("last/model.safetensors"))
    assert "2 of 2 runs" in preset.run("gpu", ["train"], root=small)[0]
    assert set((small / "runs" / "gpu" / "train").rglob("last/model.safetensors")) == policies
    assert len(policies) == 2
    assert {path: path.stat().st_mtime_ns for path in evidence.glob("runs.parquet")} == before


def test_complete_answers_of_the_gpu_experiments_have_100_to_400_tokens_and_room():
    found, rng = values("gpu"), random.Random(0)
    task = found["tasks"]["long"]
    rooms = [found[name]["max_tokens"] for name in ("law", "finite", "train")]

    def lengths(terms):  # a symbol is a token, and the end is one
        made = [arithmetic.problem(rng, terms, task["digits"]) for _ in range(300)]
        return [len(arithmetic.trace(rng, *one, task["digits"], faults=0.0)) + 1 for one in made]

    trained, ood = ([n for terms in task[name] for n in lengths(terms)] for name in ("terms", "ood"))
    assert sum(n >= 100 for n in trained) >= 0.95 * len(trained)
    assert max(trained) <= min(rooms)
    assert max(ood) <= found["evaluate"]["max_tokens"] <= 400


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_a_gpu_that_is_not_there_is_refused_before_any_work(tmp_path):
    found, problem = values("gpu"), {"id": "a", "prompt": "1", "ground_truth": "1", "response": "1"}
    with pytest.raises(ValueError, match=r"device: got 'cuda', but PyTorch .* sees 0 CUDA devices"):
        train_base(read_bases(found["base"])[0], [problem], tmp_path / "base")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"device: got 'cuda'"):
        evaluate(params.read(Evaluate, "evaluate", found["evaluate"]), tmp_path, {"val": [problem]})


def test_a_machine_that_cannot_write_parquet_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    line = r"^pmd experiment: needs pyarrow, which is not installed: pip install 'pmd\[artifact\]'$"
    with pytest.raises(ValueError, match=line):
        preset.run("gpu", root=tmp_path)


def test_a_gpu_without_room_is_refused_before_the_problem_sets_are_written(tmp_path, monkeypatch):
    """As many workers as run at once share it: two cells of the law on 24 GiB are too many, one fits; half the card
    being another's, none does."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    free = [23.5]

    class Begun(Exception):
        pass

    def begins(*arguments):
        raise Begun

    monkeypatch.setattr(preset, "generate", begins)
    monkeypatch.setattr(preset, "check_device", lambda *arguments: None)
    monkeypatch.setattr("pmd.scale.gpu.check_device", lambda *arguments: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0] * GIB, 24 * GIB))
    monkeypatch.delenv("PMD_WORKERS", raising=False)
    with pytest.raises(Begun):
        preset.run("gpu", root=tmp_path)
    monkeypatch.setenv("PMD_WORKERS", "4")
    with pytest.raises(
        ValueError, match=r"^law: a .* on 1 x 10\.8 GiB \(2 processes share it, lower PMD_WORKERS\): .*"
    ):
        preset.run("gpu", root=tmp_path)
    with pytest.raises(Begun):
        preset.run("gpu", ["train"], root=tmp_path)
    monkeypatch.delenv("PMD_WORKERS")
    free[0] = 12.0
    with pytest.raises(ValueError, match=r"^law: .* 10\.6 GiB \(other processes hold 11\.0 of .*; lower law\.prompts"):
        preset.run("gpu", root=tmp_path)


@pytest.mark.parametrize("name", ["default", "gpu", "paper-30b"])
def test_dvc_reads_the_pipeline_of_a_preset(name, tmp_path):
    """In a scratch repository: the stages there are, and where their data comes from."""
    for file in ("dvc.yaml", "params.yaml", "data.dvc", ".dvc/config"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    if name != "default":
        params.apply_preset(name, tmp_path)
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-m", "dvc", "dag", "--dot"]
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    dag = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    stages = re.findall(r'^"([^"]+)";$', dag, re.M)
    assert {"sources", "theory", "results"} < set(stages)
    assert ("tasks@long" in stages) == ("bases@own" in stages) == (name == "gpu")
    assert ("hub-sets@aime25" in stages) == (name == "paper-30b")
    source = '"tasks@long"' if name == "gpu" else '"data.dvc"'
    for stage in ("law", "finite", "train"):
        assert f'{source} -> "{stage}";' in dag
        assert (f'"bases@own" -> "{stage}";' in dag) == (name == "gpu")
        assert f'"{stage}" -> "results";' in dag
