"""Properties of the GPU that launchers ask for; where there is none, of the one that is compiled for or interpreted."""

import functools

import torch
import triton

__all__ = ["has_float8", "has_tensor_descriptors", "num_multiprocessors"]

_INTERPRETED_PROGRAMS = 3


def num_multiprocessors(device: torch.device) -> int:
    """Programs of a persistent kernel."""
    if device.type != "cuda":
        return _INTERPRETED_PROGRAMS
    return _properties(device).multi_processor_count


def has_tensor_descriptors(device: torch.device) -> bool:
    """Whether tensor descriptors are copies of the hardware (TMA): Hopper and later."""
    if device.type == "cuda":
        return _properties(device).major >= 9
    if triton.knobs.runtime.interpret:
        return False
    target = triton.runtime.driver.active.get_current_target()
    return target.backend == "cuda" and target.arch >= 90


def has_float8(device: torch.device) -> bool:
    """Whether the matrix units multiply float8: Ada, Hopper and later."""
    return device.type != "cuda" or (_properties(device).major, _properties(device).minor) >= (8, 9)


@functools.cache
def _properties(device: torch.device):
    return torch.cuda.get_device_properties(device)
