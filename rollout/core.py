"""The nouns of the engine. No behaviour beyond what a noun knows of itself, and no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from numbers import Integral

from rollout.config import SamplingConfig, require, require_temperature

__all__ = [
    "Chunk",
    "Completion",
    "FinishReason",
    "NotFiniteError",
    "Request",
    "RequestState",
    "SampleKey",
    "SamplingParams",
    "Status",
    "StepBatch",
]


class NotFiniteError(RuntimeError):
    """Error raised when a policy has overflowed: weights, logits or every loss are NaN or infinite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Settings by which tokens are drawn and a completion ends.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    n: int = 1
    """Completions per prompt."""
    temperature: float = 1.0
    """Divisor of the logits; 0 is greedy and reports log-probabilities at temperature 1. Other values must be at
    least 1e-6, because smaller ones make the logits overflow fp32."""
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 128
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Strings that end the completion. Its text stops before the first of them; its tokens include those that
    spelled the string."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for key, least in (("n", 1), ("max_tokens", 1), ("top_k", 0)):
            _require_whole(key, getattr(self, key), at_least=least)
        _require_whole("seed", self.seed, at_least=0)
        require(self.seed < 2**63, "seed", "< 2**63", self.seed)
        require_temperature("temperature", self.temperature)
        require(0 < self.top_p <= 1, "top_p", "in (0, 1]", self.top_p)
        require(0 <= self.min_p < 1, "min_p", "in [0, 1)", self.min_p)
        # a plain string would pass the check below, because its letters are strings
        is_tuple = isinstance(self.stop, tuple | list)
        is_right = is_tuple and all(isinstance(s, str) and s for s in self.stop)
        require(is_right, "stop", "a tuple of non-empty strings", self.stop)
        is_tuple = isinstance(self.stop_token_ids, tuple | list)
        is_right = is_tuple and all(_is_whole(i) and i >= 0 for i in self.stop_token_ids)
        require(is_right, "stop_token_ids", "a tuple of token ids", self.stop_token_ids)

    @classmethod
    def of(cls, config: SamplingConfig, *, n: int = 1, seed: int = 0) -> "SamplingParams":
        """Build the parameters that a config asks for."""
        return cls(
            n=n,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
            max_tokens=config.max_tokens,
            stop=tuple(config.stop),
            seed=seed,
        )

    def ends_at(self, token_id: int, *, eos_token_ids: Sequence[int]) -> bool:
        """Return whether a completion ends with this token, whatever its text."""
        is_eos = token_id in eos_token_ids and not self.ignore_eos
        return is_eos or token_id in self.stop_token_ids

    @property
    def truncates(self) -> bool:
        """True if tokens are dropped from the distribution before sampling."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)


def _require_whole(key: str, value: int, *, at_least: int) -> None:
    rule = f"a whole number > {at_least - 1}" if at_least else "a whole number >= 0"
    require(_is_whole(value) and value >= at_least, key, rule, value)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class SampleKey:
    """Key of a request's random numbers: together with a token's position it determines them. `group_id` is never
    reused within a seed."""

    seed: int
    group_id: int
    sample_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The engine's unit of work: one completion of one prompt."""

    request_id: str
    token_ids: tuple[int, ...]
    params: SamplingParams
    key: SampleKey
    priority: int = 0
    """Priority in the queue; higher ones begin first."""

    @property
    def drawn_with(self) -> SampleKey | None:
        """Key of the random numbers that draw the tokens; None if the request is greedy."""
        return self.key if self.params.temperature > 0 else None


class FinishReason(StrEnum):
    STOP = "stop"  # end of sequence, a stop id or a stop string
    LENGTH = "length"  # max_tokens, or the end of the context
    ABORTED = "aborted"
    REJECTED = "rejected"  # could never fit; `message` says why


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """Result of one request."""

    request_id: str
    token_ids: list[int]
    logprobs: list[float]
    """Log-probabilities (fp32) under the distribution that was sampled from; greedy requests report them at
    temperature 1."""
    policy_versions: list[int]
    """Version of the weights that produced each token."""
    finish_reason: FinishReason
    text: str = ""
    message: str = ""
    """Reason why a request was rejected."""


class Status(Enum):
    WAITING = "waiting"
    FOLLOWING = "following"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, kw_only=True, eq=False)
class RequestState:
    """State of a request in the engine.

        WAITING -> RUNNING -> FINISHED          RUNNING -> WAITING: preempted, to be recomputed
        WAITING -> FOLLOWING -> RUNNING         its prompt is being computed by a sibling
        FOLLOWING -> WAITING                    that sibling was preempted or aborted

    `token_ids` holds the prompt, then the sampled tokens. Keys and values of the first `num_computed` tokens are in
    the cache, in the blocks of `block_table`.
    """

    request: Request
    token_ids: list[int]
    num_prompt_tokens: int
    status: Status = Status.WAITING
    num_computed: int = 0
    kv_version: int = -1
    """Version of the weights that computed the first keys and values of the request; -1 before that."""
    block_table: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    policy_versions: list[int] = field(default_factory=list)
    followers: list["RequestState"] = field(default_factory=list)

    @classmethod
    def of(cls, request: Request) -> "RequestState":
        return cls(
            request=request,
            token_ids=list(request.token_ids),
            num_prompt_tokens=len(request.token_ids),
        )

    @property
    def num_remaining(self) -> int:
        """Number of tokens without keys and values yet; 1 while decoding."""
        return len(self.token_ids) - self.num_computed

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_output(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def group(self) -> tuple[int, int]:
        return (self.request.key.seed, self.request.key.group_id)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Part of a forward: `num_tokens` of a request, from `state.num_computed` on. A draft may follow the last
    token."""

    state: RequestState
    num_tokens: int
    draft: tuple[int, ...] = ()
    """Draft tokens. Each of their positions is sampled too, and counts only if the draft before it was right."""

    @property
    def samples(self) -> bool:
        """True if the chunk includes the request's last token, so that the next token can be drawn."""
        return self.num_tokens == self.state.num_remaining

    @property
    def num_rows(self) -> int:
        return self.num_tokens + len(self.draft)


@dataclass(frozen=True, slots=True)
class StepBatch:
    """Work of one engine step."""

    chunks: tuple[Chunk, ...]
    block_copies: tuple[tuple[int, int], ...]
    """Pairs (source, target) of blocks to copy before the step writes to the cache."""
