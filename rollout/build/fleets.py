"""Factory of fleets, for the trainer and other programs that need completions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rollout.build.engines import build_engine
from rollout.config import Dtype, EngineConfig, FleetConfig, RayFleetConfig, StorageDtype
from rollout.fleet.base import Fleet
from rollout.fleet.cluster.fleet import WorkerFleet
from rollout.fleet.inline import InlineFleet
from rollout.fleet.workers.process import WorkerSpec
from rollout.fleet.workers.ray_pool import RayPool
from rollout.models.decoder import Decoder
from rollout.models.int8 import int8_weights
from rollout.speculation.make import check_draft_model, history_tokens
from rollout.weights.update import make_update

__all__ = ["open_fleet"]


@contextmanager
def open_fleet(
    config: FleetConfig,
    engine: EngineConfig,
    decoder: Decoder,
    tokenizer: Any,
    *,
    weights: Path,
    dtype: Dtype,
    policy_version: int,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Fleet]:
    """Start the fleet that a config asks for, and stop it when the block ends.

    Args:
        config: config of the fleet; its type decides the kind.
        engine: config of each engine.
        decoder: initial weights of every engine; an inline engine runs this decoder itself.
        tokenizer: tokenizer of the model; Ray workers load their own.
        weights: Hugging Face directory from which Ray workers load the same weights.
        dtype: dtype of the weights in Ray workers.
        policy_version: version of the weights.
        is_stopping: function that returns True once the run is about to end, when lost workers are no failure.

    Raises:
        ValueError: a mistake in the config.
    """
    if not isinstance(config, RayFleetConfig):
        yield InlineFleet(build_engine(decoder, tokenizer, engine, policy_version=policy_version))
        return
    check_draft_model(engine, decoder)
    spec = WorkerSpec(
        weights=weights,
        dtype=dtype,
        eos_token_ids=decoder.spec.eos_token_ids,
        engine=engine,
        policy_version=policy_version,
        num_threads=config.threads_per_worker,
    )
    named_weights = decoder.hf_tensors()
    if engine.weight_dtype is StorageDtype.int8:
        named_weights = int8_weights(named_weights)
    fleet = WorkerFleet(
        RayPool(spec, config),
        config,
        policy_version=policy_version,
        digest=make_update(policy_version, named_weights).manifest.digest,
        history_tokens=history_tokens(engine),
        is_stopping=is_stopping,
    )
    with fleet:
        yield fleet.start()
