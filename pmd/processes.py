"""Worker processes for runs side by side. torch and transformers take seconds to load, and once is enough.

On Linux the workers are forked from a server that has loaded them and done nothing else. Elsewhere, and with an
accelerator, what is loaded does not survive a fork: there each worker starts afresh and loads for itself.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver

LOADED = "pmd.trainer.loop"


def forked(device: str) -> bool:
    """Whether workers for this device are forked."""
    return device == "cpu" and sys.platform == "linux"


def prepare(device: str) -> None:
    """Let the server begin to load, so that it does while the caller goes on; without this, `processes` starts it."""
    if forked(device):
        multiprocessing.set_forkserver_preload([LOADED])
        forkserver.ensure_running()


@contextmanager
def processes(count: int, device: str) -> Iterator[ProcessPoolExecutor]:
    """`count` worker processes; leaving waits for them, and cancels what has not begun if an error is the reason.

    A worker whose caller was killed ends at once: when the caller is started again, nobody else writes its files.
    """
    prepare(device)
    context = multiprocessing.get_context("forkserver" if forked(device) else "spawn")
    pool = ProcessPoolExecutor(count, context, initializer=_end_with_parent)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    finally:
        pool.shutdown(wait=True)
        if forked(device):
            stop_server()


def stop_server() -> None:
    """End the server, which counts its workers' memory to this process. Killed, for torch takes seconds to unload."""
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
