"""Times a workload on an engine, after it has checked that the engine's outputs are right."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from kernels.attention import Segment, packed_attention, packed_layout
from kernels.quantize import int8_round_trip
from kernels.token_logprobs import token_logprobs
from rollout.config import StorageDtype
from rollout.core import Completion, SamplingParams
from rollout.engine.engine import Engine
from rollout.models.decoder import Decoder
from rollout.models.layers import Int8Linear, Linear
from rollout.stats import EngineStats
from scripts.bench.machine import MachinePeaks, peak_memory_gb
from scripts.bench.rollout.split import time_parts
from scripts.bench.rollout.workloads import Workload

__all__ = ["check_outputs", "measure"]


def measure(
    engine: Engine, workload: Workload, *, repeats: int, peaks: MachinePeaks
) -> dict[str, Any]:
    """Run a workload once to warm up, `repeats` times for the clock, and once more with its parts timed.

    Returns:
        tokens; tokens/s (median, least and greatest); shares of the machine's peaks over the median run; ms per
        engine step of the split run, in all and by part; preemptions and prefix hits of one run.

    Raises:
        RuntimeError: a completion's log-probabilities are not those of one plain forward.
    """
    params = [
        SamplingParams(n=workload.group_size, max_tokens=m, ignore_eos=workload.ignore_eos)
        for m in workload.max_tokens
    ]
    outputs = engine.generate(workload.prompts, params)
    for prompt, completions in list(zip(workload.prompts, outputs, strict=True))[:2]:
        check_outputs(engine, prompt, completions[:2])
    num_tokens = sum(len(c.token_ids) for group in outputs for c in group)
    before = replace(engine.stats)
    runs = [_seconds(engine, workload, params) for _ in range(repeats)]
    counts = _difference(engine.stats, before, repeats)
    seconds = statistics.median(runs)
    with time_parts(engine) as parts:
        split_seconds = _seconds(engine, workload, params)
    parts["other"] = split_seconds - sum(parts.values())
    num_steps = counts["num_steps"]
    return {
        "concurrency": len(workload.prompts) * workload.group_size,
        "tokens": num_tokens,
        "tokens_per_second": round(num_tokens / seconds, 1),
        "tokens_per_second_min": round(num_tokens / max(runs), 1),
        "tokens_per_second_max": round(num_tokens / min(runs), 1),
        "repeats": repeats,
        **_shares(engine.decoder, counts, seconds, peaks),
        "steps": round(num_steps),
        "ms_per_step": round(split_seconds / num_steps * 1e3, 3),
        **{f"ms_{part}": round(s / num_steps * 1e3, 3) for part, s in parts.items()},
        "preemptions": round(counts["num_preemptions"]),
        "prefix_hit_tokens": round(counts["num_prefix_hit_tokens"]),
        "peak_memory_gb": round(peak_memory_gb(), 2),
    }


def _seconds(engine: Engine, workload: Workload, params: Sequence[SamplingParams]) -> float:
    engine.clear_prefix_cache()
    start = time.perf_counter()
    engine.generate(workload.prompts, params)
    return time.perf_counter() - start


def _difference(after: EngineStats, before: EngineStats, repeats: int) -> dict[str, float]:
    return {
        f.name: (getattr(after, f.name) - getattr(before, f.name)) / repeats for f in fields(after)
    }


def _shares(
    decoder: Decoder, counts: Mapping[str, float], seconds: float, peaks: MachinePeaks
) -> dict[str, float]:
    """Return two shares: the linears' multiplications of the GEMM peak, and one read of the weights per step of the bandwidth."""
    weights = [m.weight for m in decoder.layers.modules() if isinstance(m, Linear | Int8Linear)]
    layer_size = sum(w.numel() for w in weights)
    head_size = decoder.lm_head.numel()
    flops = 2 * (
        counts["num_computed_tokens"] * layer_size + counts["num_sampled_tokens"] * head_size
    )
    num_bytes = counts["num_steps"] * (layer_size + head_size) * decoder.lm_head.element_size()
    return {
        "share_of_gemm_peak": round(flops / seconds / (peaks.gemm_tflops * 1e12), 3),
        "share_of_read_bandwidth": round(num_bytes / seconds / (peaks.read_gb_per_second * 1e9), 3),
    }


@torch.no_grad()
def check_outputs(engine: Engine, prompt: Sequence[int], completions: Sequence[Completion]) -> None:
    """Compare log-probabilities with one forward of the engine's model over the whole text, bit for bit.

    Raises:
        RuntimeError: they differ.
    """
    decoder = engine.decoder
    has_int8_kv = engine.config.kv_dtype is StorageDtype.int8
    stored = int8_round_trip if has_int8_kv else lambda x: x
    for completion in completions:
        token_ids = torch.tensor([*prompt, *completion.token_ids], device=decoder.lm_head.device)
        count = len(token_ids)
        segment = Segment(first_row=0, num_queries=count, first_position=0, key_index=range(count))
        layout = packed_layout([segment], num_rows=count, device=token_ids.device)
        hidden = decoder(
            token_ids,
            torch.arange(count, device=token_ids.device),
            lambda _, q, k, v, layout=layout: packed_attention(q, stored(k), stored(v), layout),
        )
        logits = decoder.logits(hidden[len(prompt) - 1 : -1])
        logprobs = token_logprobs(logits, token_ids[len(prompt) :])
        reported = torch.tensor(completion.logprobs, dtype=logprobs.dtype, device=logprobs.device)
        if not torch.equal(logprobs, reported):
            raise RuntimeError(
                "the engine's log-probabilities differ from a plain forward's by up to "
                f"{float((logprobs - reported).abs().max()):.3g}: nothing is reported"
            )
