"""Generation of completions from prompts. This package has no dependency on rewards, advantages or algorithms.

`Engine`, `Request`, `SamplingParams` and `Completion` load on first use, so `import rollout` imports neither torch
nor transformers.
"""

from importlib import import_module
from typing import Any

from rollout._guard import require_own_kernels

require_own_kernels()

_EXPORTS = {
    "Completion": "rollout.core",
    "Engine": "rollout.engine.engine",
    "Request": "rollout.core",
    "SamplingParams": "rollout.core",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
