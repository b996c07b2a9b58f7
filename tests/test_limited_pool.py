"""A pool whose tasks hang, crash, swallow memory or raise: only the guilty one is lost, and nothing is left behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pmd.files import ROOT
from pmd.problems.limited_pool import CHUNK, RETIRE_ABOVE, Killed, Pool

KEPT: list[bytes] = []


def work(kind: str, value=None):
    """What the pool's workers run in these tests."""
    if kind == "spin":
        while True:
            pass
    if kind == "power":  # one call into C, which no Python signal handler could interrupt
        return (7 ** (10**9)).bit_length()
    if kind == "sleep":
        time.sleep(value)
    if kind == "fill":
        return len(bytearray(value))
    if kind == "keep":
        KEPT.append(b"x" * value)
        return None
    if kind == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "raise":
        raise KeyError(value)
    if kind == "once":  # crashes the first worker that tries
        with Path(value).open("a") as marks:
            marks.write("x")
        if Path(value).read_text() == "x":
            os._exit(3)
    if kind == "pid":
        return os.getpid()
    return value


def broken() -> None:
    raise ImportError("no such parser")


@pytest.fixture
def pool():
    made: list[Pool] = []

    def make(workers: int = 2, **limits) -> Pool:
        made.append(Pool(f"{__name__}:work", workers, **limits))
        return made[-1]

    yield make
    for each in made:
        each.close()


def pids(pool: Pool) -> set[int]:
    return {worker.process.pid for worker in pool.workers}


def test_results_come_in_order_and_values_survive_the_way(pool):
    values = [*range(300), "\ud800 lone", "a\0b", "x" * 3_000_000, None, [1, {"a": 2.5}]]
    tasks = [["echo", value] for value in values]
    assert pool(2).map(tasks) == pool(1).map(tasks) == values
    assert pool(1).map([]) == []


def test_only_the_guilty_task_of_a_chunk_is_killed(pool):
    guilty = {3: ["spin"], 11: ["die"], 40: ["power"], 41: ["fill", 10**9], 77: ["raise", "k"]}
    tasks = [guilty.get(i, ["echo", i]) for i in range(90)]
    found = pool(1, seconds=0.3, memory=400 * 2**20).map(tasks)
    reasons = {
        3: "0.3 s of CPU time",
        11: f"exit status {-signal.SIGSEGV}",
        40: "0.3 s of CPU time",
        41: "MemoryError",
        77: "KeyError",
    }
    assert found == [Killed(reasons[i]) if i in reasons else i for i in range(90)]
    assert 90 > CHUNK > 11, "the killed ones must share a chunk with others"


def test_time_is_cpu_time_with_a_backstop_of_wall_time(pool):
    assert pool(1, seconds=0.3).map([["sleep", 0.8], ["echo", 1]]) == [0.8, 1]
    start = time.monotonic()
    assert pool(1, wall=0.5).map([["sleep", 60], ["echo", 1]]) == [Killed("0.5 s of wall time"), 1]
    assert time.monotonic() - start < 20


def test_a_crash_gets_a_second_try_in_a_fresh_worker(pool, tmp_path):
    path = str(tmp_path / "marks")
    assert pool(1).map([["echo", 1], ["once", path], ["echo", 2]]) == [1, path, 2]
    assert (tmp_path / "marks").read_text() == "xx"


def test_workers_are_kept_between_calls_and_die_with_close(pool):
    made = pool(2)
    assert made.workers == [], "started before there was work"
    first = set(made.map([["pid"]] * 64))
    assert set(made.map([["pid"]] * 64)) <= pids(made)
    assert first <= pids(made)
    processes = [psutil.Process(pid) for pid in pids(made)]
    made.close()
    assert not any(process.is_running() for process in processes)
    assert made.map([["echo", 5]]) == [5]


def test_a_worker_that_grows_is_replaced(pool):
    made = pool(1)
    first = made.map([["pid"]])
    assert made.map([["keep", 2**20], ["pid"]])[1:] == first
    assert made.map([["keep", RETIRE_ABOVE], ["pid"]])[1:] != first


def test_calls_from_threads_do_not_mix(pool):
    made, answers = pool(2), {}

    def call(name: int) -> None:
        answers[name] = made.map([["echo", [name, i]] for i in range(100)])

    threads = [threading.Thread(target=call, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {name: [[name, i] for i in range(100)] for name in range(4)}


def test_an_interrupted_call_leaves_no_answer_for_the_next(pool, monkeypatch):
    made = pool(1)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(made, "_receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            made.map([["echo", "old"]] * 3)
    assert made.map([["echo", "new"]] * 3) == ["new"] * 3


def test_a_worker_killed_from_outside_costs_nothing(pool):
    made = pool(1)
    made.map([["echo", 0]])
    os.kill(made.workers[0].process.pid, signal.SIGKILL)
    made.workers[0].process.wait()
    assert made.map([["echo", i] for i in range(40)]) == list(range(40))


def test_a_worker_that_cannot_start_is_an_error_and_no_verdict(capfd):
    made = Pool(f"{__name__}:work", 1, prepare=f"{__name__}:broken")
    with pytest.raises(
        RuntimeError, match=r"^[^\n]*test_limited_pool:broken[^\n]*could not start[^\n]*exit status 1\)$"
    ):
        made.map([["echo", 1]])
    assert "no such parser" in capfd.readouterr().err
    assert made.workers == []


def test_nothing_of_the_main_module_runs_again_and_workers_end_with_their_parent(tmp_path):
    """A script without a `__main__` guard, as a notebook has none; it even dies hard."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nprint('once')\nfrom pmd.problems.limited_pool import Pool\n"
        "pool = Pool('tests.test_limited_pool:work', 2)\n"
        "print(*{pool.map([['pid']] * 64)[0]}, flush=True)\nos._exit(0)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )
    first, pid = done.stdout.splitlines()
    assert first == "once"
    for _ in range(100):
        if not psutil.pid_exists(int(pid)):
            break
        time.sleep(0.1)
    assert not psutil.pid_exists(int(pid))


def test_limits_bind_the_workers_and_not_the_parent(pool):
    before = resource.getrlimit(resource.RLIMIT_AS)
    assert pool(1, memory=300 * 2**20).map([["fill", 2**30]]) == [Killed("MemoryError")]
    assert pool(1).map([["fill", 2**28]]) == [2**28]
    assert resource.getrlimit(resource.RLIMIT_AS) == before
