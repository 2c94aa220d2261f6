"""I6 between processes: what is in force is what was sent, whole, or what was there before."""

import time
from dataclasses import replace

import pytest
import torch

from rollout.weights.manifest import Manifest, describe_layout
from rollout.weights.staging import HeldWeights, ReceiverState
from rollout.weights.transport.receiver import CollectiveReceiver
from rollout.weights.transport.rendezvous import CollectiveError
from rollout.weights.transport.sender import CollectiveSender
from rollout.weights.update import WeightUpdate, make_update
from tests.rollout.weights.transport.workers import (
    BUCKET_MB,
    LIMITS,
    SHORT_LIMITS,
    Model,
    Worker,
    weights_of,
)


@pytest.fixture
def workers():
    workers = [Worker(), Worker()]
    yield workers
    for worker in workers:
        worker.stop()


@pytest.fixture
def sender():
    sender = CollectiveSender(bucket_mb=BUCKET_MB, limits=LIMITS)
    yield sender
    sender.leave()


def update(version: int) -> WeightUpdate:
    return make_update(version, weights_of(version).items())


def connect(sender: CollectiveSender, workers: list[Worker], generation: int) -> None:
    for rank, worker in enumerate(workers, start=1):
        worker.begin("join", sender.address, rank, len(workers) + 1, generation)
    sender.rebuild(len(workers), generation)
    for worker in workers:
        worker.end()


def deliver(sender: CollectiveSender, workers: list[Worker], sent: WeightUpdate) -> None:
    """From publish to commit on all."""
    for worker in workers:
        worker.begin("receive", sent.manifest)
    sender.send(sent)
    for worker in workers:
        worker.end()
    for worker in workers:
        worker("verify")
        worker("commit")


def assert_hold(workers: list[Worker], version: int) -> None:
    """All say they hold that version, and their memory says the same."""
    digest = update(version).manifest.digest
    for worker in workers:
        assert worker("held") == HeldWeights(version=version, digest=digest)
        assert worker("digest") == digest
        assert worker("state") is ReceiverState.IDLE


@pytest.mark.parametrize("count", [1, 2])
def test_every_version_arrives_at_every_receiver_with_the_senders_digest(sender, workers, count):
    workers = workers[:count]
    assert_hold(workers, 0)
    connect(sender, workers, 0)
    for version in (1, 2, 7):
        deliver(sender, workers, update(version))
        assert_hold(workers, version)


def test_nothing_is_in_force_before_the_commit(sender, workers):
    connect(sender, workers, 0)
    for worker in workers:
        worker.begin("receive", update(1).manifest)
    sender.send(update(1))
    for worker in workers:
        worker.end()
        worker("verify")
        assert worker("held").version == 0
        assert worker("digest") == update(0).manifest.digest
        worker("rollback")
    deliver(sender, workers, update(2))
    assert_hold(workers, 2)


def test_a_bucket_corrupted_at_one_receiver_leaves_the_old_version_there_alone(sender, workers):
    connect(sender, workers, 0)
    workers[1]("spoil", "flip", 2)
    for worker in workers:
        worker.begin("receive", update(1).manifest)
    sender.send(update(1))
    for worker in workers:
        worker.end()
        if worker is workers[0]:
            worker("verify")
            worker("commit")
    with pytest.raises(
        RuntimeError, match="version 1 differ from their manifest in 1 of 6 tensors"
    ):
        workers[1]("verify")
    assert_hold(workers[:1], 1)
    assert_hold(workers[1:], 0)


def test_weights_changed_after_their_digest_are_refused_everywhere(sender, workers):
    connect(sender, workers, 0)
    torn = update(1)
    torn.tensors["fp8"].view(torch.uint8)[3] ^= 1
    for worker in workers:
        worker.begin("receive", torn.manifest)
    sender.send(torn)
    for worker in workers:
        worker.end()
        with pytest.raises(RuntimeError, match="1 of 6 tensors: fp8; version 0 stays live"):
            worker("verify")
    assert_hold(workers, 0)
    deliver(sender, workers, update(1))  # the same version, sent again, in the same group
    assert_hold(workers, 1)


@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("rows", [90, 60_000], ids=["fits in socket buffers", "does not"])
def test_a_member_lost_in_a_broadcast_is_named_and_the_survivor_goes_on_without_it(how, rows):
    sender = CollectiveSender(bucket_mb=BUCKET_MB if rows == 90 else 1.0, limits=SHORT_LIMITS)
    lost, survivor = workers = [Worker(rows=rows, limits=SHORT_LIMITS) for _ in range(2)]
    try:
        connect(sender, workers, 0)
        first, second = (make_update(v, weights_of(v, rows=rows).items()) for v in (1, 2))
        lost("spoil", how, 2)
        for worker in workers:
            worker.begin("receive", first.manifest)
        began = time.monotonic()
        with pytest.raises(
            CollectiveError, match=r"did not reach all 2 .*\[1\] are silent"
        ) as error:
            sender.send(first)
        assert error.value.ranks == (1,)
        num_bytes = sum(tensor.nbytes for tensor in first.tensors.values())
        deadline = SHORT_LIMITS.transfer_seconds(num_bytes) + SHORT_LIMITS.report_seconds
        assert time.monotonic() - began < 3 * deadline, "it ends, on a busy machine too"
        try:
            survivor.end()  # its bytes may all have come before
            survivor("rollback")
        except CollectiveError as error:
            assert str(error).startswith("version 1 did not arrive at receiver 2 of 2")  # noqa: PT017
        assert survivor("held").version == 0
        connect(sender, [survivor], 1)
        deliver(sender, [survivor], second)
        assert survivor("digest") == survivor("held").digest == second.manifest.digest
    finally:
        sender.leave()
        for worker in workers:
            worker.stop()


def test_a_sender_that_is_gone_ends_the_wait_and_a_new_one_is_joined(sender, workers):
    connect(sender, workers, 3)
    deliver(sender, workers, update(1))
    for worker in workers:
        worker.begin("receive", update(2).manifest)
    sender.leave()
    for worker in workers:
        with pytest.raises(CollectiveError, match="version 2 did not arrive"):
            worker.end()
    assert_hold(workers, 1)
    restarted = CollectiveSender(bucket_mb=2 * BUCKET_MB, limits=LIMITS)
    assert restarted.address != sender.address
    connect(restarted, workers, 0)
    deliver(restarted, workers, update(2))
    assert_hold(workers, 2)
    restarted.leave()


def test_who_does_not_join_is_named_on_both_sides_and_nobody_hangs(workers):
    sender = CollectiveSender(bucket_mb=BUCKET_MB, limits=replace(LIMITS, join_seconds=1.0))
    workers[0].begin("join", sender.address, 1, 4, 0)
    with pytest.raises(CollectiveError, match=r"receivers \[2, 3\] of 3 did not join") as missing:
        sender.rebuild(3, 0)
    assert missing.value.ranks == (2, 3)
    with pytest.raises(CollectiveError, match=r"receivers \[2, 3\] of 3 did not join generation 0"):
        workers[0].end()
    # too late
    with pytest.raises(CollectiveError, match=r"receivers \[2, 3\] of 3 did not join generation 0"):
        workers[1]("join", sender.address, 2, 4, 0)
    sender = CollectiveSender(bucket_mb=BUCKET_MB, limits=LIMITS)
    connect(sender, workers, 0)
    deliver(sender, workers, update(1))
    assert_hold(workers, 1)


def test_members_that_believe_in_different_sizes_are_told(sender, workers):
    workers[0].begin("join", sender.address, 1, 3, 0)
    with pytest.raises(CollectiveError, match=r"receivers \[1\] joined .* of another size than 2"):
        sender.rebuild(1, 0)
    with pytest.raises(CollectiveError, match="another size than 2"):
        workers[0].end()


def test_a_receiver_without_a_sender_says_where_it_looked():
    gone = CollectiveSender(bucket_mb=BUCKET_MB, limits=LIMITS).address
    receiver = CollectiveReceiver(limits=replace(LIMITS, join_seconds=0.5))
    with pytest.raises(
        CollectiveError, match=f"no sender of weights answers at {gone[0]}:{gone[1]}"
    ):
        receiver.join(gone, 1, 2, 0)
    with pytest.raises(RuntimeError, match=r"not in a group, .*: join first"):
        receiver.receive(update(1).manifest, Model().receiver)


def test_a_receiver_that_refuses_says_why_to_the_sender(sender, workers):
    connect(sender, workers, 0)
    deliver(sender, workers, update(4))
    for worker in workers:
        worker.begin("receive", update(5).manifest if worker is workers[0] else update(4).manifest)
    with pytest.raises(
        CollectiveError, match=r"receiver 2: ValueError: .* must be newer than version 4, got 4"
    ):
        sender.send(update(5))
    for worker in workers:
        with pytest.raises((ValueError, CollectiveError)):
            worker.end()
        with pytest.raises(RuntimeError, match=r"not in a group, .*: join first"):
            worker("receive", update(5).manifest)
    assert_hold(workers, 4)


def test_a_slow_receiver_is_waited_for(sender, workers):
    connect(sender, workers, 0)
    workers[0]("spoil", "wait", 1)
    deliver(sender, workers, update(1))
    assert_hold(workers, 1)


def test_other_weights_than_announced_end_the_transfer_on_both_sides(sender, workers):
    connect(sender, workers[:1], 0)
    manifest = update(1).manifest
    workers[0].begin("receive", manifest)
    other = weights_of(1) | {"scale": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"scale, .*, is planned next, got scale, "):
        sender.send(WeightUpdate(version=1, manifest=manifest, tensors=other))
    with pytest.raises(CollectiveError, match="did not arrive"):
        workers[0].end()
    with pytest.raises(RuntimeError, match=r"not in a group, .*: rebuild first"):
        sender.send(update(1))
    empty = WeightUpdate(version=1, manifest=manifest, tensors={})
    with pytest.raises(
        ValueError, match=r"must have its manifest's 6 tensors, got 0; missing: \['e"
    ):
        sender.send(empty)


def test_generations_only_grow_and_groups_have_receivers(sender, workers):
    connect(sender, workers[:1], 5)
    with pytest.raises(ValueError, match="higher than the last one, 5, got 5"):
        sender.rebuild(1, 5)
    with pytest.raises(ValueError, match="num_receivers must be >= 1, got 0"):
        sender.rebuild(0, 6)
    deliver(sender, workers[:1], update(1))  # refused calls left the group as it was
    assert_hold(workers[:1], 1)


def test_an_empty_manifest_without_digests_has_no_digest():
    with pytest.raises(RuntimeError, match="the digests of version 3 are not known yet"):
        _ = describe_layout(3, [("w", torch.zeros(1))]).digest
    assert Manifest(version=0, tensors=()).has_digests
