"""GPUs to compile for, and a driver that lets a launcher run for one of them without launching anything."""

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
import triton.backends.nvidia.compiler as nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import CompiledKernel

__all__ = ["DEFAULT_TARGETS", "FULL_TARGETS", "OnCompiled", "launching_for", "shared_limit"]

DEFAULT_TARGETS = ("80", "90", "100")
"""Ampere (A100), Hopper (H100, H200), Blackwell (B200)."""
FULL_TARGETS = (*DEFAULT_TARGETS, "89", "120", "gfx942")

_SHARED_LIMITS = {"80": 166912, "89": 101376, "90": 232448, "100": 232448, "120": 101376}
_AMD_SHARED_LIMIT = 65536

OnCompiled = Callable[[Any, CompiledKernel, str], None]
"""(source, compiled kernel, log of ptxas)."""


def shared_limit(target: str) -> int:
    """Bytes of shared memory that one program may use."""
    return _SHARED_LIMITS.get(target, _AMD_SHARED_LIMIT)


def gpu_target(target: str) -> GPUTarget:
    if target.startswith("gfx"):
        return GPUTarget("hip", target, 64)
    return GPUTarget("cuda", int(target), 32)


@contextlib.contextmanager
def ptxas_log() -> Iterator[io.StringIO]:
    """Yields what ptxas prints: registers and spills are in no metadata. Forces compilation, since a cache hit prints nothing."""
    log = io.StringIO()

    def record(*args: Any, **kwargs: Any) -> None:
        print(*args, file=log)

    with triton.knobs.nvidia.scope(), triton.knobs.compilation.scope():
        triton.knobs.nvidia.dump_ptxas_log = True
        triton.knobs.compilation.always_compile = True
        vars(nvidia)["print"] = record  # hides the builtin from this module of Triton
        try:
            yield log
        finally:
            del vars(nvidia)["print"]


class _Launcher:
    """Launches nothing."""

    def __init__(self, *args: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> None: ...


class _Driver:
    """Stand-in for the driver that the JIT queries; device numbers differ by target, because the JIT caches by device number."""

    launcher_cls = _Launcher

    def __init__(self, target: str) -> None:
        self._target = gpu_target(target)
        self._device = FULL_TARGETS.index(target)
        self._shared = shared_limit(target)
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._device

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": self._shared,
            "multiprocessor_count": 132,
            "max_num_regs": 65536,
            "warpSize": self._target.warp_size,
        }

    def load_binary(self, *args: Any) -> tuple[int, int, int, int, int]:
        return 0, 0, 0, 0, 1024

    def unload_module(self, module: Any) -> None: ...

    def map_python_to_cpp_type(self, dtype: str) -> str:
        return dtype


@contextlib.contextmanager
def launching_for(target: str, on_compiled: OnCompiled) -> Iterator[None]:
    """Within the block `kernel[grid](...)` compiles for `target` what it would launch there, tensors of any device, and launches nothing."""
    driver = triton.runtime.driver
    before = driver._default, driver._active
    original = CompiledKernel.__init__
    with ptxas_log() as log:

        def compiled(self: CompiledKernel, source: Any, *args: Any) -> None:
            original(self, source, *args)
            on_compiled(source, self, log.getvalue())
            log.seek(0)
            log.truncate()

        CompiledKernel.__init__ = compiled
        driver._default = driver._active = _Driver(target)
        try:
            yield
        finally:
            CompiledKernel.__init__ = original
            driver._default, driver._active = before
