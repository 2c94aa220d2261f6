"""Identity of a run in W&B. If a config key is empty, W&B's own environment variables decide, as they do for other tools."""

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rl.tracking.config import WandbConfig, WandbMode
from rollout.weights.atomic import write_text_atomically

__all__ = ["WandbIdentity", "wandb_mode"]

DEFAULT_PROJECT = "paceline"
_ALIASES = {"dryrun": "offline", "run": "online"}
_ID_FILE = Path("wandb") / "run_id"


def wandb_mode(config: WandbConfig, environ: Mapping[str, str] = os.environ) -> WandbMode:
    """`tracking.wandb.mode`, or else WANDB_MODE, or else offline.

    Raises:
        ValueError: WANDB_MODE names no mode.
    """
    if config.mode is not None:
        return config.mode
    if environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes"):
        return WandbMode("disabled")
    named = environ.get("WANDB_MODE", "").lower() or "offline"
    try:
        return WandbMode(_ALIASES.get(named, named))
    except ValueError:
        known = ", ".join(mode.value for mode in WandbMode)
        raise ValueError(
            f"WANDB_MODE must be one of {known}, got {environ['WANDB_MODE']!r}; change it, or set tracking.wandb.mode"
        ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class WandbIdentity:
    """A run in W&B. None leaves the value to W&B, which reads its own environment variable or takes its default."""

    run_id: str
    """Identifies the run, also when it goes on after a checkpoint."""
    is_resumed: bool
    """Whether an earlier process wrote to the same run."""
    project: str
    name: str
    entity: str | None
    group: str | None
    tags: tuple[str, ...] | None

    @classmethod
    def of(
        cls,
        config: WandbConfig,
        run_dir: Path,
        *,
        resumed_from: Path | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Self:
        """Return the identity of the run in `run_dir`.

        Args:
            config: keys that are set win over the environment.
            run_dir: gives the name if nothing else does; a run that is resumed in its own directory keeps its id.
            resumed_from: run directory whose checkpoint this run resumes from; its W&B run continues.
            environ: holds WANDB_PROJECT, WANDB_NAME and WANDB_RUN_ID.
        """
        earlier = _read_id(run_dir) or (_read_id(resumed_from) if resumed_from else None)
        return cls(
            run_id=environ.get("WANDB_RUN_ID") or earlier or secrets.token_hex(4),
            is_resumed=earlier is not None,
            project=config.project or environ.get("WANDB_PROJECT") or DEFAULT_PROJECT,
            name=config.name or environ.get("WANDB_NAME") or run_dir.resolve().name,
            entity=config.entity or None,
            group=config.group or None,
            tags=tuple(config.tags) or None,
        )

    def save(self, run_dir: Path) -> None:
        """Write the id into `run_dir`, for a run that resumes from its checkpoints."""
        path = run_dir / _ID_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, self.run_id + "\n")


def _read_id(run_dir: Path) -> str | None:
    path = run_dir / _ID_FILE
    return path.read_text().strip() if path.is_file() else None
