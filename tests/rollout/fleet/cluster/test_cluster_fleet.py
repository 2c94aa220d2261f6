import json
import random
from collections.abc import Sequence

import pytest

from rollout.config import FaultConfig, FaultKind, RayFleetConfig
from rollout.core import Completion, FinishReason, Request
from rollout.fleet.cluster.fleet import WorkerFleet, WorkerState
from rollout.fleet.cluster.pool import Reported
from rollout.weights.update import WeightUpdate
from tests.rollout.fleet.cluster.simulated import (
    SimulatedPool,
    make_request,
    token_of,
    update_to,
    weights_of,
)

LIMITS = {"lease_seconds": 2.0, "silence_seconds": 3.0, "start_seconds": 10.0}


def make_fleet(pool: SimulatedPool, *, history_tokens: int = 0, **limits) -> WorkerFleet:
    config = RayFleetConfig(**({"num_workers": 2} | LIMITS | limits))
    digest = update_to(0).manifest.digest
    return WorkerFleet(
        pool, config, policy_version=0, digest=digest, history_tokens=history_tokens
    ).start()


def drain(fleet: WorkerFleet, *, limit_seconds: float = 1000.0) -> dict[str, Completion]:
    """Every answer, each once."""
    answers: dict[str, Completion] = {}
    for _ in range(int(limit_seconds)):
        for completion in fleet.poll(1.0):
            assert completion.request_id not in answers, "answered twice"
            answers[completion.request_id] = completion
        fleet.status().check()
        if not fleet.status().running:
            return answers
    raise AssertionError(f"not done after {limit_seconds} s: {fleet.status()}")


def batch(version: int, *, num_groups: int = 4, size: int = 4) -> list[Request]:
    lengths = random.Random(version)
    return [
        make_request(version * num_groups + g, i, num_tokens=lengths.randint(1, 60))
        for g in range(num_groups)
        for i in range(size)
    ]


def assert_serving_exactly(pool: SimulatedPool, fleet: WorkerFleet, version: int) -> None:
    assert fleet.status().policy_version == version
    digest = update_to(version).manifest.digest
    for worker_id, state in fleet.workers.items():
        if state is WorkerState.SERVING and worker_id in pool.engines:
            held = pool.engines[worker_id].weights.held()
            assert (held.version, held.digest) == (version, digest)


def broken_update(version: int) -> WeightUpdate:
    update = update_to(version)
    wrong = weights_of(version + 1)
    return WeightUpdate(version=version, manifest=update.manifest, tensors=wrong)


# --- the whole, under faults


def random_faults(source: random.Random) -> list[FaultConfig]:
    return [
        FaultConfig(
            kind=source.choice(list(FaultKind)),
            worker=source.randrange(5),
            after=source.randrange(40),
        )
        if source.random() < 0.5
        else FaultConfig(
            kind=source.choice(list(FaultKind)),
            worker=source.randrange(4),
            after=source.randrange(3),
        )
        for _ in range(source.randint(1, 5))
    ]


@pytest.mark.parametrize("seed", range(200))
def test_under_any_faults_nothing_is_lost_or_answered_twice_and_the_tokens_are_the_same(seed):
    source = random.Random(seed)
    pool = SimulatedPool(
        seed=seed,
        faults=random_faults(source),
        speeds=[source.choice([0.01, 0.02, 0.1]) for _ in range(4)],
    )
    fleet = make_fleet(pool, num_workers=source.randint(1, 3), max_replacements=100)
    num_issued = 0
    for version in range(4):
        requests = batch(version)
        fleet.submit(requests)
        num_issued += len(requests)
        answers: dict[str, Completion] = {}
        while fleet.status().running:
            if source.random() < 0.05:
                disturb(source, pool, fleet)
            for completion in fleet.poll(0.3):
                assert completion.request_id not in answers, "answered twice"
                answers[completion.request_id] = completion
            fleet.status().check()
        assert_are_the_tokens_of(answers, requests, version)
        if source.random() < 0.2:
            with pytest.raises(RuntimeError, match="differ from their manifest"):
                fleet.update_weights(broken_update(version + 1))
            assert_serving_exactly(pool, fleet, version)
        fleet.update_weights(update_to(version + 1))
        assert_serving_exactly(pool, fleet, version + 1)
    status = fleet.status()
    assert (status.issued, status.finished) == (num_issued, num_issued)


def disturb(source: random.Random, pool: SimulatedPool, fleet: WorkerFleet) -> None:
    serving = [w for w, state in fleet.workers.items() if state is WorkerState.SERVING]
    match source.randrange(3):
        case 0:
            fleet.add_worker()
        case 1 if len(serving) > 1:
            fleet.remove_worker(source.choice(serving))
        case 2 if serving:
            pool.kill(source.choice(serving))


def assert_are_the_tokens_of(
    answers: dict[str, Completion], requests: Sequence[Request], version: int
) -> None:
    assert set(answers) == {request.request_id for request in requests}
    for request in requests:
        completion = answers[request.request_id]
        expected = [token_of(request.key, i, version) for i in range(request.params.max_tokens)]
        assert completion.token_ids == expected
        assert set(completion.policy_versions) == {version}
        assert completion.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("drains", [True, False])
@pytest.mark.parametrize("seed", range(40))
def test_updates_among_running_requests_leave_every_token_with_the_version_that_made_it(
    seed, drains
):
    source = random.Random(seed)
    faults = random_faults(source)
    pool = SimulatedPool(seed=seed, faults=faults, speeds=[0.01, 0.03], drains=drains)
    fleet = make_fleet(pool, max_replacements=100)
    answers: dict[str, Completion] = {}
    requests: list[Request] = []
    for version in range(5):
        new = batch(version)
        requests += new
        fleet.submit(new)
        for _ in range(source.randint(0, 3)):
            answers |= {c.request_id: c for c in fleet.poll(0.2)}
        fleet.update_weights(update_to(version + 1))
        assert_serving_exactly(pool, fleet, version + 1)
    answers |= drain(fleet)
    assert set(answers) == {request.request_id for request in requests}
    for request in requests:
        completion = answers[request.request_id]
        versions = completion.policy_versions
        assert versions == sorted(versions)
        assert len(set(versions)) == 1 or not drains
        expected = [token_of(request.key, i, version) for i, version in enumerate(versions)]
        assert completion.token_ids == expected


# --- requests


def test_a_lost_workers_requests_are_answered_by_another():
    pool = SimulatedPool()
    fleet = make_fleet(pool)
    requests = batch(0)
    fleet.submit(requests)
    answers = {c.request_id: c for c in fleet.poll(0.1)}
    pool.kill("worker-0")
    assert_are_the_tokens_of(answers | drain(fleet), requests, 0)
    metrics = fleet.take_metrics()
    assert metrics["fleet/reissued_leases"] > 0
    assert (metrics["fleet/replaced_workers"], metrics["fleet/num_workers"]) == (1, 1)


def test_speed_and_concurrency_are_those_of_the_engines_while_they_step():
    pool = SimulatedPool(speeds=[0.01])
    fleet = make_fleet(pool)
    assert not [name for name in fleet.take_metrics() if name.startswith("rollout/")]
    fleet.submit([make_request(i, 0, num_tokens=100) for i in range(8)])
    drain(fleet)
    metrics = fleet.take_metrics()
    assert metrics["fleet/tokens_per_second"] == pytest.approx(800.0)  # 4 in 10 ms, twice
    assert metrics["rollout/concurrency"] == pytest.approx(8.0)
    assert "rollout/concurrency" not in fleet.take_metrics()


def test_what_a_slow_worker_holds_for_too_long_another_answers_and_the_late_answer_is_discarded():
    pool = SimulatedPool(speeds=[1.0, 0.01])
    fleet = make_fleet(pool, silence_seconds=100.0)
    requests = [make_request(i, 0, num_tokens=40) for i in range(4)]  # 40 s at the slow one
    fleet.submit(requests)
    answers = drain(fleet, limit_seconds=30)
    assert_are_the_tokens_of(answers, requests, 0)
    metrics = fleet.take_metrics()
    assert metrics["fleet/reissued_leases"] == 2
    assert metrics["fleet/replaced_workers"] == 0
    pool.pass_unattended(3.0)
    assert not pool.engines["worker-0"].has_unfinished  # it was told to stop


def test_a_lone_worker_is_given_more_time_instead():
    pool = SimulatedPool(speeds=[1.0])
    fleet = make_fleet(pool, num_workers=1, silence_seconds=100.0)
    requests = [make_request(0, 0, num_tokens=40)]
    fleet.submit(requests)
    assert_are_the_tokens_of(drain(fleet), requests, 0)
    assert fleet.take_metrics()["fleet/reissued_leases"] == 0


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_a_cancelled_request_is_answered_once_wherever_it_is(seconds):
    pool = SimulatedPool()
    fleet = make_fleet(pool)
    fleet.submit([make_request(0, 0, num_tokens=500), make_request(0, 1, num_tokens=3)])
    answers = {c.request_id: c for c in fleet.poll(seconds)}
    fleet.cancel(["0/0", "no such request"])
    answers |= drain(fleet)
    assert answers["0/0"].finish_reason is FinishReason.ABORTED
    assert len(answers["0/0"].token_ids) < 500
    status = fleet.status()
    assert (status.finished, status.cancelled) == (1, 1)


def test_a_cancelled_request_is_answered_even_if_its_worker_dies():
    pool = SimulatedPool()
    fleet = make_fleet(pool)
    fleet.submit([make_request(0, 0, num_tokens=500)])
    fleet.poll(0.1)
    pool.kill("worker-0")
    fleet.cancel(["0/0"])
    assert drain(fleet)["0/0"].finish_reason is FinishReason.ABORTED


def test_a_cancelled_request_is_answered_once_though_all_who_hold_it_hang():
    pool = SimulatedPool(speeds=[50.0])
    fleet = make_fleet(pool, silence_seconds=1000.0)
    fleet.submit([make_request(0, 0, num_tokens=400)])
    while fleet.take_metrics()["fleet/reissued_leases"] == 0:
        fleet.poll(0.2)
    for process in pool._processes.values():
        process.is_hung = True
    fleet.cancel(["0/0"])
    start = pool.now()
    assert drain(fleet)["0/0"].finish_reason is FinishReason.ABORTED
    assert pool.now() - start < 6.0, "they hold nobody up for longer than that"


def test_what_was_cancelled_leaves_its_room_to_others_at_once():
    pool = SimulatedPool(max_requests=4)
    fleet = make_fleet(pool, num_workers=1)
    fleet.submit([make_request(0, i, num_tokens=1000) for i in range(6)])
    fleet.poll(0.1)
    fleet.cancel([f"0/{i}" for i in range(6)])
    requests = [make_request(1, i, num_tokens=5) for i in range(4)]
    fleet.submit(requests)
    start, answers = pool.now(), {}
    while sum(name.startswith("1/") for name in answers) < 4:
        answers |= {c.request_id: c for c in fleet.poll(1.0)}
    assert pool.now() - start < 0.5
    assert len(answers) == 10


def test_what_fits_nowhere_waits_and_is_begun_later():
    pool = SimulatedPool(num_blocks=12, max_requests=4)
    fleet = make_fleet(pool, num_workers=1)
    requests = batch(0)
    fleet.submit(requests)
    fleet.poll(0.05)
    assert len(pool.engines["worker-0"].request_ids) <= 4
    assert_are_the_tokens_of(drain(fleet), requests, 0)


def test_a_poll_waits_no_longer_than_told():
    pool = SimulatedPool(speeds=[0.5])
    fleet = make_fleet(pool)
    fleet.submit([make_request(0, 0, num_tokens=100)])
    start = pool.now()
    assert fleet.poll(0.7) == []
    assert pool.now() - start == pytest.approx(0.7)
    assert fleet.poll(0.0) == []
    assert pool.now() - start == pytest.approx(0.7)


def test_time_in_which_nobody_asks_is_not_held_against_workers():
    pool = SimulatedPool(speeds=[1.0])
    fleet = make_fleet(pool, lease_seconds=150.0, silence_seconds=100.0)
    requests = [make_request(0, 0, num_tokens=200)]
    fleet.submit(requests)
    pool.pass_unattended(160.0)  # a long training step
    assert_are_the_tokens_of(drain(fleet), requests, 0)
    metrics = fleet.take_metrics()
    assert (metrics["fleet/reissued_leases"], metrics["fleet/replaced_workers"]) == (0, 0)


def test_the_watchdog_says_who_waits_for_whom(caplog):
    pool = SimulatedPool(speeds=[200.0])
    fleet = make_fleet(pool, num_workers=1, silence_seconds=1000.0)
    fleet.submit([make_request(0, 0, num_tokens=1)])
    fleet.poll(65.0)
    lines = [message for message in caplog.messages if message.startswith("nothing has come for")]
    assert len(lines) == 2
    assert "worker-0 has 1 requests, is serving since" in lines[0]


def test_lengths_are_remembered_across_runs():
    fleet, heir = (make_fleet(SimulatedPool()) for _ in range(2))
    fleet.submit(batch(0))
    drain(fleet)
    saved = fleet.state_dict()
    assert len(saved["lengths"]["means"]) == 1
    heir.load_state_dict(saved)
    assert heir.state_dict() == saved


# --- workers and updates


def test_drafts_of_all_workers_are_made_from_one_history_wherever_they_go_on():
    pool = SimulatedPool()
    fleet = make_fleet(pool, history_tokens=200)
    fleet.submit(batch(0))
    answers = drain(fleet)
    assert pool.restored == [], "nothing is known at the start"
    saved = fleet.state_dict()
    rollouts = saved["speculation"]["SuffixDrafter"]["rollouts"]
    outputs = [completion.token_ids for completion in answers.values()]
    assert all(
        prompt == [1, 2, 3] and version == 0 and token_ids in outputs
        for prompt, version, *_, token_ids in rollouts
    )
    assert 0 < sum(len(token_ids) for *_, token_ids in rollouts) <= 200
    joiner = fleet.add_worker()
    fleet.submit(batch(1, num_groups=40))
    drain(fleet)
    assert [worker_id for worker_id, _ in pool.restored] == [joiner]

    pool = SimulatedPool()
    fleet = make_fleet(pool, num_workers=3, history_tokens=200)
    fleet.load_state_dict(json.loads(json.dumps(saved)))
    assert sorted(worker_id for worker_id, _ in pool.restored) == [f"worker-{i}" for i in range(3)]
    assert all(speculation == saved["speculation"] for _, speculation in pool.restored)
    assert fleet.state_dict()["speculation"] == saved["speculation"]
    pool.kill("worker-0")
    fleet.submit(batch(1, num_groups=40))
    drain(fleet)
    assert [worker_id for worker_id, _ in pool.restored[3:]] == ["worker-3"]


def test_where_drafts_have_no_history_nothing_is_kept():
    pool = SimulatedPool()
    fleet = make_fleet(pool)
    fleet.submit(batch(0))
    drain(fleet)
    assert fleet.state_dict()["speculation"] == {"SuffixDrafter": {"rollouts": []}}


def test_a_joiner_serves_only_at_the_current_version():
    pool = SimulatedPool()
    fleet = make_fleet(pool)
    fleet.update_weights(update_to(1))
    joiner = fleet.add_worker()
    while fleet.workers[joiner] is WorkerState.STARTING:
        fleet.submit([make_request(0, 0, num_tokens=1)])
        drain(fleet)
        pool.pass_unattended(0.1)
    while fleet.workers[joiner] is not WorkerState.SERVING:
        assert not pool.engines[joiner].request_ids
        fleet.poll(0.0)
        pool.pass_unattended(0.01)
    assert_serving_exactly(pool, fleet, 1)


def test_a_report_that_was_overtaken_by_a_commit_does_not_set_a_joiner_back():
    pool = SimulatedPool()
    fleet = make_fleet(pool)
    fleet.update_weights(update_to(1))
    joiner = fleet.add_worker()
    while fleet.workers[joiner] is WorkerState.STARTING:
        fleet.poll(0.0)
        pool.pass_unattended(0.01)
    old = pool.report_of(joiner)
    assert old.policy_version == 0
    while fleet.workers[joiner] is not WorkerState.SERVING:
        pool.say(Reported(worker_id=joiner, report=old))
        fleet.poll(0.0)
        pool.pass_unattended(0.001)
    pool.say(Reported(worker_id=joiner, report=old))
    fleet.poll(0.0)
    assert fleet.take_metrics()["fleet/replaced_workers"] == 0
    assert_serving_exactly(pool, fleet, 1)


def test_a_leaver_ends_its_requests_gets_no_new_ones_and_is_not_replaced():
    pool = SimulatedPool()
    fleet = make_fleet(pool)
    fleet.submit([make_request(i, 0, num_tokens=50) for i in range(4)])
    fleet.poll(0.1)
    fleet.remove_worker("worker-0")
    fleet.submit([make_request(i, 1, num_tokens=50) for i in range(4)])
    assert all(name.endswith("/1") for name in drain(fleet).keys() - {f"{i}/0" for i in range(4)})
    assert list(fleet.workers) == ["worker-1"]
    metrics = fleet.take_metrics()
    assert (metrics["fleet/reissued_leases"], metrics["fleet/replaced_workers"]) == (0, 0)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_worker_that_dies_before_it_joined_a_transfer_holds_no_update_up(num_workers):
    pool = SimulatedPool()
    fleet = make_fleet(pool, num_workers=num_workers)
    pool.kill_when_asked("worker-0")
    start = pool.now()
    fleet.update_weights(update_to(1))
    assert pool.now() - start < 5.0, "a new worker loads in 2 s"
    assert_serving_exactly(pool, fleet, 1)
    assert fleet.take_metrics()["fleet/replaced_workers"] == 1


def test_a_joiner_that_dies_before_it_joined_a_transfer_holds_neither_the_next_update_up_nor_another_joiner():
    pool = SimulatedPool()
    fleet = make_fleet(pool)
    fleet.update_weights(update_to(1))
    joiners = [fleet.add_worker() for _ in range(2)]
    pool.load_together(joiners)
    pool.kill_when_asked(joiners[0])
    while pool.engines.keys() & set(joiners) != {joiners[1]}:
        fleet.poll(0.0)
        pool.pass_unattended(0.01)
    start = pool.now()
    fleet.update_weights(update_to(2))
    assert pool.now() - start < 5.0
    while WorkerState.STARTING in fleet.workers.values():
        fleet.poll(0.0)
        pool.pass_unattended(0.1)
    assert joiners[1] in fleet.workers
    assert fleet.take_metrics()["fleet/replaced_workers"] == 1
    assert_serving_exactly(pool, fleet, 2)


def test_an_update_that_nobody_can_take_leaves_the_old_version_serving():
    pool = SimulatedPool()
    fleet = make_fleet(pool)
    with pytest.raises(
        RuntimeError, match=r"no worker took .* version 0 stays live: worker-.: verify: "
    ):
        fleet.update_weights(broken_update(1))
    assert_serving_exactly(pool, fleet, 0)
    requests = batch(0)
    fleet.submit(requests)
    assert_are_the_tokens_of(drain(fleet), requests, 0)
    with pytest.raises(ValueError, match="newer than version 0, got 0"):
        fleet.update_weights(update_to(0))
    fleet.update_weights(update_to(1))
    assert_serving_exactly(pool, fleet, 1)


def test_a_value_corrupted_on_the_way_is_found_and_sent_again():
    pool = SimulatedPool(faults=[FaultConfig(kind=FaultKind.corrupt, worker=1)])
    fleet = make_fleet(pool)
    fleet.update_weights(update_to(1))
    assert_serving_exactly(pool, fleet, 1)
    assert fleet.take_metrics()["fleet/replaced_workers"] == 0


def test_a_worker_that_fails_every_time_is_replaced_and_the_others_go_on():
    faults = [FaultConfig(kind=FaultKind.corrupt, worker=1, after=i) for i in range(3)]
    pool = SimulatedPool(faults=faults)
    fleet = make_fleet(pool)
    fleet.update_weights(update_to(1))
    assert fleet.status().policy_version == 1
    assert "worker-1" in pool.stopped
    assert fleet.take_metrics()["fleet/replaced_workers"] == 1


def test_workers_that_hold_other_weights_than_the_trainer_are_refused_at_the_start():
    config = RayFleetConfig(**LIMITS)
    fleet = WorkerFleet(SimulatedPool(), config, policy_version=0, digest="another")
    with pytest.raises(RuntimeError, match=r"are not the trainer's of version 0 \(another\)"):
        fleet.start()


def test_a_fleet_that_loses_too_many_workers_gives_up_and_says_why():
    pool = SimulatedPool()
    fleet = make_fleet(pool, max_replacements=1)
    fleet.submit(batch(0))
    pool.kill("worker-0")
    pool.kill("worker-1")
    with pytest.raises(RuntimeError, match=r"fleet\.max_replacements=1 allows.*it was killed"):
        drain(fleet)


def test_a_worker_that_is_lost_because_the_job_stops_is_not_replaced():
    pool = SimulatedPool()
    fleet = make_fleet(pool)
    fleet._supervisor._is_stopping = lambda: True
    fleet.submit(batch(0))
    pool.kill("worker-0")
    with pytest.raises(
        RuntimeError, match=r"worker-0 is gone: .*not replaced, since the run stops"
    ):
        drain(fleet)
    assert list(fleet.workers) == ["worker-1"]
