"""Compiles the launches of `kernels.gpu.aot.launches` and reports registers, spills, shared memory and matrix instructions.

    python -m kernels.gpu.aot           # default configurations for sm_80, sm_90 and sm_100
    python -m kernels.gpu.aot --full    # also sm_89, sm_120, gfx942, and the code for unaligned sizes (both reported only)

Ends with `N passed, M failed`; exits with 1 if a kernel does not compile, spills, needs too much shared memory, or lacks
the matrix instruction of its operands' type.
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read when triton is imported
os.environ.setdefault(
    "TRITON_DEFAULT_FP_FUSION", "1"
)  # silences a warning; launches say what they need
os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp(prefix="paceline-aot-"))

import triton
from triton.compiler import ASTSource

from kernels.gpu.aot.launches import Launch, all_launches
from kernels.gpu.aot.report import Report, examine
from kernels.gpu.aot.target import (
    DEFAULT_TARGETS,
    FULL_TARGETS,
    gpu_target,
    launching_for,
    ptxas_log,
)

__all__ = ["check", "main"]


def check(
    launch: Launch, target: str, *, unaligned: bool = False
) -> list[tuple[Report, list[str]]]:
    """Compiles what `launch` launches on `target`: one (report, problems) per kernel.

    Args:
        launch: run with tensors that hold nothing.
        target: compute capability, or AMD's name.
        unaligned: also compile each kernel for pointers and sizes that are no multiples of 16; reported only.
    """
    results: list[tuple[Report, list[str]]] = []
    sources: list[Any] = []

    def examined(source: Any, compiled: Any, log: str) -> None:
        report = examine(f"{launch.name}:{source.name.strip('_')}", target, compiled, log)
        results.append((report, report.problems(launch.matrix.get(source.name))))
        sources.append(
            (source, {"num_warps": report.warps, "num_stages": compiled.metadata.num_stages})
        )

    with launching_for(target, examined):
        launch.run()
    if not results:
        raise RuntimeError(f"{launch.name} launched nothing on {target}")
    for source, options in sources if unaligned else ():
        plain = ASTSource(source.fn, source.signature, source.constants, attrs={})
        with ptxas_log() as log:
            compiled = triton.compile(plain, target=gpu_target(target), options=options)
        name = f"{launch.name}:{source.name.strip('_')}, unaligned"
        results.append((examine(name, target, compiled, log.getvalue()), []))
    return results


def _check_quietly(launch: Launch, target: str, *, unaligned: bool) -> list[tuple[str, list[str]]]:
    """(line of output, problems); a compile error is a problem. Hides the PTX that Triton prints when ptxas fails."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            results = check(launch, target, unaligned=unaligned)
    except Exception as error:  # noqa: BLE001
        # whatever the compiler raises is the result
        message = " | ".join(str(error).strip().splitlines()[-6:])
        return [(f"{launch.name:38s} {target:>6s}", [f"{type(error).__name__}: {message[-400:]}"])]
    return [(str(report), problems) for report, problems in results]


def _run(launches: Iterable[Launch], targets: Sequence[str], *, is_full: bool) -> int:
    passed = failed = 0
    for launch in launches:
        for target in targets:
            if target in launch.missing_on:
                continue
            is_required = target in DEFAULT_TARGETS
            for line, problems in _check_quietly(launch, target, unaligned=is_full):
                is_failure = bool(problems) and is_required
                passed, failed = passed + (not is_failure), failed + is_failure
                verdict = "FAIL" if is_failure else "note" if problems else "ok"
                print(f"{verdict:4s} {line} {'; '.join(problems)}".rstrip(), flush=True)  # noqa: T201
    print(f"{passed} passed, {failed} failed")  # noqa: T201
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compile the Triton kernels without a GPU.")
    parser.add_argument("--full", action="store_true", help="more targets, unaligned forms")
    parser.add_argument("--only", default="", help="launches whose name has this in it")
    parser.add_argument(
        "--targets", default="", help="comma-separated, of " + ",".join(FULL_TARGETS)
    )
    options = parser.parse_args(arguments)
    targets = options.targets.split(",") if options.targets else None
    launches = [launch for launch in all_launches() if options.only in launch.name]
    default = FULL_TARGETS if options.full else DEFAULT_TARGETS
    return _run(launches, targets or default, is_full=options.full)


if __name__ == "__main__":
    sys.exit(main())
