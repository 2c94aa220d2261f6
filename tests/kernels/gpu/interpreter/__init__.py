"""Fixes and checks for Triton's interpreter: kernels run on CPU tensors, with the numbers that a GPU computes.

The stock interpreter multiplies the bit patterns of bfloat16 and checks no address. `install()` fixes its arithmetic;
within `checked()` each launch fails on an address outside its tensor, on a value that a masked load leaves undefined, and
on two programs that touch the same element.
"""

from tests.kernels.gpu.interpreter.arithmetic import install_arithmetic
from tests.kernels.gpu.interpreter.launches import install_launches
from tests.kernels.gpu.interpreter.memory import OutOfBounds, Race, checked, install_memory

__all__ = ["OutOfBounds", "Race", "checked", "install"]

_installed = False


def install() -> None:
    """Patches the interpreter, once per process."""
    global _installed
    if not _installed:
        install_arithmetic()
        install_memory()
        install_launches()
        _installed = True
