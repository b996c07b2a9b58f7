"""One job of several ranks on this machine: start torchrun, follow it, say in one line which rank failed first and why.

torchrun ends the whole job when one rank ends badly, even if the others wait for it in a collective. A rank that
catches its own error writes one line with `fail`, in the file that torchrun keeps for that. The table that torchrun
prints at the end holds these lines, the exit codes and the signals, and `first_failure` reads it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, NoReturn

from pmd.files import ROOT

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""The environment variable by which torchrun tells a rank where to leave its error."""

TETHER = "PMD_TETHERED"
"""Set where whoever started the job holds the other end of its standard input; see `tether`."""

TABLE = re.compile(
    r"^ +time +: (\S+)\n +host .*\n +rank +: (\d+) .*\n +exitcode +: (-?\d+) .*\n"
    r" +error_file: (.*)\n +traceback : (.*)$",
    re.M,
)
LOST_PEER = re.compile(r"gloo|nccl|Connection (closed|reset)|Dist(Backend|Network|Store)Error|TCPStore", re.I)
TOGETHER = 10
"""Failures within so many seconds count as one event; torchrun kills a rank that does not end 30 seconds later."""


class Failure(NamedTuple):
    """A rank that ended badly: when (seconds), its exit code or minus its signal, its own line if it left one."""

    time: float
    rank: int
    exitcode: int
    line: str | None


def run(arguments: list[str], ranks: int, threads: int, log: Path, watch: Callable[[], None]) -> str | None:
    """Run `python -m ARGUMENTS` as so many ranks from the repository's root; None, or in one line what went wrong.

    threads: CPU threads of each rank; log: the file that takes all their output; watch: called every half second. When
    this call ends, or the process that makes it, no process of the job is left.
    """
    # without --local-addr the ranks look for each other at the host's name, which not every machine can resolve
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nnodes=1"]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, f"--nproc-per-node={ranks}", "--max-restarts=0", "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), TETHER: "1"},
            start_new_session=True,
        )
    try:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
            watch()
    finally:
        _end(process)
    if process.returncode == 0:
        return None
    return first_failure(log.read_text(encoding="utf-8", errors="replace"), process.returncode)


def _end(process: subprocess.Popen) -> None:
    """End a job that may still run: its ranks see their standard input close, and torchrun gets a signal."""
    process.stdin.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def tether() -> None:
    """End this process when its standard input ends, if the launcher holds the other end: the launcher is gone, or it
    has closed that end on purpose.

    Without this a rank would outlive the terminal, the notebook and torchrun, which gives each rank its own session.
    """

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin: its lock would be held when the interpreter shuts down
            pass
        os._exit(1)

    if os.environ.get(TETHER):
        threading.Thread(target=watch, daemon=True).start()


def fail(line: str) -> NoReturn:
    """End this process with exit code 1 and one line on stderr, which torchrun, if there is one, is told too."""
    if ERROR_FILE not in os.environ:
        sys.exit(line)
    with contextlib.suppress(OSError):  # a full disk must not hide the line
        Path(os.environ[ERROR_FILE]).write_text(json.dumps({"message": line, "timestamp": int(time.time())}))
    print(f"rank {os.environ['RANK']}: {line}", file=sys.stderr, flush=True)
    os._exit(1)  # the orderly way out may wait for ranks that wait for this one


def failures(log: str) -> list[Failure]:
    """The rows of torchrun's table, in the order of the ranks."""
    rows = [
        Failure(
            datetime.strptime(when, "%Y-%m-%d_%H:%M:%S").timestamp(),
            int(rank),
            int(code),
            None if file == "<N/A>" else line,
        )
        for when, rank, code, file, line in TABLE.findall(log)
    ]
    return sorted(rows, key=lambda row: row.rank)


def first_failure(log: str, exitcode: int) -> str:
    """Which rank failed first, with its own line or its signal, by torchrun's output; without any rank's failure there,
    torchrun's own exit code and last line."""
    rows = failures(log)
    if not rows:
        last = next((line for line in reversed(log.splitlines()) if line.strip()), "it wrote nothing")
        return f"torchrun ended with exit code {exitcode} ({last.strip()[:300]})"
    start = min(row.time for row in rows)
    return _say(min((row for row in rows if row.time - start <= TOGETHER), key=_order))


def _order(row: Failure) -> int:
    """Causes before effects: a rank that is lost makes collectives fail on others, and torchrun terminates the rest."""
    if row.exitcode == -signal.SIGTERM:
        return 4
    if row.line is not None:
        return 3 if LOST_PEER.search(row.line) else 1
    return 2 if row.exitcode in (1, -signal.SIGABRT) else 0


def _say(row: Failure) -> str:
    if row.line is not None:
        return f"rank {row.rank}: {row.line}"
    if row.exitcode >= 0:
        return f"rank {row.rank} ended with exit code {row.exitcode}"
    name = signal.Signals(-row.exitcode).name if -row.exitcode in set(signal.Signals) else f"signal {-row.exitcode}"
    return f"rank {row.rank} was killed by {name}" + (" (often: out of memory)" if name == "SIGKILL" else "")
