"""The loop: learns, repeats itself bit for bit, survives being killed, refuses what is not its own."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pmd import notebook, params
from pmd.files import read_json, read_jsonl, write_json
from pmd.harness import run_folder
from pmd.harness.clock import Clock, timing
from pmd.harness.config import train_config
from pmd.methods import METHODS
from pmd.model import checkpoint
from pmd.problems.verifier import Verdict
from pmd.sampling.torch_engine import TorchEngine
from pmd.trainer import loop, measurements
from pmd.trainer.loop import train

COMMITTED = params.load()
SMALL = {"steps": 6, "prompts": 8, "group_size": 4, "minibatches": 4, "probe": 2, "max_tokens": 8, "eval_every": 2,
         "eval_k": 2, "eval_max_tokens": 8, "checkpoint_every": 2, "lr": 1e-3, "warmup": 1}  # fmt: skip
PROBLEMS = [{"id": f"p{i}", "prompt": f"{i}+1=", "ground_truth": str(i + 1), "difficulty": 2} for i in range(20)]
SETS = {"val": PROBLEMS[:4]}


def config(method: str = "pmd-mean", **changes):
    return train_config(method, 1, COMMITTED, **(SMALL | changes))


def run(base, out, **changes):
    return train(config(**changes), base, PROBLEMS, SETS, out, progress=False)


def test_two_cold_runs_write_the_same_bits(tiny_dir, tmp_path):
    run(tiny_dir, tmp_path / "a")
    run(tiny_dir, tmp_path / "b")
    for name in (
        "run.json",
        "log.jsonl",
        "eval.jsonl",
        "result.json",
        "last/model.safetensors",
        "best/model.safetensors",
    ):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_the_log_holds_what_it_promises(tiny_dir, tmp_path):
    run(tiny_dir, tmp_path / "a")
    rows = read_jsonl(tmp_path / "a" / "log.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert sum(row["successes"]) / 32 == pytest.approx(row["reward"])
        assert row["kl"] >= 0
        assert row["chi2"] >= 0
        assert row["entropy"] > 0
    assert rows[-1]["rollouts"] == 6 * 32
    assert rows[-1]["tokens"] == pytest.approx(sum(row["length"] * 32 for row in rows))
    assert [(row["step"], row["set"]) for row in read_jsonl(tmp_path / "a" / "eval.jsonl")] == [
        (s, "val") for s in (0, 2, 4, 6)
    ]
    timing = read_jsonl(tmp_path / "a" / "timing.jsonl")
    phases = ("rollout_s", "reward_s", "old_s", "update_s", "probe_s")
    assert timing[-1]["wall_s"] == pytest.approx(sum(row[key] for row in timing for key in phases))


def test_a_set_with_another_rule_has_that_rules_rewards_and_counts_correct_answers(tiny_dir, tmp_path):
    problems = [problem | {"rule": "dapo"} for problem in PROBLEMS]  # an arithmetic policy writes no "Answer:"
    train(config(steps=1, eval_every=1), tiny_dir, problems, {"val": problems[:4]}, tmp_path / "a", progress=False)
    [row] = read_jsonl(tmp_path / "a" / "log.jsonl")
    assert row["reward"] == -1.0
    assert row["successes"] == [0] * 8
    assert [e["correct"] for e in read_jsonl(tmp_path / "a" / "eval.jsonl")] == [[0] * 4] * 2


@pytest.mark.parametrize("moment", ["log.jsonl", "timing.jsonl", "checkpoint-000002"])
def test_a_killed_run_ends_with_the_same_bits(tiny_dir, tmp_path, moment, server):
    """SIGKILL as soon as a given file of the run shows, or has three lines; then start again."""
    run(tiny_dir, tmp_path / "whole")
    out = tmp_path / "killed"
    process = server.Process(target=run, args=(tiny_dir, out))
    process.start()
    while process.is_alive():
        seen = out / moment
        if seen.is_dir() or (seen.is_file() and seen.read_text().count("\n") >= 3):
            process.kill()
            break
        time.sleep(0.001)
    process.join()
    assert not (out / "result.json").exists(), "the run ended before it was killed"
    run(tiny_dir, out)
    for name in ("log.jsonl", "eval.jsonl", "result.json", "last/model.safetensors", "best/model.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert [row["step"] for row in read_jsonl(out / "timing.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_cut_off_last_line_is_dropped_on_resume(tiny_dir, tmp_path, monkeypatch):
    run(tiny_dir, tmp_path / "whole")
    out = tmp_path / "cut"
    with monkeypatch.context() as patched:
        stop_in(patched, 5)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_dir, out)
    with (out / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "rew')
    run(tiny_dir, out)
    assert (out / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()


def test_a_finished_run_is_not_run_again(tiny_dir, tmp_path):
    first = run(tiny_dir, tmp_path / "a")
    stamp = (tmp_path / "a" / "log.jsonl").stat().st_mtime_ns
    assert run(tiny_dir, tmp_path / "a") == first
    assert (tmp_path / "a" / "log.jsonl").stat().st_mtime_ns == stamp


def test_a_folder_of_another_run_is_refused_by_the_first_difference(tiny_dir, tmp_path):
    run(tiny_dir, tmp_path / "a")
    with pytest.raises(ValueError, match="a: holds a run with problems_md5 = "):
        train(config(), tiny_dir, PROBLEMS[::-1], SETS, tmp_path / "a", progress=False)
    with pytest.raises(ValueError, match=r"a: holds a run with tau = 0\.05, not 0\.25"):
        run(tiny_dir, tmp_path / "a", tau=0.25)
    with pytest.raises(ValueError, match=r"a: holds a run with steps = 6, not 4"):
        run(tiny_dir, tmp_path / "a", steps=4)


def change_weights(model) -> None:
    weights = load_file(model / "model.safetensors")
    save_file({name: weight * 1.01 for name, weight in weights.items()}, model / "model.safetensors", {"format": "pt"})


def test_a_base_model_is_known_by_its_content_and_not_by_its_path(tiny_dir, tmp_path):
    result = run(tiny_dir, tmp_path / "a")
    stamp = (tmp_path / "a" / "log.jsonl").stat().st_mtime_ns
    moved = shutil.copytree(tiny_dir, tmp_path / "moved")
    assert run(moved, tmp_path / "a") == result
    assert (tmp_path / "a" / "log.jsonl").stat().st_mtime_ns == stamp
    change_weights(tiny_dir)
    with pytest.raises(ValueError, match="a: holds a run with model_md5 = "):
        run(tiny_dir, tmp_path / "a")


def test_a_large_model_is_known_by_configuration_sizes_and_index(tiny_dir, monkeypatch):
    """Its weights are not read: that would take minutes."""
    whole = run_folder.model_digest(tiny_dir)
    monkeypatch.setattr(run_folder, "LARGE", 0)
    large = run_folder.model_digest(tiny_dir)
    change_weights(tiny_dir)
    assert run_folder.model_digest(tiny_dir) == large != whole
    (tiny_dir / "model.safetensors.index.json").write_text("{}")
    indexed = run_folder.model_digest(tiny_dir)
    assert indexed != large
    described = read_json(tiny_dir / "config.json")
    write_json(tiny_dir / "config.json", described | {"rms_norm_eps": 0.1})
    assert run_folder.model_digest(tiny_dir) != indexed


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_another_configuration_or_tokenizer_makes_another_model(tiny_dir, name):
    before = run_folder.model_digest(tiny_dir)
    write_json(tiny_dir / name, read_json(tiny_dir / name) | {"another": 1})
    assert run_folder.model_digest(tiny_dir) != before


def test_what_training_reads_of_a_problem_makes_another_set():
    first, *rest = PROBLEMS
    known = run_folder.problems_digest(PROBLEMS)
    for change in ({"id": "q"}, {"prompt": "1="}, {"ground_truth": "9"}, {"rule": "math"}):
        assert run_folder.problems_digest([first | change, *rest]) != known, change
    assert run_folder.problems_digest([first | {"rule": "exact", "difficulty": 9}, *rest]) == known
    assert run_folder.problems_digest([*rest, first]) != known


def test_a_folder_that_goes_on_keeps_its_history_and_the_rows_up_to_its_checkpoint(tmp_path):
    log, result = tmp_path / "log.jsonl", tmp_path / "result.json"
    log.write_text('{"step": 9}\n')
    run_folder.begin(tmp_path, {"threads": 1})
    assert not log.exists()
    for step in (1, 2, 3):
        run_folder.append(log, {"step": step})
    write_json(result, {"last_step": 3})
    run_folder.go_on(tmp_path, {"threads": 2}, 2)
    assert [row["step"] for row in read_jsonl(log)] == [1, 2]
    assert not result.exists(), "it would say that the run has finished"
    run_folder.go_on(tmp_path, {"threads": 4}, 2)
    assert read_json(tmp_path / "run.json")["history"] == [
        {"after_step": 2, "changed": {"threads": [1, 2]}},
        {"after_step": 2, "changed": {"threads": [2, 4]}},
    ]


REMEDIES = {
    "microbatch_tokens": 40,
    "checkpoint_activations": True,
    "threads": 2,
    "eval_every": 3,
    "checkpoint_every": 1,
}


def stop_in(monkeypatch, at: int) -> None:
    """Make a run stop in this step, as if by Ctrl-C."""
    original = loop.learn

    def learn(config, step, *rest):
        if step == at:
            raise KeyboardInterrupt
        return original(config, step, *rest)

    monkeypatch.setattr(loop, "learn", learn)


@pytest.mark.parametrize("setting", REMEDIES)
def test_a_run_that_stopped_goes_on_with_a_remedy_and_says_so(tiny_dir, tmp_path, monkeypatch, setting):
    out, remedy = tmp_path / "a", {setting: REMEDIES[setting]}
    with monkeypatch.context() as patched:
        stop_in(patched, 5)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_dir, out)
    run(tiny_dir, out, **remedy)
    assert [row["step"] for row in read_jsonl(out / "log.jsonl")] == [1, 2, 3, 4, 5, 6]
    written = read_json(out / "run.json")
    assert written[setting] == remedy[setting]
    changed = {setting: [config().model_dump()[setting], remedy[setting]]}
    assert written["history"] == [{"after_step": 4, "changed": changed}]


def test_every_adjustable_setting_is_one_and_tests_as_one():
    """compile and device need hardware or a compiler: that they are not compared is all that can be tested here."""
    assert {*REMEDIES, "compile", "device"} == set(run_folder.ADJUSTABLE) <= set(config().model_dump())


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_finished_run_with_more_steps_goes_on_as_if_it_had_had_them(tiny_dir, tmp_path, staleness):
    short = {"staleness": staleness, "steps": 4}
    run(tiny_dir, tmp_path / "whole", **short | {"steps": 6})
    first = run(tiny_dir, tmp_path / "a", **short)
    result = run(tiny_dir, tmp_path / "a", **short | {"steps": 6})
    assert (first["last_step"], result["last_step"]) == (4, 6)
    for name in ("log.jsonl", "eval.jsonl", "result.json", "last/model.safetensors", "best/model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert read_json(tmp_path / "a" / "run.json")["history"] == [{"after_step": 4, "changed": {"steps": [4, 6]}}]
    for kept in (tmp_path / "a").glob("checkpoint-*"):
        shutil.rmtree(kept)
    with pytest.raises(ValueError, match=r"a: holds a run of 6 steps whose checkpoint was removed"):
        run(tiny_dir, tmp_path / "a", **short | {"steps": 8})


def test_another_engine_than_torchs_must_be_handed_in(tiny_dir, tmp_path):
    with pytest.raises(ValueError, match=r"train\.engine: got 'vllm', must be torch, or train\(\) be given engine="):
        run(tiny_dir, tmp_path / "a", engine="vllm")
    seen = []

    def make(model, eos, **options):
        seen.append(options)
        return TorchEngine(model, eos)

    named = config(engine="vllm", engine_options={"max_model_len": 64}, steps=1)
    train(named, tiny_dir, PROBLEMS, SETS, tmp_path / "a", make, progress=False)
    assert seen == [{"max_model_len": 64}]


@pytest.mark.parametrize(("platform", "unit"), [("linux", 2**10), ("darwin", 1)])
def test_memory_is_in_mebibytes_whatever_the_kernel_counts_in(monkeypatch, platform, unit):
    """The kernel of macOS counts bytes, that of Linux KiB; both users of the one function."""
    monkeypatch.setattr(sys, "platform", platform)
    usage = SimpleNamespace(ru_maxrss=300 * 2**20 // unit)
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    row = {"length": 1.0, "successes": [1], "group_size": 2}
    assert timing(Clock({"update": 1.0}), 1, row, 0.0)["peak_memory_mb"] == 300
    assert notebook.cost("train", 1.0)["peak_memory_mb"] == 300


def test_a_corrupt_checkpoint_is_named(tiny_dir, tmp_path):
    run(tiny_dir, tmp_path / "a")
    (tmp_path / "a" / "result.json").unlink()
    broken = checkpoint.latest(tmp_path / "a") / "moments-0-of-1.safetensors"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(ValueError, match="checkpoint-000006: corrupt checkpoint") as caught:
        run(tiny_dir, tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_another_chat_template_makes_another_model(tiny_dir):
    """The template writes the prompts that are trained on."""
    before = run_folder.model_digest(tiny_dir)
    (tiny_dir / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert run_folder.model_digest(tiny_dir) != before


def test_a_checkpoint_without_a_waiting_batch_is_corrupt(tiny_dir, tmp_path):
    """It would otherwise be sampled again from a later policy, or end the run with a KeyError."""
    run(tiny_dir, tmp_path / "a", staleness=2)
    (tmp_path / "a" / "result.json").unlink()
    next((tmp_path / "a").glob("checkpoint-*/waiting-7.safetensors")).unlink()
    with pytest.raises(ValueError, match=r"corrupt checkpoint \(waiting rollouts: got \[8\], must be those of steps"):
        run(tiny_dir, tmp_path / "a", staleness=2)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tiny_dir, tmp_path, monkeypatch):
    original = measurements.policy_change

    def poison(config, model, passes, old):
        measured = original(config, model, passes, old)
        if (tmp_path / "a" / "checkpoint-000002").exists():
            with torch.no_grad():
                next(model.parameters()).fill_(float("nan"))
        return measured

    monkeypatch.setattr(measurements, "policy_change", poison)
    with pytest.raises(FloatingPointError, match=r"logits are NaN or infinite"):
        run(tiny_dir, tmp_path / "a")
    kept = load_file(checkpoint.latest(tmp_path / "a") / "weights-0-of-1.safetensors")
    assert checkpoint.latest(tmp_path / "a").name == "checkpoint-000002"
    assert all(torch.isfinite(weight).all() for weight in kept.values())


def test_a_full_disk_leaves_the_previous_checkpoint(tiny, tmp_path, monkeypatch):
    model, _ = tiny
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoint.save(tmp_path, 2, model, optimizer, {})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match=r"checkpoint of step 4 could not be written .*No space left"):
        checkpoint.save(tmp_path, 4, model, optimizer, {})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000002"]


@pytest.fixture
def sevens(monkeypatch):
    """Reward 1 for a response that begins with `7`, as 1 in 16 of an untrained policy's do."""

    def seven(rules, responses, golds, ended):
        return [Verdict(text, text[:1] == "7", float(text[:1] == "7"), False) for text in responses]

    monkeypatch.setattr("pmd.sampling.scoring.verify", seven)


@pytest.mark.usefixtures("sevens")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_a_reward_it_can_reach(tiny_dir, tmp_path, method):
    """From 1 in 16 to most within 25 steps."""
    clip = {"clip_low": 0.2, "clip_high": 0.28}
    run(tiny_dir, tmp_path / "a", method=method, steps=25, lr=3e-3, eval_every=25, group_size=8, tau=0.2, **clip)
    rewards = [row["reward"] for row in read_jsonl(tmp_path / "a" / "log.jsonl")]
    assert np.mean(rewards[:3]) < 0.3
    assert np.mean(rewards[-3:]) > 0.8


def test_groups_without_signal_can_be_left_out(tiny_dir, tmp_path):
    run(tiny_dir, tmp_path / "a", filter_low=0.0, filter_high=1.0)
    for row in read_jsonl(tmp_path / "a" / "log.jsonl"):
        assert row["kept"] == pytest.approx(row["signal"])


# --- microbatches, precision, memory -------------------------------------------------------------------------------


@pytest.mark.usefixtures("sevens")
@pytest.mark.parametrize("method", ["pmd-mean", "grpo"])
def test_a_run_in_microbatches_logs_what_the_whole_run_logs(tiny_dir, tmp_path, method):
    """Through rollouts, log π_t, updates and the probe; one step, as AdamW amplifies rounding later on."""
    run(tiny_dir, tmp_path / "whole", method=method, steps=1)
    run(tiny_dir, tmp_path / "cut", method=method, steps=1, microbatch_tokens=16)
    [whole], [cut] = (read_jsonl(tmp_path / name / "log.jsonl") for name in ("whole", "cut"))
    assert whole["grad_norm"] > 0
    for key, value in whole.items():
        assert cut[key] == (pytest.approx(value, rel=1e-4, abs=1e-9) if isinstance(value, float) else value), key


@pytest.mark.usefixtures("sevens")
def test_bfloat16_trains_float32_weights(tiny_dir, tmp_path):
    """By steps that bfloat16 weights could not take: 1e-5 is a thousandth of their spacing."""
    run(tiny_dir, tmp_path / "a", dtype="bfloat16", lr=1e-5, steps=2)
    before, after = (load_file(path / "model.safetensors") for path in (tiny_dir, tmp_path / "a" / "last"))
    for name, weight in after.items():
        assert weight.dtype == torch.float32
        if name.endswith("proj.weight"):
            assert 0 < (weight - before[name]).abs().max() < 2e-4
    state = load_file(checkpoint.latest(tmp_path / "a") / "moments-0-of-1.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    run(tiny_dir, tmp_path / "b", lr=1e-5, steps=2)
    half, full = (read_jsonl(tmp_path / name / "log.jsonl")[0] for name in "ab")
    assert half["entropy"] == pytest.approx(full["entropy"], rel=0.02)
    assert half["entropy"] != full["entropy"]


@pytest.mark.usefixtures("sevens")
def test_recomputed_activations_train_to_the_same_bits(tiny_dir, tmp_path):
    run(tiny_dir, tmp_path / "kept", steps=2)
    run(tiny_dir, tmp_path / "recomputed", steps=2, checkpoint_activations=True)
    assert read_jsonl(tmp_path / "kept" / "log.jsonl")[0]["grad_norm"] > 0
    for name in ("log.jsonl", "eval.jsonl", "last/model.safetensors"):
        assert (tmp_path / "kept" / name).read_bytes() == (tmp_path / "recomputed" / name).read_bytes(), name


def test_the_validation_best_policy_is_kept(tiny_dir, tmp_path):
    result = run(tiny_dir, tmp_path / "a")
    scores = {row["step"]: sum(row["correct"]) for row in read_jsonl(tmp_path / "a" / "eval.jsonl")}
    assert result["best_step"] == max(scores, key=lambda step: (scores[step], -step))
    assert read_json(tmp_path / "a" / "result.json") == result


# --- problems that no run could be made of -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problems", "sets", "message"),
    [
        ([], SETS, r"^problems: got \[\], must be at least one problem$"),
        (PROBLEMS, {}, r"^sets: got \[\], must be a mapping of names to problem sets with val among them$"),
        (PROBLEMS, {"test": PROBLEMS}, r"^sets: got \['test'\], must be a mapping"),
        (PROBLEMS, {"val": []}, r"^sets\.val: got \[\], must be at least one problem$"),
        (PROBLEMS, SETS | {"test": []}, r"^sets\.test: got \[\], must be at least one problem$"),
        (
            PROBLEMS,
            {"val": [{"id": 1, "prompt": "1+1=", "ground_truth": 2}]},
            r"^sets\.val\[0\]\.ground_truth: got 2, must",
        ),
        (
            [{"prompt": "1+1=", "ground_truth": "2"}],
            SETS,
            r"^problems\[0\]\.id: got None, must be a string or a number$",
        ),
    ],
)
def test_missing_problems_are_refused_before_any_work(tiny_dir, tmp_path, problems, sets, message):
    with pytest.raises(ValueError, match=message):
        train(config(), tiny_dir, problems, sets, tmp_path / "a", progress=False)
    assert not (tmp_path / "a").exists()


def test_prompts_beyond_the_context_are_left_out_and_counted_and_removing_them_changes_nothing(
    tiny_dir, tmp_path, caplog
):
    room = read_json(tiny_dir / "config.json")["max_position_embeddings"] - 8
    fits, long = ({"id": f"x{n}", "prompt": "1" * (n - 1) + "=", "ground_truth": "1"} for n in (room, room + 1))
    changes = {"steps": 1, "eval_every": 1, "prompts": 4}
    problems, val = [*PROBLEMS[:4], long, fits], {"val": [long, *PROBLEMS[:2]]}
    train(config(**changes), tiny_dir, problems, val, tmp_path / "a", progress=False)
    assert [record.getMessage().partition(": with")[0] for record in caplog.records] == [
        "sets.val: 1 of 3 prompts left out",
        "problems: 1 of 6 prompts left out",
    ]
    assert len(read_jsonl(tmp_path / "a" / "eval.jsonl")[-1]["correct"]) == 2
    shorter = [*PROBLEMS[:4], fits]
    result = train(config(**changes | {"steps": 2}), tiny_dir, shorter, val, tmp_path / "a", progress=False)
    assert result["last_step"] == 2
    with pytest.raises(ValueError, match=r"^problems: no prompt fits in \d+ tokens: the shortest of 1 has \d+, since"):
        train(config(**changes), tiny_dir, [long], val, tmp_path / "b", progress=False)
    assert not (tmp_path / "b").exists()
