"""One layer's keys and values in blocks: in the model's own type, or in 8 bits with a scale per token and head.

Shape legend: T = packed rows, M = KV heads, B = block size, D = width of a head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kernels.quantize import INT8_LEVELS, quantize_rows

__all__ = ["PagedKV"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedKV:
    """[blocks, M, B, D] keys and values. Unwritten slots must be finite.

    int8 ones have float32 scales [blocks, M, B]. A token is quantized alone, so what a row reads does not depend on
    chunks or neighbours.
    """

    keys: torch.Tensor
    values: torch.Tensor
    scales: tuple[torch.Tensor, torch.Tensor] | None = None
    """Of keys and of values."""

    @classmethod
    def zeros(
        cls,
        shape: Sequence[int],
        *,
        dtype: torch.dtype,
        is_int8: bool,
        make: Callable[[Sequence[int], torch.dtype], torch.Tensor],
    ) -> "PagedKV":
        """A cache of `shape` [blocks, M, B, D], from tensors of zeros that `make` makes."""
        if not is_int8:
            return cls(keys=make(shape, dtype), values=make(shape, dtype))
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

    def _tensors(self) -> tuple[torch.Tensor, ...]:
        return (self.keys, self.values, *(self.scales or ()))
