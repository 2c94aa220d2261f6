"""Small engines over tiny checkpoints, and a loop that runs requests to their end."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rollout.build.engines import build_engine
from rollout.config import EngineConfig
from rollout.core import Completion, Request, SampleKey, SamplingParams
from rollout.engine.engine import Engine
from rollout.engine.runner import bytes_per_block
from rollout.models.checkpoint import load_decoder
from rollout.text.tokenizer import load_tokenizer
from rollout.weights.update import WeightUpdate

LIMITS: dict[str, Any] = {
    "block_size": 16,
    "max_requests": 16,
    "max_tokens_per_step": 64,
    "max_context_tokens": 512,
}


def make_engine(
    directory: Path,
    *,
    dtype: torch.dtype = torch.float32,
    num_blocks: int = 128,
    eos_token_ids: tuple[int, ...] | None = None,
    policy_version: int = 0,
    **limits: Any,
) -> Engine:
    """An engine whose pool has exactly `num_blocks` blocks; `limits` are those of `EngineConfig`."""
    limits = LIMITS | limits
    decoder = load_decoder(directory, dtype=dtype)
    if eos_token_ids is not None:
        decoder.spec = replace(decoder.spec, eos_token_ids=eos_token_ids)
    block_bytes = bytes_per_block(decoder.spec, block_size=limits["block_size"], dtype=dtype)
    config = EngineConfig(kv_cache_gb=(num_blocks + 0.5) * block_bytes / 1e9, **limits)
    return build_engine(decoder, tokenizer(directory), config, policy_version=policy_version)


@functools.cache
def tokenizer(directory: Path) -> Any:
    return load_tokenizer(directory)


def prompt(length: int, start: int = 0) -> tuple[int, ...]:
    """`length` byte tokens; another `start` gives other tokens from the first one on."""
    return tuple((start + 7 * i * i + 3 * i) % 256 for i in range(length))


def make_request(
    request_id: str,
    token_ids: Sequence[int],
    *,
    group_id: int = 0,
    sample_index: int = 0,
    **params: Any,
) -> Request:
    """Make a request that by default ends only at `max_tokens`, since a random model may draw the end of sequence."""
    sampling = SamplingParams(**{"max_tokens": 8, "ignore_eos": True} | params)
    return Request(
        request_id=request_id,
        token_ids=tuple(token_ids),
        params=sampling,
        key=SampleKey(sampling.seed, group_id, sample_index),
    )


def make_group(
    group_id: int, token_ids: Sequence[int], *, size: int, **params: Any
) -> list[Request]:
    """The siblings of one prompt, named "group/sample"."""
    return [
        make_request(f"{group_id}/{i}", token_ids, group_id=group_id, sample_index=i, **params)
        for i in range(size)
    ]


def mixed_requests() -> list[Request]:
    """Siblings, a prompt longer than a key block, a greedy one."""
    return [
        *make_group(0, prompt(40), size=3),
        make_request("long", prompt(100, start=3), group_id=1, temperature=0.7),
        make_request("greedy", prompt(7, start=1), group_id=2, temperature=0),
    ]


def put_in_force(engine: Engine, update: WeightUpdate) -> None:
    engine.weights.stage(update)
    engine.weights.verify()
    engine.weights.commit()


def run(engine: Engine, requests: Iterable[Request] = ()) -> dict[str, Completion]:
    """Add requests and step until the engine is idle; every id is answered once, and the books close."""
    for request in requests:
        engine.add_request(request)
    answered: dict[str, Completion] = {}
    while engine.has_unfinished:
        for completion in engine.step():
            assert completion.request_id not in answered, "answered twice"
            answered[completion.request_id] = completion
    engine.check_integrity()
    return answered


def draws(completions: dict[str, Completion]) -> dict[str, tuple[list[int], list[float]]]:
    """Tokens and log-probabilities by request: what must not depend on how they were computed."""
    return {name: (c.token_ids, c.logprobs) for name, c in sorted(completions.items())}
