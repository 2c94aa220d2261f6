"""Who sends: a trainer in two ranks that hold halves, one that quantizes, one that is killed at it."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch.distributed import ProcessGroupGloo, TCPStore

from rollout.config import StorageDtype
from rollout.models.checkpoint import load_decoder
from rollout.models.int8 import int8_weights
from rollout.weights.manifest import describe_layout
from rollout.weights.staging import HeldWeights
from rollout.weights.transport.broadcast import CollectiveReceiver, CollectiveSender
from rollout.weights.transport.rendezvous import CollectiveError
from rollout.weights.update import make_update
from tests.rollout.engine.engines import draws, make_engine, mixed_requests, run
from tests.rollout.weights.transport.workers import (
    BUCKET_MB,
    LIMITS,
    SHORT_LIMITS,
    Worker,
    weights_of,
)
from tests.tiny_models import save_tiny

_context = multiprocessing.get_context("forkserver")


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    worker.stop()


def sharded_weights(group: ProcessGroupGloo, rank: int, version: int) -> Iterator[tuple[str, Any]]:
    """As FSDP and ZeRO-3 gather: a collective per tensor, into memory that the next one is gathered into again."""
    gathered = torch.empty(200_000, dtype=torch.uint8)
    for name, tensor in weights_of(version).items():
        flat = tensor.contiguous().view(-1).view(torch.uint8)
        bounds = [0, len(flat) // 2, len(flat)]
        for owner in (0, 1):
            shard = gathered[bounds[owner] : bounds[owner + 1]]
            shard.fill_(0)
            if rank == owner:
                shard.copy_(flat[bounds[owner] : bounds[owner + 1]])
            group.broadcast(shard, owner).wait()
        yield name, gathered[: len(flat)].view(tensor.dtype).view(tensor.shape)


def trainer_group(rank: int, port: int) -> tuple[ProcessGroupGloo, TCPStore]:
    store = TCPStore("127.0.0.1", port, is_master=rank == 0, wait_for_workers=False)
    if rank == 0:
        _context.Process(target=other_trainer, args=(store.port,), daemon=True).start()
    return ProcessGroupGloo(store, rank, 2, timedelta(seconds=60)), store


def other_trainer(port: int) -> None:
    """Rank 1 sends nothing, and gathers all the same: two versions, then it says so."""
    group, store = trainer_group(1, port)
    for version in (1, 2):
        for _ in sharded_weights(group, 1, version):
            pass
    store.set("through", "yes")


def test_a_sharded_trainer_sends_one_gathered_tensor_at_a_time_and_fails_on_all_ranks(worker):
    group, store = trainer_group(0, 0)
    sender = CollectiveSender(bucket_mb=BUCKET_MB, limits=SHORT_LIMITS)
    worker.begin("join", sender.address, 1, 2, 0)
    sender.rebuild(1, 0)
    worker.end()
    layout = describe_layout(1, weights_of(1).items())
    worker.begin("receive", layout)
    manifest = sender.send_stream(layout, sharded_weights(group, 0, 1))
    worker.end()
    worker("verify", manifest)
    worker("commit")
    digest = make_update(1, weights_of(1).items()).manifest.digest
    assert worker("held") == HeldWeights(version=1, digest=digest)
    assert worker("digest") == digest

    worker.stop()
    with pytest.raises(CollectiveError, match=r"receivers \[1\] are silent"):
        sender.send_stream(describe_layout(2, weights_of(2).items()), sharded_weights(group, 0, 2))
    store.wait(["through"], timedelta(seconds=60))  # the other rank was not left in its gather


def killed_sender(pipe: Any) -> None:
    sender = CollectiveSender(bucket_mb=BUCKET_MB, limits=LIMITS)
    pipe.send(sender.address)
    sender.rebuild(1, 0)

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights_of(1).items():
            if name == "q_int8":
                os.kill(os.getpid(), signal.SIGKILL)
            yield name, tensor

    sender.send_stream(describe_layout(1, weights_of(1).items()), weights())


def test_a_sender_killed_in_a_transfer_leaves_the_old_version_and_its_successor_is_joined(worker):
    ours, theirs = _context.Pipe()
    _context.Process(target=killed_sender, args=(theirs,), daemon=True).start()
    assert ours.poll(60), "the sender does not start"
    worker("join", ours.recv(), 1, 2, 0)
    with pytest.raises(CollectiveError, match="version 1 did not arrive at receiver 1 of 1"):
        worker("receive", describe_layout(1, weights_of(1).items()))
    assert worker("digest") == make_update(0, weights_of(0).items()).manifest.digest

    sender = CollectiveSender(bucket_mb=BUCKET_MB, limits=LIMITS)
    worker.begin("join", sender.address, 1, 2, 0)
    sender.rebuild(1, 0)
    worker.end()
    update = make_update(1, weights_of(1).items())
    worker.begin("receive", update.manifest)
    sender.send(update)
    worker.end()
    worker("verify")
    worker("commit")
    assert worker("held") == HeldWeights(version=1, digest=update.manifest.digest)


def receive_into_engine(pipe: Any, directory: Any) -> None:
    engine = make_engine(directory, **pipe.recv())
    pipe.send("ready")
    receiver = CollectiveReceiver(limits=LIMITS)
    receiver.join(*pipe.recv())
    manifest = pipe.recv()
    receiver.receive(manifest, engine.weights)
    engine.weights.verify()
    engine.weights.commit()
    pipe.send((engine.weights.held(), engine.weights.digest()))
    pipe.send(draws(run(engine, mixed_requests())))


@pytest.mark.parametrize("weight_dtype", ["plain", "int8"])
def test_an_engine_elsewhere_answers_like_one_here_also_in_8_bits_quantized_by_the_sender(
    tmp_path, weight_dtype
):
    before = save_tiny(tmp_path / "before", "llama", seed=0)
    after = save_tiny(tmp_path / "after", "llama", seed=1)
    limits = {"weight_dtype": StorageDtype(weight_dtype)}
    named_weights = load_decoder(after, dtype=torch.float32).hf_tensors()
    is_int8 = weight_dtype == "int8"
    update = make_update(1, int8_weights(named_weights) if is_int8 else named_weights)
    assert update.is_int8 == is_int8

    ours, theirs = _context.Pipe()
    process = _context.Process(target=receive_into_engine, args=(theirs, before), daemon=True)
    process.start()
    sender = CollectiveSender(bucket_mb=0.01, limits=LIMITS)
    ours.send(limits)
    assert ours.recv() == "ready"
    ours.send((sender.address, 1, 2, 0))
    ours.send(update.manifest)
    sender.rebuild(1, 0)
    sender.send(update)
    assert ours.recv() == (
        HeldWeights(version=1, digest=update.manifest.digest),
        update.manifest.digest,
    )
    assert ours.recv() == draws(run(make_engine(after, **limits), mixed_requests()))
    process.join()
    sender.leave()
