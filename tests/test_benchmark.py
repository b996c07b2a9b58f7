"""Samples survive a kill, metrics follow from them by hand, bad input is one line."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pmd import params
from pmd.__main__ import main
from pmd.evaluators import benchmark, examples
from pmd.files import ROOT, read_json, write_jsonl
from pmd.model.loading import save_policy
from pmd.problems.reward import read_reward
from pmd.sampling.engine import ENGINES
from tests.rewards import sevens
from tests.test_pipeline import behind

REAL = Path(os.environ.get("PMD_REAL_DATA") or ROOT.parent / "shared" / "data")
PROBLEMS = [{"id": f"p{i}", "prompt": f"{i}+1=", "ground_truth": str(i + 1), "rule": "exact"} for i in range(10)]


def config(**changes):
    entry = params.load()["benchmark"]["embedded"] | {"k": 4, "max_tokens": 6, "limit": None}
    return params.read_entry(benchmark.Benchmark, "benchmark", {"tried": entry | changes}, "tried")


def saved(responses: dict[str, list[str]], truncated: tuple[str, ...] = ()) -> pd.DataFrame:
    """Sample rows as another program's: {prompt_id: responses}; a response in `truncated` did not end."""
    rows = [
        {"prompt_id": name, "sample": i, "prompt": "", "response": text, "truncated": text in truncated}
        for name, texts in responses.items()
        for i, text in enumerate(texts)
    ]
    return pd.DataFrame(rows).assign(tokens=2, seed=0)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(benchmark, "BLOCK", 8)  # two problems


def test_metrics_by_hand():
    problems = [{"id": "a", "ground_truth": "\\frac{1}{2}", "rule": "math"}, {"id": "b", "ground_truth": "3"}]
    wide = ["\\boxed{2}", "\\boxed{2}", "\\boxed{0.5}", "\\boxed{\\frac12}", "\\boxed{1/2}"]
    samples = saved({"b": ["1=3", "3", "4", "4", "cut=3"], "a": wide}, truncated=("cut=3",))
    samples = benchmark.rescore(samples, problems)
    assert samples["prompt_id"].tolist() == ["a"] * 5 + ["b"] * 5
    scores = benchmark.per_problem(samples, problems)
    assert list(scores) == ["avg@5", "pass@2", "pass@4", "pass@5", "resampled best@5", "maj@5", "truncated", "length"]
    assert scores.index.tolist() == ["a", "b"]
    assert scores["avg@5"].tolist() == [3 / 5, 2 / 5]
    assert scores["pass@2"].tolist() == pytest.approx([1 - 1 / 10, 1 - 3 / 10])
    assert scores["resampled best@5"].tolist() == pytest.approx([1 - (2 / 5) ** 5, 1 - (3 / 5) ** 5])
    # a: as strings "2" has most votes, as numbers 1/2 has; b: two 3, two 4, the 3 was first
    assert scores["maj@5"].tolist() == [1.0, 1.0]
    assert scores["truncated"].tolist() == [0.0, 0.2]


def test_intervals_are_clustered_by_problem_and_differences_are_paired():
    ids = [f"q{i}" for i in range(40)]
    hard, gain = np.linspace(0, 0.8, 40), np.tile([0.05, 0.15], 20)
    a, b = pd.DataFrame({"avg@8": hard + gain}, ids), pd.DataFrame({"avg@8": hard}, ids)
    shuffled = b.sample(frac=1, random_state=0)
    difference = benchmark.compare(a, shuffled)["metrics"]["avg@8"]
    assert difference["estimate"] == pytest.approx(0.1)
    assert difference["high"] - difference["low"] == pytest.approx(2 * 2.02 * gain.std(ddof=1) / np.sqrt(40), rel=0.1)
    lone = benchmark._intervals(a, 0.0)["avg@8"]
    spread = (hard + gain).std(ddof=1) / np.sqrt(40)
    assert lone["high"] - lone["low"] == pytest.approx(2 * 2.02 * spread, rel=0.1)
    with pytest.raises(ValueError, match=r"no paired comparison: 0 common problems"):
        benchmark.compare(a, b.rename(index=lambda name: name + "x"))
    with pytest.raises(ValueError, match=r"metrics avg@8 and avg@4"):
        benchmark.compare(a, b.rename(columns={"avg@8": "avg@4"}))


def test_none_solved_is_not_surely_none():
    """30 problems, none solved: Clopper and Pearson's bound 0.116; the same for a difference, either way."""
    zeros = pd.DataFrame({"avg@2": np.zeros(30), "length": np.full(30, 7.0)}, [f"q{i}" for i in range(30)])
    found = benchmark._intervals(zeros, 0.0)
    assert found["avg@2"] == {"estimate": 0.0, "low": 0.0, "high": pytest.approx(0.1157, abs=1e-4)}
    assert found["length"] == {"estimate": 7.0, "low": 7.0, "high": 7.0}
    one = zeros.assign(**{"avg@2": np.eye(30)[0]})  # of a resampled mean the interval would reach below 0
    assert benchmark._intervals(one, 0.0)["avg@2"]["low"] == 0.0
    paired = benchmark.compare(zeros, zeros)["metrics"]["avg@2"]
    assert (paired["low"], paired["high"]) == pytest.approx((-0.1157, 0.1157), abs=1e-4)


def test_partial_rewards_have_a_mean_in_place_of_accuracy_and_of_all_that_counts_right_answers():
    problems = [{"id": name, "prompt": "", "ground_truth": "3"} for name in "ba"]
    samples = saved({"a": ["3", "4"], "b": ["7", "none"]})
    reward = read_reward("tests.rewards:closeness")
    scores = benchmark.per_problem(benchmark.rescore(samples, problems, reward), problems, reward, partial=True)
    assert list(scores) == ["reward", "truncated", "length"]
    assert scores["reward"].to_dict() == {"b": pytest.approx((1 / 5 - 3) / 2), "a": pytest.approx((1 + 1 / 2) / 2)}
    wide = pd.DataFrame({"reward": [-3.0, 7.0]}, ["a", "b"])  # a reward may be more than 1: no end of it is cut off
    found = benchmark._intervals(wide, 0.0)["reward"]
    assert found["low"] < -3
    assert found["high"] > 7


def test_a_reward_of_0_and_1_counts_right_answers_but_names_none_that_could_vote():
    problems = [{"id": name, "prompt": "", "ground_truth": "3"} for name in "ab"]
    samples = saved({"a": ["7", "1", "1", "1"], "b": ["7", "7", "7", "2"]})
    reward = read_reward("tests.rewards:sevens")
    scores = benchmark.per_problem(benchmark.rescore(samples, problems, reward), problems, reward)
    assert list(scores) == ["avg@4", "pass@2", "pass@4", "resampled best@4", "truncated", "length"]
    assert scores["avg@4"].tolist() == [1 / 4, 3 / 4]
    assert scores["pass@2"].tolist() == pytest.approx([1 / 2, 1])


# --- sampling ------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """The ids of each block that is really sampled."""
    asked = []
    original = benchmark.respond

    def respond(engine, tokenizer, problems, *rest):
        asked.append([problem["id"] for problem in problems])
        return original(engine, tokenizer, problems, *rest)

    monkeypatch.setattr(benchmark, "respond", respond)
    return asked


def sample_slowly(*arguments):
    """`benchmark.sample` in blocks of two problems, each of which takes a while."""
    original = benchmark.respond

    def slow(*asked):
        time.sleep(0.3)
        return original(*asked)

    benchmark.BLOCK, benchmark.respond = 8, slow
    torch.set_num_threads(1)
    benchmark.sample(*arguments)


def test_a_killed_benchmark_goes_on_with_the_same_bits(tiny_dir, tmp_path, small_blocks, counted, server):
    whole, _ = benchmark.sample(config(), tiny_dir, PROBLEMS, tmp_path / "whole")
    assert counted == [[f"p{i}", f"p{i + 1}"] for i in range(0, 10, 2)]
    counted.clear()
    work = tmp_path / "killed"
    process = server.Process(target=sample_slowly, args=(config(), tiny_dir, PROBLEMS, work))
    process.start()
    while process.is_alive() and len(list(work.glob("[!.]*.parquet"))) < 2:
        time.sleep(0.01)
    process.kill()
    process.join()
    done = len(list(work.glob("[!.]*.parquet")))
    assert 2 <= done < 5, "it was over before it was killed"
    again, _ = benchmark.sample(config(), tiny_dir, PROBLEMS, work)
    assert len(counted) == 5 - done
    pd.testing.assert_frame_equal(again, whole)


def test_what_is_sampled_again_and_what_is_not(tiny, tiny_dir, tmp_path, small_blocks, counted):
    first, _ = benchmark.sample(config(), tiny_dir, PROBLEMS[:4], tmp_path)
    counted.clear()
    more, _ = benchmark.sample(config(), tiny_dir, PROBLEMS, tmp_path)
    assert counted == [["p4", "p5"], ["p6", "p7"], ["p8", "p9"]]
    pd.testing.assert_frame_equal(more.head(len(first)), first)
    counted.clear()
    gold = [PROBLEMS[0] | {"ground_truth": "77"}, *PROBLEMS[1:]]
    benchmark.sample(config(), tiny_dir, gold, tmp_path)  # another gold: other verdicts, the same text
    assert counted == []
    benchmark.sample(config(temperature=0.9), tiny_dir, PROBLEMS[:2], tmp_path)
    benchmark.sample(config(seed=1), tiny_dir, PROBLEMS[:2], tmp_path)
    benchmark.sample(config(), tiny_dir, [PROBLEMS[0] | {"prompt": "9-1="}, PROBLEMS[1]], tmp_path)
    other = tmp_path / "other"
    tiny[0].model.norm.weight.data[0] += 1
    save_policy(*tiny, other)
    tiny[0].model.norm.weight.data[0] -= 1
    benchmark.sample(config(), other, PROBLEMS[:2], tmp_path)
    assert len(counted) == 4


JUDGES = behind({"problems/verifier.py", "problems/reward.py"})  # verdicts are made anew from the stored text


@pytest.mark.parametrize("engine", ENGINES)
def test_a_change_of_any_code_that_samples_invalidates_the_samples_of_its_engine(engine):
    start = {"sampling/scoring.py", "sampling/torch_engine.py", "model/loading.py", "problems/prompts.py"}
    read = behind(start | ({"scale/vllm_engine.py"} if engine == "vllm" else set()))
    hashed = {str(path.relative_to(ROOT / "pmd")) for path in benchmark.sampling_code(engine)}
    assert {"sampling/static_decoder.py", "model/distributed.py"} < read
    assert read <= hashed | JUDGES
    assert {path for path in hashed if path.startswith("scale/")} <= read  # another engine's code does not count
    assert all(path.endswith(".py") for path in hashed)  # bytecode changes with what was imported so far


def test_the_engine_is_handed_in(tiny, tiny_dir, tmp_path):
    _, tokenizer = tiny
    made = []

    class Silent:
        """Ends every response at once."""

        def __init__(self, model, eos):
            self.model, self.eos = model, eos
            made.append(eos)

        def sample(self, prompts, n, sampling, seed, first=0):
            return [[[self.eos]] * n for _ in prompts]

    write_jsonl(tmp_path / "set.jsonl", PROBLEMS)
    paths = {"model": str(tiny_dir), "against": str(tiny_dir), "problems": str(tmp_path / "set.jsonl")}
    entry = config(engine="vllm", **paths)
    folders = tmp_path / "runs", tmp_path / "results", tmp_path / "work"
    with pytest.raises(ValueError, match=r"^benchmark\.tried\.engine: got 'vllm', must be torch where no other engine"):
        benchmark.run(entry, *folders)
    assert benchmark.run(entry, *folders, Silent)["model"]["metrics"]["length"]["estimate"] == 1.0
    assert made == [tokenizer.eos_token_id]


def test_verdicts_are_made_anew_from_the_text(tiny_dir, tmp_path):
    samples, _ = benchmark.sample(config(), tiny_dir, PROBLEMS, tmp_path)
    spoiled = samples.assign(correct=~samples["correct"], reward=9.0, answer="?")
    pd.testing.assert_frame_equal(benchmark.rescore(spoiled.sample(frac=1, random_state=0), PROBLEMS), samples)


def test_one_entry_end_to_end(tiny, tmp_path, monkeypatch):
    for name, shift in (("a", 0.0), ("b", 0.5)):
        tiny[0].model.norm.weight.data[0] += shift
        save_policy(*tiny, tmp_path / name)
        tiny[0].model.norm.weight.data[0] -= shift
    write_jsonl(tmp_path / "set.jsonl", [*PROBLEMS, PROBLEMS[0] | {"id": "long", "prompt": "1+" * 40 + "1="}])
    entry = config(
        model=str(tmp_path / "a"),
        against=str(tmp_path / "b"),
        problems=str(tmp_path / "set.jsonl"),
        max_prompt_tokens=20,
        limit=11,
    )
    metrics = benchmark.run(entry, tmp_path / "runs", tmp_path / "results", tmp_path / "work")
    assert metrics == read_json(tmp_path / "results" / "metrics.json")
    assert (metrics["model"]["problems"], metrics["model"]["too_long"], metrics["model"]["responses"]) == (10, 1, 40)
    samples = {role: pd.read_parquet(tmp_path / "runs" / f"{role}.parquet") for role in ("model", "against")}
    averages = {role: frame["correct"].mean() for role, frame in samples.items()}
    for role in samples:
        assert metrics[role]["metrics"]["avg@4"]["estimate"] == pytest.approx(averages[role])
    difference = metrics["difference"]["metrics"]["avg@4"]
    assert difference["estimate"] == pytest.approx(averages["model"] - averages["against"])
    assert "## A failed one" in (tmp_path / "results" / "examples.md").read_text()
    alone = benchmark.run(
        entry.model_copy(update={"against": entry.model}), tmp_path / "runs", tmp_path / "alone", tmp_path / "work"
    )
    assert set(alone) == {"problems", "model"}
    assert alone["model"] == metrics["model"]


def test_an_entry_with_a_reward_of_its_own(tiny, tmp_path, counted):
    for name, shift in (("a", 0.0), ("b", 0.5)):
        tiny[0].model.norm.weight.data[0] += shift
        save_policy(*tiny, tmp_path / name)
        tiny[0].model.norm.weight.data[0] -= shift
    write_jsonl(tmp_path / "set.jsonl", PROBLEMS)
    paths = {"model": str(tmp_path / "a"), "against": str(tmp_path / "b"), "problems": str(tmp_path / "set.jsonl")}
    folders = tmp_path / "runs", tmp_path / "results", tmp_path / "work"
    for name, line in (("nan", "returned the reward nan"), ("nowhere", "must be a function of")):
        with pytest.raises(ValueError, match=f"^reward: .*{line}") as refused:
            benchmark.run(config(**paths, reward=f"tests.rewards:{name}"), *folders)
        assert "\n" not in str(refused.value)
    assert counted == []
    benchmark.run(config(**paths), *folders)
    counted.clear()
    for trusted in (False, True):
        metrics = benchmark.run(config(**paths, reward="tests.rewards:sevens", trusted=trusted), *folders)
        assert counted == []  # another judge, the same text
        assert metrics["reward"] == read_reward("tests.rewards:sevens").identity
        samples = {role: pd.read_parquet(tmp_path / "runs" / f"{role}.parquet") for role in ("model", "against")}
        means = {role: frame["reward"].mean() for role, frame in samples.items()}
        assert samples["model"]["reward"].tolist() == sevens(samples["model"]["response"])
        assert list(metrics["difference"]["metrics"]) == ["reward", "truncated", "length"]
        assert metrics["model"]["metrics"]["reward"]["estimate"] == pytest.approx(means["model"], abs=1e-6)
        difference = metrics["difference"]["metrics"]["reward"]["estimate"]
        assert difference == pytest.approx(means["model"] - means["against"], abs=1e-6)
        assert means["model"] != means["against"]
    best = samples["model"]["reward"].max()
    page = (tmp_path / "results" / "examples.md").read_text()
    assert f"## One with the reward {best:g}: " in page
    assert f"Its reward: {best:g}. The right answer:" in page
    assert "extracted answer" not in page


def test_models_are_compared_by_the_mean_reward_although_one_of_them_got_0_and_1_alone(tiny_dir, tmp_path, monkeypatch):
    write_jsonl(tmp_path / "set.jsonl", PROBLEMS[:2])
    (tmp_path / "other").symlink_to(tiny_dir)
    said = {tiny_dir: {"p0": ["7", "1"], "p1": ["1", "1"]}, tmp_path / "other": {"p0": ["7", "7"], "p1": ["7", "71"]}}

    def sample(config, model, problems, *_):
        return benchmark.rescore(saved(said[model]), problems, read_reward(config.reward)), problems

    monkeypatch.setattr(benchmark, "sample", sample)
    paths = {"model": str(tiny_dir), "against": str(tmp_path / "other"), "problems": str(tmp_path / "set.jsonl")}
    entry = config(**paths, reward="tests.rewards:sevens")
    metrics = benchmark.run(entry, tmp_path / "runs", tmp_path / "results", tmp_path / "work")
    assert metrics["model"]["metrics"]["reward"]["estimate"] == 1 / 4
    assert metrics["difference"]["metrics"]["reward"]["estimate"] == 1 / 4 - 7 / 8
    assert not any(name.startswith(("avg", "pass")) for name in metrics["model"]["metrics"])


def test_a_missing_model_is_one_line_before_any_work(tiny_dir, tmp_path):
    write_jsonl(tmp_path / "set.jsonl", PROBLEMS)
    entry = config(model=str(tiny_dir), against="runs/nowhere", problems=str(tmp_path / "set.jsonl"))
    with pytest.raises(ValueError, match=r"^benchmark\.tried\.against: runs/nowhere is not a model folder"):
        benchmark.run(entry, tmp_path / "runs", tmp_path / "results", tmp_path / "work")
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "work").exists()
    with pytest.raises(FileNotFoundError, match="no such problem set"):
        benchmark.run(
            entry.model_copy(update={"problems": "none.jsonl"}),
            tmp_path / "runs",
            tmp_path / "results",
            tmp_path / "work",
        )


def test_a_prompt_that_the_context_has_no_room_for_is_one_line_before_any_work(tiny_dir, tmp_path, tiny):
    response = tiny[0].config.max_position_embeddings - 3  # the prompts have four tokens
    with pytest.raises(
        ValueError, match=r"^benchmark\.tried\.max_prompt_tokens: got .* room for 3 and a prompt has 4$"
    ):
        benchmark.sample(config(max_tokens=response), tiny_dir, PROBLEMS, tmp_path / "work")
    assert not (tmp_path / "work").exists()


# --- responses sampled elsewhere -----------------------------------------------------------------------------------


def score(tmp_path, rows, problems=PROBLEMS[:2]):
    write_jsonl(tmp_path / "set.jsonl", problems)
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["score", *(str(tmp_path / name) for name in ("responses.jsonl", "set.jsonl", "out"))])


def test_responses_sampled_elsewhere(tmp_path, capsys):
    rows = [
        {"prompt_id": "p1", "response": "2"},
        {"prompt_id": "p0", "response": "0=1"},
        {"prompt_id": "p1", "response": "2", "truncated": True},
        {"prompt_id": "p0", "response": "\ud800 surrogate"},
    ]
    score(tmp_path, rows)
    samples = pd.read_parquet(tmp_path / "out" / "samples.parquet")
    assert samples["prompt_id"].tolist() == ["p0", "p0", "p1", "p1"]
    assert samples["correct"].tolist() == [True, False, True, False]
    metrics = read_json(tmp_path / "out" / "metrics.json")["metrics"]
    assert metrics["avg@2"]["estimate"] == 0.5
    assert metrics["truncated"]["estimate"] == 0.25
    assert "length" not in metrics  # how many tokens nobody said
    assert "avg@2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "p0", "response": "1"}, r"responses\.jsonl:2: column 'prompt_id' must be a str, got None$"),
        ({"prompt_id": "p0", "text": "1"}, r":2: column 'response' must be a str, got None$"),
        ({"prompt_id": "p0", "response": "1", "truncated": "no"}, r":2: column 'truncated' must be a bool, got 'no'$"),
        ({"prompt_id": "p7", "response": "1"}, r"responses\.jsonl: prompt_id 'p7': not an id of the problem set"),
        ({"prompt_id": "p0", "response": "1"}, r"responses\.jsonl: prompt_id 'p1': has 0 responses, must have 2$"),
    ],
)
def test_a_bad_file_of_responses_is_one_line(tmp_path, row, message):
    with pytest.raises(SystemExit, match=message) as caught:
        score(tmp_path, [{"prompt_id": "p0", "response": "1"}, row])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not (REAL / "grader").is_dir(), reason=f"no labelled outputs in {REAL} (PMD_REAL_DATA)")
def test_the_real_labelled_outputs(tmp_path):
    """500 real answers to MATH-500: the scored file agrees with the labels, reviewed where they were."""
    lines = [json.loads(line) for line in (REAL / "grader" / "math500_outputs.jsonl").open(encoding="utf-8")]
    asked = [json.loads(line) for line in (REAL / "math500" / "test.jsonl").open(encoding="utf-8")]
    problems = [
        {"id": row["unique_id"], "prompt": row["problem"], "ground_truth": row["answer"], "rule": "math"}
        for row in asked
    ]
    assert [row["ground_truth"] for row in problems] == [line["gold"] for line in lines]
    rows = [{"prompt_id": p["id"], "response": line["response"]} for p, line in zip(problems, lines, strict=True)]
    score(tmp_path, rows, problems)
    samples = pd.read_parquet(tmp_path / "out" / "samples.parquet")
    labels = [line.get("label_checked", "equal" if line["label"] else "not_equal") == "equal" for line in lines]
    assert (samples["correct"].to_numpy() == labels).mean() >= 0.97
    share = read_json(tmp_path / "out" / "metrics.json")["metrics"]["avg@1"]
    assert share["low"] < np.mean(labels) < share["high"]


# --- the page ------------------------------------------------------------------------------------------------------


def test_the_page_shows_one_of_each_and_no_text_escapes_its_block():
    hostile = "````\n# not a heading <script>\x1b[31m\n1"
    samples = benchmark.rescore(saved({"p0": ["1", hostile], "p1": ["long", "2"]}, ("long",)), PROBLEMS[:2])
    text = examples.page(samples, PROBLEMS[:2], "A title")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## A solved one: 2 of 4 responses",
        "## A failed one: 1 of 4 responses",
        "## A truncated one: 1 of 4 responses",
    ]
    assert examples.fenced(hostile).startswith("`````text\n````\n")
    assert "\x1b" not in text
    assert "Problem `p1`, response 0, 2 tokens" in text
    long = examples.fenced("a" * 5000 + "z")
    assert "2,001 characters left out" in long
    assert long.endswith("z\n```")
    none = examples.page(samples[samples["correct"]], PROBLEMS[:2], "t")
    assert "## A failed one: 0 of 2 responses\n\n## A truncated" in none


def test_temperature_zero_is_greedy_and_takes_k_as_one():
    with pytest.warns(UserWarning, match="k: got 4, taken as 1, since temperature 0 is greedy decoding"):
        greedy = config(temperature=0, k=4)
    assert (greedy.k, greedy.temperature) == (1, 0)
    assert config(temperature=0.0, k=1).k == 1
    assert config(temperature=0.5, k=4).k == 4
    with pytest.raises(ValueError, match=r"temperature: got -0\.1, must be at least 0"):
        config(temperature=-0.1)
    with pytest.raises(ValueError, match=r"k: got 0, must be at least 1"):
        config(temperature=0, k=0)
