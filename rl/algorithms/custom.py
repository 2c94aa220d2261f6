"""An algorithm that a user wrote outside this repository.

    algorithm=custom algorithm.path=my_algorithm.py:MyAlgorithm algorithm.params.decay=0.9

The class at `algorithm.path` is a dataclass; its fields are the keys under `algorithm.params`. It has

    advantages(signals: Signals) -> Estimates      called once per batch, with all its samples
    loss(tokens: Tokens) -> LossOutput             called once per micro-batch; returns sums
    needs: Needs                                   optional: a critic, a teacher, old log-probabilities, ...
    state_dict(), load_state_dict(state)           optional, both or neither: what it keeps from batch to batch

With several trainer processes every one of them calls `advantages` with the same signals, so the state stays the same on all.
docs/guide/own-algorithm.md has a complete example, REINFORCE with a moving baseline.
"""

import difflib
import inspect
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rl.algorithms.base.algorithm import Algorithm, Needs
from rl.algorithms.base.config import AlgorithmConfig
from rl.user_code import absolute_path, import_named

__all__ = ["CustomConfig", "make_custom"]


@dataclass(kw_only=True)
class CustomConfig(AlgorithmConfig):
    """Parameters of a user's own algorithm."""

    path: str = MISSING
    """The algorithm's class, `path/to/file.py:Class` or `package.module:Class`."""
    params: dict[str, Any] = field(default_factory=dict)
    """Fields of that class, for example `algorithm.params.decay=0.9`."""


def make_custom(config: CustomConfig, *, max_tokens: int) -> Algorithm:
    """Make the algorithm at `config.path`; `max_tokens` has no effect.

    Raises:
        ValueError: there is no such class, it is no algorithm, or `config.params` does not fit its fields.
    """
    path = absolute_path(config.path, key="algorithm.path", kind="class")
    kind = import_named(path, key="algorithm.path", kind="class")
    _check_class(kind, path)
    made = _make(kind, config.params)
    has_state = hasattr(made, "state_dict")
    if has_state:
        _check_state(made.state_dict(), path)
    return Algorithm(
        advantages=made.advantages,
        loss=made.loss,
        needs=getattr(made, "needs", Needs()),
        state=made if has_state else None,
    )


def _check_class(kind: Any, path: str) -> None:
    if not (inspect.isclass(kind) and is_dataclass(kind)):
        raise ValueError(f"algorithm.path={path} must name a dataclass, got {kind!r}")
    for method, argument in (("advantages", "signals"), ("loss", "tokens")):
        try:
            inspect.signature(getattr(kind, method)).bind(None, argument)
        except (AttributeError, TypeError) as error:
            raise ValueError(
                f"algorithm.path={path}: the class must have a method {method}(self, {argument}): {error}"
            ) from error
    if hasattr(kind, "state_dict") != hasattr(kind, "load_state_dict"):
        raise ValueError(
            f"algorithm.path={path}: the class must have both state_dict and load_state_dict, or neither"
        )
    if not isinstance(getattr(kind, "needs", Needs()), Needs | property):
        raise ValueError(
            f"algorithm.path={path}: needs must be a Needs of rl.algorithms.base.algorithm"
        )


def _make(kind: type, params: Mapping[str, Any]) -> Any:
    known = [own.name for own in fields(kind) if own.init]
    for name in params:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean algorithm.params.{near[0]}?" if near else ""
            raise ValueError(
                f"unknown config key algorithm.params.{name}{hint} {kind.__name__} has "
                f"{', '.join(known) or 'no fields'}"
            )
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), dict(params)))
    except OmegaConfBaseException as error:
        key = f".{error.full_key}" if error.full_key else ""
        raise ValueError(f"algorithm.params{key}: {str(error).splitlines()[0]}") from error


def _check_state(state: Mapping[str, Any], path: str) -> None:
    """Refuse a state that a checkpoint could not give back."""
    saved = io.BytesIO()
    torch.save(state, saved)
    saved.seek(0)
    try:
        torch.load(saved, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"algorithm.path={path}: state_dict() must return tensors, numbers, strings, and lists and dicts of them, "
            f"got {state!r}"
        ) from error
