import math

import pytest

from rl.algorithms.base.config import CorrectionConfig
from rl.rollouts import Rollout
from rl.trainer.metrics.mismatch import MismatchError, check_mismatch
from rl.trainer.metrics.staleness import Pipeline, Staleness, check_staleness, is_fresh
from rl.trainer.metrics.sums import LossSums, MismatchSums
from rl.trainer.metrics.training import LearningResult
from tests.rl.trainer.rollout_factory import completion, group, rollout


def of_versions(*versions: int) -> Rollout:
    """One token of each version, an environment's reply behind the first."""
    made = Rollout.begin([1], group_id=0, sample_index=0)
    for index, version in enumerate(versions):
        made.append_completion(completion([5], version=version))
        if index == 0:
            made.log.append_context([6, 6])
    return made


def test_the_staleness_of_a_rollout_is_that_of_its_oldest_token():
    groups = [group(of_versions(3, 5, 6), of_versions(6)), group(of_versions(5, 6), of_versions(6))]
    assert Staleness.of(groups, 6).metrics() == {"staleness/mean": 1.0, "staleness/max": 3}
    assert Staleness.of([group(rollout([1], version=-1))], 6) is None, "nothing was sampled"


def test_a_batch_that_is_older_than_allowed_or_newer_than_what_is_trained_is_refused():
    groups = [group(of_versions(3, 5))]
    check_staleness(groups, 5, max_staleness=2)
    with pytest.raises(RuntimeError, match=r"version 6 at max_staleness=2, .* versions \[3, 5\]"):
        check_staleness(groups, 6, max_staleness=2)
    with pytest.raises(RuntimeError, match="trains version 4"):
        check_staleness(groups, 4, max_staleness=2)
    with pytest.raises(RuntimeError, match="max_staleness=0"):
        check_staleness([group(of_versions(4))], 5, max_staleness=0)


def test_tokens_are_fresh_that_were_drawn_with_the_weights_that_are_trained():
    mixed, new = of_versions(4, 5, 5), of_versions(5, 5)
    assert is_fresh(mixed, 5, keeps_kv=False).tolist() == [False, True, True]
    assert is_fresh(mixed, 5, keeps_kv=True).tolist() == [False] * 3, "they read old keys"
    assert is_fresh(new, 5, keeps_kv=True).tolist() == [True, True]
    assert is_fresh(new, 6, keeps_kv=False).tolist() == [False, False]


def stats_of(*, num_fresh: int, fresh_k3: float, stale_k3: float) -> LossSums:
    """Ten tokens."""
    mismatch = MismatchSums(
        num_fresh=num_fresh,
        num_stale=10 - num_fresh,
        k3=fresh_k3,
        stale_k3=stale_k3,
        difference=fresh_k3,
        max_difference=0.5,
        weight=9.0,
        squared_weight=9.0,
    )
    return LossSums(mismatch=mismatch, num_tokens=10)


def metrics_of(sums: LossSums) -> dict[str, float]:
    return LearningResult(
        sums=sums, denominator=10.0, grad_norm=1.0, learning_rate=1.0, tracks_freshness=True
    ).metrics()


def test_drift_is_no_mismatch_and_each_is_a_mean_over_its_own_tokens():
    stats = stats_of(num_fresh=4, fresh_k3=2.0, stale_k3=30.0)
    metrics = metrics_of(stats)
    assert (metrics["mismatch/k3"], metrics["staleness/k3"]) == (0.5, 5.0)
    assert metrics["mismatch/importance_weight_mean"] == 0.9, "of all tokens"
    assert metrics["staleness/fresh_fraction"] == 0.4
    with pytest.raises(MismatchError, match=r"0\.5 nats"):
        check_mismatch(stats.mismatch, CorrectionConfig(stop_k3=0.4), step=1)
    check_mismatch(stats.mismatch, CorrectionConfig(stop_k3=0.6), step=1)


def test_a_batch_without_fresh_tokens_has_no_mismatch_and_stops_no_run():
    stats = stats_of(num_fresh=0, fresh_k3=0.0, stale_k3=1e6)
    metrics = metrics_of(stats)
    assert not {"mismatch/k3", "mismatch/logprob_difference_max"} & metrics.keys()
    assert metrics["staleness/k3"] == 1e5
    check_mismatch(stats.mismatch, CorrectionConfig(), step=1)


# --- the closed form


def pipeline(**changes: float) -> Pipeline:
    sizes = {"concurrency": 96.0, "batch_size": 64, "tail": 2.0, "speed_ratio": 0.5, "queue": 1.0}
    return Pipeline(**(sizes | changes))  # pyrefly: ignore


def test_the_closed_form_is_that_of_the_source_on_both_sides_and_has_no_jump_between():
    slow = pipeline(queue=0.25)
    assert slow.staleness(max_staleness=100) == 96 * 2 / 64 + 0.5
    fast = pipeline(speed_ratio=2.0, queue=2.0)
    assert fast.staleness(max_staleness=100) == 96 * 2 / (2 * 64) + (4 + 2 - 1) / 4
    below, at = (pipeline(speed_ratio=r).staleness(max_staleness=100) for r in (1 - 1e-9, 1.0))
    assert math.isclose(below, at, rel_tol=1e-6)
    assert pipeline().staleness(max_staleness=2) == 2, "admission lets nothing grow older"


def test_batches_that_wait_count_though_admission_holds_rollouts_back():
    held_back = pipeline(speed_ratio=0.99, queue=3.0)
    assert held_back.staleness(max_staleness=100) == 96 * 2 / 64 + 3


def test_sizes_are_measured_of_the_batch():
    groups = [
        group(rollout([1], [2] * 4), rollout([1], [2] * 8)),
        group(rollout([1], [2] * 2), rollout([1], [2] * 2)),
    ]
    measured = Pipeline.measure(groups, concurrency=3.0, speed_ratio=0.0, num_waiting=1)
    assert measured == Pipeline(concurrency=3.0, batch_size=4, tail=2.0, speed_ratio=0.0, queue=0.5)
    assert measured.staleness(max_staleness=9) == 3 * 2 / 4
