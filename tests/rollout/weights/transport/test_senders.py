"""Who sends: a trainer in two ranks that hold halves, one that quantizes, one that is killed at it."""

import multiprocessing
import os
import signal
from typing import Any

import pytest
import torch

from rollout.config import StorageDtype
from rollout.models.checkpoint import load_decoder
from rollout.models.int8 import int8_weights
from rollout.weights.manifest import describe_layout
from rollout.weights.staging import HeldWeights
from rollout.weights.transport.receiver import CollectiveReceiver
from rollout.weights.transport.rendezvous import CollectiveError
from rollout.weights.transport.sender import CollectiveSender
from rollout.weights.update import WeightUpdate, make_update
from tests.rollout.engine.engines import draws, make_engine, mixed_requests, run
from tests.rollout.weights.transport.workers import (
    BUCKET_MB,
    LIMITS,
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


def killed_sender(pipe: Any) -> None:
    sender = CollectiveSender(bucket_mb=BUCKET_MB, limits=LIMITS)
    pipe.send(sender.address)
    sender.rebuild(1, 0)

    class Killing(dict[str, torch.Tensor]):
        def __getitem__(self, name: str) -> torch.Tensor:
            if name == "q_int8":
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(name)

    update = make_update(1, weights_of(1).items())
    sender.send(WeightUpdate(version=1, manifest=update.manifest, tensors=Killing(update.tensors)))


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
