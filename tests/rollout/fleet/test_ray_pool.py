import os
import signal
import time
from collections.abc import Iterator

import pytest
import torch

from rollout.config import Dtype, EngineConfig, FaultConfig, FaultKind, FleetConfig, FleetKind
from rollout.engine.core import Completion, Request
from rollout.fleet.ray_pool import RayPool
from rollout.fleet.worker_fleet import WorkerFleet, WorkerState
from rollout.fleet.worker_process import WorkerSpec
from rollout.models.checkpoint import load_decoder
from rollout.weights.update import WeightUpdate, make_update
from tests.rollout.engine.engines import draws, make_engine, make_group, prompt, put_in_force, run
from tests.rollout.fleet.processes import descendants, wait_for_end_of

LIMITS = {"lease_seconds": 3.0, "silence_seconds": 5.0, "start_seconds": 120.0}
ENGINE = EngineConfig(
    block_size=16,
    kv_cache_gb=0.01,
    max_requests=16,
    max_tokens_per_step=64,
    max_context_tokens=512,
)


def make_fleet(directory, *, engine: EngineConfig = ENGINE, **limits) -> WorkerFleet:
    config = FleetConfig(kind=FleetKind.RAY, **LIMITS | limits)
    spec = WorkerSpec(
        weights=directory,
        dtype=Dtype.FLOAT32,
        engine=engine,
        policy_version=0,
        num_threads=config.threads_per_worker,
    )
    digest = update_from(directory, 0).manifest.digest
    return WorkerFleet(RayPool(spec, config), config, policy_version=0, digest=digest)


def update_from(directory, version: int) -> WeightUpdate:
    return make_update(version, load_decoder(directory, dtype=torch.float32).hf_tensors())


def batch(first: int = 0, *, num_groups: int = 4, max_tokens: int = 12) -> list[Request]:
    return [
        request
        for group in range(first, first + num_groups)
        for request in make_group(group, prompt(20, start=group), size=3, max_tokens=max_tokens)
    ]


def drain(fleet: WorkerFleet) -> dict[str, Completion]:
    answers = {}
    while fleet.status().running:
        for completion in fleet.poll(1.0):
            assert completion.request_id not in answers, "answered twice"
            answers[completion.request_id] = completion
        fleet.status().check()
    return answers


def test_two_workers_answer_as_one_engine_would_take_an_update_and_leave_nothing_behind(
    llama, other_llama
):
    before = descendants()
    engine = make_engine(llama)
    with make_fleet(llama) as fleet:
        fleet.start()
        fleet.submit(batch())
        assert draws(drain(fleet)) == draws(run(engine, batch()))
        fleet.update_weights(update_from(other_llama, 1))
        put_in_force(engine, update_from(other_llama, 1))
        fleet.submit(batch())  # the same names again
        assert draws(drain(fleet)) == draws(run(engine, batch()))
        assert fleet.status().policy_version == 1
        started = descendants() - before
        assert len(started) > 4  # Ray's own, and two workers
    assert not wait_for_end_of(started)


# --- what goes wrong, on real processes


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray for several fleets, which leave it running."""
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize("kind", list(FaultKind))
def test_each_fault_costs_a_worker_and_no_request(llama, other_llama, kind):
    after = 0 if kind in (FaultKind.KILL_STAGING, FaultKind.KILL_VERIFIED, FaultKind.CORRUPT) else 3
    engine = make_engine(llama)
    with make_fleet(llama, faults=[FaultConfig(kind=kind, worker=0, after=after)]) as fleet:
        fleet.start()
        for version in range(3):
            requests = batch(3 * version, max_tokens=40)
            fleet.submit(requests)
            assert draws(drain(fleet)) == draws(run(engine, requests))
            weights = llama if version % 2 else other_llama
            fleet.update_weights(update_from(weights, version + 1))
            put_in_force(engine, update_from(weights, version + 1))
        metrics = fleet.take_metrics()
        is_lost = kind not in (FaultKind.SLOW, FaultKind.CORRUPT)
        assert metrics["fleet/replaced_workers"] == is_lost
        status = fleet.status()
        assert (status.issued, status.finished) == (36, 36)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_workers_join_and_leave_while_requests_run(llama, other_llama):
    engine = make_engine(llama)
    with make_fleet(llama) as fleet:
        fleet.start()
        fleet.update_weights(update_from(other_llama, 1))
        put_in_force(engine, update_from(other_llama, 1))
        joiner = fleet.add_worker()
        while fleet.workers[joiner] is not WorkerState.SERVING:  # at version 1, by digest
            fleet.poll(0.1)
        requests = batch(max_tokens=40)
        fleet.submit(requests)
        for worker_id in ("worker-0", "worker-1"):
            fleet.remove_worker(worker_id)
        assert draws(drain(fleet)) == draws(run(engine, requests))
        assert list(fleet.workers) == [joiner]
        assert fleet.take_metrics()["fleet/replaced_workers"] == 0


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_worker_that_cannot_be_made_says_why_at_the_start(llama):
    engine = EngineConfig(kv_cache_gb=1e-9)
    with (
        make_fleet(llama, engine=engine, num_workers=1) as fleet,
        pytest.raises(RuntimeError, match=r"engine\.kv_cache_gb must hold at least one block"),
    ):
        fleet.start()


@pytest.mark.slow
def test_a_node_of_the_cluster_that_is_killed_takes_its_worker_and_no_request_with_it(llama):
    from ray.cluster_utils import Cluster

    before = descendants()
    quiet = {"include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0} | quiet)
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    try:
        with make_fleet(llama, address=cluster.address) as fleet:
            fleet.start()  # a worker on each
            requests = batch(max_tokens=200)
            fleet.submit(requests)
            answers = {c.request_id: c for c in fleet.poll(0.1)}
            raylet = nodes[0].all_processes["raylet"][0].process
            os.kill(raylet.pid, signal.SIGKILL)
            answers |= drain(fleet)
            assert draws(answers) == draws(run(make_engine(llama), requests))
            cluster.add_node(num_cpus=1)  # for the replacement
            serving = [WorkerState.SERVING] * 2
            deadline = time.monotonic() + 90
            while list(fleet.workers) == ["worker-0", "worker-1"] or (
                list(fleet.workers.values()) != serving
            ):
                assert time.monotonic() < deadline, fleet.workers
                fleet.poll(0.0)
                time.sleep(0.1)
    finally:
        started = descendants() - before
        cluster.shutdown()
    assert not wait_for_end_of(started)
