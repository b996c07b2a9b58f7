"""params.yaml is valid as committed, and every bad value is refused in one line that names it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from pmd import params
from pmd.evaluators.entry import Benchmark
from pmd.evaluators.evaluate import Evaluate
from pmd.experiments import training_map
from pmd.experiments.settings import Finite, Law
from pmd.files import ROOT
from pmd.foreign_sets import formats
from pmd.harness.config import train_config
from pmd.methods import METHODS
from pmd.model.settings import read_bases
from pmd.scale.entry import read_scale

COMMITTED = params.load()


def run(**changes):
    return train_config("pmd-mean", 1, COMMITTED, **changes)


def test_the_committed_parameters_are_valid():
    assert len(read_bases(COMMITTED["base"])) >= 4
    params.read(Evaluate, "evaluate", COMMITTED["evaluate"])
    for namespace in ("sets", "hub_sets"):
        for name, entry in COMMITTED[namespace].items():
            assert formats.problem_set(name, entry).hub is None or namespace == "hub_sets"
    for name in COMMITTED["benchmark"]:
        assert params.read_entry(Benchmark, "benchmark", COMMITTED["benchmark"], name).name == name
    for method in COMMITTED["methods"]:
        assert train_config(method, 1, COMMITTED).method == method
    assert set(COMMITTED["methods"]) == set(METHODS)


def test_a_methods_own_entry_overrides_what_is_shared():
    config = train_config("gspo", 5, COMMITTED | {"train": COMMITTED["train"] | {"clip_high": 9.0}})
    assert (config.clip_high, config.seed) == (COMMITTED["methods"]["gspo"]["clip_high"], 5)
    assert run(tau=0.7).tau == 0.7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tau": -0.1}, r"train\.tau: got -0\.1, must be > 0"),
        ({"tau": float("nan")}, r"train\.tau: got nan, must be a number"),
        ({"group_size": 1}, r"train\.group_size: got 1, must be at least 2"),
        ({"minibatches": 5}, r"train\.minibatches: got 5, must be a divisor of train\.prompts = 64"),
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
    ("cls", "changes", "message"),
    [
        (Finite, {"n": [1]}, "finite.n: got [1], must be a list, each an integer at least 2"),
        (Finite, {"n": [2.5]}, "finite.n: got [2.5], must be a list, each an integer at least 2"),
        (Finite, {"n": [2] * 5}, "must be a list, each an integer at least 2 (at most 4 of them)"),
        (Law, {"tau": [0]}, "law.tau: got [0], must be a list, each a number > 0"),
        (Law, {"tau": []}, "law.tau: got [], must be a list, each a number > 0 (at least 1 of them)"),
        (Law, {"bases": ["x"]}, "law.bases: got ['x'], must be a list, each an integer"),
    ],
)
def test_a_bad_list_is_refused_with_what_its_elements_must_be(cls, changes, message):
    namespace = cls.__name__.lower()
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        params.read(cls, namespace, COMMITTED[namespace] | changes)


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
    with pytest.raises(ValueError, match=r"benchmark: got None, must be a mapping"):
        params.read_entry(Benchmark, "benchmark", None, "x")


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
    assert "# the base models of `bases/`, trained from scratch" in (root / "params.yaml").read_text()


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
    assert read_bases(values["base"])
    params.read(Evaluate, "evaluate", values["evaluate"])
    if not values["train_bases"]:
        assert training_map.jobs(values["grid"], values["train"], values["methods"])
    for name in values["benchmark"]:  # a preset that trains its own policies must not evaluate another's
        config = params.read_entry(Benchmark, "benchmark", values["benchmark"], name)
        for model in (config.model, config.against):
            assert not model.startswith("runs/") or model.startswith(f"runs/{values['preset']}/")
    for method in values["methods"]:
        train_config(method, 1, values)


def test_a_file_that_is_not_there_is_said_to_be_in_a_clone(tmp_path):
    with pytest.raises(
        ValueError, match=r"params\.yaml: no such file \(params\.yaml is in a clone of the repository, "
    ):
        params.load(tmp_path / "params.yaml")


def test_a_namespace_that_stands_twice_is_refused_by_its_line(tmp_path):
    """What pasting a block such as `sets:` below another one makes."""
    (tmp_path / "params.yaml").write_text("sets: {}\na: 1\nsets:\n  x: {path: a.csv}\n")
    message = r"params\.yaml:3: sets stands above already; move its entries there$"
    with pytest.raises(ValueError, match=message):
        params.load(tmp_path / "params.yaml")
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "mine.yaml").write_text("a: 2\n")
    with pytest.raises(ValueError, match=message):
        params.apply_preset("mine", tmp_path)


def test_the_blocks_that_params_yaml_offers_can_be_pasted(tmp_path):
    """Each commented block, uncommented, is an entry of its namespace, for us and for DVC."""
    text = (ROOT / "params.yaml").read_text()
    for name in ("train_bases", "tasks", "sets", "hub_sets", "scale"):
        pasted, count = re.subn(
            rf"^# {name}:.*\n(?:#  .*\n?)*", lambda match: re.sub("(?m)^# ", "", match[0]), text, flags=re.MULTILINE
        )
        assert count == 1
        (tmp_path / "params.yaml").write_text(pasted)
        assert params.load(tmp_path / "params.yaml")[name]
        text = pasted
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    for command in (["init", "--no-scm", "-q"], ["stage", "list", "--name-only"]):
        done = subprocess.run([sys.executable, "-m", "dvc", *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert {"bases@own", "tasks@hard", "sets@mine", "hub-sets@dapo", "scale@mine"} <= set(done.stdout.split())


def test_a_namespace_of_entries_may_be_absent(tmp_path):
    (tmp_path / "params.yaml").write_text("preset: mine\nscale: {a: {}}\n")
    values = params.load(tmp_path / "params.yaml")
    assert [values[name] for name in params.OPEN] == [{}, {}, {}, {}, {}, {"a": {}}]
