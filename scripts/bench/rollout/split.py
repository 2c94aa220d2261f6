"""Splits a run's time into linears, attention, sampling and the rest."""

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from rollout.engine.engine import Engine

__all__ = ["PARTS", "time_parts"]

PARTS = {
    "rollout.models.decoder.head_logits": "linears",
    "rollout.models.layers.linear": "linears",
    "rollout.models.layers.int8_linear": "linears",
    "rollout.engine.runner.paged_attention": "attention",
    "rollout.engine.verification.sample_tokens": "sampling",
}
"""The part that each function is. None of them calls another, so their times add up. Layers that run in one call
(`kernels.decoder_layers`) time their parts themselves."""


@contextmanager
def time_parts(engine: Engine) -> Iterator[dict[str, float]]:
    """Yield the seconds of each part, which are complete when the block ends. Only for CPUs, where a call ends when its work does."""
    seconds = dict.fromkeys(PARTS.values(), 0.0)
    before = dict(engine.weights.live.layer_seconds)
    with ExitStack() as stack:
        for path, part in PARTS.items():
            module_name, _, name = path.rpartition(".")
            module = importlib.import_module(module_name)
            original = getattr(module, name)
            stack.callback(setattr, module, name, original)
            setattr(module, name, _timed(original, part, seconds))
        yield seconds
    for part, spent in engine.weights.live.layer_seconds.items():
        seconds[part] += spent - before.get(part, 0.0)


def _timed(
    function: Callable[..., Any], part: str, seconds: dict[str, float]
) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[part] += time.perf_counter() - start

    return timed
