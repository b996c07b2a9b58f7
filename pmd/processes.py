"""Worker processes for runs side by side.

torch and transformers take seconds to load. On Linux and on a CPU, workers are therefore forked from a server process
that has loaded them and done nothing else. On other systems, and with an accelerator, a loaded torch does not survive a
fork: there each worker starts afresh and loads for itself.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

LOADED = "pmd.trainer.loop"
"""The module that the server loads, with all that it imports."""


def workers(threads: int, device: str) -> int:
    """How many worker processes of `threads` threads each this process may keep at work at once; at least 1.

    On a CPU that is the number of available cores divided by `threads`; on an accelerator it is one. The environment
    variable PMD_WORKERS states another number for the whole machine. Where torchrun has started several ranks on this
    machine (LOCAL_WORLD_SIZE), the ranks share the number equally: if each of 8 ranks took all of 192 cores, more than
    1,500 processes would run. Raises ValueError in one line if either variable is not a positive integer.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    default = cores // threads if device == "cpu" else 1
    return max(1, _positive("PMD_WORKERS", default) // _positive("LOCAL_WORLD_SIZE", 1))


def _positive(variable: str, default: int) -> int:
    """The positive integer that an environment variable holds; `default` if it is unset or empty."""
    text = os.environ.get(variable)
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise ValueError(f"{variable}: got {text!r}, must be a positive integer")
    return int(text)


def forked(device: str) -> bool:
    """Whether workers for this device are forked."""
    return device == "cpu" and sys.platform == "linux"


def prepare(device: str) -> None:
    """Start the server now, so that it loads while the caller goes on; otherwise `processes` starts it."""
    if forked(device):
        multiprocessing.set_forkserver_preload([LOADED])
        forkserver.ensure_running()


_open: list[str] = []
"""The devices of the blocks of `one_server` that are open, from the outermost."""


@contextmanager
def one_server(device: str) -> Iterator[None]:
    """A block whose pools are all forked from one server, which loads torch once; it ends with the outermost block."""
    prepare(device)
    _open.append(device)
    try:
        yield
    finally:
        _open.pop()
        if not _open and forked(device):
            stop_server()


@contextmanager
def processes(count: int, device: str) -> Iterator[ProcessPoolExecutor]:
    """A pool of `count` worker processes. Leaving the block waits for them; an error cancels what has not begun.

    A worker whose caller was killed ends at once: when the caller is started again, nobody else writes its files.
    """
    with one_server(device):
        context = multiprocessing.get_context("forkserver" if forked(device) else "spawn")
        pool = ProcessPoolExecutor(count, context, initializer=_end_with_parent)
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            pool.shutdown(wait=True)


def stop_server() -> None:
    """End the server, so that the memory of its workers is counted to this process (`cost` in pmd/notebook.py).

    It is killed, because unloading torch takes seconds.
    """
    server = forkserver._forkserver
    if server._forkserver_pid is not None:
        os.kill(server._forkserver_pid, signal.SIGKILL)
    server._stop()


def _end_with_parent() -> None:
    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def peak_memory_mb(children: bool = False) -> float:
    """The largest resident memory that this process has had, or the largest of its ended children, in MB of 2^20 bytes.

    The kernel counts in bytes on macOS and in KiB elsewhere.
    """
    peak = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def machine() -> dict[str, Any]:
    """The processor, its cores, the system and the version of Python."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
