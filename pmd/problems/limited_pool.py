"""Killable worker processes: run one function on many arguments when any of them may never return.

A worker is a fresh interpreter (`python -m pmd.problems.limited_pool`), never a fork, so a parent that holds CUDA,
threads or a notebook kernel is safe, and nothing of the parent's main module is imported. JSON with a length prefix
goes both ways.

Each task may use `seconds` of CPU time. The kernel counts them (ITIMER_PROF) and ends the worker, whatever it is
doing; CPU time, so that a busy machine does not turn a slow moment into a verdict. `wall` is the backstop for a worker
that waits without computing. Memory is bounded by RLIMIT_AS, which the kernel enforces at the allocation itself, where
watching the resident size from outside would come too late (macOS does not enforce it: there the time limits remain).
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from pmd.files import ROOT

CHUNK = 32
"""Tasks sent to a worker at once: their replies come one by one, so only the guilty one is lost."""

RETIRE_AFTER = 4000
RETIRE_ABOVE = 256 * 2**20
"""A worker is replaced after so many tasks, or when it holds so many bytes: nothing grows for ever."""

START = 300.0
"""Seconds of wall time for a worker to start."""


@dataclass(frozen=True)
class Killed:
    """The result of a task that broke a limit or its worker: `reason` says which."""

    reason: str


@dataclass(eq=False)
class Worker:
    """One process, the tasks it was given and has not answered, and when its next message is due."""

    process: subprocess.Popen
    pipe: Connection
    deadline: float
    started: bool = False
    idle: bool = False
    used: bool = False
    tasks: deque[int] = field(default_factory=deque)


class Pool:
    """Workers for one function, started at the first `map`, kept, and ended with the interpreter."""

    def __init__(
        self,
        function: str,
        workers: int,
        seconds: float = 2.0,
        wall: float = 300.0,
        memory: int = 2**30,
        prepare: str = "",
    ) -> None:
        """`function` and `prepare` are "module:name"; `prepare()` runs once in every new worker, outside the limits."""
        self.command = [sys.executable, "-m", "pmd.problems.limited_pool", function, prepare, str(seconds), str(memory)]
        self.size, self.seconds, self.wall = workers, seconds, wall
        self.workers: list[Worker] = []
        self.lock = threading.Lock()
        atexit.register(self.close)

    def map(self, tasks: Sequence[Sequence[Any]]) -> list[Any]:
        """function(*task) for every task (JSON values), in order; Killed where a limit or the worker broke.

        From any thread; calls wait for each other. RuntimeError if a worker cannot start.
        """
        with self.lock:
            try:
                return self._map(tasks)
            except BaseException:
                self.close()  # a worker may be in the middle of a task: its answer would be taken for the next call's
                raise

    def close(self) -> None:
        """End all workers; the next `map` starts new ones."""
        while self.workers:
            self._drop(self.workers[-1])

    def _map(self, tasks: Sequence[Sequence[Any]]) -> list[Any]:
        results: list[Any] = [None] * len(tasks)
        size = max(1, min(CHUNK, -(-len(tasks) // (4 * self.size))))
        pending = deque(deque(range(i, min(i + size, len(tasks)))) for i in range(0, len(tasks), size))
        retried: set[int] = set()
        while pending or any(worker.tasks for worker in self.workers):
            self._hand_out(tasks, pending, retried)
            due = min((worker.deadline for worker in self.workers), default=0.0)
            timeout = max(0.0, due - time.monotonic()) if due < math.inf else None
            ready = wait([worker.pipe for worker in self.workers], timeout)
            for worker in list(self.workers):
                lost = None
                if worker.pipe in ready:
                    lost = self._receive(worker, results)
                elif time.monotonic() > worker.deadline:
                    lost = f"{self.wall:g} s of wall time"
                if lost is not None:
                    self._replace(worker, lost, results, pending, retried)
        return results

    def _hand_out(self, tasks: Sequence[Sequence[Any]], pending: deque[deque[int]], retried: set[int]) -> None:
        """Give every idle worker a chunk; start workers while there are more chunks than workers."""
        for worker in [worker for worker in self.workers if worker.idle]:
            second_try = bool(pending) and pending[0][0] in retried
            if worker.process.poll() is not None or (second_try and worker.used):
                self._drop(worker)
            elif pending:
                worker.tasks, worker.idle, worker.used = pending.popleft(), False, True
                worker.deadline = time.monotonic() + self.wall
                worker.pipe.send_bytes(json.dumps([tasks[i] for i in worker.tasks]).encode())
        starting = sum(not worker.started for worker in self.workers)
        for _ in range(min(self.size - len(self.workers), len(pending) - starting)):
            self._start()

    def _start(self) -> None:
        ours, theirs = Pipe()
        paths = [str(ROOT), *(os.path.abspath(path) for path in sys.path if path)]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONHASHSEED": "0",  # the order of sets must not differ from worker to worker
            "OMP_NUM_THREADS": "1",
        }
        with theirs:
            process = subprocess.Popen(
                [*self.command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                env=environment,
            )
        self.workers.append(Worker(process, ours, time.monotonic() + START))

    def _receive(self, worker: Worker, results: list[Any]) -> str | None:
        """Take one message; returns why the worker is lost, or None if it is well."""
        try:
            kind, value = json.loads(worker.pipe.recv_bytes())
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(5)  # its own exit status says more than our kill
            return "ended"
        if kind == "value":
            results[worker.tasks.popleft()] = value
            worker.deadline = time.monotonic() + self.wall
        elif kind == "ready":
            worker.started = worker.idle = True
            worker.deadline = math.inf
        return value if kind in ("failed", "retired") else None

    def _replace(
        self, worker: Worker, lost: str, results: list[Any], pending: deque[deque[int]], retried: set[int]
    ) -> None:
        """Bury a lost worker: its first open task is guilty, the others go back.

        Out of memory, or a crash, may be the fault of what ran before or of the machine. Such a task gets a second try,
        first in a fresh worker: the verdict is then its own and not its neighbours'.
        """
        status = self._drop(worker)
        if not worker.started:
            command = " ".join(self.command)
            raise RuntimeError(f"{command}: a worker could not start ({lost}, exit status {status})")
        if not worker.tasks:
            return
        guilty = worker.tasks.popleft()
        if worker.tasks:
            pending.appendleft(worker.tasks)
        if status == -signal.SIGPROF:
            results[guilty] = Killed(f"{self.seconds:g} s of CPU time")
        elif guilty in retried or lost.endswith("wall time"):
            results[guilty] = Killed(f"exit status {status}" if lost == "ended" else lost)
        else:
            retried.add(guilty)
            pending.appendleft(deque([guilty]))

    def _drop(self, worker: Worker) -> int:
        """End a worker's process; returns its exit status, minus the signal's number where one ended it."""
        self.workers.remove(worker)
        worker.pipe.close()
        worker.process.kill()
        return worker.process.wait()


def named(name: str) -> Callable[..., Any]:
    """The function "module:name"."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def bound(memory: int) -> None:
    """Bound this process's address space to `memory` bytes; no core dumps."""
    with contextlib.suppress(ValueError, OSError):  # a lower limit is in force already, or the system has none
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def resident() -> int:
    """This process's resident memory in bytes (where there is no /proc: its peak)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def serve(function: str, prepare: str, seconds: float, memory: int, pipe: Connection) -> None:
    """A worker's life: prepare, then chunk after chunk, one reply a task, until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process

    def send(kind: str, value: Any = None) -> None:
        pipe.send_bytes(json.dumps([kind, value]).encode())

    run = named(function)
    if prepare:
        named(prepare)()
    bound(memory)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # parsers complain on stderr about every malformed answer
    done = 0
    while True:
        send("ready")
        for task in json.loads(pipe.recv_bytes()):
            signal.setitimer(signal.ITIMER_PROF, seconds)
            try:
                value = run(*task)
            except BaseException as error:
                send("failed", type(error).__name__)
                raise
            signal.setitimer(signal.ITIMER_PROF, 0)
            send("value", value)
            done += 1
        if done >= RETIRE_AFTER or resident() > RETIRE_ABOVE:
            send("retired", "retired")
            return


def main() -> None:
    """Run as a worker."""
    function, prepare, seconds, memory, handle = sys.argv[1:]
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone or has no more work
        serve(function, prepare, float(seconds), int(memory), Connection(int(handle)))


if __name__ == "__main__":
    main()
