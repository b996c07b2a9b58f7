"""Freed memory stays with the process, so that a step does not fault its pages in anew."""

import os
import resource
import subprocess
import sys

import pytest

from pmd.files import ROOT

FAULTS = """
import resource, sys
import torch
from pmd.model import threads
if sys.argv[1] == "kept":
    threads.use_threads(2)
    assert torch.get_num_threads() == 2
def step():
    blocks = [torch.ones(2**18) for _ in range(120)]  # of 1 MiB
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults under glibc")
def test_memory_is_kept_between_steps():
    runs = [[sys.executable, "-c", FAULTS, way] for way in ("kept", "given back")]
    # without this, what glibc gives back depends on what happens to lie at the top of the heap
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**16)}
    kept, given_back = (int(subprocess.check_output(run, cwd=ROOT, env=environment, text=True)) for run in runs)
    assert given_back > 10 * 120 * 2**20 / resource.getpagesize() / 2, "nothing was given back: nothing is measured"
    assert kept < given_back / 100
