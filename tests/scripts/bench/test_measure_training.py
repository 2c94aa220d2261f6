import pytest

from scripts.bench.machine import MachinePeaks
from scripts.bench.train.measure import summarize

PEAKS = MachinePeaks(gemm_tflops=0.5, read_gb_per_second=40.0)


def step(seconds: float, **metrics: float) -> dict[str, float]:
    return {
        "seconds/step": seconds,
        "seconds/rollout": 2.0,
        "seconds/forward_backward": 3.0,
        "seconds/backward": 2.0,
        "seconds/optimizer": 0.5,
        "rollout/num_tokens": 1000,
        "training/num_tokens": 400,
        "rollout/length_mean": 30.0,
        "memory/peak_gb": 1.5,
        "reward/mean": 0.25,
        **metrics,
    }


def test_the_first_step_does_not_count():
    summary = summarize(
        [step(100.0), step(6.0), step(8.0), step(7.0)], num_parameters=1, peaks=PEAKS
    )
    assert summary["steps"] == 3
    assert (summary["step_seconds_min"], summary["step_seconds"], summary["step_seconds_max"]) == (
        6.0,
        7.0,
        8.0,
    )


def test_the_parts_of_a_step_sum_to_the_step():
    summary = summarize([step(9.0), step(7.0)], num_parameters=1, peaks=PEAKS)
    parts = {k: v for k, v in summary.items() if k.startswith("seconds_")}
    assert parts == {
        "seconds_rollout": 2.0,
        "seconds_reward": 0.0,
        "seconds_ask": 0.0,
        "seconds_pack": 0.0,
        "seconds_forward": 1.0,
        "seconds_backward": 2.0,
        "seconds_optimizer": 0.5,
        "seconds_weight_update": 0.0,
        "seconds_other": 1.5,
    }


def test_the_share_of_the_peak_counts_two_operations_per_parameter_and_token_and_six_more_if_trained_on():
    summary = summarize([step(9.0), step(4.0)], num_parameters=100_000_000, peaks=PEAKS)
    assert summary["share_of_gemm_peak"] == pytest.approx(
        (2 * 1000 + 6 * 400) * 1e8 / 4 / 0.5e12, rel=1e-3
    )
    assert summary["tokens_per_second"] == 250.0


def test_memory_is_the_greatest_of_all_steps_and_rewards_are_of_all():
    steps = [step(9.0, **{"memory/peak_gb": 3.0, "reward/mean": 0.5}), step(4.0)]
    summary = summarize(steps, num_parameters=1, peaks=PEAKS)
    assert summary["peak_memory_gb"] == 3.0
    assert summary["rewards"] == [0.5, 0.25]
