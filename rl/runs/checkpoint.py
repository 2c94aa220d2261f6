"""Checkpoints of a run: weights in a store that others can follow, and the trainer's state.

    <run_dir>/weights/v<version>/     Hugging Face directory with a manifest; weights/LATEST names the newest. It
    contains
                                      adapter/ in peft's format and ema/, a Hugging Face directory, if the run has
                                      them.
    <run_dir>/trainer/v<version>.pt   optimizer state, master weights (the critic's too), progress of the run, history
    of the fleet

The trainer's state is written first, so a run can be resumed from every version that LATEST has ever named.
"""

import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from rollout.models.checkpoint import save_checkpoint
from rollout.weights.store import WeightStore

__all__ = ["Checkpoint", "Checkpointer", "RunState", "load_checkpoint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Progress of a run. Data order and randomness are keyed, so they need no state. Rollouts that were in flight
    (`max_staleness` above 0) begin again after a resume."""

    policy_version: int
    accepted_groups: int
    dropped_groups: int = 0
    """Number of groups that were begun and replaced by dynamic sampling. The next group has the number accepted +
    dropped."""
    gave_up_int8: bool = False
    """Whether the engine went back from 8-bit weights to plain ones; see `correction.max_k3`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Starting point of a run. A new run has only weights."""

    weights: Path
    """Hugging Face directory."""
    state: RunState
    trainer_state: Mapping[str, Any] | None = None
    fleet_state: Mapping[str, Any] = field(default_factory=dict)
    """State of the fleet, which makes rollouts faster and does not change them."""


class Checkpointer:
    """Writer of a run's checkpoints, which keeps only the newest.

    Args:
        run_dir: directory of the run.
        source: directory of the model that the run began with.
        keep: number of checkpoints to keep.
        grace_seconds: time that older weights stay for readers after a newer version; trainer states do not stay.
        write_served: function that adds the files for a server to the directory of the weights.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        source: Path,
        keep: int,
        grace_seconds: float = 0.0,
        write_served: Callable[[Path], None] | None = None,
    ) -> None:
        self._store = WeightStore(run_dir / "weights")
        self._states = run_dir / "trainer"
        self._source = source
        self._keep = keep
        self._write_served = write_served
        self._grace_seconds = grace_seconds

    @property
    def latest(self) -> int | None:
        return self._store.latest()

    def save(
        self,
        state: RunState,
        *,
        named_weights: Iterator[tuple[str, torch.Tensor]],
        trainer_state: Mapping[str, Any],
        fleet_state: Mapping[str, Any],
        write_beside: Callable[[Path], None] | None = None,
    ) -> Path:
        """Write version `state.policy_version`, and return its Hugging Face directory.

        Args:
            state: progress of the run.
            named_weights: weights by Hugging Face's names.
            trainer_state: state of the learner.
            fleet_state: state of the fleet.
            write_beside: function that adds files to the directory of the weights.
        """
        self._states.mkdir(parents=True, exist_ok=True)
        version = state.policy_version
        saved = {"run": asdict(state), "trainer": trainer_state, "fleet": fleet_state}
        _save_state(saved, _state_path(self._states, version))
        weights = dict(named_weights)
        dtype = next(iter(weights.values())).dtype

        def write(directory: Path) -> None:
            save_checkpoint(weights, source=self._source, directory=directory, dtype=dtype)
            if self._write_served is not None:
                self._write_served(directory)
            if write_beside is not None:
                write_beside(directory)

        try:
            path = self._store.publish(version, write)
        except Exception:
            # a state without its weights cannot be resumed
            _state_path(self._states, version).unlink()
            raise
        self._store.remove_old(self._keep, grace_seconds=self._grace_seconds)
        self._remove_old_states()
        return path

    def _remove_old_states(self) -> None:
        newest = self._store.versions()[-self._keep :]
        kept = {_state_path(self._states, version) for version in newest}
        for path in self._states.iterdir():
            if path not in kept:
                path.unlink()


def load_checkpoint(run_dir: Path) -> Checkpoint:
    """Return the latest checkpoint of a run.

    Raises:
        ValueError: the directory contains no checkpoint, or a damaged one.
    """
    store = WeightStore(run_dir / "weights")
    version = store.latest() if store.root.is_dir() else None
    if version is None:
        raise ValueError(
            f"resume_from must be a run directory with a checkpoint, got {str(run_dir)!r}"
        )
    path = _state_path(run_dir / "trainer", version)
    try:
        saved = torch.load(path, weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} is missing, truncated or damaged ({str(error).splitlines()[0]}); copy the run again, or continue from "
            "its weights: model.path=<run>/weights/v<version>"
        ) from error
    return Checkpoint(
        weights=store.path(version),
        state=RunState(**saved["run"]),
        trainer_state=saved["trainer"],
        fleet_state=saved["fleet"],
    )


def _save_state(saved: Mapping[str, Any], path: Path) -> None:
    """Write a file that is complete or absent; a failed write frees its space."""
    partial = path.with_name(f".{path.name}")
    try:
        # a plain file reports a full disk, which torch's own writer does not
        with partial.open("wb") as file:
            torch.save(saved, file)
        partial.rename(path)
    except Exception:
        partial.unlink(missing_ok=True)
        raise


def _state_path(directory: Path, version: int) -> Path:
    return directory / f"v{version}.pt"
