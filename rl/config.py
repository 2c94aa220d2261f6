"""The schema of every run: names, types, defaults, and the checks a type cannot express.

YAML under conf/ holds only the values that differ from these defaults.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from rl.algorithm_config import AlgorithmConfig, CorrectionConfig
from rollout.config import (
    DrafterKind,
    EngineConfig,
    FleetConfig,
    ModelConfig,
    SamplingConfig,
    Scenario,
    SpeculationConfig,
    require,
)


class LRSchedule(Enum):
    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class OptimizerKind(Enum):
    ADAMW = "adamw"
    MUON = "muon"
    """For the matrices of the layers; embedding, head, norms and biases keep AdamW. Its iterations are in bf16, slow on a CPU
    without bf16 instructions."""


class Operation(Enum):
    SUM = "+"
    DIFFERENCE = "-"


class TrainerBackend(Enum):
    TORCH = "torch"
    DEEPSPEED = "deepspeed"


class DataParallel(Enum):
    DDP = "ddp"
    """A copy of the weights on every rank."""
    FSDP2 = "fsdp2"
    """Weights, gradients and the optimiser's state in shards, one per rank."""


class WandbMode(Enum):
    OFFLINE = "offline"
    ONLINE = "online"
    DISABLED = "disabled"


class RunMode(Enum):
    FULL = "full"
    ROLLOUT_ONLY = "rollout_only"
    """Generate and score; train nothing."""
    TRAIN_ONLY = "train_only"
    """Train on random completions with random scores; generate nothing."""


@dataclass(kw_only=True)
class TaskConfig:
    """Base of the `task` group."""

    system_prompt: str = ""
    """Sent as the system message of every prompt; empty sends none."""
    user_prompt: str = "{question}"
    """The user message of every prompt; `{question}` stands for the question."""
    reply_prefix: str = ""
    """How every reply begins, given and not sampled; `{question}` stands for the question. Empty: not at all."""
    num_held_out: int = 1000
    """Prompts kept for evaluation; they are never trained on."""
    scorer: str = ""
    """The user's own scorer, `package.module:function` or `path/to/file.py:function`; empty: the task's own."""
    seed: int = 0
    """Of the generated or shuffled prompts; apart from the run's `seed`, so that runs share the held-out set."""

    def __post_init__(self) -> None:
        require(self.num_held_out > 0, "task.num_held_out", "> 0", self.num_held_out)
        require(
            "{question}" in self.user_prompt,
            "task.user_prompt",
            "a text with {question} in it",
            self.user_prompt,
        )
        require(self.seed >= 0, "task.seed", ">= 0", self.seed)


@dataclass(kw_only=True)
class ArithmeticConfig(TaskConfig):
    """Two-term sums and differences."""

    operations: list[Operation] = field(default_factory=lambda: list(Operation))
    """Sums alone are within a small model's reach: `task.operations=[SUM]`."""
    min_digits: int = 1
    max_digits: int = 2
    """Digits of a term."""
    num_train: int = 8000
    """Prompts to train on; reasoning-gym draws them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.operations), "task.operations", "[SUM], [DIFFERENCE] or both", [])
        require(self.min_digits >= 1, "task.min_digits", ">= 1", self.min_digits)
        require(
            self.max_digits >= self.min_digits,
            "task.max_digits",
            f">= task.min_digits ({self.min_digits})",
            self.max_digits,
        )
        require(self.num_train > 0, "task.num_train", "> 0", self.num_train)


@dataclass(kw_only=True)
class ReasoningGymConfig(TaskConfig):
    """Any task of reasoning-gym, scored by that library."""

    name: str = MISSING
    """The library's name of the task, for example `number_sorting`."""
    params: dict[str, Any] = field(default_factory=dict)
    """Handed to `reasoning_gym.create_dataset`, for example `task.params.max_numbers=5`."""
    num_train: int = 8000

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_train > 0, "task.num_train", "> 0", self.num_train)


@dataclass(kw_only=True)
class DatasetConfig(TaskConfig):
    """Rows of a Hugging Face dataset, scored by math-verify unless `scorer` says otherwise."""

    path: str = MISSING
    """A .jsonl, .json or .parquet file, or a hub id."""
    subset: str = ""
    """Of a hub id that has several, for example `main`."""
    split: str = "train"
    held_out_path: str = ""
    """A file or hub id of held-out rows; empty: `num_held_out` rows are split off."""
    held_out_split: str = "test"
    """Split of `held_out_path`."""
    prompt_column: str = "question"
    answer_column: str = "answer"


@dataclass(kw_only=True)
class RewardConfig:
    num_workers: int = 1
    """Processes that score."""
    time_limit_seconds: float = 10.0
    """Of one completion; past it the scorer is killed and the outcome is a timeout."""
    memory_limit_gb: float = 8.0
    """Address space of one scorer process, in GB (10^9 bytes)."""
    max_error_rate: float = 0.2
    """The run stops when more than this share of a step's completions could not be scored."""

    def __post_init__(self) -> None:
        require(self.num_workers > 0, "reward.num_workers", "> 0", self.num_workers)
        require(
            self.time_limit_seconds > 0, "reward.time_limit_seconds", "> 0", self.time_limit_seconds
        )
        require(self.memory_limit_gb > 0, "reward.memory_limit_gb", "> 0", self.memory_limit_gb)
        require(
            0 <= self.max_error_rate <= 1, "reward.max_error_rate", "in [0, 1]", self.max_error_rate
        )


LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(kw_only=True)
class LoRAConfig:
    """Train low-rank adapters of the policy instead of its weights; a critic is trained whole."""

    rank: int = 0
    """Of the adapters; 0: none, all weights are trained."""
    alpha: float = 32.0
    """An adapter's product is scaled by alpha / rank."""
    targets: list[str] = field(default_factory=lambda: list(LORA_TARGETS))
    """Matrices that have one, of every layer."""
    path: str = ""
    """A directory with an adapter in peft's format to begin with; empty: a new one."""

    def __post_init__(self) -> None:
        require(self.rank >= 0, "trainer.lora.rank", ">= 0", self.rank)
        require(self.alpha > 0, "trainer.lora.alpha", "> 0", self.alpha)
        is_known = bool(self.targets) and set(self.targets) <= set(LORA_TARGETS)
        require(
            is_known, "trainer.lora.targets", f"some of {', '.join(LORA_TARGETS)}", self.targets
        )
        require(
            self.rank > 0 or not self.path,
            "trainer.lora.rank",
            "that of the adapter of trainer.lora.path",
            self.rank,
        )


@dataclass(kw_only=True)
class TrainerConfig:
    num_steps: int = 100
    """Optimiser steps, one per batch."""
    backend: TrainerBackend = TrainerBackend.TORCH
    data_parallel: DataParallel = DataParallel.DDP
    """Of several processes, with `backend` TORCH."""
    num_processes: int = 1
    """Processes that train together, on Ray: on this machine, or in the cluster of `fleet.address`. The first is the one that was
    started. Leave it at 1 under torchrun, which starts them itself."""
    threads_per_process: int = 1
    """With `num_processes` above 1: CPU threads of each, and cores that each but the first asks a cluster for."""
    zero_stage: int = 2
    """Of DEEPSPEED: what is in shards. 0: nothing, 1: the optimiser's state, 2: gradients too, 3: weights too."""
    offload_optimizer: bool = False
    """Of DEEPSPEED: keep the optimiser's state in the host's memory and update there; from `zero_stage` 1 on."""
    learning_rate: float = 1e-6
    lr_schedule: LRSchedule = LRSchedule.CONSTANT
    """After warm-up: CONSTANT, or LINEAR or COSINE decay to 0 at `num_steps`."""
    num_warmup_steps: int = 0
    """The learning rate rises linearly over these steps."""
    optimizer: OptimizerKind = OptimizerKind.ADAMW
    """ADAMW, or MUON for the matrices of the layers, with steps as large as AdamW's at the same learning rate."""
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    muon_momentum: float = 0.95
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm."""
    steps_per_batch: int = 1
    """Optimiser steps on each batch, every one on as many of its groups. Above 1, ratios are to the policy before the
    first of them, which takes a forward more; with 1 they are exactly 1, and no clip is ever felt."""
    max_tokens_per_micro_batch: int = 4096
    """Packed tokens of one forward and backward; the longest sample must fit."""
    share_prompts: bool = True
    """Compute the prompt of a group, and what it shares with the last group's, once; the gradient is the same."""
    activation_checkpointing: bool = False
    """Keep only the input of each layer for the backward and compute the layer again there: less memory, a forward
    more, and the same gradient bit for bit."""
    ema_decay: float = 0.0
    """Of an exponential moving average of the trained weights, kept in fp32; every checkpoint holds it as a Hugging Face
    directory, weights/v<version>/ema. 0: none."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)

    def __post_init__(self) -> None:
        require(self.num_steps >= 0, "trainer.num_steps", ">= 0", self.num_steps)
        require(self.num_processes > 0, "trainer.num_processes", "> 0", self.num_processes)
        threads = self.threads_per_process
        require(threads > 0, "trainer.threads_per_process", "> 0", threads)
        require(0 <= self.zero_stage <= 3, "trainer.zero_stage", "0, 1, 2 or 3", self.zero_stage)
        require(self.learning_rate >= 0, "trainer.learning_rate", ">= 0", self.learning_rate)
        require(
            self.num_warmup_steps >= 0, "trainer.num_warmup_steps", ">= 0", self.num_warmup_steps
        )
        require(self.weight_decay >= 0, "trainer.weight_decay", ">= 0", self.weight_decay)
        require(0 <= self.adam_beta1 < 1, "trainer.adam_beta1", "in [0, 1)", self.adam_beta1)
        require(0 <= self.adam_beta2 < 1, "trainer.adam_beta2", "in [0, 1)", self.adam_beta2)
        require(self.adam_epsilon > 0, "trainer.adam_epsilon", "> 0", self.adam_epsilon)
        require(
            0 <= self.muon_momentum < 1, "trainer.muon_momentum", "in [0, 1)", self.muon_momentum
        )
        require(0 <= self.ema_decay < 1, "trainer.ema_decay", "in [0, 1)", self.ema_decay)
        require(self.max_grad_norm > 0, "trainer.max_grad_norm", "> 0", self.max_grad_norm)
        require(self.steps_per_batch > 0, "trainer.steps_per_batch", "> 0", self.steps_per_batch)
        require(
            self.max_tokens_per_micro_batch > 0,
            "trainer.max_tokens_per_micro_batch",
            "> 0",
            self.max_tokens_per_micro_batch,
        )


@dataclass(kw_only=True)
class EvaluationConfig:
    every_steps: int = 20
    """Evaluate greedily on held-out prompts every so many steps, before the first and after the last; 0: never."""
    num_prompts: int = 0
    """Held-out prompts of the evaluations before the last; 0: all. The first and the last always take all."""

    def __post_init__(self) -> None:
        require(self.every_steps >= 0, "evaluation.every_steps", ">= 0", self.every_steps)
        require(self.num_prompts >= 0, "evaluation.num_prompts", ">= 0", self.num_prompts)


@dataclass(kw_only=True)
class CheckpointConfig:
    every_steps: int = 50
    """Write a checkpoint every so many steps and at the end; 0: at the end alone."""
    keep: int = 2
    """Checkpoints kept; older ones are removed after a newer one is complete."""

    def __post_init__(self) -> None:
        require(self.every_steps >= 0, "checkpoint.every_steps", ">= 0", self.every_steps)
        require(self.keep > 0, "checkpoint.keep", "> 0", self.keep)


@dataclass(kw_only=True)
class WandbConfig:
    mode: WandbMode = WandbMode.OFFLINE
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
class TrainConfig:
    run_dir: str = MISSING
    """Everything the run writes; must not hold a run yet."""
    seed: int = 0
    """Of sampling and of the order of prompts."""
    num_prompts_per_step: int = 16
    """Prompts per optimiser step."""
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
    mode: RunMode = RunMode.FULL
    """FULL; ROLLOUT_ONLY generates and scores alone; TRAIN_ONLY trains on random completions alone."""
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
    """Of scripts/evaluate.py."""

    model: ModelConfig = MISSING
    task: TaskConfig = MISSING
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    seed: int = 0


@dataclass(kw_only=True)
class GenerateConfig:
    """Of scripts/generate.py."""

    model: ModelConfig = MISSING
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    prompts: list[str] = field(default_factory=list)
    """Sent as user messages; where the model has no chat template, as plain text."""
    system_prompt: str = ""
    num_samples: int = 1
    """Completions per prompt."""
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.num_samples > 0, "num_samples", "> 0", self.num_samples)


@dataclass(kw_only=True)
class BenchRolloutConfig:
    """Of scripts/bench_rollout.py."""

    model: ModelConfig = MISSING
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(kv_cache_gb=4.0))
    workloads: list[str] = field(default_factory=lambda: ["W1", "W3"])
    """Of W1 to W6, see rollout/bench/workloads.py."""
    repeats: int = 3

    def __post_init__(self) -> None:
        require(self.repeats > 0, "repeats", "> 0", self.repeats)


@dataclass(kw_only=True)
class BenchSpeculationConfig:
    """Of scripts/bench_speculation.py."""

    model: ModelConfig = MISSING
    task: TaskConfig = MISSING
    """Whose training prompts are answered; for example task.name=number_sorting."""
    engine: EngineConfig = field(
        default_factory=lambda: EngineConfig(
            kv_cache_gb=4.0, speculation=SpeculationConfig(drafter=DrafterKind.AUTO)
        )
    )
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(max_tokens=256))
    """Of all scenarios but UNPREDICTABLE, which has temperature 1.5."""
    history_from: str = ""
    """A run directory whose newest checkpoint's past rollouts are the history of SECOND_EPOCH and TAIL, with the prompts
    they answer; `model` should be its policy. Empty: the bench makes the first epoch itself."""
    scenarios: list[Scenario] = field(default_factory=lambda: list(Scenario))
    concurrency: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 64, 256])
    """Requests in flight; TAIL has all of its own at once."""
    paired_concurrency: list[int] = field(default_factory=lambda: [1, 4, 64, 256])
    """Where SECOND_EPOCH and UNPREDICTABLE run `pairs` times, as TAIL does; other cells run once."""
    tail_requests: int = 64
    """Of TAIL, all at once: a training step of 8 prompts x 8 completions, as bench_train measures it."""
    tokens_per_run: int = 768
    """About how many tokens each run of a scenario decodes, at least one per request in flight."""
    pairs: int = 7
    """Runs with and without drafts, in turn."""
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.pairs > 0, "pairs", "> 0", self.pairs)
        require(self.tokens_per_run > 0, "tokens_per_run", "> 0", self.tokens_per_run)
        require(self.tail_requests > 0, "tail_requests", "> 0", self.tail_requests)
        require(
            bool(self.concurrency) and min(self.concurrency) > 0,
            "concurrency",
            "a list of positive numbers",
            self.concurrency,
        )


class FleetCase(Enum):
    UPDATES = "updates"
    ASYNCHRONY = "asynchrony"
    MEMBERSHIP = "membership"


@dataclass(kw_only=True)
class BenchFleetConfig(TrainConfig):
    """Of scripts/bench_fleet.py: those of a run, and what is measured. ASYNCHRONY runs it, at every `staleness`."""

    cases: list[FleetCase] = field(default_factory=lambda: list(FleetCase))
    receivers: list[int] = field(default_factory=lambda: [1, 2, 4])
    """UPDATES: engines in processes of their own."""
    concurrency: list[int] = field(default_factory=lambda: [0, 4])
    """UPDATES: requests each of them decodes meanwhile; 0: none, the transport alone."""
    bucket_mb: float = 16.0
    """UPDATES: of the transport, in MB (10^6 bytes); two buffers of it at each end."""
    staleness: list[int] = field(default_factory=lambda: [0, 1])
    """ASYNCHRONY: values of `max_staleness`, each a run of `trainer.num_steps` steps; the first step warms up."""
    repeats: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        is_counts = bool(self.receivers) and min(self.receivers) > 0
        require(is_counts, "receivers", "a list of positive numbers", self.receivers)
        is_counts = bool(self.concurrency) and min(self.concurrency) >= 0
        require(is_counts, "concurrency", "a list of numbers >= 0", self.concurrency)
        is_counts = bool(self.staleness) and min(self.staleness) >= 0
        require(is_counts, "staleness", "a list of numbers >= 0", self.staleness)
        require(self.bucket_mb > 0, "bucket_mb", "> 0", self.bucket_mb)
        require(self.repeats > 0, "repeats", "> 0", self.repeats)


@dataclass(kw_only=True)
class BenchDriftConfig:
    """Of scripts/bench_drift.py."""

    run: str = MISSING
    """A run directory with several weights/v*."""
    versions: list[int] = field(default_factory=list)
    """Of them; empty: all. Each is held in memory."""
    task: TaskConfig = MISSING
    """Whose training prompts are answered, as the run was trained."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    num_prompts: int = 8
    group_size: int = 8
    """Answers to each prompt: of the history, and as many again that are decoded."""
    seed: int = 0
    output: str = "drift.png"

    def __post_init__(self) -> None:
        require(self.num_prompts > 0, "num_prompts", "> 0", self.num_prompts)
        require(self.group_size > 0, "group_size", "> 0", self.group_size)
        require(
            self.sampling.temperature > 0,
            "sampling.temperature",
            "> 0 (drift is measured between distributions)",
            self.sampling.temperature,
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
