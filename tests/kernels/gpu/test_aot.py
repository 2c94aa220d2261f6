"""The compile check itself: what it must refuse. Compiling runs in a process of its own, since this one interprets."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from kernels.gpu.aot.report import Report

ROOT = Path(__file__).parents[3]


def report(**changes) -> Report:
    values = {
        "kernel": "k",
        "target": "90",
        "registers": 100,
        "spilled": 0,
        "shared": 1000,
        "warps": 4,
        "scratch": 0,
        "matrix": Counter({"HGMMA.64x128x16.F32.BF16": 4}),
        "copies": Counter(),
    }
    return Report(**(values | changes))


def test_a_kernel_that_uses_the_matrix_units_and_fits_passes():
    assert report().problems("bf16") == []
    assert report(matrix=Counter()).problems(None) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"spilled": 8}, "spills 8 bytes"),
        ({"shared": 232449}, "needs 232449 bytes of shared memory, of 232448"),
        ({"scratch": 384}, "needs 384 bytes of scratch memory, which no launcher allocates"),
        ({"matrix": Counter()}, "has no matrix instruction for bf16, but []"),
        # the instruction of the generation before, at a fraction of the rate
        (
            {"matrix": Counter({"HMMA.16816.F32.BF16": 4})},
            "has no matrix instruction for bf16, but ['HMMA.16816.F32.BF16']",
        ),
        (
            {"target": "100", "matrix": Counter({"HGMMA.64x128x16.F32.BF16": 4})},
            "has no matrix instruction for bf16, but ['HGMMA.64x128x16.F32.BF16']",
        ),
    ],
)
def test_a_kernel_that_would_fail_or_crawl_on_the_gpu_is_refused(changes, problem):
    assert report(**changes).problems("bf16") == [problem]


CODE = """
import sys
from kernels.gpu.aot import __main__ as aot, launches
import torch, triton, triton.language as tl

@triton.jit
def _add_matrices_kernel(x_ptr, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(x_ptr + at, tl.load(x_ptr + at) * 2)

@triton.jit
def _refused_kernel(x_ptr, N: tl.constexpr):
    tl.store(x_ptr, tl.dot(tl.zeros((N, N), tl.bfloat16), x_ptr))

x = launches.empty(64, 64)
bad = [
    launches.Launch(name="no_matrix", run=lambda: _add_matrices_kernel[(1,)](x, N=64), matrix={"_add_matrices_kernel": "bf16"}),
    launches.Launch(name="refused", run=lambda: _refused_kernel[(1,)](x, N=64)),
    launches.Launch(name="missing", run=lambda: 1 / 0, missing_on=("90",)),
]
aot.all_launches = lambda: [*bad, *(x for x in launches.all_launches() if x.name == "swiglu")]
sys.exit(aot.main(["--targets", "90"]))
"""


def test_the_command_compiles_what_a_launcher_launches_and_exits_with_1_if_a_kernel_fails(
    tmp_path,
):
    script = tmp_path / "check.py"
    script.write_text(CODE)  # Triton reads the source of a kernel from its file
    done = subprocess.run(
        [sys.executable, script],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 1, done.stderr
    assert [line.split()[:2] for line in lines[:-1]] == [
        ["FAIL", "no_matrix:add_matrices_kernel"],
        ["FAIL", "refused"],
        ["ok", "swiglu:swiglu_fwd_kernel"],
    ]
    assert "has no matrix instruction for bf16, but []" in lines[0]
    assert "CompilationError" in lines[1]
    assert lines[-1] == "1 passed, 2 failed"
