from collections.abc import Iterator

import pytest

from rollout.config import EngineConfig, FaultConfig, FaultKind
from rollout.fleet.cluster.fleet import WorkerState
from tests.rollout.engine.engines import draws, make_engine, put_in_force, run
from tests.rollout.fleet.processes import descendants, wait_for_end_of
from tests.rollout.fleet.ray_fleets import batch, drain, make_fleet, update_from


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
    after = 0 if kind in (FaultKind.kill_staging, FaultKind.kill_verified, FaultKind.corrupt) else 3
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
        is_lost = kind not in (FaultKind.slow, FaultKind.corrupt)
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
def test_an_address_is_refused_where_ray_runs_already(llama):
    with pytest.raises(ValueError, match=r"fleet\.address must be empty where this process has"):
        make_fleet(llama, address="10.0.0.1:6379")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_worker_that_cannot_be_made_says_why_at_the_start(llama):
    engine = EngineConfig(kv_cache_gb=1e-9)
    with (
        make_fleet(llama, engine=engine, num_workers=1) as fleet,
        pytest.raises(RuntimeError, match=r"engine\.kv_cache_gb must hold at least one block"),
    ):
        fleet.start()
