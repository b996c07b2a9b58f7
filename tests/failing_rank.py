"""A torchrun job of two ranks, the first of which waits for the second (see test_run.py).

`python -m tests.failing_rank fail`: the second fails; `hang FILE`: it sleeps, after it has made FILE.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from pmd.scale import torchrun

if __name__ == "__main__":
    torchrun.tether()
    dist.init_process_group("gloo")
    try:
        dist.all_reduce(torch.ones(1))
        if dist.get_rank() == 1 and sys.argv[1] == "fail":
            raise OSError("the disk of this rank is full")
        if dist.get_rank() == 1:
            Path(sys.argv[2]).touch()
            time.sleep(600)
        dist.all_reduce(torch.ones(1))
    except Exception as error:
        torchrun.fail(str(error))
