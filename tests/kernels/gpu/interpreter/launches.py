"""Launches: records each argument's extent, runs programs in a drawn order, and patches Triton's language once per launch."""

import inspect
import random

import numpy as np
import triton
import triton.language as tl
import triton.runtime.interpreter as stock

from tests.kernels.gpu.interpreter.memory import STATE, OutOfBounds, check_races, extent

__all__ = ["install_launches"]

_num_running = 0
_patch_language = stock._patch_lang
_convert = stock._implicit_cvt


def install_launches() -> None:
    stock._implicit_cvt = _convert_with_origin
    stock.GridExecutor.__call__ = _launch
    stock.InterpretedFunction.__call__ = _call_device_function


class _Namespaces:
    """A kernel sees `tl`, triton.language.standard sees `core`: both are patched."""

    __globals__ = {"tl": tl, "core": tl.core}  # noqa: RUF012


def _convert_with_origin(argument):
    out = _convert(argument)
    if hasattr(argument, "data_ptr") and STATE.is_checking:
        first, end = extent(stock._unwrap_tensor(argument))
        name = next((name for start, _, name in STATE.regions if start == first), "?")
        out.handle.attr["origin"] = (first, end, name)
    return out


def _call_device_function(self, *args, **kwargs):
    """Calls a function that a kernel calls; the stock one patches all of triton.language again each time."""
    if not _num_running:
        _patch_language(_Namespaces)
    try:
        return self.rewrite()(*args, **kwargs)
    except OutOfBounds:
        raise
    except Exception as error:
        raise stock.InterpreterError(repr(error)) from error


def _launch(self, *device_args, **kwargs):
    global _num_running
    spec = inspect.getfullargspec(self.fn)
    kwargs = {k: v for k, v in kwargs.items() if k in spec.args or k in spec.kwonlyargs}
    args, kwargs_here = self._init_args_hst(device_args, kwargs)
    for hook in self.pre_run_hooks:
        hook(*args, **kwargs_here)
    scope = _patch_language(_Namespaces)
    _num_running += 1
    STATE.num_launches += 1
    try:
        named = inspect.getcallargs(self.fn, *args, **kwargs_here)
        STATE.regions = [
            region for name, value in named.items() for region in _regions(name, value)
        ]
        STATE.accesses = [] if STATE.is_checking else None
        _run_programs(self, named)
        if STATE.accesses:
            check_races(self.fn.__name__, STATE.accesses)
    finally:
        _num_running -= 1
        STATE.accesses = None
        scope.restore()
    self._restore_args_dev(device_args, args, kwargs, kwargs_here)


def _regions(name: str, value) -> list[tuple[int, int, str]]:
    value = value.base if isinstance(value, stock.TensorDescriptor) else value
    if hasattr(value, "data_ptr"):
        return [(*extent(stock._unwrap_tensor(value)), name)]
    if isinstance(value, tuple):
        return [region for i, x in enumerate(value) for region in _regions(f"{name}[{i}]", x)]
    return []


def _run_programs(executor, named: dict) -> None:
    builder = stock.interpreter_builder
    arguments = {
        name: value if name in executor.constexprs else _convert_with_origin(value)
        for name, value in named.items()
    }
    grid = executor.grid(arguments) if callable(executor.grid) else executor.grid
    sizes = (*(int(size) for size in grid), 1, 1)[:3]
    builder.set_grid_dim(*sizes)
    programs = [
        (x, y, z) for x in range(sizes[0]) for y in range(sizes[1]) for z in range(sizes[2])
    ]
    if STATE.is_checking:
        random.Random(STATE.seed).shuffle(programs)
    try:
        with np.errstate(all="ignore"):  # a GPU gives infinity and NaN without a warning
            for STATE.program, place in enumerate(programs):
                builder.set_grid_idx(*place)
                executor.fn(**arguments)
    except Exception as error:
        if triton.knobs.compilation.front_end_debugging:
            raise
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OutOfBounds):
            cause = cause.__cause__
        if cause is not None:
            raise cause from None
        raise stock.InterpreterError(repr(error)) from error
