"""The schemas of a run and of the other scripts: names, types, defaults, and the checks a type cannot express.

Each part's schema lives beside its code, in a file called config.py. YAML under conf/ holds only departures from these defaults.
"""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from rl.algorithms.base.config import AlgorithmConfig, CorrectionConfig
from rl.rewards.config import RewardConfig
from rl.tasks.config import TaskConfig
from rl.tracking.config import TrackingConfig
from rl.trainer.config import TrainerConfig
from rollout.config import EngineConfig, FleetConfig, ModelConfig, SamplingConfig, require


class RunMode(Enum):
    full = "full"
    rollout_only = "rollout_only"
    """Generate and score; train nothing."""
    train_only = "train_only"
    """Train on random completions with random scores; generate nothing."""


@dataclass(kw_only=True)
class EvaluationConfig:
    every_steps: int = 20
    """Evaluate greedily on held-out prompts every so many steps, before the first and after the last; 0: never."""
    num_prompts: int = 0
    """Held-out prompts of the evaluations before the last, the first ones of them; 0: all. The last always takes all."""

    def __post_init__(self) -> None:
        require(self.every_steps >= 0, "evaluation.every_steps", ">= 0", self.every_steps)
        require(self.num_prompts >= 0, "evaluation.num_prompts", ">= 0", self.num_prompts)


@dataclass(kw_only=True)
class CheckpointConfig:
    every_steps: int = 50
    """Write a checkpoint every so many steps and at the end; 0: only at the end."""
    keep: int = 2
    """Checkpoints kept; older ones are removed after a newer one is complete."""
    grace_seconds: float = 60.0
    """Time that older weights stay for readers that follow `LATEST`, after a newer version was announced. A reader that takes
    longer holds a lease (`WeightStore.reading`)."""

    def __post_init__(self) -> None:
        require(self.every_steps >= 0, "checkpoint.every_steps", ">= 0", self.every_steps)
        require(self.keep > 0, "checkpoint.keep", "> 0", self.keep)
        require(self.grace_seconds >= 0, "checkpoint.grace_seconds", ">= 0", self.grace_seconds)


@dataclass(kw_only=True)
class TrainConfig:
    run_dir: str = ""
    """Directory of everything the run writes; it must not hold a run yet, unless `resume_from` names the same. Empty:
    outputs/<date>/<time>."""
    seed: int = 0
    """Seed of sampling and of the order of prompts."""
    num_prompts_per_step: int = 16
    """Prompts of a batch; `trainer.steps_per_batch` optimiser steps train on it."""
    group_size: int = 8
    """Rollouts per prompt."""
    num_spare_rollouts: int = 0
    """Over-provisioning: rollouts per prompt that are begun beyond `group_size`. The first `group_size` to end are kept and
    trained, the others are aborted. A batch waits less for its slowest rollout, and learns from answers that are too short:
    `overprovision/*` says what is left out. Which rollouts are kept depends on who was fast, so the run is repeatable only
    with fleet=inline and without speculation. What stays true: the tokens of a kept rollout are those that its key
    (seed, group, sample) draws from the weights in force; groups have `group_size` rollouts and are trained once each, in
    their order; evaluations have no spare ones. 0: off."""
    max_staleness: int = 0
    """Updates of the policy that may pass between a rollout's first token and the step that trains on it. 0: each batch is
    sampled from the policy it trains, exactly. Above 0 rollouts of later batches are begun early, so that nothing waits
    for the slowest of a batch; `correction` weights their tokens."""
    model: ModelConfig = MISSING
    task: TaskConfig = MISSING
    algorithm: AlgorithmConfig = MISSING
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    fleet: FleetConfig = field(default_factory=FleetConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    mode: RunMode = RunMode.full
    """Parts of the loop that run. `full`: all; `rollout_only`: generate and score; `train_only`: train on random completions."""
    resume_from: str = ""
    """A run directory whose latest checkpoint this run goes on from; empty: start from the model."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", ">= 0", self.seed)
        require(
            self.num_prompts_per_step > 0, "num_prompts_per_step", "> 0", self.num_prompts_per_step
        )
        require(
            self.group_size > 1, "group_size", "> 1 (advantages compare siblings)", self.group_size
        )
        require(self.num_spare_rollouts >= 0, "num_spare_rollouts", ">= 0", self.num_spare_rollouts)
        require(self.max_staleness >= 0, "max_staleness", ">= 0", self.max_staleness)
        require(
            self.trainer.steps_per_batch <= self.num_prompts_per_step,
            "trainer.steps_per_batch",
            f"<= num_prompts_per_step ({self.num_prompts_per_step}), so that every step has a group",
            self.trainer.steps_per_batch,
        )


@dataclass(kw_only=True)
class EvaluateConfig:
    """Settings of scripts/evaluate.py."""

    model: ModelConfig = MISSING
    task: TaskConfig = MISSING
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    seed: int = 0
    """Seed of sampling."""


@dataclass(kw_only=True)
class GenerateConfig:
    """Settings of scripts/generate.py."""

    model: ModelConfig = MISSING
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    prompts: list[str] = field(default_factory=list)
    """Sent as user messages; where the model has no chat template, as plain text."""
    system_prompt: str = ""
    """The system message of every prompt; empty: none."""
    user_prompt: str = "{question}"
    """The user message; `{question}` stands for the prompt."""
    reply_prefix: str = ""
    """How the reply begins, given and not sampled; `{question}` stands for the prompt. Empty: not at all."""
    num_samples: int = 1
    """Completions per prompt."""
    seed: int = 0
    """Seed of sampling."""

    def __post_init__(self) -> None:
        require(self.num_samples > 0, "num_samples", "> 0", self.num_samples)
