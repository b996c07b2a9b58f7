"""Freed memory stays with the process, so that a step does not fault its pages in anew."""

import subprocess
import sys

import pytest

from pmd.files import ROOT

FAULTS = """
import resource, sys
import torch
from pmd import cpu
if sys.argv[1] == "kept":
    cpu.use(2)
    assert torch.get_num_threads() == 2
def step():
    blocks = [torch.ones(2**18) for _ in range(120)]  # of 1 MiB
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(60):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults under glibc")
def test_memory_is_kept_between_steps():
    runs = [[sys.executable, "-c", FAULTS, way] for way in ("kept", "given back")]
    kept, given_back = (int(subprocess.check_output(run, cwd=ROOT, text=True)) for run in runs)
    assert given_back > 1000, "without it nothing was given back, so the test measures nothing"
    assert kept < given_back / 5
