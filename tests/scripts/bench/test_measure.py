"""The benchmark counts right and refuses wrong outputs. How fast anything is, is not tested."""

import math
import time

import pytest
import torch

from rollout.config import EngineConfig, StorageDtype
from rollout.engine.engine import Engine
from rollout.models.sources.tiny import make_tiny_model
from scripts.bench.machine import (
    MachinePeaks,
    busy_cores,
    measure_peaks,
    peak_memory_gb,
    process_age_seconds,
)
from scripts.bench.rollout.measure import measure
from scripts.bench.rollout.split import PARTS, time_parts
from scripts.bench.rollout.workloads import WORKLOADS, Workload, make_workload

PEAKS = MachinePeaks(gemm_tflops=1.0, read_gb_per_second=1.0)
WORK = Workload(prompts=[[5, 6, 7], [8, 9]], max_tokens=[4, 6], group_size=2, ignore_eos=True)


@pytest.fixture
def engine(tmp_path):
    make_tiny_model(tmp_path)
    return Engine.from_pretrained(
        tmp_path, dtype="float32", config=EngineConfig(kv_cache_gb=0.02, block_size=16)
    )


def test_tokens_steps_and_parts_add_up(engine):
    result = measure(engine, WORK, repeats=2, peaks=PEAKS)
    assert result["tokens"] == 2 * 4 + 2 * 6
    assert result["concurrency"] == 4
    assert result["steps"] == 6, "one prefill that samples, then five decode steps of the longer"
    parts = [result[f"ms_{part}"] for part in (*set(PARTS.values()), "other")]
    assert all(part > 0 for part in parts)
    assert sum(parts) == pytest.approx(result["ms_per_step"], abs=0.05)
    assert result["tokens_per_second_min"] <= result["tokens_per_second"]
    assert result["tokens_per_second"] <= result["tokens_per_second_max"]


def test_shares_are_of_the_work_that_was_done(engine):
    once = measure(engine, WORK, repeats=1, peaks=PEAKS)
    weights = [p for layer in engine.decoder.layers for p in layer.parameters() if p.ndim == 2]
    layers, head = sum(w.numel() for w in weights), engine.decoder.lm_head.numel()
    seconds = once["tokens"] / once["tokens_per_second"]
    computed, sampled = 3 + 2 + 2 * (4 - 1) + 2 * (6 - 1), 20  # a group's prompt is computed once
    flops = 2 * (computed * layers + sampled * head)
    assert once["share_of_gemm_peak"] == pytest.approx(flops / seconds / 1e12, abs=0.002)
    num_bytes = 6 * 4 * (layers + head)
    assert once["share_of_read_bandwidth"] == pytest.approx(num_bytes / seconds / 1e9, rel=0.02)


def test_nothing_is_reported_when_outputs_are_wrong(engine, monkeypatch):
    original = engine.generate

    def slightly_wrong(*args):
        outputs = original(*args)
        outputs[1][0].logprobs[-1] -= 1e-6
        return outputs

    monkeypatch.setattr(engine, "generate", slightly_wrong)
    with pytest.raises(RuntimeError, match=r"differ from a plain forward's .* nothing is reported"):
        measure(engine, WORK, repeats=1, peaks=PEAKS)


@pytest.mark.parametrize("wrong_by", [0.0, 1e-6])
def test_an_engine_in_8_bits_is_held_to_the_last_bit_of_its_own_model(
    tmp_path, monkeypatch, wrong_by
):
    make_tiny_model(tmp_path)
    config = EngineConfig(
        kv_cache_gb=0.02, weight_dtype=StorageDtype.int8, kv_dtype=StorageDtype.int8
    )
    engine = Engine.from_pretrained(tmp_path, dtype="float32", config=config)
    original = engine.generate

    def perhaps_wrong(*args):
        outputs = original(*args)
        outputs[0][0].logprobs[-1] -= wrong_by
        return outputs

    monkeypatch.setattr(engine, "generate", perhaps_wrong)
    if wrong_by:
        with pytest.raises(RuntimeError, match="nothing is reported"):
            measure(engine, WORK, repeats=1, peaks=PEAKS)
    else:
        result = measure(engine, WORK, repeats=1, peaks=PEAKS)
        assert result["tokens"] == 20
        assert result["ms_linears"] > 0


def test_parts_are_timed_inside_and_left_alone_outside(engine):
    with time_parts(engine) as parts:
        engine.generate([[5, 6]])
    timed = dict(parts)
    engine.generate([[5, 6]])
    assert parts == timed
    assert set(timed) == set(PARTS.values())
    assert all(seconds > 0 for seconds in timed.values())


def test_the_machine_is_measured():
    peaks = measure_peaks(torch.float32)
    assert 1e-4 < peaks.gemm_tflops < 1e4
    assert 0.1 < peaks.read_gb_per_second < 1e5
    assert 0.05 < peak_memory_gb() < 1e4
    before = process_age_seconds()
    busy = busy_cores(0.2)
    assert math.isnan(busy) or busy >= 0
    if not math.isnan(before):
        assert 0.2 <= process_age_seconds() - before < 60
        assert 0 < before < time.clock_gettime(time.CLOCK_BOOTTIME)


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_has_the_shape_its_name_stands_for(engine, name):
    work = make_workload(name, engine.tokenizer)
    expected = {"W1": (8, 8), "W2": (32, 8), "W3": (1, 1), "W4": (16, 8), "W5": (1, 16)}
    assert (len(work.prompts), work.group_size) == expected.get(name, (512, 1))
    assert len(work.max_tokens) == len(work.prompts)
    assert work.ignore_eos == (name != "W4")
    assert make_workload(name, engine.tokenizer) == work, "the same at every call"
