"""params.yaml is valid as committed, and every bad value is refused in one line that names it."""

from __future__ import annotations

import shutil

import pytest

from pmd import ablations, params, tuning
from pmd.files import ROOT

COMMITTED = params.load()


def run(**changes):
    return params.train(COMMITTED["train"], COMMITTED["methods"], "pmd-mean", 1, **changes)


def test_the_committed_parameters_are_valid():
    params.base(COMMITTED["base"])
    params.evaluate(COMMITTED["evaluate"])
    for method in COMMITTED["compare"]:
        for seed in params.seeds(COMMITTED["train"]):
            assert params.train(COMMITTED["train"], COMMITTED["methods"], method, seed).method == method
    assert len(params.seeds(COMMITTED["train"])) >= 3


def test_a_methods_own_entry_overrides_what_is_shared():
    config = params.train(COMMITTED["train"] | {"lr": 9.0}, COMMITTED["methods"], "gspo", 5)
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
        ({"learning_rate": 1}, r"train\.learning_rate: got 1, must be left out: the keys are method"),
    ],
)
def test_a_bad_value_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        run(**changes)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_refused_by_name():
    with pytest.raises(ValueError, match=r"train\.tau: missing, must be a number"):
        params.train({k: v for k, v in COMMITTED["train"].items() if k != "tau"}, COMMITTED["methods"], "kimi", 0)


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"method: got 'ppo', must be one of cispo, .*pmd-mean"):
        params.train(COMMITTED["train"], COMMITTED["methods"], "ppo", 0)
    with pytest.raises(ValueError, match=r"methods\.rloo: missing"):
        params.train(COMMITTED["train"], {}, "rloo", 0)


@pytest.mark.parametrize("seeds", [[], [1, 1], ["a"], None, [-1]])
def test_bad_seeds_are_refused(seeds):
    with pytest.raises(ValueError, match=r"train\.seeds"):
        params.seeds({"seeds": seeds})


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
    assert "# supervised training from scratch" in (root / "params.yaml").read_text()


def test_an_unknown_preset_or_a_preset_with_an_unknown_key_is_refused(root):
    with pytest.raises(ValueError, match=r"preset: got 'huge', must be one of .*smoke"):
        params.apply_preset("huge", root)
    (root / "presets" / "bad.yaml").write_text("train: {stpes: 3}\n")
    committed = (root / "params.yaml").read_text()
    with pytest.raises(ValueError, match=r"bad\.train\.stpes: got 3, must be one of the keys"):
        params.apply_preset("bad", root)
    assert (root / "params.yaml").read_text() == committed


@pytest.mark.parametrize("preset", [path.stem for path in (ROOT / "presets").glob("*.yaml")])
def test_every_preset_is_valid(root, preset):
    params.apply_preset(preset, root)
    values = params.load(root / "params.yaml")
    params.base(values["base"])
    params.evaluate(values["evaluate"])
    assert ablations.jobs(values["ablate"], values["train"], values["methods"])
    for method in values["compare"]:
        params.train(values["train"], values["methods"], method, 1)


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


def test_tuning_gives_every_method_the_same_budget_and_no_reported_seed():
    made = tuning.jobs(COMMITTED["tune"], COMMITTED["train"], COMMITTED["methods"])
    grid = {(j.config.lr, j.config.seed) for j in made}
    for method in COMMITTED["methods"]:
        assert {(j.config.lr, j.config.seed) for j in made if j.config.method == method} == grid
    with pytest.raises(ValueError, match=r"\[1\] are in both"):
        tuning.jobs(COMMITTED["tune"] | {"seeds": [1]}, COMMITTED["train"], COMMITTED["methods"])
