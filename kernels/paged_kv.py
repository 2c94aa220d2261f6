"""One layer's keys and values in blocks: in the model's own type, or in 8 bits with a scale per token and head.

Shape legend: T = packed rows, M = KV heads, B = block size, D = width of a head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kernels.backends import runs_in_triton
from kernels.cpu.attention import key_lanes, takes_heads
from kernels.cpu.native_functions import is_native
from kernels.quantize import INT8_LEVELS, quantize_rows

__all__ = ["PagedKV", "cache_lanes"]


def cache_lanes(
    dtype: torch.dtype,
    device: torch.device,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
) -> int:
    """Returns how many keys a cache interleaves (`PagedKV.lanes`) for the attention of this device; 1 for rows one by one."""
    if not (is_native(dtype, device) and takes_heads(num_heads, num_kv_heads, head_dim)):
        return 1
    lanes = key_lanes(dtype)
    return 1 if block_size % lanes else lanes


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedKV:
    """[blocks, M, B, D] keys and values. Unwritten slots must be finite.

    int8 ones have float32 scales [blocks, M, B]. Each token is quantized by itself, so what a row reads does not depend on
    chunks or neighbours.

    Attention in C multiplies keys 16 or 8 at a time, and with `lanes` they lie as it wants them, within each head of a
    block: places of 32 bits, which hold P = 1 float or 2 bfloat16; keys as [B / lanes, D / P, lanes, P] and values as
    [B / P, D, P].
    """

    keys: torch.Tensor
    values: torch.Tensor
    scales: tuple[torch.Tensor, torch.Tensor] | None = None
    """Scales of keys and of values."""
    lanes: int = 1
    """Keys that are interleaved; 1: rows one by one, the only way for int8."""

    @classmethod
    def zeros(
        cls,
        shape: Sequence[int],
        *,
        dtype: torch.dtype,
        is_int8: bool,
        lanes: int = 1,
        make: Callable[[Sequence[int], torch.dtype], torch.Tensor],
    ) -> "PagedKV":
        """A cache of `shape` [blocks, M, B, D], from tensors of zeros that `make` makes."""
        if not is_int8:
            return cls(keys=make(shape, dtype), values=make(shape, dtype), lanes=lanes)
        scales = make(shape[:-1], torch.float32), make(shape[:-1], torch.float32)
        return cls(keys=make(shape, torch.int8), values=make(shape, torch.int8), scales=scales)

    def write(
        self,
        k_TMD: torch.Tensor,
        v_TMD: torch.Tensor,
        block_ids_T: torch.Tensor,
        offsets_T: torch.Tensor,
    ) -> None:
        """Put row t at offset `offsets_T[t]` of block `block_ids_T[t]`."""
        if runs_in_triton(k_TMD) and self.lanes == 1:
            from kernels.gpu.paged_kv import write_kv_triton

            places = (block_ids_T, offsets_T)
            return write_kv_triton(k_TMD, v_TMD, *places, self.keys, self.values, self.scales)
        if self.lanes > 1:
            keys, values = self._interleaved()
            lane_T = offsets_T % self.lanes
            places = keys.shape[-1]
            keys[block_ids_T, :, offsets_T // self.lanes, :, lane_T] = k_TMD.unflatten(
                -1, (-1, places)
            )
            values[block_ids_T, :, offsets_T // places, :, offsets_T % places] = v_TMD
            return
        for index, (stored, rows) in enumerate(((self.keys, k_TMD), (self.values, v_TMD))):
            if self.scales is None:
                stored[block_ids_T, :, offsets_T] = rows
            else:
                integers_TMD, scale_TM = quantize_rows(rows, INT8_LEVELS)
                stored[block_ids_T, :, offsets_T] = integers_TMD.to(torch.int8)
                self.scales[index][block_ids_T, :, offsets_T] = scale_TM

    def read(
        self, block_ids: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [len(block_ids), M, B, D] of some blocks, as `dtype`."""
        if self.lanes > 1:
            keys, values = (x.index_select(0, block_ids) for x in self._interleaved())
            shape = (len(block_ids), *self.keys.shape[1:])
            return (
                keys.transpose(3, 4).reshape(shape),
                values.transpose(3, 4).reshape(shape),
            )
        keys, values = (x.index_select(0, block_ids) for x in (self.keys, self.values))
        if self.scales is None:
            return keys, values
        key_scales, value_scales = (
            scale.index_select(0, block_ids)[..., None] for scale in self.scales
        )
        return (keys.float() * key_scales).to(dtype), (values.float() * value_scales).to(dtype)

    def copy_blocks(self, source: torch.Tensor, target: torch.Tensor) -> None:
        for tensor in self._tensors():
            tensor[target] = tensor[source]

    def clear_blocks(self, block_ids: torch.Tensor) -> None:
        """Back to zeros."""
        for tensor in self._tensors():
            tensor.index_fill_(0, block_ids, 0)

    def _interleaved(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Views: keys [blocks, M, B / lanes, D / P, lanes, P] and values [blocks, M, B / P, D, P]."""
        blocks, heads, size, dim = self.keys.shape
        places = 4 // self.keys.element_size()
        keys = self.keys.view(blocks, heads, size // self.lanes, dim // places, self.lanes, places)
        return keys, self.values.view(blocks, heads, size // places, dim, places)

    def _tensors(self) -> tuple[torch.Tensor, ...]:
        return (self.keys, self.values, *(self.scales or ()))
