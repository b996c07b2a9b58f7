"""Worker processes with limits: run one function on many arguments when a call may never return.

A worker is a fresh interpreter (`python -m pmd.problems.limited_pool`) and never a fork. It is therefore safe to use
from a process that holds CUDA, threads or a notebook kernel, and the caller's main module is not imported again. Tasks
and results travel as JSON with a length prefix, so a worker that untrusted text has taken over can send no code.

Each task may use `seconds` of CPU time. The kernel counts that time (ITIMER_PROF) and ends the worker, whatever it is
doing. It is CPU time, so that the load of the machine does not change a result. `wall` is a second limit, in seconds of
wall time, for a worker that waits without computing. Memory is limited with RLIMIT_AS, which the kernel enforces at
each allocation; macOS does not enforce it, so there only the time limits hold.
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
"""How many tasks a worker is sent at once. It replies to each one, so when it is ended only one task has no result."""

RETIRE_AFTER = 4000
RETIRE_ABOVE = 256 * 2**20
"""A worker is replaced after this many tasks, or above this many bytes of memory, so that no leak can grow for ever."""

START_SECONDS = 300.0
"""How long a worker may take to start, in seconds of wall time."""


@dataclass(frozen=True)
class Killed:
    """The result of a task that exceeded a limit or made its worker crash; `reason` says which."""

    reason: str


@dataclass(eq=False)
class Worker:
    """One process, the tasks to which it has not replied, and the monotonic time by which its next message is due."""

    process: subprocess.Popen
    pipe: Connection
    deadline: float
    started: bool = False
    idle: bool = False
    used: bool = False
    tasks: deque[int] = field(default_factory=deque)


class Pool:
    """Workers that run one function. They start at the first `map`, serve all later ones, and end with this process."""

    def __init__(
        self,
        function: str,
        workers: int,
        seconds: float = 2.0,
        wall: float = 300.0,
        memory: int = 2**30,
        prepare: str = "",
    ) -> None:
        """A pool of at most `workers` processes; nothing is started yet.

        function: what to run, as "module:name"; prepare: run once in every new worker, before its limits begin, as
        "module:name" and its arguments with spaces between, or "" for nothing; seconds: of CPU time for one task; wall:
        seconds of wall time for one task; memory: bytes of address space of one worker.
        """
        self.command = [sys.executable, "-m", "pmd.problems.limited_pool", function, prepare, str(seconds), str(memory)]
        self.size, self.seconds, self.wall = workers, seconds, wall
        self.workers: list[Worker] = []
        self.lock = threading.Lock()
        atexit.register(self.close)

    def map(self, tasks: Sequence[Sequence[Any]]) -> list[Any]:
        """function(*task) for every task, in order; Killed for a task that exceeded a limit, raised or crashed.

        Tasks and results are JSON values. May be called from any thread; one call waits for the other. Raises
        RuntimeError if a worker cannot start.
        """
        with self.lock:
            try:
                return self._map(tasks)
            except BaseException:
                self.close()  # else a reply that is still on its way would be taken for a result of the next call
                raise

    def close(self) -> None:
        """End all workers. The next `map` starts new ones."""
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
        """Send every idle worker a chunk of tasks, and start workers for the chunks that are left."""
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
            "PYTHONHASHSEED": "0",  # sets must have the same order in every worker
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
        self.workers.append(Worker(process, ours, time.monotonic() + START_SECONDS))

    def _receive(self, worker: Worker, results: list[Any]) -> str | None:
        """Read one message of a worker; returns why the worker has ended or must be ended, or None if it goes on."""
        try:
            kind, value = json.loads(worker.pipe.recv_bytes())
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(5)  # if it ended by itself, its exit status says why
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
        """Remove a worker that has ended. The task that it was working on caused that; its other tasks are sent again.

        The tasks before it or the machine may be the cause of a crash or of a lack of memory. Such a task is therefore
        tried a second time, as the first task of a fresh worker, and its result then depends on nothing else.
        """
        status = self._drop(worker)
        if not worker.started:
            command = " ".join(self.command)
            raise RuntimeError(f"{command}: a worker could not start ({lost}, exit status {status})")
        if not worker.tasks:
            return
        failed = worker.tasks.popleft()
        if worker.tasks:
            pending.appendleft(worker.tasks)
        if status == -signal.SIGPROF:
            results[failed] = Killed(f"{self.seconds:g} s of CPU time")
        elif failed in retried or lost.endswith("wall time"):
            results[failed] = Killed(f"exit status {status}" if lost == "ended" else lost)
        else:
            retried.add(failed)
            pending.appendleft(deque([failed]))

    def _drop(self, worker: Worker) -> int:
        """End a worker's process; returns its exit status, which is −n if signal number n ended it."""
        self.workers.remove(worker)
        worker.pipe.close()
        worker.process.kill()
        return worker.process.wait()


def function_named(name: str) -> Callable[..., Any]:
    """The function that "module:name" names."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def limit_memory(memory: int) -> None:
    """Limit this process's address space to `memory` bytes, and switch off core dumps."""
    with contextlib.suppress(ValueError, OSError):  # a lower limit holds already, or the system has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def resident_bytes() -> int:
    """The resident memory of this process in bytes; its peak where the system has no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def serve(function: str, prepare: str, seconds: float, memory: int, pipe: Connection) -> None:
    """The main loop of a worker: prepare, then read chunks and reply to each task until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the CPU-time limit ends this process

    def send(kind: str, value: Any = None) -> None:
        pipe.send_bytes(json.dumps([kind, value]).encode())

    run = function_named(function)
    if prepare:
        name, *arguments = prepare.split()
        function_named(name)(*arguments)
    limit_memory(memory)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # parsers report every malformed answer there
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
        if done >= RETIRE_AFTER or resident_bytes() > RETIRE_ABOVE:
            send("retired", "retired")
            return


def main() -> None:
    """Run this process as a worker; the arguments are those of `Pool.command` and a file descriptor."""
    function, prepare, seconds, memory, handle = sys.argv[1:]
    with contextlib.suppress(EOFError, ConnectionError):  # the parent has ended or has closed the pipe
        serve(function, prepare, float(seconds), int(memory), Connection(int(handle)))


if __name__ == "__main__":
    main()
