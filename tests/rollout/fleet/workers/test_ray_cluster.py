"""In a cluster of its own: none may run in this process."""

import os
import signal
import time

import pytest

from rollout.fleet.cluster.fleet import WorkerState
from tests.rollout.engine.engines import draws, make_engine, run
from tests.rollout.fleet.processes import descendants, wait_for_end_of
from tests.rollout.fleet.ray_fleets import batch, drain, make_fleet


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
