"""Buffers that were freed are used again, not mapped anew."""

import subprocess
import sys

import pytest

_FAULTS = """
import resource
import sys
import torch
from kernels.host_memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    logits = torch.ones(256, 49152)  # 50 MB
    weights = logits.exp()
    del logits, weights
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(20):
    last = faults()
print(last)
"""


def faults_of_the_last_round(mode: str) -> int:
    command = [sys.executable, "-c", _FAULTS, mode]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_buffers_of_a_size_that_returns_soon_cost_no_page_faults():
    assert faults_of_the_last_round("keep") < 10
    assert faults_of_the_last_round("default") > 1000, "else the call is of no use"
