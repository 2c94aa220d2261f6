"""Compiles native/native.c once for this machine's own processor, keeps the result, and loads it.

Plain C through ctypes: gcc builds it in two seconds, without PyTorch's headers. Made for Linux: clang's OpenMP calls
another runtime than the one in PyTorch's wheels, and there tensor operations serve.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch  # first: native.c calls the OpenMP runtime that torch brings

from kernels.cache_dir import default_cache_dir

__all__ = ["native_library", "widens_bfloat16"]

_ELEMENTS = {torch.float32: (), torch.bfloat16: ("-DPACELINE_BFLOAT16",)}
"""Compiler flags of native.c for tensors of each type."""

logger = logging.getLogger("paceline")

_SOURCES = Path(__file__).with_name("native")
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-fopenmp", "-ffp-contract=off")


@functools.cache
def native_library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The ops compiled for tensors of `dtype`; None for other types than float32 and bfloat16, and, with a warning that
    says why, where they cannot be had.

    `PACELINE_NATIVE=0` turns them off: the tensor path then serves, which is slower and gives other last bits. All
    processes of a run must decide alike.
    """
    if os.environ.get("PACELINE_NATIVE") == "0" or dtype not in _ELEMENTS:
        return None
    try:
        widens = ("-DPACELINE_WIDENS",) if widens_bfloat16() else ()
        return ctypes.CDLL(str(_build((*_ELEMENTS[dtype], *widens))))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        logger.warning(
            "kernels/cpu/native cannot be used, so %s runs about half as fast on this CPU; it needs Linux, gcc, and a "
            "processor with AVX2 and FMA, or 64-bit ARM (%s)",
            dtype,
            _reason(error),
        )
        return None


@functools.cache
def widens_bfloat16() -> bool:
    """Whether matrices in bfloat16 are multiplied faster as floats.

    Measured on Intel's Sapphire Rapids without AMX, both cores: `vdpbf16ps` 0.17 TFLOP/s, fused multiply-adds 0.32; on AMD's
    Zen 4 0.47 and 0.23. The two round differently, so processes of a run must run on processors of one maker.
    """
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "GenuineIntel" in text and "avx512_bf16" in text and "amx_bf16" not in text


def _reason(error: Exception) -> str:
    """One line: a compiler's own, if it was the compiler."""
    lines = [line.strip() for line in str(getattr(error, "stderr", "") or "").splitlines()]
    errors = [line for line in lines if "error" in line]
    return (errors or [str(error)])[0]


def _build(defines: tuple[str, ...]) -> Path:
    """The shared library for this processor, compiled if no earlier process did.

    Raises:
        OSError: there is no compiler, or the cache cannot be written.
        subprocess.SubprocessError: it refuses the source.
    """
    compiler = shlex.split(os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc") or "")
    if not compiler:
        raise FileNotFoundError("no gcc and no cc on the PATH")
    flags = (
        *_FLAGS,
        *defines,
        "-mcpu=native" if platform.machine() == "aarch64" else "-march=native",
    )
    version = _run(*compiler, "--version")
    sources = [path.read_bytes() for path in sorted(_SOURCES.glob("*.[ch]"))]
    key = repr((sources, flags, version, _processor())).encode()
    directory = default_cache_dir() / "native"
    library = directory / f"{hashlib.sha256(key).hexdigest()[:16]}.so"
    if not library.exists():
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            compiled, linked = f"{scratch}/native.o", f"{scratch}/native.so"
            _run(*compiler, *flags, "-c", str(_SOURCES / "native.c"), "-o", compiled)
            # linked without -fopenmp: its calls then resolve to the OpenMP runtime that torch has loaded. Two runtimes
            # would be two pools of threads that spin against each other
            _run(*compiler, "-shared", compiled, "-o", linked, "-lm")
            ctypes.CDLL(linked)  # what does not load is not kept
            os.replace(linked, library)
    return library


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def _processor() -> str:
    """Describes the processor, which -march=native depends on: several kinds of machine may share a home directory."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    names = ("model name", "model\t", "flags", "Features")
    lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith(names)]
    return "\n".join(sorted(set(lines)))
