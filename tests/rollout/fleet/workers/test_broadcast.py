"""The trainer's end, with a receiver in another thread."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from rollout.fleet.workers.broadcast import Broadcast
from rollout.weights.staging import WeightReceiver
from rollout.weights.transport.receiver import CollectiveReceiver
from rollout.weights.transport.rendezvous import CollectiveError
from tests.rollout.fleet.cluster.simulated import update_to, weights_of
from tests.rollout.weights.tensor_set import TensorSet


def test_a_worker_lost_before_it_joined_ends_the_wait_of_all_and_the_next_update_finds_the_way_free():
    broadcast, receiver = Broadcast("127.0.0.1"), CollectiveReceiver()
    live = weights_of(0)
    weights = WeightReceiver(TensorSet(live), TensorSet(weights_of(0)), version=0)
    update = update_to(1)
    with ThreadPoolExecutor(1) as pool:
        place = broadcast.begin(["a", "b"], update)["a"]
        joining = pool.submit(
            receiver.join, place.address, place.rank, place.size, place.generation
        )
        broadcast.lose("nobody")
        broadcast.lose("b")
        with pytest.raises(CollectiveError, match=r"receivers \[2\] of 2 were lost before"):
            joining.result()
        place = broadcast.begin(["a"], update)["a"]
        receiver.join(place.address, place.rank, place.size, place.generation)
        receiver.receive(update.manifest, weights)
        weights.verify()
    broadcast.lose("a")
    broadcast.close()
    receiver.leave()
