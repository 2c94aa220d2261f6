"""Small fleets over Ray."""

import torch

from rollout.config import Dtype, EngineConfig, RayFleetConfig
from rollout.core import Completion, Request
from rollout.fleet.cluster.fleet import WorkerFleet
from rollout.fleet.workers.process import WorkerSpec
from rollout.fleet.workers.ray_pool import RayPool
from rollout.models.checkpoint import load_decoder
from rollout.weights.update import WeightUpdate, make_update
from tests.rollout.engine.engines import make_group, prompt

LIMITS = {"lease_seconds": 3.0, "silence_seconds": 5.0, "start_seconds": 120.0}
ENGINE = EngineConfig(
    block_size=16,
    kv_cache_gb=0.01,
    max_requests=16,
    max_tokens_per_step=64,
    max_context_tokens=512,
)


def make_fleet(directory, *, engine: EngineConfig = ENGINE, **limits) -> WorkerFleet:
    config = RayFleetConfig(**LIMITS | limits)
    spec = WorkerSpec(
        weights=directory,
        dtype=Dtype.float32,
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
