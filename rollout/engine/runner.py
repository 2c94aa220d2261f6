"""Runs the model on a batch: builds its tensors, moves blocks, writes and reads the paged cache.

Shape legend: T = tokens of the batch, R = rows to sample from, V = vocabulary.
"""

import contextlib
import functools
import math
import mmap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from kernels.attention import AttentionLayout, PagedKV, Segment, paged_attention, paged_layout
from kernels.paged_kv import cache_lanes
from rollout.core import Batch
from rollout.models.decoder import Decoder
from rollout.models.laid_out import LaidOutDecoder
from rollout.models.spec import DecoderSpec

__all__ = ["Runner", "bytes_per_block"]

_PREPARING_THREADS = 1  # beside a step, whose threads would wait for those of this one


def bytes_per_block(
    spec: DecoderSpec, *, block_size: int, dtype: torch.dtype, is_int8: bool = False
) -> int:
    """Keys and values of `block_size` tokens, all layers; in 8 bits with a float32 scale per token and head."""
    bytes_per_head = spec.head_dim + 4 if is_int8 else spec.head_dim * dtype.itemsize
    return 2 * spec.num_layers * spec.num_kv_heads * block_size * bytes_per_head


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    token_ids_T: torch.Tensor
    positions_T: torch.Tensor
    block_ids_T: torch.Tensor
    offsets_T: torch.Tensor
    last_rows_R: torch.Tensor  # of the chunks that sample, and all behind them
    layout: AttentionLayout


class Runner:
    """Owns the KV cache, one pair of [blocks, KV heads, block_size, head width] per layer, and the weights as laid out for the kernels.

    Those of a decoder that it has not seen are laid out by the step that needs them; those of an update by `prepare`, in
    another thread if need be, and `reset` swaps them in. Old ones stay, since the next update is laid out in their memory.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        is_int8: bool = False,
    ) -> None:
        self._block_size = block_size
        self._device = device
        shape = (num_blocks, spec.num_kv_heads, block_size, spec.head_dim)
        lanes = cache_lanes(
            dtype,
            device,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            block_size=block_size,
        )
        self._written: set[int] = set()  # blocks, since the last reset
        # zeros, because an unwritten slot must be finite
        self._caches = [
            PagedKV.zeros(
                shape,
                dtype=dtype,
                is_int8=is_int8,
                lanes=lanes,
                make=functools.partial(_zeros, device),
            )
            for _ in range(spec.num_layers)
        ]
        self._live: LaidOutDecoder | None = None
        self._shadow: LaidOutDecoder | None = None  # what comes next, or was before

    @property
    def layer_seconds(self) -> Mapping[str, float]:
        """What parts of the layers took in all steps; empty where they run op by op."""
        layers = None if self._live is None else self._live.layers
        return {} if layers is None else layers.seconds

    @torch.inference_mode()
    def run(self, decoder: Decoder, batch: Batch) -> torch.Tensor:
        """[R, V] logits after the last token of each chunk that reaches the end of its log, and after each of its draft."""
        self._copy_blocks(batch)
        inputs = self._inputs(batch)
        if self._live is None or self._live.decoder is not decoder:
            self._live = None  # its memory is used again
            self._live = LaidOutDecoder(decoder, self._caches)
        hidden_TH = self._forward(self._live, inputs)
        return decoder.logits(hidden_TH[inputs.last_rows_R], self._live.packed_head)

    def _forward(self, laid_out: LaidOutDecoder, inputs: _Inputs) -> torch.Tensor:
        decoder, native = laid_out.decoder, laid_out.layers
        if native is not None:
            return decoder.around(
                lambda x_TH, cos_sin_TD: native(
                    x_TH, cos_sin_TD, inputs.block_ids_T, inputs.offsets_T, inputs.layout
                ),
                inputs.token_ids_T,
                inputs.positions_T,
            )

        def attend(
            layer: int, q_TND: torch.Tensor, k_TMD: torch.Tensor, v_TMD: torch.Tensor
        ) -> torch.Tensor:
            cache = self._caches[layer]
            cache.write(k_TMD, v_TMD, inputs.block_ids_T, inputs.offsets_T)
            return paged_attention(q_TND, cache, inputs.layout)

        return decoder(inputs.token_ids_T, inputs.positions_T, attend)

    def prepare(self, decoder: Decoder) -> None:
        """Lay out weights that come into force at the next `reset`; may be called by another thread than the one that runs."""
        if self._shadow is not None and self._shadow.decoder is decoder:
            self._shadow.refresh(num_threads=_PREPARING_THREADS)
            return
        self._shadow = None  # its memory is used again
        self._shadow = LaidOutDecoder(decoder, self._caches, num_threads=_PREPARING_THREADS)

    def reset(self, kept_blocks: Collection[int] = ()) -> None:
        """New weights, those prepared; and forget all other blocks, so that a NaN of a bad update cannot linger in slots not yet written again.

        A masked key has weight 0, and 0 * NaN is NaN. Costs little next to the forwards that wrote the blocks.
        """
        self._live, self._shadow = self._shadow, self._live
        forgotten = self._written.difference(kept_blocks)
        blocks = torch.tensor(sorted(forgotten), dtype=torch.int64, device=self._device)
        for cache in self._caches:
            cache.clear_blocks(blocks)
        self._written -= forgotten

    def _copy_blocks(self, batch: Batch) -> None:
        if not batch.block_copies:
            return
        source, target = (
            torch.tensor(blocks, device=self._device)
            for blocks in zip(*batch.block_copies, strict=True)
        )
        for cache in self._caches:
            cache.copy_blocks(source, target)

    def _inputs(self, batch: Batch) -> _Inputs:
        token_ids: list[int] = []
        positions: list[int] = []
        blocks: list[int] = []
        last_rows: list[int] = []
        segments: list[Segment] = []
        for chunk in batch.chunks:
            state = chunk.state
            start, end = state.num_computed, state.num_computed + chunk.num_rows
            segments.append(
                Segment(
                    first_row=len(token_ids),
                    num_queries=chunk.num_rows,
                    first_position=start,
                    key_index=state.block_table,
                )
            )
            token_ids += [*state.token_ids[start : start + chunk.num_tokens], *chunk.draft]
            positions += range(start, end)
            blocks += [state.block_table[p // self._block_size] for p in range(start, end)]
            if chunk.samples:
                last_rows += range(len(token_ids) - 1 - len(chunk.draft), len(token_ids))
        self._written.update(blocks)
        columns = (token_ids, positions, blocks, last_rows)
        tensors = [torch.tensor(c, dtype=torch.int64, device=self._device) for c in columns]
        return _Inputs(
            token_ids_T=tensors[0],
            positions_T=tensors[1],
            block_ids_T=tensors[2],
            offsets_T=tensors[1] % self._block_size,
            last_rows_R=tensors[3],
            layout=paged_layout(
                segments,
                num_rows=len(token_ids),
                block_size=self._block_size,
                device=self._device,
            ),
        )


def _zeros(device: torch.device, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that take no time, and on a CPU no memory either before they are written: its kernel gives zeroed pages."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # a decode step touches every head of every layer: with 4 KB pages, thousands of them at a page walk each
        with contextlib.suppress(OSError):  # advice: a kernel without huge pages refuses it
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(*shape)
