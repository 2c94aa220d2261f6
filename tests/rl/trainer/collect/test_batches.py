"""Which groups are begun when, over a fleet and a scorer that are scripted: no model, no process, no clock."""

import itertools
import random
from statistics import fmean

import pytest

from rl.algorithms.grpo import GRPOConfig
from rl.config import TrainConfig
from rl.environments.single_turn import SingleTurn
from rl.rewards.outcome import OutcomeKind, ScoreOutcome
from rl.runs.checkpoint import RunState
from rl.tasks.config import ArithmeticConfig
from rl.tasks.prompts import Prompt
from rl.trainer.collect.batches import Batches
from rl.trainer.collect.collector import Collector
from rl.trainer.config import TrainerConfig
from rl.trainer.metrics.staleness import Pipeline, Staleness, check_staleness
from rl.trainer.metrics.stopwatch import Stopwatch
from rollout.config import TINY, ModelConfig
from rollout.core import Completion, FinishReason, Request
from rollout.fleet.base import FleetStatus
from tests.rl.trainer.collect.test_collector import render

NUM_PROMPTS = 40


class SlotFleet:
    """`num_slots` requests at a time, a token of each per poll; `lengths` says how many tokens a request has."""

    def __init__(self, lengths, *, num_slots=1000):
        self.lengths, self.num_slots = lengths, num_slots
        self.version = 0
        self.waiting: list[Request] = []
        self.running: dict[Request, list[int]] = {}
        self.begun: list[int] = []  # group ids, in order
        self.answered: list[Completion] = []  # of requests that were cancelled
        self.num_finished = self.num_cancelled = self.num_steps = self.num_slot_steps = 0

    def submit(self, requests):
        self.waiting += requests
        self.begun += [r.key.group_id for r in requests if r.key.sample_index == 0]

    def poll(self, timeout_seconds):
        while self.waiting and len(self.running) < self.num_slots:
            self.running[self.waiting.pop(0)] = []
        self.num_steps += bool(self.running)
        self.num_slot_steps += len(self.running)
        done, self.answered = self.answered, []
        self.num_cancelled += len(done)
        for request, versions in list(self.running.items()):
            versions.append(self.version)
            if len(versions) == self.lengths(request):
                del self.running[request]
                done.append(self._completion(request, versions, FinishReason.STOP))
                self.num_finished += 1
        return done

    def cancel(self, request_ids):
        for request in [*self.running, *self.waiting]:
            if request.request_id in request_ids:
                versions = self.running.pop(request, [])
                self.answered.append(self._completion(request, versions, FinishReason.ABORTED))
        self.waiting = [r for r in self.waiting if r.request_id not in request_ids]

    def _completion(self, request, versions, reason):
        return Completion(
            request_id=request.request_id,
            token_ids=[1] * len(versions),
            logprobs=[-1.0] * len(versions),
            policy_versions=versions,
            finish_reason=reason,
            text=f"{request.key.group_id} {request.key.sample_index}",
        )

    def status(self):
        running = len(self.running) + len(self.waiting) + len(self.answered)
        return FleetStatus(
            issued=running + self.num_finished + self.num_cancelled,
            running=running,
            finished=self.num_finished,
            rejected=0,
            cancelled=self.num_cancelled,
            policy_version=self.version,
        )


class LazyPool:
    """Scores 1.0 and 0.0 in turn, but the same throughout for `uniform` groups; done after a random number of questions."""

    def __init__(self, uniform=(), *, seed=0):
        self.uniform = uniform
        self.rng = random.Random(seed)

    def submit(self, jobs):
        return LazyTicket(jobs, self.uniform, self.rng.randrange(6))


class LazyTicket:
    def __init__(self, jobs, uniform, patience):
        self.jobs, self.uniform, self.patience = jobs, uniform, patience

    def done(self):
        self.patience -= 1
        return self.patience < 0

    def wait(self, _timeout_seconds):
        self.patience = 0
        return True

    def outcomes(self):
        return [self._outcome(*map(int, job.completion.split())) for job in self.jobs]

    def _outcome(self, group_id, sample_index):
        score = 0.0 if group_id in self.uniform else float(sample_index % 2)
        return ScoreOutcome(kind=OutcomeKind.SCORE, score=score)


class Prompts:
    def __len__(self):
        return NUM_PROMPTS

    def __getitem__(self, index):
        prompt = Prompt(prompt_id=index, messages=(), question="", answer="", row={})
        return prompt, [index]


def config(*, max_staleness, num_steps=12, size=3, group_size=2, num_spare=0) -> TrainConfig:
    return TrainConfig(
        run_dir="",
        num_prompts_per_step=size,
        group_size=group_size,
        max_staleness=max_staleness,
        num_spare_rollouts=num_spare,
        model=ModelConfig(path=TINY),
        task=ArithmeticConfig(),
        algorithm=GRPOConfig(),
        trainer=TrainerConfig(num_steps=num_steps),
    )


def random_lengths(request: Request) -> int:
    key = request.key
    return random.Random(f"{key.group_id}/{key.sample_index}").choice((1, 2, 3, 30))


def run(
    fleet,
    made,
    *,
    pool=None,
    state=None,
    stop_after=None,
    max_resample_batches=0,
    make_environment=None,
):
    """Batches until the last step or `stop_after`; one version per batch, as the loop has it."""
    state = state or RunState(policy_version=0, accepted_groups=0)
    collector = Collector(fleet, pool or LazyPool(), make_environment or SingleTurn, render=render)
    batches = Batches(made, Prompts(), collector, state, max_resample_batches=max_resample_batches)
    out = []
    stop_after = stop_after or made.trainer.num_steps
    for version in range(state.policy_version, stop_after):
        fleet.version = version
        batch = batches.next(
            version, Stopwatch(), progress=lambda *_: None, should_stop=lambda: False
        )
        check_staleness(batch.trained, version, max_staleness=made.max_staleness)
        out.append(batch)
    return out, batches


def ids(batches) -> list[list[int]]:
    return [[group.group_id for group in batch.trained] for batch in batches]


def versions(batches) -> list[list[list[int]]]:
    return [[r.log.policy_versions for g in b.trained for r in g.rollouts] for b in batches]


@pytest.mark.parametrize("max_staleness", [0, 1, 4])
def test_every_group_is_trained_once_in_order_and_none_is_begun_that_would_not_be(max_staleness):
    fleet = SlotFleet(random_lengths, num_slots=8)
    out, _ = run(fleet, config(max_staleness=max_staleness))
    assert ids(out) == [list(range(3 * i, 3 * i + 3)) for i in range(12)]
    assert fleet.begun == list(range(36))
    measured = [Staleness.of(b.trained, v).max for v, b in enumerate(out)]
    assert max(measured) == max_staleness
    assert not fleet.waiting
    assert not fleet.running


def test_groups_are_begun_as_early_as_staleness_allows():
    for max_staleness in (0, 2):
        fleet = SlotFleet(random_lengths)
        run(fleet, config(max_staleness=max_staleness), stop_after=4)
        assert len(fleet.begun) == 3 * (4 + max_staleness)


@pytest.mark.parametrize("uniform", [(), (0, 4, 5, 6, 7, 16, 30)])
@pytest.mark.parametrize("max_staleness", [1, 3])
def test_no_token_depends_on_how_fast_scores_were(max_staleness, uniform):
    runs = []
    for seed in range(8):
        fleet = SlotFleet(random_lengths, num_slots=7)
        pool = LazyPool(uniform, seed=seed)
        out, _ = run(fleet, config(max_staleness=max_staleness), pool=pool, max_resample_batches=2)
        runs.append((ids(out), versions(out), fleet.begun))
    assert all(one == runs[0] for one in runs)
    assert len({v for batch in runs[0][1] for r in batch for v in r}) > 5


@pytest.mark.parametrize("max_staleness", [0, 1, 4])
def test_groups_without_signal_are_replaced_by_the_next_ones_at_any_staleness(max_staleness):
    uniform = {1, 2, 3, 11, 12, 13, 14, 15, 16, 17, 30}
    fleet = SlotFleet(random_lengths, num_slots=9)
    out, batches = run(
        fleet,
        config(max_staleness=max_staleness),
        pool=LazyPool(uniform),
        max_resample_batches=2,
    )
    # by hand: a batch replaces at most 6; the one that begins at 10 meets 7 without signal, and keeps the last of them
    expected = [
        [0, 4, 5],
        [6, 7, 8],
        [9, 10, 17],
        *([18 + 3 * i + j for j in range(3)] for i in range(4)),
    ]
    expected += [[31, 32, 33], *([34 + 3 * i + j for j in range(3)] for i in range(4))]
    assert ids(out) == expected
    assert batches.num_dropped == 10
    assert batches.num_accepted == 36
    trained = {g for batch in expected for g in batch}
    assert {g.group_id for b in out for g in b.groups} == trained | (uniform - {17})


@pytest.mark.parametrize("max_staleness", [0, 1, 4])
@pytest.mark.parametrize("killed_at", [1, 5])
def test_a_resumed_run_begins_what_was_in_flight_again_and_trains_nothing_twice(
    max_staleness, killed_at
):
    uniform, made = {1, 7, 8, 20}, config(max_staleness=max_staleness)
    whole, _ = run(SlotFleet(random_lengths), made, pool=LazyPool(uniform), max_resample_batches=2)
    fleet = SlotFleet(random_lengths, num_slots=7)
    first, batches = run(
        fleet, made, pool=LazyPool(uniform), max_resample_batches=2, stop_after=killed_at
    )
    state = RunState(
        policy_version=killed_at,
        accepted_groups=batches.num_accepted,
        dropped_groups=batches.num_dropped,
    )
    fleet = SlotFleet(random_lengths, num_slots=7)
    rest, _ = run(fleet, made, pool=LazyPool(uniform), max_resample_batches=2, state=state)
    assert ids([*first, *rest]) == ids(whole)
    trained = [group_id for batch in ids([*first, *rest]) for group_id in batch]
    assert len(trained) == len(set(trained)) == 36


def test_the_closed_form_foretells_the_staleness_of_a_fleet_with_fewer_slots_than_groups():
    # 40 slots for batches of 32 rollouts: room for more than one batch, and admission never binds
    made = config(max_staleness=20, num_steps=150, size=8, group_size=4)
    rng = random.Random(0)
    lengths = {
        key: 1 + int(rng.expovariate(1 / 20)) for key in itertools.product(range(2000), range(4))
    }
    fleet = SlotFleet(lambda r: lengths[r.key.group_id, r.key.sample_index], num_slots=40)
    out, _ = run(fleet, made, stop_after=120)
    measured = [Staleness.of(b.trained, v).mean for v, b in enumerate(out)][20:]
    predicted = [
        Pipeline.measure(
            batch.trained,
            concurrency=fleet.num_slot_steps / fleet.num_steps,
            speed_ratio=0.0,  # nothing is decoded while one trains
            num_waiting=batch.num_waiting,
        ).staleness(max_staleness=20)
        for batch in out[20:]
    ]
    assert 4 < fmean(measured) < 7
    assert abs(fmean(measured) - fmean(predicted)) < 0.6, (fmean(measured), fmean(predicted))
