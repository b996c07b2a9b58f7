"""One job of several ranks on this machine: start torchrun, follow it, say in one line which rank failed and why.

torchrun ends the whole job when one rank ends badly, also where the others wait for it in a collective. A rank that
catches its own error says it with `fail`, in the file that torchrun keeps for that; the table that torchrun prints
holds these lines, the exit codes and the signals, and `cause` finds the first of them.
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
"""Seconds within which ranks fail together; torchrun kills one that does not end after 30 more seconds."""


class Failure(NamedTuple):
    """A rank that ended badly: when (seconds), its exit code or minus its signal, its own line if it left one."""

    time: float
    rank: int
    exitcode: int
    line: str | None


def run(arguments: list[str], ranks: int, threads: int, log: Path, watch: Callable[[], None]) -> str | None:
    """Run `python -m ARGUMENTS` as so many ranks from the repository's root; None, or what went wrong in one line.

    threads: of each rank; log: where all their output goes; watch: called every half second meanwhile. No process
    survives this call, nor the process that makes it.
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
    return cause(log.read_text(encoding="utf-8", errors="replace"), process.returncode) if process.returncode else None


def _end(process: subprocess.Popen) -> None:
    """End a job that may be under way: its ranks see their standard input close, torchrun gets a signal."""
    process.stdin.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def tether() -> None:
    """End this process when standard input ends, if the launcher holds the other end: it is gone, or wants it so.

    torchrun gives each rank a session of its own, which outlives the terminal, the notebook and torchrun itself.
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


def cause(log: str, exitcode: int) -> str:
    """Which rank failed first, and its own line or its signal; exitcode: torchrun's, for a job that had no rank yet."""
    rows = failures(log)
    if not rows:
        last = next((line for line in reversed(log.splitlines()) if line.strip()), "it wrote nothing")
        return f"torchrun ended with exit code {exitcode} ({last.strip()[:300]})"
    start = min(row.time for row in rows)
    return _say(min((row for row in rows if row.time - start <= TOGETHER), key=_order))


def _order(row: Failure) -> int:
    """Causes before effects: a lost rank makes the others' collectives fail, then torchrun terminates the rest."""
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
