"""Config schemas of a run and of the other scripts: names, types, defaults, and the checks that a type cannot
express.

The schema of each part is next to its code, in a file named config.py. YAML files in conf/ contain only departures
from these defaults.
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
    """Generates and scores rollouts, without training."""
    train_only = "train_only"
    """Trains on random completions with random scores, without generation."""


@dataclass(kw_only=True)
class EvaluationConfig:
    every_steps: int = 20
    """Number of steps between evaluations, which answer held-out prompts greedily. The run also evaluates before
    the first step and after the last. 0: no evaluations."""
    num_prompts: int = 0
    """Number of held-out prompts in each evaluation except the last, which always uses all; the first prompts are
    used. 0: all."""

    def __post_init__(self) -> None:
        require(self.every_steps >= 0, "evaluation.every_steps", ">= 0", self.every_steps)
        require(self.num_prompts >= 0, "evaluation.num_prompts", ">= 0", self.num_prompts)


@dataclass(kw_only=True)
class CheckpointConfig:
    every_steps: int = 50
    """Number of steps between checkpoints; the run also writes one at its end. 0: only at the end."""
    keep: int = 2
    """Number of checkpoints to keep. Older ones are removed after a newer one is complete."""
    grace_seconds: float = 60.0
    """Time that older weights stay after a newer version was announced in `LATEST`, in seconds, so that readers
    can finish. A reader that takes longer holds a lease (`WeightStore.reading`)."""

    def __post_init__(self) -> None:
        require(self.every_steps >= 0, "checkpoint.every_steps", ">= 0", self.every_steps)
        require(self.keep > 0, "checkpoint.keep", "> 0", self.keep)
        require(self.grace_seconds >= 0, "checkpoint.grace_seconds", ">= 0", self.grace_seconds)


@dataclass(kw_only=True)
class TrainConfig:
    run_dir: str = ""
    """Directory for all files of the run. It must not contain a run, unless `resume_from` names the same. Empty:
    outputs/<date>/<time>."""
    seed: int = 0
    """Seed of sampling and of the order of prompts."""
    num_prompts_per_step: int = 16
    """Number of prompts in a batch, on which the trainer makes `trainer.steps_per_batch` optimizer steps."""
    group_size: int = 8
    """Number of rollouts per prompt."""
    num_spare_rollouts: int = 0
    """Over-provisioning: number of rollouts per prompt that begin beyond `group_size`. The first `group_size` to
    end are kept and trained, the others are aborted. A batch then waits less for its slowest rollout, but its
    answers are too short on average; `overprovision/*` measures this. Which rollouts are kept depends on their
    speed, so a run is repeatable only with fleet=inline and without speculation. The tokens of a kept rollout
    still depend only on its key (seed, group, sample) and the weights. Each group has `group_size` rollouts and is
    trained once, in order. Evaluations have no spare rollouts. 0: off."""
    max_staleness: int = 0
    """Maximum number of updates of the policy between a rollout's first token and the batch that trains on it. 0:
    the policy that a batch trains has sampled it, exactly. Above 0, rollouts of later batches begin early, so that
    no worker waits for the slowest rollout of a batch; `correction` weights their tokens."""
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
    """Parts of the loop that run. `full`: all parts. `rollout_only`: generation and scoring. `train_only`:
    training on random completions."""
    resume_from: str = ""
    """Run directory whose latest checkpoint this run continues from. Empty: start from the model."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", ">= 0", self.seed)
        require(self.seed < 2**63, "seed", "< 2**63", self.seed)
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
    """Config of `paceline evaluate`."""

    model: ModelConfig = MISSING
    task: TaskConfig = MISSING
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    seed: int = 0
    """Seed of sampling."""


@dataclass(kw_only=True)
class GenerateConfig:
    """Config of `paceline generate`."""

    model: ModelConfig = MISSING
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    prompts: list[str] = field(default_factory=list)
    """Prompts to complete. They are sent as user messages, or as plain text if the model has no chat template."""
    system_prompt: str = ""
    """System message of every prompt; empty sends none."""
    user_prompt: str = "{question}"
    """User message of every prompt; `{question}` is replaced by the prompt."""
    reply_prefix: str = ""
    """Beginning of every reply, which is given and not sampled; `{question}` is replaced by the prompt. Empty:
    replies have no given beginning."""
    num_samples: int = 1
    """Number of completions per prompt."""
    seed: int = 0
    """Seed of sampling."""

    def __post_init__(self) -> None:
        require(self.num_samples > 0, "num_samples", "> 0", self.num_samples)
