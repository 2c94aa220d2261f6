"""Times a workload on an engine, and refuses to when the engine's outputs are wrong."""

import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from kernels.attention import Segment, packed_attention, packed_layout
from kernels.linear_logprobs import linear_logprobs
from rollout.bench.workloads import Workload
from rollout.engine.core import Completion, SamplingParams
from rollout.engine.engine import Engine
from rollout.models.decoder import Decoder

__all__ = ["busy_cores", "check_outputs", "measure"]


def busy_cores() -> float:
    """Load average of the last minute: what other processes, and this one, kept busy."""
    return os.getloadavg()[0]


def measure(engine: Engine, workload: Workload, *, repeats: int) -> dict[str, Any]:
    """Run a workload once to warm up and `repeats` times for the clock.

    Returns:
        tokens, tokens/s (median, least and greatest), computed and preempted counts of the last run.

    Raises:
        RuntimeError: a completion's log-probabilities are not those of one plain forward.
    """
    params = [
        SamplingParams(n=workload.group_size, max_tokens=m, ignore_eos=workload.ignore_eos)
        for m in workload.max_tokens
    ]
    outputs = engine.generate(workload.prompts, params)
    for prompt, completions in list(zip(workload.prompts, outputs, strict=True))[:2]:
        check_outputs(engine.decoder, prompt, completions[:2])
    num_tokens = sum(len(c.token_ids) for group in outputs for c in group)
    rates = []
    for _ in range(repeats):
        engine.clear_prefix_cache()
        start = time.monotonic()
        engine.generate(workload.prompts, params)
        rates.append(num_tokens / (time.monotonic() - start))
    return {
        "concurrency": len(workload.prompts) * workload.group_size,
        "tokens": num_tokens,
        "tokens_per_second": round(statistics.median(rates), 1),
        "tokens_per_second_min": round(min(rates), 1),
        "tokens_per_second_max": round(max(rates), 1),
        "repeats": repeats,
    }


@torch.no_grad()
def check_outputs(
    decoder: Decoder, prompt: Sequence[int], completions: Sequence[Completion]
) -> None:
    """Compare log-probabilities with one forward over the whole text, bit for bit.

    Raises:
        RuntimeError: they differ.
    """
    for completion in completions:
        token_ids = torch.tensor([*prompt, *completion.token_ids], device=decoder.lm_head.device)
        count = len(token_ids)
        segment = Segment(first_row=0, num_queries=count, first_position=0, key_index=range(count))
        layout = packed_layout([segment], num_rows=count, device=token_ids.device)
        hidden = decoder(
            token_ids,
            torch.arange(count, device=token_ids.device),
            lambda _, q, k, v, layout=layout: packed_attention(q, k, v, layout),
        )
        rows = hidden[len(prompt) - 1 : -1]
        logprobs, _ = linear_logprobs(rows, decoder.lm_head, token_ids[len(prompt) :])
        reported = torch.tensor(completion.logprobs, dtype=logprobs.dtype, device=logprobs.device)
        if not torch.equal(logprobs, reported):
            raise RuntimeError(
                "the engine's log-probabilities differ from a plain forward's by up to "
                f"{float((logprobs - reported).abs().max()):.3g}: nothing is reported"
            )
