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
    """A policy has overflowed: weights, logits or every loss hold NaN or infinite values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn and when a completion ends.

    Raises:
        ValueError: a value out of range, named.
    """

    n: int = 1
    """Completions per prompt."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy, which reports log-probabilities at temperature 1. Otherwise at least 1e-6: logits
    divided by less are no longer finite in fp32."""
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 128
    seed: int = 0
    stop: tuple[str, ...] = ()
    """The text ends before the first of these; the tokens that spelled it stay."""
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
        # a text's letters would be strings, too
        is_tuple = isinstance(self.stop, tuple | list)
        is_right = is_tuple and all(isinstance(s, str) and s for s in self.stop)
        require(is_right, "stop", "a tuple of non-empty strings", self.stop)
        is_tuple = isinstance(self.stop_token_ids, tuple | list)
        is_right = is_tuple and all(_is_whole(i) and i >= 0 for i in self.stop_token_ids)
        require(is_right, "stop_token_ids", "a tuple of token ids", self.stop_token_ids)

    @classmethod
    def of(cls, config: SamplingConfig, *, n: int = 1, seed: int = 0) -> "SamplingParams":
        """Returns the parameters that a config gives."""
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
        """Whether a completion is over with this token, whatever its text."""
        is_eos = token_id in eos_token_ids and not self.ignore_eos
        return is_eos or token_id in self.stop_token_ids

    @property
    def truncates(self) -> bool:
        """Whether tokens are dropped from the distribution before sampling."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)


def _require_whole(key: str, value: int, *, at_least: int) -> None:
    rule = f"a whole number > {at_least - 1}" if at_least else "a whole number >= 0"
    require(_is_whole(value) and value >= at_least, key, rule, value)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class SampleKey:
    """With a position, all that randomness depends on. `group_id` is never reused within a seed."""

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
    """Priority among waiting requests; higher ones begin first."""

    @property
    def drawn_with(self) -> SampleKey | None:
        """Key that its tokens are drawn with, together with their positions; None: it is greedy."""
        return self.key if self.params.temperature > 0 else None


class FinishReason(StrEnum):
    STOP = "stop"  # end of sequence, a stop id or a stop string
    LENGTH = "length"  # max_tokens, or the end of the context
    ABORTED = "aborted"
    REJECTED = "rejected"  # it could never have fitted; the message says why


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """Result of one request."""

    request_id: str
    token_ids: list[int]
    logprobs: list[float]
    """fp32, of the distribution that was really sampled from; greedy: at temperature 1."""
    policy_versions: list[int]
    """Per token, of the weights that produced it."""
    finish_reason: FinishReason
    text: str = ""
    message: str = ""
    """Why a request was rejected."""


class Status(Enum):
    WAITING = "waiting"
    FOLLOWING = "following"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, kw_only=True, eq=False)
class RequestState:
    """A request's life in the engine.

        WAITING -> RUNNING -> FINISHED          RUNNING -> WAITING: preempted, to be recomputed
        WAITING -> FOLLOWING -> RUNNING         a sibling whose prompt another one is computing
        FOLLOWING -> WAITING                    that other one was preempted or aborted

    `token_ids` is the log: prompt, then what was sampled. Keys and values of the first `num_computed` tokens
    are in the cache, in the blocks of `block_table`.
    """

    request: Request
    token_ids: list[int]
    num_prompt_tokens: int
    status: Status = Status.WAITING
    num_computed: int = 0
    kv_version: int = -1
    """Version of the weights that computed the first of its keys and values."""
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
        """Tokens whose keys and values have yet to be computed; 1 while decoding."""
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
    """`num_tokens` of a request, from `state.num_computed` on, in one forward, and a draft after the end of the log."""

    state: RequestState
    num_tokens: int
    draft: tuple[int, ...] = ()
    """Tokens that may come next: the position after each is sampled too, in case it is right."""

    @property
    def samples(self) -> bool:
        """Whether the chunk reaches the end of the log, so that the next token can be drawn."""
        return self.num_tokens == self.state.num_remaining

    @property
    def num_rows(self) -> int:
        return self.num_tokens + len(self.draft)


@dataclass(frozen=True, slots=True)
class StepBatch:
    """Chunks that one step computes."""

    chunks: tuple[Chunk, ...]
    block_copies: tuple[tuple[int, int], ...]  # (from, to), before anything is written
