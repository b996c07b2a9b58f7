"""params.yaml is valid as committed, and every bad value is refused in one line that names it."""

from __future__ import annotations

import math
import re
import shutil

import pytest
from ruamel.yaml import YAML

from pmd import params
from pmd.evaluators.benchmark import Benchmark
from pmd.evaluators.evaluate import Evaluate
from pmd.experiments import ablations, tuning
from pmd.files import ROOT, write_jsonl
from pmd.foreign_sets import formats
from pmd.harness.config import seeds, train_config
from pmd.model.from_scratch import Base
from pmd.scale.entry import read_scale
from pmd.trainer.objectives import OBJECTIVES

COMMITTED = params.load()


def run(**changes):
    return train_config("pmd-mean", 1, COMMITTED, **changes)


def test_the_committed_parameters_are_valid():
    params.read(Base, "base", COMMITTED["base"])
    params.read(Evaluate, "evaluate", COMMITTED["evaluate"])
    for namespace in ("sets", "hub_sets"):
        for name, entry in COMMITTED[namespace].items():
            assert formats.problem_set(name, entry).hub is None or namespace == "hub_sets"
    for name in COMMITTED["benchmark"]:
        assert params.read_entry(Benchmark, "benchmark", COMMITTED["benchmark"], name).name == name
    for method in COMMITTED["compare"]:
        for seed in seeds(COMMITTED["train"]):
            assert train_config(method, seed, COMMITTED).method == method
    assert len(seeds(COMMITTED["train"])) >= 3


def test_a_methods_own_entry_overrides_what_is_shared():
    config = train_config("gspo", 5, COMMITTED | {"train": COMMITTED["train"] | {"lr": 9.0}})
    assert config.lr == COMMITTED["methods"]["gspo"]["lr"]
    assert (config.clip_high, config.seed) == (0.01, 5)
    assert run(tau=0.7).tau == 0.7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tau": -0.1}, r"train\.tau: got -0\.1, must be > 0"),
        ({"tau": float("nan")}, r"train\.tau: got nan, must be a number"),
        ({"group_size": 1}, r"train\.group_size: got 1, must be at least 2"),
        ({"minibatches": 5}, r"train\.minibatches: got 5, must be a divisor of train\.prompts = 32"),
        ({"lr": "fast"}, r"train\.lr: got 'fast', must be a number"),
        ({"steps": 2.5}, r"train\.steps: got 2\.5, must be an integer"),
        ({"steps": True}, r"train\.steps: got True"),
        ({"normalise": "mean"}, r"train\.normalise: got 'mean', must be length or constant"),
        ({"filter_low": 0.9, "filter_high": 0.1}, r"train\.filter_low: got 0\.9, must be below"),
        ({"eval_top_p": 0}, r"train\.eval_top_p"),
        ({"dtype": "int8"}, r"train\.dtype"),
        ({"device": "gpu"}, r"train\.device: got 'gpu', must be cpu, cuda, cuda:1 or the like"),
        ({"dtype": "float16"}, r"train\.dtype: got 'float16', must be one of float32, bfloat16"),
        ({"microbatch_tokens": 0}, r"train\.microbatch_tokens: got 0, must be at least 1 or null"),
        ({"checkpoint_activations": 1}, r"train\.checkpoint_activations: got 1, must be true or false"),
        ({"learning_rate": 1}, r"train\.learning_rate: got 1, must be left out: the keys are method"),
    ],
)
def test_a_bad_value_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        run(**changes)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_is_told_the_one_that_it_looks_like(root):
    with pytest.raises(ValueError, match=r"train\.group_sise: got 4, .*; did you mean group_size\?$"):
        run(group_sise=4)
    with pytest.raises(ValueError, match=r"preset: got 'smoky', .*; did you mean smoke\?$"):
        params.apply_preset("smoky", root)
    with pytest.raises(ValueError, match=r"benchmark: got 'embeded', .*; did you mean embedded\?$"):
        params.read_entry(Benchmark, "benchmark", COMMITTED["benchmark"], "embeded")
    with pytest.raises(ValueError, match=r"train\.zzz: got 4, [^?]*$"):
        run(zzz=4)


def test_a_missing_key_is_refused_by_name():
    with pytest.raises(ValueError, match=r"train\.tau: missing, must be a number"):
        train_config("pmd-mean", 0, COMMITTED | {"train": {k: v for k, v in COMMITTED["train"].items() if k != "tau"}})


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"method: got 'ppo', must be one of pmd-mean, .*cispo"):
        train_config("ppo", 0, COMMITTED)
    with pytest.raises(ValueError, match=r"methods\.rloo: missing"):
        train_config("rloo", 0, COMMITTED | {"methods": {}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "abacus"}, r"benchmark\.x\.engine: got 'abacus', must be one of torch"),
        ({"k": 0}, r"benchmark\.x\.k: got 0, must be at least 1"),
        ({"limit": 0}, r"benchmark\.x\.limit: got 0, must be at least 1 or null"),
        ({"against": None}, r"benchmark\.x\.against: got None, must be a string"),
        ({"dtype": "int8"}, r"benchmark\.x\.dtype"),
        ({"modle": "m"}, r"benchmark\.x\.modle: got 'm', must be left out"),
    ],
)
def test_a_bad_benchmark_is_refused_by_name(changes, message):
    entry = COMMITTED["benchmark"]["embedded"]
    with pytest.raises(ValueError, match=message):
        params.read_entry(Benchmark, "benchmark", {"x": entry | changes}, "x")


def test_a_benchmark_that_names_no_entry_or_no_file_is_refused():
    entries = COMMITTED["benchmark"]
    with pytest.raises(ValueError, match=r"benchmark: got 'aime', must be one of its entries: embedded"):
        params.read_entry(Benchmark, "benchmark", entries, "aime")
    with pytest.raises(ValueError, match=r"benchmark: got 'aime', must be one of its entries: there is none"):
        params.read_entry(Benchmark, "benchmark", {}, "aime")
    with pytest.raises(ValueError, match=r"name: got '\.\./x', must be letters"):
        params.read_entry(Benchmark, "benchmark", {"../x": entries["embedded"]}, "../x")


@pytest.mark.parametrize("given", [[], [1, 1], ["a"], None, [-1]])
def test_bad_seeds_are_refused(given):
    with pytest.raises(ValueError, match=r"train\.seeds"):
        seeds({"seeds": given})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": None}, r"train: got None, must be a mapping"),
        ({"train": []}, r"train: got \[\], must be a mapping"),
        ({"methods": None}, r"methods: got None, must be a mapping"),
        ({"methods": {"pmd-mean": [4.0e-5]}}, r"methods\.pmd-mean: got \[4e-05\], must be a mapping"),
    ],
)
def test_a_namespace_that_is_no_mapping_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        train_config("pmd-mean", 0, COMMITTED | changes)


def test_missing_or_empty_namespaces_are_refused_by_name():
    with pytest.raises(ValueError, match=r"train: got None, must be a mapping"):
        train_config("pmd-mean", 0, {"methods": COMMITTED["methods"]})
    with pytest.raises(ValueError, match=r"train: got None, must be a mapping"):
        seeds(None)
    with pytest.raises(ValueError, match=r"benchmark: got None, must be a mapping"):
        params.read_entry(Benchmark, "benchmark", None, "x")


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        (None, r"ablate\.group: got None, must be a mapping with values, methods"),
        ({"values": [4]}, r"ablate\.group\.methods: missing"),
        ({"values": 4, "methods": ["rloo"]}, r"ablate\.group\.values: got 4, must be a list"),
        ({"values": [0], "methods": ["rloo"]}, r"ablate\.group\.values: got \[0\], must be numbers > 0"),
        ({"values": [4], "methods": ["rlo"]}, r"ablate\.group\.methods: got \['rlo'\], must be one of pmd-mean"),
    ],
)
def test_a_bad_axis_of_the_ablations_is_refused_by_name(axis, message):
    with pytest.raises(ValueError, match=message):
        ablations.jobs({"seeds": [1], "group": axis}, COMMITTED["train"], COMMITTED["methods"])


@pytest.mark.parametrize("key", ["seed", "method", "values", "tu"])
def test_what_an_entry_of_scale_changes_in_train_is_a_setting_that_is_not_its_own(key):
    entry = {"model": "m", "problems": "p", "sets": {"val": "v"}, "max_prompt_tokens": 9, "method": "rloo", "seed": 0}
    entry |= {"nodes": 1, "ranks": 1, "train": {key: 1}}
    with pytest.raises(ValueError, match=rf"scale\.a\.train\.{key}: got 1, must be one of "):
        read_scale(COMMITTED | {"scale": {"a": entry}}, "a")


@pytest.fixture
def root(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    return tmp_path


def test_a_preset_changes_what_it_names_and_keeps_the_comments(root):
    params.apply_preset("smoke", root)
    before, after = COMMITTED, params.load(root / "params.yaml")
    assert after["preset"] == "smoke"
    assert after["train"]["steps"] == params.load(root / "presets" / "smoke.yaml")["train"]["steps"]
    assert after["train"]["tau"] == before["train"]["tau"]
    assert "# the base model, trained from scratch" in (root / "params.yaml").read_text()


def test_an_unknown_preset_or_a_preset_with_an_unknown_key_is_refused(root):
    with pytest.raises(ValueError, match=r"preset: got 'huge', must be one of .*smoke"):
        params.apply_preset("huge", root)
    (root / "presets" / "bad.yaml").write_text("train: {stpes: 3}\n")
    committed = (root / "params.yaml").read_text()
    with pytest.raises(ValueError, match=r"bad\.train\.stpes: got 3, must be one of the keys"):
        params.apply_preset("bad", root)
    assert (root / "params.yaml").read_text() == committed


def test_a_preset_may_add_sets_and_benchmarks_and_nothing_else(root):
    (root / "presets" / "mine.yaml").write_text("sets: {aime: {path: a.jsonl, format: aime}}\nbenchmark: {b: {k: 1}}\n")
    params.apply_preset("mine", root)
    values = params.load(root / "params.yaml")
    assert values["sets"] == {"aime": {"path": "a.jsonl", "format": "aime"}}
    assert list(values["benchmark"]) == ["embedded", "b"]
    (root / "presets" / "bad.yaml").write_text("benchmark: {embedded: {modle: x}}\n")
    with pytest.raises(ValueError, match=r"bad\.benchmark\.embedded\.modle: got 'x', must be one of the keys"):
        params.apply_preset("bad", root)


@pytest.mark.parametrize("preset", [path.stem for path in sorted((ROOT / "presets").glob("*.yaml"))])
def test_every_preset_is_valid(root, preset):
    params.apply_preset(preset, root)
    values = params.load(root / "params.yaml")
    params.read(Base, "base", values["base"])
    params.read(Evaluate, "evaluate", values["evaluate"])
    assert ablations.jobs(values["ablate"], values["train"], values["methods"])
    for name in values["benchmark"]:  # a preset that trains its own policies must not evaluate another's
        config = params.read_entry(Benchmark, "benchmark", values["benchmark"], name)
        for model in (config.model, config.against):
            assert not model.startswith("runs/") or model.startswith(f"runs/{values['preset']}/")
    for method in values["compare"]:
        train_config(method, 1, values)


def test_ablations_keep_the_budget():
    train = COMMITTED["train"]
    main = run()
    for job in ablations.jobs(COMMITTED["ablate"], train, COMMITTED["methods"]):
        c = job.config
        assert c.steps * c.prompts * c.group_size == main.steps * main.prompts * main.group_size
        assert c.steps * c.minibatches == main.steps * main.minibatches
        assert c.prompts * c.group_size // c.minibatches == main.prompts * main.group_size // main.minibatches
    assert [ablations.sparse(steps) for steps in (1, 4, 8, 10, 40)] == [1, 1, 4, 5, 20]
    with pytest.raises(ValueError, match=r"ablate\.stale\.values: got 7, must be a divisor of 320"):
        ablations.changes("stale", 7, train)
    with pytest.raises(ValueError, match=r"ablate\.depth: got"):
        ablations.jobs({"seeds": [1], "depth": {}}, train, COMMITTED["methods"])


def test_tuning_gives_every_method_as_many_tries_and_no_reported_seed():
    tune, train, methods = (COMMITTED[name] for name in ("tune", "train", "methods"))
    made = tuning.jobs(tune, train, methods)
    assert len({j.name for j in made}) == len(made)
    for method in methods:
        tries = [{name: getattr(j.config, name) for name in tuning.TUNED} for j in made if j.config.method == method]
        assert len({tuple(settings.values()) for settings in tries}) == 12
        assert len(tries) == 12 * len(tune["seeds"])
        own = {name for name in tuning.TUNED[:-1] if len({settings[name] for settings in tries}) > 1}
        assert own <= OBJECTIVES[method].uses  # none is tried with what it does not read
        assert {min(s["lr"] for s in tries), max(s["lr"] for s in tries)} == {2.0e-5, 1.6e-4}
    with pytest.raises(ValueError, match=r"\[1\] are in both"):
        tuning.jobs(tune | {"seeds": [1]}, train, methods)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"methods": ["ppo"]}, r"tune\.grids\[1\]\.methods: got 'ppo', must be each of"),
        ({"methods": ["pmd-mean"]}, r"tune\.grids\[1\]\.methods: got 'pmd-mean', must be each of"),
        ({"own": [{"tau": 1.0}]}, r"tune\.grids: got \{'pmd-mean': 4, 'grpo': 2\}, must be as many tries"),
        ({"methods": []}, r"tune\.grids: got \{'pmd-mean': 4, 'grpo': 0\}, must be as many tries"),
        ({"own": [{"steps": 1}, {}]}, r"tune\.grids\[1\]\.own: got \['steps'\], must be mappings of tau"),
        ({"rate": []}, r"tune\.grids\[1\]: got .* must be a mapping with methods, lr and own"),
    ],
)
def test_a_bad_tuning_grid_is_refused(grid, message):
    good = {"methods": ["pmd-mean"], "lr": [1e-5, 2e-5], "own": [{"tau": 0.5}, {"tau": 2.0}]}
    other = good | {"methods": ["grpo"], "own": [{"clip_low": 0.1}, {"clip_low": 0.2}]}
    methods = {"pmd-mean": {"lr": 1.0}, "grpo": {"lr": 1.0}}
    assert len(tuning.jobs({"seeds": [101], "grids": [good, other]}, COMMITTED["train"], methods)) == 8
    with pytest.raises(ValueError, match=message):
        tuning.jobs({"seeds": [101], "grids": [good, other | grid]}, COMMITTED["train"], methods)


def test_the_tuning_table_chooses_the_best_mean_and_of_equals_the_smaller(tmp_path):
    rates = [1.0e-5, 2.0e-5]
    grids = [
        {"methods": ["pmd-mean"], "lr": rates, "own": [{"tau": 0.5}, {"tau": 2.0}]},
        {"methods": ["grpo"], "lr": rates, "own": [{"clip_high": 0.28}, {"clip_high": 0.2}]},
    ]
    train = COMMITTED["train"] | {"steps": 4, "clip_low": 0.2}
    made = tuning.jobs({"seeds": [101, 102], "grids": grids}, train, {"pmd-mean": {}, "grpo": {}})
    assert len(made) == 16
    for job in made:
        late = 3 if (job.config.method, job.config.tau, job.config.lr) == ("pmd-mean", 2.0, 1.0e-5) else 2
        rows = [{"set": "val", "step": step, "correct": [4 if step == 2 else late], "k": 4} for step in (2, 4)]
        write_jsonl(tmp_path / job.name / "eval.jsonl", rows)  # the first half must not count
    table = tuning.tuning_table(made, tmp_path)
    chosen = table[table["chosen"]].set_index("method")
    assert len(table) == 8
    assert len(chosen) == 2
    assert chosen.loc["pmd-mean", ["tau", "lr", "mean", "seed 102"]].tolist() == [2.0, 1.0e-5, 0.75, 0.75]
    assert chosen.loc["grpo", ["clip_low", "clip_high", "lr"]].tolist() == [0.2, 0.2, 1.0e-5]
    assert math.isnan(chosen.loc["pmd-mean", "clip_low"])
    assert math.isnan(chosen.loc["grpo", "tau"])


def test_a_namespace_that_stands_twice_is_refused_by_its_line(tmp_path):
    """What pasting a block such as `sets:` below `sets: {}` makes."""
    (tmp_path / "params.yaml").write_text("sets: {}\na: 1\nsets:\n  x: {path: a.csv}\n")
    message = r"params\.yaml:3: sets stands above already; move its entries there, in place of \{\}$"
    with pytest.raises(ValueError, match=message):
        params.load(tmp_path / "params.yaml")
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "mine.yaml").write_text("a: 2\n")
    with pytest.raises(ValueError, match=message):
        params.apply_preset("mine", tmp_path)


def test_the_blocks_that_params_yaml_offers_can_be_pasted():
    """Each commented block, uncommented in place of the empty namespace above it, is an entry of that namespace."""
    text = (ROOT / "params.yaml").read_text()
    for name in ("tasks", "sets", "hub_sets", "scale"):
        pattern = rf"^{name}: \{{\}}.*\n((?:#.*\n?)+)"
        block = re.search(pattern, text, re.MULTILINE)[1]
        pasted = re.sub(pattern, lambda match: re.sub("(?m)^# ?", "", match[1]), text, flags=re.MULTILINE)
        assert block.startswith(f"# {name}:")
        assert YAML(typ="safe").load(pasted)[name]
