"""Rollouts begun in excess: which are kept, what becomes of the others, and what is said of them."""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

import pytest

from rl.algorithms.grpo import GRPOConfig
from rl.algorithms.registry import make_algorithm
from rl.algorithms.sft import SFTConfig
from rl.config import RunMode, TrainConfig
from rl.environments.contract import Reply
from rl.environments.single_turn import SingleTurn
from rl.rewards.outcome import OutcomeKind, ScoreOutcome
from rl.rollouts import Purpose, Rollout, RolloutGroup
from rl.runs.checkpoint import RunState
from rl.tasks.config import ArithmeticConfig
from rl.trainer.checks import check_config
from rl.trainer.collect.batches import CollectedBatch
from rl.trainer.collect.collector import Collector
from rl.trainer.collect.evaluation import evaluate
from rl.trainer.metrics.overprovision import overprovision_metrics
from rl.trainer.metrics.staleness import Pipeline
from rollout.config import TINY, ModelConfig, RayFleetConfig
from rollout.core import Completion, FinishReason, SamplingParams
from rollout.fleet.cluster.fleet import WorkerFleet
from rollout.fleet.inline import InlineFleet
from tests.rl.trainer.collect.test_batches import (
    LazyPool,
    SlotFleet,
    config,
    ids,
    random_lengths,
    run,
    versions,
)
from tests.rl.trainer.collect.test_collector import PROMPT, ScriptedTicket, render, said
from tests.rl.trainer.rollout_factory import group, rollout
from tests.rollout.engine.engines import make_engine
from tests.rollout.fleet.cluster.simulated import SimulatedPool, token_of, update_to
from tests.rollout.fleet.cluster.test_cluster_fleet import LIMITS, disturb, random_faults
from tests.tiny_models import save_tiny

ABORTED = FinishReason.ABORTED


class AtOnce(LazyPool):
    """Done when first asked."""

    def submit(self, jobs):
        ticket = super().submit(jobs)
        ticket.patience = 0
        return ticket


class Numbered(SingleTurn):
    """Knows the place of its rollout among its siblings, and replies with one token while it `goes_on`."""

    def __init__(self, sample_index: int) -> None:
        self.sample_index = sample_index
        self.num_turns = 0

    def reply(self, turn):
        self.num_turns += 1
        return said(50) if self.goes_on() else Reply(is_done=True)


def numbered(kind: type[Numbered], num_begun: int) -> Callable[[], Numbered]:
    """Makes environments in the order in which a collector begins the rollouts of its groups."""
    count = itertools.count()
    return lambda: kind(next(count) % num_begun)


def begin(collector: Collector, *, group_id: int = 0, size: int = 2, num_spare: int = 2) -> None:
    collector.begin(
        PROMPT,
        [1, 2],
        group_id=group_id,
        group_size=size,
        params=SamplingParams(),
        purpose=Purpose.TRAINING,
        num_spare=num_spare,
    )


def complete(collector: Collector) -> list[RolloutGroup]:
    groups = []
    for _ in range(200):
        groups += collector.poll(0.0)
        if collector.is_idle:
            return groups
    raise AssertionError("some rollouts never end")


def indices(rollouts: list[Rollout]) -> list[int]:
    return [made.sample_index for made in rollouts]


def lengths(rollouts: list[Rollout]) -> list[int]:
    return [made.num_sampled_tokens for made in rollouts]


# --- which are kept


def test_the_first_to_end_are_kept_and_the_others_end_where_they_were():
    fleet = SlotFleet(lambda r: [9, 2, 30, 4][r.key.sample_index])
    collector = Collector(fleet, AtOnce())
    begin(collector)
    (made,) = complete(collector)
    assert (indices(made.rollouts), lengths(made.rollouts)) == ([1, 3], [2, 4])
    assert [r.reward for r in made.rollouts] == [1.0, 1.0]
    assert (indices(made.surplus), lengths(made.surplus)) == ([0, 2], [4, 4])
    assert [r.turns[-1].finish_reason for r in made.surplus] == [ABORTED, ABORTED]
    assert [r.outcome for r in made.surplus] == [None, None]


def test_late_ones_are_cancelled_as_soon_as_the_group_is_full_and_not_when_it_is_scored():
    fleet = SlotFleet(lambda r: [1, 1, 30, 30][r.key.sample_index])
    pool = LazyPool()
    pool.rng = random.Random()
    pool.rng.randrange = lambda _: 1000  # nobody has scores for a long time
    collector = Collector(fleet, pool)
    begin(collector)
    begin(collector, group_id=1, size=4, num_spare=0)
    collector.poll(0.0)
    assert {request.key.group_id for request in fleet.running} == {1}
    assert not fleet.waiting


def test_of_those_that_end_together_the_first_in_line_are_kept_whatever_their_order():
    class Reversed(SlotFleet):
        def poll(self, timeout_seconds):
            return super().poll(timeout_seconds)[::-1]

    for fleet in (SlotFleet(lambda _: 3), Reversed(lambda _: 3)):
        collector = Collector(fleet, AtOnce())
        begin(collector)
        (made,) = complete(collector)
        assert indices(made.rollouts) == [0, 1]
        assert sorted(indices(made.surplus)) == [2, 3]
        assert {r.turns[-1].finish_reason for r in made.surplus} == {FinishReason.STOP}


def test_spare_rollouts_wait_behind_all_that_are_needed():
    fleet = SlotFleet(lambda _: 1)
    collector = Collector(fleet, AtOnce())
    begin(collector)
    begin(collector, group_id=1)
    priorities = [(r.key.sample_index, r.priority) for r in fleet.waiting]
    assert priorities == [(0, 0), (1, 0), (2, -1), (3, -1)] * 2


def test_a_rollout_of_several_turns_is_aborted_in_the_one_it_is_in():
    class Talks(Numbered):
        """Replies twice to all but the first two, which are done at once."""

        def goes_on(self):
            return self.sample_index > 1 and self.num_turns < 3

    fleet = SlotFleet(lambda r: 2 if r.key.sample_index > 1 else 3)
    collector = Collector(fleet, AtOnce(), numbered(Talks, 4), render=render)
    begin(collector)
    (made,) = complete(collector)
    assert indices(made.rollouts) == [0, 1]
    assert [len(r.turns) for r in made.surplus] == [2, 2]
    assert lengths(made.surplus) == [3, 3]


def test_who_ends_while_he_is_cancelled_is_set_aside_and_asked_for_no_other_turn():
    class Deaf(SlotFleet):
        def cancel(self, request_ids):
            """Too late: the answers are on their way."""

    class Talks(Numbered):
        def goes_on(self):
            return self.sample_index > 1

    fleet = Deaf(lambda r: 1 if r.key.sample_index < 2 else 5)
    collector = Collector(fleet, AtOnce(), numbered(Talks, 4), render=render)
    begin(collector)
    (made,) = complete(collector)
    assert indices(made.rollouts) == [0, 1]
    assert lengths(made.surplus) == [5, 5]
    assert [len(r.turns) for r in made.surplus] == [1, 1]


def test_what_the_fleet_aborts_of_its_own_is_an_error_beside_spare_ones_too():
    fleet = SlotFleet(lambda _: 30)
    collector = Collector(fleet, AtOnce())
    begin(collector)
    collector.poll(0.0)
    fleet.cancel(["training/0/3/0"])
    with pytest.raises(RuntimeError, match=r"training/0/3/0 of prompt 3 was aborted"):
        collector.poll(0.0)


def test_evaluations_beside_it_have_no_spare_rollouts_and_lose_none():
    fleet = SlotFleet(lambda r: 1 + r.key.group_id % 3)
    collector = Collector(fleet, AtOnce())
    begin(collector, group_id=7)
    made = evaluate(
        collector,
        [(PROMPT, [1])] * 5,
        params=SamplingParams(temperature=0),
        progress=lambda *_: None,
    )
    assert made is not None
    assert [(len(g.rollouts), g.surplus) for g in made.groups] == [(1, [])] * 5
    (trained,) = complete(collector)
    assert len(trained.rollouts) == 2


# --- over an engine


def test_kept_tokens_are_those_of_a_run_without_spare_ones_and_blocks_are_free_at_once(tmp_path):
    directory = save_tiny(tmp_path, "llama")
    params = SamplingParams(max_tokens=40, stop_token_ids=tuple(range(0, 200, 9)))
    made = {}
    for size, num_spare in ((8, 0), (3, 5)):
        fleet = InlineFleet(make_engine(directory, max_requests=16))
        collector = Collector(fleet, SameScores())
        for group_id in (4, 5):
            collector.begin(
                PROMPT,
                [7, 8, 9],
                group_id=group_id,
                group_size=size,
                params=params,
                purpose=Purpose.TRAINING,
                num_spare=num_spare,
            )
        groups = []
        while not collector.is_idle:
            groups += collector.poll(0.0)
            running = {a.key for a in collector._attempts.values() if not a.is_cancelled}
            if not running:
                assert fleet.engine.num_free_blocks == fleet.engine.num_blocks
        made[size] = {g.group_id: g for g in groups}
    for group_id, kept in made[3].items():
        whole = made[8][group_id].rollouts
        assert [r.log.token_ids for r in kept.rollouts] == [
            whole[i].log.token_ids for i in indices(kept.rollouts)
        ]
        assert sorted(lengths(kept.rollouts)) == sorted(lengths(whole))[:3]
        assert len(set(lengths(whole))) > 3
        for late in kept.surplus:
            assert (
                late.log.token_ids
                == whole[late.sample_index].log.token_ids[: len(late.log.token_ids)]
            )


class SameScores:
    """Whatever the text says."""

    def submit(self, jobs):
        ticket = ScriptedTicket(jobs)
        ticket.outcomes = lambda: [ScoreOutcome(kind=OutcomeKind.SCORE, score=1.0)] * len(jobs)
        return ticket


# --- whole runs


@pytest.mark.parametrize("num_slots", [7, 1000])
@pytest.mark.parametrize("max_staleness", [0, 1, 4])
def test_every_group_is_trained_once_with_exactly_its_size_and_nothing_is_left_behind(
    max_staleness, num_slots
):
    fleet = SlotFleet(random_lengths, num_slots=num_slots)
    made = config(max_staleness=max_staleness, group_size=3, num_spare=2)
    out, _ = run(fleet, made)
    assert ids(out) == [list(range(3 * i, 3 * i + 3)) for i in range(12)]
    groups = [group for batch in out for group in batch.trained]
    assert all(len(group.rollouts) == 3 and len(group.surplus) == 2 for group in groups)
    assert all(sorted(indices(g.rollouts + g.surplus)) == [0, 1, 2, 3, 4] for g in groups)
    assert all(r.outcome is not None for g in groups for r in g.rollouts)
    status = fleet.status()
    assert (status.issued, status.running) == (36 * 5, 0)
    assert status.cancelled == sum(overprovision_metrics([g])["overprovision/num_aborted"] for g in groups)  # fmt: skip
    if num_slots == 1000:  # all begin together, so that the kept are the shortest
        wanted = [sorted(random_lengths_of(g.group_id, 5))[:3] for g in groups]
        assert [sorted(lengths(g.rollouts)) for g in groups] == wanted


def random_lengths_of(group_id: int, count: int) -> list[int]:
    return [random.Random(f"{group_id}/{i}").choice((1, 2, 3, 30)) for i in range(count)]


def test_it_ends_the_tail_and_costs_what_it_says():
    """One rollout in four takes ten times as long as the others, or more."""
    plain, spared = SlotFleet(random_lengths), SlotFleet(random_lengths)
    run(plain, config(max_staleness=0, group_size=3))
    out, _ = run(spared, config(max_staleness=0, group_size=3, num_spare=3))
    assert spared.num_steps < 0.6 * plain.num_steps
    for batch in out:
        metrics = overprovision_metrics(batch.groups)
        tokens = sum(map(sum, (lengths(g.rollouts) for g in batch.groups)))
        wasted = metrics["overprovision/wasted_token_fraction"]
        assert wasted * (tokens / (1 - wasted)) == pytest.approx(
            sum(map(sum, (lengths(g.surplus) for g in batch.groups)))
        )


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_over_one_engine_no_token_and_no_choice_depends_on_how_fast_scores_were(max_staleness):
    made, runs = config(max_staleness=max_staleness, num_spare=2), []
    for seed in range(6):
        fleet = SlotFleet(random_lengths, num_slots=11)
        pool = LazyPool({0, 4, 5, 16}, seed=seed)
        out, _ = run(fleet, made, pool=pool, max_resample_batches=2)
        kept = [indices(group.rollouts) for batch in out for group in batch.groups]
        runs.append((ids(out), versions(out), kept))
    assert all(one == other for one, other in pairwise(runs))


@pytest.mark.parametrize("max_staleness", [0, 1, 4])
def test_a_resumed_run_trains_nothing_twice_and_at_staleness_0_is_the_run_that_would_have_been(
    max_staleness,
):
    made = config(max_staleness=max_staleness, num_spare=1)
    whole, _ = run(SlotFleet(random_lengths, num_slots=7), made)
    first, batches = run(SlotFleet(random_lengths, num_slots=7), made, stop_after=5)
    state = RunState(policy_version=5, accepted_groups=batches.num_accepted)
    rest, _ = run(SlotFleet(random_lengths, num_slots=7), made, state=state)
    assert ids([*first, *rest]) == ids(whole)
    if max_staleness == 0:
        assert kept_by([*first, *rest]) == kept_by(whole)
    assert len(set(kept_by([*first, *rest]))) == len(kept_by(whole)) == 36 * 2


def kept_by(batches: list[CollectedBatch]) -> list[tuple[int, int]]:
    return [(r.group_id, r.sample_index) for b in batches for g in b.trained for r in g.rollouts]


class Talkative(Numbered):
    """Replies once to every third rollout."""

    def goes_on(self):
        return self.sample_index % 3 == 0 and self.num_turns == 1


class Disturbed:
    """Simulated workers under faults, whose completions have the lengths and texts of `SlotFleet`'s."""

    def __init__(self, seed: int) -> None:
        self.source = random.Random(seed)
        self.pool = SimulatedPool(
            seed=seed, faults=random_faults(self.source), speeds=[0.01, 0.1], max_requests=6
        )
        limits = LIMITS | {"num_workers": 2, "max_replacements": 100}
        self.fleet = WorkerFleet(
            self.pool,
            RayFleetConfig(**limits),
            policy_version=0,
            digest=update_to(0).manifest.digest,
        ).start()
        self.keys = {}
        self.cancel, self.status = self.fleet.cancel, self.fleet.status

    @property
    def version(self) -> int:
        return self.fleet.status().policy_version

    @version.setter
    def version(self, version: int) -> None:
        if version:
            self.fleet.update_weights(update_to(version))

    def submit(self, requests):
        self.keys |= {r.request_id: r.key for r in requests}
        self.fleet.submit(
            [replace(r, params=SamplingParams(max_tokens=random_lengths(r))) for r in requests]
        )

    def poll(self, timeout_seconds):
        if self.source.random() < 0.03:
            disturb(self.source, self.pool, self.fleet)
        return [self._checked(completion) for completion in self.fleet.poll(0.3)]

    def _checked(self, completion: Completion) -> Completion:
        key, made_by = self.keys[completion.request_id], enumerate(completion.policy_versions)
        assert completion.token_ids == [token_of(key, i, version) for i, version in made_by]
        reason = completion.finish_reason
        if reason is FinishReason.LENGTH:  # `random_lengths` is where it ends by itself
            reason = FinishReason.STOP
        text = f"{key.group_id} {key.sample_index}"
        return replace(completion, text=text, finish_reason=reason)


@pytest.mark.parametrize("max_staleness", [0, 2])
@pytest.mark.parametrize("seed", range(40))
def test_under_any_faults_kept_tokens_are_the_keyed_ones_and_nothing_is_lost_or_trained_twice(
    seed, max_staleness
):
    fleet = Disturbed(seed)
    made = config(max_staleness=max_staleness, num_steps=6, group_size=3, num_spare=2)
    out, _ = run(fleet, made, make_environment=numbered(Talkative, 5))
    assert ids(out) == [list(range(3 * i, 3 * i + 3)) for i in range(6)]
    groups = [group for batch in out for group in batch.trained]
    for it in groups:
        assert (len(it.rollouts), len(it.surplus)) == (3, 2)
        assert sorted(indices(it.rollouts + it.surplus)) == [0, 1, 2, 3, 4]
        for kept in it.rollouts:
            num_turns = 2 if kept.sample_index % 3 == 0 else 1
            assert len(kept.turns) == num_turns
            length = random_lengths_of(it.group_id, 5)[kept.sample_index]
            assert kept.num_sampled_tokens == num_turns * length
    status = fleet.status()
    assert status.running == 0
    assert status.issued == status.finished + status.cancelled
    fleet.pool.pass_unattended(5.0)
    living = [e for w, e in fleet.pool.engines.items() if w not in hung_workers(fleet.pool)]
    assert not any(engine.request_ids for engine in living)


def hung_workers(pool: SimulatedPool) -> set[str]:
    return {worker_id for worker_id, process in pool._processes.items() if process.is_hung}


# --- what is said of it


def test_what_is_left_out_is_reported_with_lengths_that_are_at_least_so():
    short, wordy = rollout([1], [2, 2], reward=0.0), rollout([1], [2] * 6, reward=1.0)
    made = group(short, wordy)
    made.surplus = [
        aborted(num_tokens=6, sample_index=2),
        rollout([1], [2] * 5, reward=None, sample_index=3),
    ]
    other = group(rollout([1], [2] * 3, reward=0.5), rollout([1], [2], reward=1.0))
    other.surplus = [aborted(num_tokens=3, sample_index=2), aborted(num_tokens=0, sample_index=3)]
    assert overprovision_metrics([made, other]) == {
        "overprovision/num_begun": 8,
        "overprovision/num_aborted": 3,
        "overprovision/length_mean_kept": 12 / 4,
        "overprovision/length_mean_begun_at_least": 26 / 8,
        "overprovision/length_mean_aborted_at_least": 9 / 3,
        "overprovision/wasted_token_fraction": 14 / 26,
        "overprovision/reward_mean_longest": (1.0 + 0.5) / 2,
    }
    assert overprovision_metrics([group(short, wordy)]) == {}


def aborted(*, num_tokens: int, sample_index: int) -> Rollout:
    made = rollout([1], sample_index=sample_index)
    made.outcome = None
    made.append_completion(
        Completion(
            request_id="",
            token_ids=[2] * num_tokens,
            logprobs=[-1.0] * num_tokens,
            policy_versions=[0] * num_tokens,
            finish_reason=ABORTED,
        )
    )
    return made


def test_the_bound_is_below_the_truth_and_above_the_kept():
    fleet = SlotFleet(random_lengths)
    out, _ = run(fleet, config(max_staleness=0, group_size=3, num_spare=2, num_steps=12))
    begun = fmean(fmean(random_lengths_of(g.group_id, 5)) for batch in out for g in batch.trained)
    metrics = [overprovision_metrics(batch.groups) for batch in out]
    kept, bound = (
        fmean(m[f"overprovision/length_mean_{which}"] for m in metrics)
        for which in ("kept", "begun_at_least")
    )
    assert kept < bound < begun


def test_predicted_staleness_counts_what_was_decoded_in_vain():
    made = group(rollout([1], [2] * 4), rollout([1], [2] * 8))
    made.surplus = [aborted(num_tokens=8, sample_index=2), aborted(num_tokens=4, sample_index=3)]
    pipeline = Pipeline.measure([made], concurrency=4.0, speed_ratio=0.0, num_waiting=0)
    assert (pipeline.batch_size, pipeline.tail) == (4, 8 / 6)


# --- what is refused


def train_config(**changes) -> TrainConfig:
    parts = {
        "run_dir": "",
        "model": ModelConfig(path=TINY),
        "task": ArithmeticConfig(),
        "algorithm": GRPOConfig(),
    }
    return TrainConfig(**(parts | changes))


def check(made: TrainConfig) -> None:
    algorithm = make_algorithm(made.algorithm, max_tokens=made.sampling.max_tokens)
    check_config(made, algorithm.needs)


def test_where_nothing_is_sampled_there_is_nothing_to_begin_in_excess():
    with pytest.raises(ValueError, match=r"num_spare_rollouts must be 0 with algorithm=sft, got 2"):
        check(train_config(num_spare_rollouts=2, algorithm=SFTConfig()))
    with pytest.raises(ValueError, match=r"num_spare_rollouts must be 0 with mode=train_only"):
        check(train_config(num_spare_rollouts=1, mode=RunMode.train_only))
    with pytest.raises(ValueError, match=r"num_spare_rollouts must be >= 0, got -1"):
        train_config(num_spare_rollouts=-1)
    check(train_config(num_spare_rollouts=2))
