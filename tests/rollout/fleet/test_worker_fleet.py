import random
from collections.abc import Sequence

import pytest

from rollout.config import FaultConfig, FaultKind, FleetConfig, FleetKind
from rollout.engine.core import Completion, FinishReason, Request
from rollout.fleet.worker_fleet import WorkerFleet, WorkerState
from rollout.weights.update import WeightUpdate
from tests.rollout.fleet.simulated import (
    SimulatedPool,
    make_request,
    token_of,
    update_to,
    weights_of,
)

LIMITS = {"lease_seconds": 2.0, "silence_seconds": 3.0, "start_seconds": 10.0}


def make_fleet(pool: SimulatedPool, **limits) -> WorkerFleet:
    config = FleetConfig(kind=FleetKind.RAY, **({"num_workers": 2} | LIMITS | limits))
    digest = update_to(0).manifest.digest
    return WorkerFleet(pool, config, policy_version=0, digest=digest).start()


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
            held = pool.engines[worker_id].held_weights()
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
