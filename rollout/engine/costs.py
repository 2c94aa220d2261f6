"""Measures what steps of an engine cost, before it serves."""

import statistics
import time
from dataclasses import dataclass

from rollout.engine.block_manager import BlockManager
from rollout.engine.core import Batch, Chunk, Request, RequestState, SampleKey, SamplingParams
from rollout.engine.runner import Runner
from rollout.engine.sampler import sample_tokens
from rollout.models.decoder import Decoder
from rollout.speculation.cost_table import CostTable

__all__ = ["measure_costs"]

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_CONTEXT = 1024  # of the measurement of keys
_CONTEXT_ROWS = 8
_REPEATS = 3


@dataclass(frozen=True, slots=True)
class _Probe:
    """One request whose first `num_computed` tokens need not be computed, and a draft of `num_rows` - 1 tokens."""

    num_computed: int
    num_rows: int


def measure_costs(
    runner: Runner, decoder: Decoder, blocks: BlockManager, *, max_rows: int, max_context: int
) -> CostTable:
    """Runs steps of 1 to 128 rows, four times each; two or three seconds for a model of 135 M parameters.

    Args:
        runner: runs the steps, and writes what it likes into the blocks.
        decoder: the model.
        blocks: idle.
        max_rows: of a step.
        max_context: of a request.
    """
    limit = min(max_context, blocks.num_blocks * blocks.block_size)
    rows = [n for n in _ROWS if n <= min(max_rows, limit)]
    probes = [_Probe(0, n) for n in rows]
    seconds = {probe.num_rows: _seconds(runner, decoder, blocks, probe) for probe in probes}
    if len(seconds) == 1:
        seconds[2] = 2 * seconds[1]
    num_rows = min(_CONTEXT_ROWS, rows[-1])
    context = min(_CONTEXT, limit - num_rows)
    one_row, more_rows = (
        max(_seconds(runner, decoder, blocks, _Probe(context, n)) - seconds[n], 0.0)
        for n in (1, num_rows)
    )
    return CostTable(
        seconds,
        seconds_per_key=one_row / max(context, 1),
        seconds_per_row_key=max(more_rows - one_row, 0.0) / max(context * (num_rows - 1), 1),
    )


def _seconds(runner: Runner, decoder: Decoder, blocks: BlockManager, probe: _Probe) -> float:
    end = probe.num_computed + probe.num_rows
    request = Request(
        request_id="probe",
        token_ids=(0,) * (probe.num_computed + 1),
        params=SamplingParams(),
        key=SampleKey(0, 0, 0),
    )
    state = RequestState.of(request)
    blocks.grow(state.block_table, num_computed=0, num_tokens=end)
    state.num_computed = probe.num_computed
    chunk = Chunk(state, 1, draft=(0,) * (probe.num_rows - 1))
    try:
        _time(runner, decoder, chunk)  # takes memory that the others then have
        return statistics.median(_time(runner, decoder, chunk) for _ in range(_REPEATS))
    finally:
        blocks.release(state.block_table)


def _time(runner: Runner, decoder: Decoder, chunk: Chunk) -> float:
    """Of forward and sampling."""
    start = time.perf_counter()
    logits_RV = runner.run(decoder, Batch((chunk,), ()))
    rows = range(chunk.num_rows)
    sample_tokens(logits_RV, rows, [chunk.state] * len(rows), rows)
    return time.perf_counter() - start
