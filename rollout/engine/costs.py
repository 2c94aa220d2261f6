"""Measures what steps of an engine cost, before it serves."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rollout.core import Batch, Chunk, Request, RequestState, SampleKey, SamplingParams
from rollout.engine.block_manager import BlockManager
from rollout.engine.runner import Runner
from rollout.engine.sampler import sample_tokens
from rollout.models.decoder import Decoder
from rollout.speculation.cost_table import CostTable, StepSize

__all__ = ["measure_costs"]

_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 64, 128, 256)  # tiles of 6 rows make steps
_CONTEXT = 512  # of the measurement of keys
_CONTEXT_REQUESTS = 4
_CONTEXT_ROWS = 8
_REPEATS = 3
_LONG_ROWS = (
    64  # from here on once: noise is small next to the step, and the start must not take long
)


@dataclass(frozen=True, slots=True)
class _Probe:
    """Requests whose first `num_computed` tokens need not be computed, each with a draft of `num_rows` - 1 tokens."""

    num_computed: int
    num_rows: int
    num_requests: int = 1


def measure_costs(
    runner: Runner, decoder: Decoder, blocks: BlockManager, *, max_rows: int, max_context: int
) -> CostTable:
    """Runs steps of 1 to 256 rows; two or three seconds for a model of 135 M parameters.

    Args:
        runner: runs the steps, and writes what it likes into the blocks.
        decoder: the model.
        blocks: idle.
        max_rows: of a step.
        max_context: of a request.
    """
    limit = min(max_context, blocks.num_blocks * blocks.block_size)
    rows = [n for n in _ROWS if n <= min(max_rows, limit)]
    seconds = {n: _seconds(runner, decoder, blocks, _Probe(0, n)) for n in rows}
    if len(seconds) == 1:
        seconds[2] = 2 * seconds[1]
    table = CostTable(seconds)
    num_rows = min(_CONTEXT_ROWS, rows[-1])
    num_requests = min(_CONTEXT_REQUESTS, num_rows, blocks.num_blocks)
    room = blocks.num_blocks // num_requests * blocks.block_size
    context = max(min(_CONTEXT, max_context, room) - num_rows, 0)

    def of_keys(probe: _Probe) -> float:
        num_rows = probe.num_rows * probe.num_requests
        whole = _seconds(runner, decoder, blocks, probe)
        return max(whole - table.seconds(StepSize(num_rows, 0, 0)), 0.0)

    per_key = of_keys(_Probe(context, 1, num_requests)) / max(context * num_requests, 1)
    more_rows = of_keys(_Probe(context, num_rows)) - context * per_key
    return CostTable(
        seconds,
        seconds_per_key=per_key,
        seconds_per_row_key=max(more_rows, 0.0) / max(context * (num_rows - 1), 1),
    )


def _seconds(runner: Runner, decoder: Decoder, blocks: BlockManager, probe: _Probe) -> float:
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
        _time(runner, decoder, chunks)  # takes memory that the others then have
        return statistics.median(_time(runner, decoder, chunks) for _ in range(repeats))
    finally:
        for chunk in chunks:
            blocks.release(chunk.state.block_table)


def _time(runner: Runner, decoder: Decoder, chunks: Sequence[Chunk]) -> float:
    """Of forward and sampling."""
    start = time.perf_counter()
    logits_RV = runner.run(decoder, Batch(tuple(chunks), ()))
    states = [chunk.state for chunk in chunks for _ in range(chunk.num_rows)]
    sample_tokens(logits_RV, range(len(states)), states, range(len(states)))
    return time.perf_counter() - start
