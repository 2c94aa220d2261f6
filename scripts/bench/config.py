"""The schemas of the benchmarks."""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from rl.config import TrainConfig
from rl.tasks.config import TaskConfig
from rollout.config import (
    DrafterKind,
    EngineConfig,
    ModelConfig,
    SamplingConfig,
    Scenario,
    SpeculationConfig,
    require,
)


@dataclass(kw_only=True)
class BenchRolloutConfig:
    """Config of scripts.bench.rollout."""

    model: ModelConfig = MISSING
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(kv_cache_gb=4.0))
    workloads: list[str] = field(default_factory=lambda: ["W1", "W3"])
    """Names of workloads, W1 to W6; scripts/bench/rollout/workloads.py describes them."""
    repeats: int = 3
    """Times each workload is measured."""

    def __post_init__(self) -> None:
        require(self.repeats > 0, "repeats", "> 0", self.repeats)


@dataclass(kw_only=True)
class BenchSpeculationConfig:
    """Config of scripts.bench.speculation."""

    model: ModelConfig = MISSING
    task: TaskConfig = MISSING
    """Task whose training prompts are answered, for example task.name=number_sorting."""
    engine: EngineConfig = field(
        default_factory=lambda: EngineConfig(
            kv_cache_gb=4.0, speculation=SpeculationConfig(drafter=DrafterKind.auto)
        )
    )
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(max_tokens=256))
    """Sampling of all scenarios except `unpredictable`, which has temperature 1.5."""
    history_from: str = ""
    """A run directory whose newest checkpoint's past rollouts are the history of `second_epoch` and `tail`, with the prompts
    they answer; `model` should be its policy. Empty: the bench makes the first epoch itself."""
    scenarios: list[Scenario] = field(default_factory=lambda: list(Scenario))
    """Situations in which drafts are measured."""
    concurrency: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 64, 256])
    """Requests in flight; `tail` has all of its own at once."""
    paired_concurrency: list[int] = field(default_factory=lambda: [1, 4, 64, 256])
    """Requests in flight at which `second_epoch` and `unpredictable` run `pairs` times, as `tail` always does; other cells run once."""
    tail_requests: int = 64
    """Requests of `tail`, all at once: a training step of 8 prompts x 8 completions, as scripts.bench.train measures it."""
    tokens_per_run: int = 768
    """About how many tokens each run of a scenario decodes, at least one per request in flight."""
    pairs: int = 7
    """Runs with and without drafts, in turn."""
    seed: int = 0
    """Seed of sampling."""

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
    updates = "updates"
    asynchrony = "asynchrony"
    membership = "membership"


@dataclass(kw_only=True)
class BenchFleetConfig(TrainConfig):
    """Config of scripts.bench.fleet: the keys of a run, and what is measured. `asynchrony` runs it at every `staleness`."""

    cases: list[FleetCase] = field(default_factory=lambda: list(FleetCase))
    """Measurements to make; --help describes them."""
    receivers: list[int] = field(default_factory=lambda: [1, 2, 4])
    """`updates`: engines in processes of their own."""
    concurrency: list[int] = field(default_factory=lambda: [0, 4])
    """`updates`: requests that each receiver decodes meanwhile; 0 measures only the transport."""
    bucket_mb: float = 16.0
    """`updates`: of the transport, in MB (10^6 bytes); two buffers of it at each end."""
    staleness: list[int] = field(default_factory=lambda: [0, 1])
    """`asynchrony`: values of `max_staleness`, each a run of `trainer.num_steps` steps; the first step warms up."""
    repeats: int = 5
    """Times each measurement is made."""

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
    """Config of scripts.bench.drift."""

    run: str = MISSING
    """A run directory with several weights/v*."""
    versions: list[int] = field(default_factory=list)
    """Versions to compare; empty takes all. Each is held in memory."""
    task: TaskConfig = MISSING
    """Task whose training prompts are answered; it must be the run's own."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    num_prompts: int = 8
    """Prompts to answer."""
    group_size: int = 8
    """Number of answers to each prompt in the history; as many again are decoded."""
    seed: int = 0
    """Seed of sampling."""
    output: str = "drift.png"
    """Path of the picture."""

    def __post_init__(self) -> None:
        require(self.num_prompts > 0, "num_prompts", "> 0", self.num_prompts)
        require(self.group_size > 0, "group_size", "> 0", self.group_size)
        require(
            self.sampling.temperature > 0,
            "sampling.temperature",
            "> 0 (drift is measured between distributions)",
            self.sampling.temperature,
        )


SCHEMAS = {
    "bench_rollout": BenchRolloutConfig,
    "bench_speculation": BenchSpeculationConfig,
    "bench_fleet": BenchFleetConfig,
    "bench_drift": BenchDriftConfig,
    "bench_train": TrainConfig,
}
"""Schema of each benchmark's primary config, by its name in conf/."""
