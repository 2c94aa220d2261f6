"""The learner's part of a checkpoint: the policy's state, and under keys of their own what else a run may have."""

from collections.abc import Mapping
from typing import Any

from rl.algorithms.base.algorithm import Algorithm

__all__ = ["algorithm_state", "load_algorithm_state", "split_state"]

_BESIDE_POLICY = ("algorithm", "critic", "kl_coef", "reference")


def split_state(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a state into the policy's part and the others."""
    policy = {key: value for key, value in state.items() if key not in _BESIDE_POLICY}
    others = {key: value for key, value in state.items() if key in _BESIDE_POLICY}
    return policy, others


def algorithm_state(algorithm: Algorithm) -> dict[str, Any]:
    """Return the entry of an algorithm that keeps something from batch to batch; empty for others."""
    if algorithm.state is None:
        return {}
    name = type(algorithm.state).__name__
    return {"algorithm": {"name": name, "state": algorithm.state.state_dict()}}


def load_algorithm_state(algorithm: Algorithm, state: Mapping[str, Any]) -> None:
    """Let an algorithm continue from its entry.

    Raises:
        ValueError: the entry is missing, or another algorithm saved it.
    """
    if algorithm.state is None:
        return
    saved, name = state.get("algorithm", {}), type(algorithm.state).__name__
    if saved.get("name") != name:
        raise ValueError(
            f"resume_from must be a run with the state of algorithm {name}, got one of "
            f"{saved.get('name', 'an algorithm without a state')}; start from its weights instead: "
            "model=hf model.path=<run>/weights/v<version>"
        )
    algorithm.state.load_state_dict(saved["state"])
