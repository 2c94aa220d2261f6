"""Measures what the steps of an engine cost, before it serves."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rollout.core import Chunk, Request, RequestState, SampleKey, SamplingParams, StepBatch
from rollout.engine.block_manager import BlockManager
from rollout.engine.runner import Runner
from rollout.engine.sampler import sample_tokens
from rollout.models.packed_decoder import PackedDecoder
from rollout.speculation.cost_table import CostTable, StepSize

__all__ = ["measure_costs"]

_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 64, 128, 256)  # tiles of 6 rows make steps
_CONTEXT = 512  # of the measurement of keys
_CONTEXT_REQUESTS = 4
_CONTEXT_ROWS = 8
_REPEATS = 3
_LONG_ROWS = (
    64  # steps of so many rows run once: noise is small next to them, and the start must be short
)


@dataclass(frozen=True, slots=True)
class _Probe:
    """A step: requests with `num_computed` tokens in the cache, each with a draft of `num_rows` - 1 tokens."""

    num_computed: int
    num_rows: int
    num_requests: int = 1


def measure_costs(
    runner: Runner, weights: PackedDecoder, blocks: BlockManager, *, max_rows: int, max_context: int
) -> CostTable:
    """Times steps of 1 to 256 rows. Takes two or three seconds for a model of 135 M parameters.

    Args:
        runner: runs the steps; it writes into free blocks.
        weights: weights of the model.
        blocks: block manager of an idle engine.
        max_rows: most rows of a step.
        max_context: most tokens of a request.
    """
    limit = min(max_context, blocks.num_blocks * blocks.block_size)
    rows = [n for n in _ROWS if n <= min(max_rows, limit)]
    seconds = {n: _seconds(runner, weights, blocks, _Probe(0, n)) for n in rows}
    if len(seconds) == 1:
        seconds[2] = 2 * seconds[1]
    table = CostTable(seconds)
    num_rows = min(_CONTEXT_ROWS, rows[-1])
    num_requests = min(_CONTEXT_REQUESTS, num_rows, blocks.num_blocks)
    room = blocks.num_blocks // num_requests * blocks.block_size
    context = max(min(_CONTEXT, max_context, room) - num_rows, 0)

    def seconds_of_keys(probe: _Probe) -> float:
        num_rows = probe.num_rows * probe.num_requests
        whole = _seconds(runner, weights, blocks, probe)
        return max(whole - table.seconds(StepSize(num_rows, 0, 0)), 0.0)

    per_key = seconds_of_keys(_Probe(context, 1, num_requests)) / max(context * num_requests, 1)
    more_rows = seconds_of_keys(_Probe(context, num_rows)) - context * per_key
    return CostTable(
        seconds,
        seconds_per_key=per_key,
        seconds_per_row_key=max(more_rows, 0.0) / max(context * (num_rows - 1), 1),
    )


def _seconds(runner: Runner, weights: PackedDecoder, blocks: BlockManager, probe: _Probe) -> float:
    chunks: list[Chunk] = []
    try:
        for i in range(probe.num_requests):
            request = Request(
                request_id=f"probe {i}",
                token_ids=(0,) * (probe.num_computed + 1),
                params=SamplingParams(),
                key=SampleKey(0, i, 0),
            )
            state = RequestState.of(request)
            chunks.append(Chunk(state, 1, draft=(0,) * (probe.num_rows - 1)))
            end = probe.num_computed + probe.num_rows
            blocks.grow(state.block_table, num_computed=0, num_tokens=end)
            state.num_computed = probe.num_computed
        repeats = _REPEATS if probe.num_rows < _LONG_ROWS else 1
        _time(runner, weights, chunks)  # takes memory that the others then have
        return statistics.median(_time(runner, weights, chunks) for _ in range(repeats))
    finally:
        for chunk in chunks:
            blocks.release(chunk.state.block_table)


def _time(runner: Runner, weights: PackedDecoder, chunks: Sequence[Chunk]) -> float:
    """Returns the seconds of one forward and its sampling."""
    start = time.perf_counter()
    logits_RV = runner.run(weights, StepBatch(tuple(chunks), ()))
    states = [chunk.state for chunk in chunks for _ in range(chunk.num_rows)]
    sample_tokens(logits_RV, range(len(states)), states, range(len(states)))
    return time.perf_counter() - start
