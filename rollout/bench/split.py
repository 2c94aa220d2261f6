"""Where a run's time goes: linears, attention, sampling, other."""

import pkgutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

__all__ = ["PARTS", "time_parts"]

PARTS = {
    "rollout.models.decoder.linear": "linears",
    "rollout.models.decoder.int8_linear": "linears",
    "rollout.engine.runner.paged_attention": "attention",
    "rollout.engine.engine.sample_tokens": "sampling",
}
"""The part that each function is. None of them calls another, so their times add up."""


@contextmanager
def time_parts() -> Iterator[dict[str, float]]:
    """Seconds by part of what runs inside, filled while it runs. Of a CPU, where a call ends when its work does."""
    seconds = dict.fromkeys(PARTS.values(), 0.0)
    with ExitStack() as stack:
        for path, part in PARTS.items():
            original = pkgutil.resolve_name(path)
            stack.enter_context(mock.patch(path, _timed(original, part, seconds)))
        yield seconds


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
