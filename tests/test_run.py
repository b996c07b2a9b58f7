"""Runs in one process and by torchrun: the same bits, refusals in one line, dead ranks, no process left behind."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import psutil
import pytest
from ruamel.yaml import YAML
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args

from pmd.files import ROOT, read_json, read_jsonl, write_json, write_jsonl
from pmd.model.loading import save_policy
from pmd.problems import arithmetic
from pmd.scale import launch, run, torchrun
from pmd.scale.entry import read_scale, tags
from pmd.trainer.loop import train
from tests.test_loop import COMMITTED, PROBLEMS, SMALL

LONG = {"id": "long", "prompt": "1+1+1+1+1+1+1=", "ground_truth": "7"}


@pytest.fixture(scope="module")
def shared(tiny, tmp_path_factory):
    """A tiny model and problem sets, one prompt of which is too long."""
    folder = tmp_path_factory.mktemp("shared")
    save_policy(*tiny, folder / "model")
    write_jsonl(folder / "rl.jsonl", [*PROBLEMS, LONG])
    write_jsonl(folder / "val.jsonl", PROBLEMS[:4])
    return folder


def given(shared, out, train=None, **entry):
    """The namespaces of params.yaml; a preset that is an absolute path puts runs and results there."""
    entry = {
        "model": str(shared / "model"), "problems": str(shared / "rl.jsonl"),
        "sets": {"val": str(shared / "val.jsonl")},
        "max_prompt_tokens": 8, "method": "pmd-mean", "seed": 1, "nodes": 1, "ranks": 1, "train": SMALL | (train or {}),
    } | entry  # fmt: skip
    return {"preset": str(out), "scale": {"a": entry}, "train": COMMITTED["train"], "methods": COMMITTED["methods"]}


@pytest.fixture(autouse=True)
def others(monkeypatch, server):
    """The processes that run before the test, such as the fork server and the verifier's workers."""
    monkeypatch.setattr(psutil, "others", set(psutil.Process().children(recursive=True)), raising=False)


def offspring():
    return [process for process in psutil.Process().children(recursive=True) if process not in psutil.others]


def gone(processes, seconds=20):
    return not psutil.wait_procs(processes, timeout=seconds)[1]


# --- what a run is -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def launched(shared, tmp_path_factory):
    """One process, without torchrun: (folder, metrics)."""
    out = tmp_path_factory.mktemp("launched")
    return out, launch.launch(given(shared, out), "a")


def test_one_process_and_one_rank_by_torchrun_write_the_bits_of_the_trainer(shared, launched, tmp_path):
    assert not list(launched[0].rglob("torchrun.log"))
    values = given(shared, tmp_path)
    entry, config = read_scale(values, "a")
    launch._run(values, entry, config, tmp_path / "scale/a-work")
    train(config, shared / "model", [p | {"rule": "exact"} for p in PROBLEMS], {"val": PROBLEMS[:4]}, tmp_path / "b",
          progress=False, tags=tags(entry))  # fmt: skip
    for name in ("run.json", "log.jsonl", "eval.jsonl", "result.json", "last/model.safetensors"):
        for alike in (launched[0] / "scale/a", tmp_path / "scale/a-work"):
            assert (alike / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert not (launched[0] / "scale/a-work").exists()
    assert not list(launched[0].rglob("checkpoint-*"))


def test_a_run_is_known_by_what_its_files_hold_and_not_by_where_they_lie(shared, tmp_path):
    moved = shutil.copytree(shared, tmp_path / "moved")
    (here, _), (there, _) = (read_scale(given(folder, tmp_path), "a") for folder in (shared, moved))
    assert tags(here) == tags(there)
    weights = moved / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert tags(here) | {"model": ""} == tags(there) | {"model": ""}
    assert tags(here) != tags(there)
    write_jsonl(moved / "val.jsonl", PROBLEMS[:3])
    assert tags(here)["sets"] != tags(there)["sets"]
    assert tags(here)["problems"] == tags(there)["problems"]


def test_a_reward_of_ones_own_is_a_part_of_the_run(shared, tmp_path):
    """By two ranks; without any setting that has a default."""
    values = given(shared, tmp_path, reward="tests.rewards:sevens", train={"steps": 2}, ranks=2)
    metrics = launch.launch(values, "a")
    log, evals = (read_jsonl(tmp_path / f"scale/a/{name}.jsonl") for name in ("log", "eval"))
    assert any(row["reward"] * 32 > sum(row["successes"]) for row in log)  # more than full marks alone
    assert metrics["val_last"] == evals[-1]["reward"]
    alone = given(shared, tmp_path / "alone", reward="tests.rewards:sevens", train={"steps": 2})
    del alone["scale"]["a"]["nodes"], alone["scale"]["a"]["ranks"]
    launch.launch(alone, "a")
    [first, *_] = read_jsonl(tmp_path / "alone/scale/a/log.jsonl")
    assert (first["reward"], first["successes"]) == (log[0]["reward"], log[0]["successes"])
    assert (
        read_json(tmp_path / "scale/a/run.json")["reward"] == read_json(tmp_path / "alone/scale/a/run.json")["reward"]
    )
    assert tags(read_scale(values, "a")[0])["reward"].startswith("tests.rewards:sevens ")


def test_metrics_are_what_the_logs_say(launched, shared):
    out, metrics = launched
    assert metrics == read_json(out / "scale/a/metrics.json")
    log, timing = read_jsonl(out / "scale/a/log.jsonl"), read_jsonl(out / "scale/a/timing.jsonl")
    assert (metrics["steps"], metrics["nodes"], metrics["ranks"]) == (6, 1, 1)
    assert metrics["tokens"] == pytest.approx(sum(row["length"] * 32 for row in log))
    spent = sum(row[f"{phase}_s"] for row in timing for phase in ("rollout", "reward", "old", "update", "probe"))
    assert metrics["tokens_per_s"] == pytest.approx(metrics["tokens"] / spent)
    assert metrics["seconds"]["update"] == pytest.approx(sum(row["update_s"] for row in timing))
    assert not {"wall", "tokens_per"} & set(metrics["seconds"])
    assert metrics["problem_sets"] == {
        str(shared / "rl.jsonl"): {"prompts": 20, "too_long": 1},
        str(shared / "val.jsonl"): {"prompts": 4, "too_long": 0},
    }


def test_several_nodes_are_told_the_command_and_reported_when_done(shared, launched, tmp_path):
    values = given(shared, tmp_path, nodes=2, ranks=8)
    with pytest.raises(ValueError, match=r"^scale\.a\.nodes: got 2, .* on every node") as refused:
        launch.launch(values, "a")
    command = parse_args(shlex.split(str(refused.value).split("`")[1])[1:])
    assert (command.nnodes, command.nproc_per_node, command.rdzv_endpoint) == ("2", "8", "HEAD:29500")
    assert (command.module, command.training_script, command.training_script_args) == (True, "pmd", ["scale", "a"])
    shutil.copytree(launched[0] / "scale/a", tmp_path / "scale/a-work")
    job = read_json(tmp_path / "scale/a-work/job.json")
    write_json(tmp_path / "scale/a-work/job.json", job | {"nodes": 2, "ranks": 8})
    assert launch.launch(values, "a") == launched[1] | {"nodes": 2, "ranks": 8}
    assert (tmp_path / "scale/a/last/model.safetensors").exists()
    with pytest.raises(ValueError, match="holds a run with seed = 1, not 2"):
        launch.launch(given(shared, tmp_path, nodes=2, ranks=8, seed=2), "a")


def test_the_entry_to_paste_in_params_yaml_is_a_run(tmp_path):
    text = (ROOT / "params.yaml").read_text().partition("\n# scale: # ")[2]
    lines = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
    pasted = YAML(typ="safe").load("\n".join(["scale:", *lines]))["scale"]
    assert set(pasted) == {"mine", "large"}
    arithmetic.generate(tmp_path / "data")
    own = pasted["mine"]
    assert (ROOT / own["model"]).is_dir()
    own |= {"problems": str(tmp_path / own["problems"]), "sets": {"val": str(tmp_path / own["sets"]["val"])}}
    own["train"] |= {"steps": 1, "eval_prompts": 2, "eval_k": 1}
    metrics = launch.launch(COMMITTED | {"preset": str(tmp_path), "scale": pasted}, "mine")
    assert 0 < metrics["val_last"] <= 1
    [row] = read_jsonl(tmp_path / "scale/mine/log.jsonl")
    assert sum(row["successes"]) / 256 < row["reward"] < 1  # partial credit
    entry, config = read_scale({"scale": pasted, "train": COMMITTED["train"], "methods": COMMITTED["methods"]}, "large")
    assert (entry.ranks, config.device) == (8, "cuda")


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"name": "b"}, "scale: got 'b', must be one of its entries: a"),
        ({"train": {"taw": 1.0}}, r"scale\.a\.train\.taw: got 1\.0, must be one of .*; did you mean tau\?"),
        ({"problems": "no/such.jsonl"}, r".*no/such\.jsonl: no such problem set .*"),
        ({"sets": {"val": "no/val.jsonl"}}, r".*no/val\.jsonl: no such problem set .*"),
        ({"sets": {}}, r"scale\.a\.sets: got \{\}, must be a mapping of names to files with val among them"),
        ({"model": "no/model"}, r"no/model: no such directory; a model of the hub is .*"),
        ({"reward": "no_such:f"}, r"reward: got 'no_such:f', must be module:function, .* cannot be imported .*"),
        ({"reward": "tests.rewards:nan"}, r"reward: tests\.rewards:nan returned the reward nan, must be a finite .*"),
        ({"max_prompt_tokens": 2}, r"scale\.a\.max_prompt_tokens: .*rl\.jsonl: no prompt fits in 2 tokens: .*"),
        (
            {"train": {"eval_max_tokens": 253}},
            r"scale\.a\.max_prompt_tokens: .*rl\.jsonl: got 8, but the model's context .* 3 and a prompt has 5",
        ),
    ],
)
def test_a_worker_refuses_what_cannot_run_in_one_line(shared, tmp_path, monkeypatch, change, line):
    monkeypatch.delenv(torchrun.ERROR_FILE, raising=False)
    name = change.pop("name", "a")
    write_json(tmp_path / "params.json", given(shared, tmp_path / "out", **change))
    with pytest.raises(SystemExit, match=f"^{line}$"):
        run.run_rank(name, tmp_path / "params.json")
    assert not (tmp_path / "out").exists()


def test_a_run_by_hand_ends_with_where_its_policy_is(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(run, "train_entry", lambda values, name, progress: None)
    write_json(tmp_path / "params.json", {"preset": "mine", "scale": {}})
    monkeypatch.delenv(torchrun.TETHER, raising=False)
    for rank in ("0", "1"):  # one of the ranks says it
        monkeypatch.setenv("RANK", rank)
        run.run_rank("a", tmp_path / "params.json")
    line = "scale.a: trained; the policy is runs/mine/scale/a-work/last, and `dvc repro scale@a` reports the run\n"
    assert capsys.readouterr().out == line


def test_a_refusal_is_one_line_on_stderr_and_exit_code_1():
    done = subprocess.run([sys.executable, "-m", "pmd", "scale", "no-such"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("scale: got 'no-such', must be one of its entries: ")


def test_the_launcher_and_the_entry_load_no_torch():
    code = "import sys, pmd.scale.entry, pmd.scale.launch, pmd.scale.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_launcher_refuses_missing_files_before_it_starts_anything(shared, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such problem set"):
        launch.launch(given(shared, tmp_path / "out", problems="no/such.jsonl"), "a")
    assert not (tmp_path / "out").exists()


def test_the_launcher_says_the_line_of_the_rank_that_refused(shared, tmp_path):
    with pytest.raises(RuntimeError) as refused:
        launch.launch(given(shared, tmp_path, model="no/model", ranks=2), "a")
    line = re.sub("rank [01]", "rank", str(refused.value), count=1)  # both refuse, and torchrun ends the later one
    assert line.startswith("scale.a: rank: no/model: no such directory; a model of the hub is owner/name@revision")
    assert line.endswith(f"; log: {tmp_path / 'scale/a-work/torchrun.log'}")
    assert "checkpoint" not in line
    assert "\n" not in line


# --- ranks that die, launchers that go -----------------------------------------------------------------------------


def test_a_dead_rank_ends_the_job_with_one_line_and_a_second_launch_goes_on(shared, tmp_path, monkeypatch):
    values, killed = given(shared, tmp_path, ranks=2, train={"steps": 500, "eval_every": 500}), []
    show = launch.show

    def kill_rank_1(bar, runs):
        show(bar, runs)
        if not killed and list((tmp_path / "scale/a-work").glob("checkpoint-*")):
            [rank] = [p for p in offspring() if p.environ().get("RANK") == "1" and p.cmdline()[-4:-2] == ["scale", "a"]]
            killed.extend([time.monotonic(), *offspring()])
            rank.kill()

    monkeypatch.setattr(launch, "show", kill_rank_1)
    with pytest.raises(RuntimeError) as died:
        launch.launch(values, "a")
    assert time.monotonic() - killed[0] < 30
    assert gone(killed[1:])
    work = tmp_path / "scale/a-work"
    [kept] = work.glob("checkpoint-*")
    step = read_json(kept / "state.json")["step"]
    assert str(died.value).startswith("scale.a: rank 1 was killed by SIGKILL (often: out of memory) in step ")
    assert f"; the checkpoint of step {step} is kept, run again to go on; log: " in str(died.value)
    before = (work / "log.jsonl").read_bytes().splitlines()[:step]

    run_json = read_json(work / "run.json")  # a run of fewer steps, so that the second launch is short
    write_json(work / "run.json", run_json | {"steps": step + 2})
    values["scale"]["a"]["train"] |= {"steps": step + 2}
    metrics = launch.launch(values, "a")
    assert (metrics["steps"], metrics["ranks"]) == (step + 2, 2)
    after = (tmp_path / "scale/a/log.jsonl").read_bytes().splitlines()
    assert after[:step] == before
    assert [row["step"] for row in read_jsonl(tmp_path / "scale/a/log.jsonl")] == list(range(1, step + 3))


def test_a_rank_that_fails_alone_is_named_though_the_other_waits_for_it(tmp_path):
    start = time.monotonic()
    line = torchrun.run(["tests.failing_rank", "fail"], 2, 1, tmp_path / "log", watch=lambda: None)
    assert line == "rank 1: the disk of this rank is full"
    assert time.monotonic() - start < 60


def test_an_interrupted_launcher_leaves_no_process(tmp_path):
    alive = []

    def interrupt():
        if (tmp_path / "ready").exists():
            alive.extend(offspring())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        torchrun.run(["tests.failing_rank", "hang", str(tmp_path / "ready")], 2, 1, tmp_path / "log", interrupt)
    assert len(alive) == 3  # torchrun and its ranks, one of which waits in a collective
    assert gone(alive)


def test_a_killed_launcher_leaves_no_process(shared, tmp_path, server):
    values = given(shared, tmp_path / "out", ranks=2, train={"steps": 5000, "eval_every": 5000})
    launcher = server.Process(target=launch.launch, args=(values, "a"))
    launcher.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "out/scale/a-work/log.jsonl").exists():
        assert time.monotonic() < deadline
        assert launcher.is_alive()
        time.sleep(0.2)
    alive = offspring()
    assert len(alive) >= 4  # the launcher, torchrun, its ranks
    launcher.kill()
    launcher.join()
    assert gone(alive)


def test_ranks_of_one_machine_do_not_need_its_name(tmp_path, monkeypatch):
    """A host name that cannot be resolved left the ranks waiting for each other."""
    asked = []

    def popen(command, **_):
        asked.extend(command)
        raise OSError("not started")

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(OSError, match="not started"):
        torchrun.run(["pmd", "scale", "a"], 2, 1, tmp_path / "log", watch=lambda: None)
    command = parse_args(asked[asked.index("torch.distributed.run") + 1 :])
    assert (command.standalone, command.local_addr, command.nproc_per_node) == (True, "127.0.0.1", "2")
    assert (command.module, command.training_script, command.training_script_args) == (True, "pmd", ["scale", "a"])


def table(*rows):
    """What torchrun prints for failed ranks (rank, exit code, seconds, own line or None)."""
    failures = {}
    for rank, code, seconds, line in rows:
        failure = ProcessFailure(rank, 100 + rank, code, "/no/file")
        failure.timestamp = 1_700_000_000 + seconds
        if line is not None:
            failure.error_file, failure.message = "/some/error.json", line
        failures[rank] = failure
    return "a warning\n" + ChildFailedError("pmd", failures).format_msg()


PEER = "RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234"


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([(0, 1, 0, PEER), (1, -9, 1, None)], "rank 1 was killed by SIGKILL (often: out of memory)"),
        ([(0, -6, 0, None), (3, -11, 0, None)], "rank 3 was killed by SIGSEGV"),
        ([(0, -15, 1, None), (1, 1, 0, "x.jsonl: bad"), (2, 1, 0, PEER)], "rank 1: x.jsonl: bad"),
        ([(0, -9, 31, None), (1, 1, 0, "x.jsonl: bad")], "rank 1: x.jsonl: bad"),  # torchrun killed rank 0
        ([(10, 1, 0, "ten"), (9, 1, 0, "nine")], "rank 9: nine"),
        ([(0, 3, 0, None)], "rank 0 ended with exit code 3"),
        ([(1, 1, 0, PEER)], f"rank 1: {PEER}"),
    ],
)
def test_the_first_cause_is_found_in_torchruns_table(rows, line):
    assert torchrun.first_failure(table(*rows), 1) == line


def test_a_job_without_ranks_says_torchruns_last_line():
    assert torchrun.first_failure("x\nRendezvousError: port in use\n\n", 1) == (
        "torchrun ended with exit code 1 (RendezvousError: port in use)"
    )


# --- Slurm ---------------------------------------------------------------------------------------------------------


def test_the_slurm_script_starts_torchrun_on_every_node(tmp_path):
    """With the commands that a cluster has replaced by ones that write down what they were asked."""
    for name, body in (("scontrol", "echo gpu-3; echo gpu-4"), ("srun", f'printf "%s\\n" "$@" > {tmp_path}/asked')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "gpu-[3-4]", "SLURM_NNODES": "2",
             "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_ON_NODE": "96", "SLURM_JOB_ID": "77",
             "PATH": f"{tmp_path}:{os.environ['PATH']}"}  # fmt: skip
    script = ROOT / "scripts" / "train.slurm"
    subprocess.run(["bash", script, "mine"], env=slurm, check=True)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[: asked.index("torchrun")] == ["--kill-on-bad-exit=1", "--wait=60", "--cpus-per-task=96"]
    command = parse_args(asked[asked.index("torchrun") + 1 :])
    assert (command.nnodes, command.nproc_per_node, command.max_restarts) == ("2", "4", 0)
    assert (command.rdzv_backend, command.rdzv_id, command.rdzv_endpoint) == ("c10d", "77", "gpu-3:29500")
    assert (command.module, command.training_script, command.training_script_args) == (True, "pmd", ["scale", "mine"])
    (tmp_path / ".venv" / "bin" / "activate").unlink()  # with conda there is none
    subprocess.run(["bash", script, "mine"], env=slurm, check=True)
    refused = subprocess.run(["bash", script], env=slurm, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "usage: sbatch --nodes N scripts/train.slurm NAME" in refused.stderr
    outside = {"PATH": os.environ["PATH"]}
    refused = subprocess.run(["bash", script, "mine"], env=outside, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "this runs in a job of Slurm: sbatch --nodes N scripts/train.slurm NAME" in refused.stderr
