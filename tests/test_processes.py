"""Workers: what they have loaded, what becomes of an error, whose memory their memory is."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from pmd import processes
from pmd.files import ROOT
from pmd.processes import prepare, workers


@pytest.fixture
def light(monkeypatch):
    """A server that loads next to nothing."""
    monkeypatch.setattr(processes, "LOADED", "pmd.files")


@pytest.fixture
def cores(monkeypatch):
    """A machine of 192 cores, without the variables that would state another number of workers."""
    monkeypatch.delenv("PMD_WORKERS", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(192)), raising=False)
    return 192


def test_a_cpu_has_a_worker_for_each_runs_threads_and_an_accelerator_has_one(cores):
    assert workers(1, "cpu") == cores
    assert workers(4, "cpu") == cores // 4
    assert workers(10**6, "cpu") == 1
    assert workers(1, "cuda") == 1


def test_the_ranks_of_a_machine_share_its_workers(cores, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert 8 * workers(1, "cpu") == cores
    assert workers(1, "cuda") == 1
    monkeypatch.setenv("PMD_WORKERS", "20")
    assert workers(1, "cpu") == workers(1, "cuda") == 2
    monkeypatch.setenv("PMD_WORKERS", "3")
    assert workers(1, "cpu") == 1


def test_a_stated_number_of_workers_is_taken_or_refused_in_one_line(cores, monkeypatch):
    monkeypatch.setenv("PMD_WORKERS", "3")
    assert workers(1, "cpu") == workers(1, "cuda") == 3
    for wrong in ("0", "-2", "two", "1.5", "²"):
        monkeypatch.setenv("PMD_WORKERS", wrong)
        with pytest.raises(ValueError, match=rf"^PMD_WORKERS: got '{wrong}', must be a positive integer$"):
            workers(1, "cpu")
    monkeypatch.setenv("PMD_WORKERS", "")  # as unset
    assert workers(1, "cpu") == cores


def loaded():
    return [name in sys.modules for name in ("torch", "transformers", "pmd.trainer.loop", "pmd.paper.theory_figures")]


def fail():
    raise ValueError("no")


def mark(path):
    time.sleep(0.3)
    path.touch()


def fill(megabytes):
    return np.ones(megabytes * 2**17).sum()


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")
def test_a_worker_begins_with_torch_loaded_and_nothing_else():
    prepare("cpu")
    with processes.processes(2, "cpu") as pool:
        assert pool.submit(loaded).result() == [True, True, True, False]


def test_nothing_is_forked_with_an_accelerator_or_off_linux(monkeypatch):
    monkeypatch.setattr(processes.forkserver, "ensure_running", fail)
    prepare("cuda")
    with processes.processes(1, "cuda") as pool:
        assert pool.submit(loaded).result()[2] is False
    monkeypatch.setattr(sys, "platform", "darwin")
    with processes.processes(1, "cpu") as pool:
        assert pool.submit(loaded).result()[2] is False


def begin(folder):
    with processes.processes(1, "cpu") as pool:
        first = pool.submit(fail)
        for i in range(9):
            pool.submit(mark, folder / str(i))
        first.result()


def test_an_error_cancels_what_has_not_begun(tmp_path, light):
    with pytest.raises(ValueError, match="no"):
        begin(tmp_path)
    assert len(list(tmp_path.iterdir())) < 5


def test_the_workers_memory_is_counted_to_the_caller(light):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    wanted = before * unit // 2**20 + 300
    with processes.processes(1, "cpu") as pool:
        pool.submit(fill, wanted).result()
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit >= wanted * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")
def test_the_server_ends_with_its_last_worker_and_the_next_one_starts_anew(light):
    servers = []
    for _ in range(2):
        with processes.processes(1, "cpu") as pool:
            pool.submit(loaded).result()
            servers.append(psutil.Process(processes.forkserver._forkserver._forkserver_pid))
        assert not servers[-1].is_running()
    assert servers[0] != servers[1]


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")
def test_pools_of_one_block_share_a_server_that_ends_with_the_block(light):
    servers = []
    with processes.one_server("cpu"):
        for _ in range(2):
            with processes.processes(1, "cpu") as pool:
                pool.submit(loaded).result()
            servers.append(psutil.Process(processes.forkserver._forkserver._forkserver_pid))
        assert servers[0] == servers[1]
        assert servers[0].is_running()
    assert not servers[0].is_running()


def report():
    print(os.getpid(), flush=True)
    time.sleep(600)


@pytest.mark.parametrize("device", ["cpu", "cuda"])  # forked where that is possible, and started afresh
def test_a_worker_ends_with_a_caller_that_was_killed(device):
    code = f"""
from pmd import processes
from pmd.processes import processes as pool_of
from tests.test_processes import report
processes.LOADED = "pmd.files"
if __name__ == "__main__":
    with pool_of(1, {device!r}) as pool:
        pool.submit(report).result()
"""
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    worker = psutil.Process(int(caller.stdout.readline()))
    caller.send_signal(signal.SIGKILL)
    gone, _ = psutil.wait_procs([worker], timeout=20)
    caller.wait()
    assert gone == [worker]
