"""Factories of engines, with the speculator that their config asks for."""

from typing import Any

from rollout.config import EngineConfig, ModelConfig
from rollout.engine.engine import Engine
from rollout.load import load_model
from rollout.models.checkpoint import torch_dtype
from rollout.models.decoder import Decoder
from rollout.models.sources import resolve_model
from rollout.speculation.make import make_speculator

__all__ = ["build_engine", "load_engine"]


def build_engine(
    decoder: Decoder, tokenizer: Any, config: EngineConfig, *, policy_version: int = 0
) -> Engine:
    """Build an engine with the speculator that its config asks for. The arguments are those of `Engine`."""
    engine = Engine(decoder, tokenizer, config, policy_version=policy_version)
    engine.speculator = make_speculator(
        config,
        runner=engine.runner,
        weights=engine.weights.live,
        blocks=engine.blocks,
        max_context_tokens=engine.max_context_tokens,
    )
    return engine


def load_engine(model: ModelConfig, config: EngineConfig, *, device: str = "cpu") -> Engine:
    """Load the model that a config names, and build an engine for it.

    Raises:
        ValueError: the model cannot be loaded, or does not fit the config.
    """
    directory = resolve_model(model)
    dtype = torch_dtype(model.dtype, device)
    loaded = load_model(directory, dtype=dtype, device=device, model=model)
    return build_engine(loaded.decoder, loaded.tokenizer, config)
