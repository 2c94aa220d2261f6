"""The schemas of `tracking` and of scripts/report.py."""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from rollout.config import require


class WandbMode(Enum):
    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass(kw_only=True)
class WandbConfig:
    mode: WandbMode = WandbMode.offline
    project: str = "paceline"
    name: str = ""
    """Of the run; empty: the name of the run directory."""


@dataclass(kw_only=True)
class TrackingConfig:
    wandb: WandbConfig = field(default_factory=WandbConfig)
    num_samples_per_step: int = 4
    """Rollouts written to samples.jsonl and the W&B table at every step."""
    curves_every_steps: int = 10
    """curves.png is drawn every so many steps and at the end."""

    def __post_init__(self) -> None:
        require(
            self.num_samples_per_step >= 0,
            "tracking.num_samples_per_step",
            ">= 0",
            self.num_samples_per_step,
        )
        require(
            self.curves_every_steps > 0,
            "tracking.curves_every_steps",
            "> 0",
            self.curves_every_steps,
        )


@dataclass(kw_only=True)
class ReportConfig:
    """Of scripts/report.py."""

    runs: list[str] = MISSING
    """Run directories."""
    names: list[str] = field(default_factory=list)
    """What the runs are called in the picture, one each; empty: their directories."""
    output: str = "runs.png"

    def __post_init__(self) -> None:
        require(bool(self.runs), "runs", "a list of run directories", self.runs)
        is_named = not self.names or len(set(self.names)) == len(self.runs)
        require(is_named, "names", f"{len(self.runs)} different names, one per run", self.names)
