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
    """Settings of Weights & Biases. A key that is left empty takes W&B's own environment variable, as other tools do."""

    mode: WandbMode | None = None
    """offline records under the run directory, online uploads at once, disabled does neither. null: WANDB_MODE, or else offline."""
    project: str = ""
    """Project of the run. Empty: WANDB_PROJECT, or else paceline."""
    entity: str = ""
    """User or team that owns the project. Empty: WANDB_ENTITY, or else the account's default."""
    name: str = ""
    """Name of the run. Empty: WANDB_NAME, or else the name of the run directory; in a sweep, the overrides that differ."""
    group: str = ""
    """Runs of one group are drawn as one curve with its spread. Empty: WANDB_RUN_GROUP; in a sweep, what differs but the seed."""
    tags: list[str] = field(default_factory=list)
    """Labels to filter runs by. Empty: WANDB_TAGS, separated by commas."""


@dataclass(kw_only=True)
class TrackingConfig:
    wandb: WandbConfig = field(default_factory=WandbConfig)
    num_samples_per_step: int = 4
    """Rollouts of every step written to samples.jsonl and to the W&B tables."""
    curves_every_steps: int = 10
    """Steps between two drawings of curves.png, which is also drawn at the end."""

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
    """Settings of scripts/report.py."""

    runs: list[str] = MISSING
    """Run directories, directories that hold runs (a sweep), or globs of either."""
    names: list[str] = field(default_factory=list)
    """Names of the curves in the picture, one per curve; empty: what the runs differ in."""
    group_seeds: bool = True
    """Draw runs that differ only in their seed as one curve: the mean, with the range between the least and the greatest."""
    output: str = "runs.png"
    """The picture to write."""

    def __post_init__(self) -> None:
        require(bool(self.runs), "runs", "a list of run directories", self.runs)
        is_named = len(set(self.names)) == len(self.names)
        require(is_named, "names", "different names, one per curve", self.names)
