"""Binding of a scorer's parameters, by their names, to values of a job.

score(completion, row)                                              Paceline's
score(completion, answer, difficulty)                               columns of the dataset, by name
compute_score(data_source, solution_str, ground_truth, extra_info)  verl's
reward(prompts, completions, **columns) -> list                     TRL's, with lists of one element
"""

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl.rewards.job import ScoreJob

__all__ = ["BoundScorer", "bind_scorer"]

_Source = Callable[[ScoreJob], Any]

_COMPLETION_NAMES = ("completion", "response", "solution_str")
_LISTS = ("completions", "prompts")
_SOURCES: dict[str, _Source] = {
    **dict.fromkeys(_COMPLETION_NAMES, lambda job: job.completion),
    "row": lambda job: {**_our_columns(job), **job.row},
    "answer": lambda job: job.named("answer"),
    "ground_truth": lambda job: job.named("answer"),
    "question": lambda job: job.named("question"),
    "prompt": lambda job: job.named("question"),
    "transcript": lambda job: job.transcript,
    "data_source": lambda job: job.row.get("data_source", "dataset"),
    "extra_info": lambda job: job.row.get("extra_info", job.row),
}
_NEVER_COLUMNS = (
    "prompt",
    "completion",
    "completion_ids",
)  # names that TRL leaves out of **columns
_KNOWN = f"{', '.join(_SOURCES)}, the dataset's columns, or TRL's {' and '.join(_LISTS)}"


@dataclass(frozen=True, slots=True)
class BoundScorer:
    """Scorer whose parameters are bound by name; call it with a job."""

    function: Callable[..., Any]
    positional: tuple[str, ...]
    """Parameters without a default that must be passed by position."""
    named: tuple[str, ...]
    """Other parameters without a default."""
    optional: tuple[str, ...]
    """Parameters with a default, which are passed only if there is a value for them."""
    takes_rest: bool
    """Whether the scorer has `**kwargs`."""

    @property
    def is_batched(self) -> bool:
        """True if the scorer takes and returns lists, as TRL's reward functions do."""
        return "completions" in (*self.positional, *self.named, *self.optional)

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise a ValueError if a parameter is neither known nor one of the dataset's columns."""
        known = {*_SOURCES, *columns, *(_LISTS if self.is_batched else ())}
        unknown = [name for name in (*self.positional, *self.named) if name not in known]
        if unknown:
            raise ValueError(
                f"a scorer's parameters must be among {', '.join(_SOURCES)}, TRL's {' and '.join(_LISTS)}, "
                f"and the dataset's columns {', '.join(columns)}; got {', '.join(unknown)}: rename it, "
                "or give it a default"
            )

    def __call__(self, job: ScoreJob) -> Any:
        """Return the score, not yet checked; run the scorer to its end if it is async."""
        values = _ListValues(job) if self.is_batched else _Values(job)
        positional = [values[name] for name in self.positional]
        named = {name: values[name] for name in self.named}
        named |= {name: values[name] for name in self.optional if name in values}
        if self.takes_rest:
            named |= {k: v for k, v in values.rest() if k not in (*self.positional, *named)}
        result = self.function(*positional, **named)
        if inspect.isawaitable(result):
            result = _event_loop().run_until_complete(_wait_for(result))
        return _only_score(result) if self.is_batched else result


def bind_scorer(function: Callable[..., Any]) -> BoundScorer:
    """Bind the parameters of a scorer.

    Raises:
        ValueError: the scorer takes no completion, or has parameters that cannot be bound.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise ValueError(f"a scorer must have named parameters: {error}") from error
    required = [p for p in parameters if p.default is p.empty and p.kind not in _VARIADIC]
    bound = BoundScorer(
        function,
        positional=tuple(p.name for p in required if p.kind is p.POSITIONAL_ONLY),
        named=tuple(p.name for p in required if p.kind is not p.POSITIONAL_ONLY),
        optional=tuple(
            p.name
            for p in parameters
            if p.default is not p.empty and p.kind is not p.POSITIONAL_ONLY
        ),
        takes_rest=any(p.kind is p.VAR_KEYWORD for p in parameters),
    )
    names = {*bound.positional, *bound.named, *bound.optional}
    if not names & {*_COMPLETION_NAMES, "completions"}:
        raise ValueError(
            f"a scorer must take {', '.join(_COMPLETION_NAMES)} or completions; got the parameters "
            f"{', '.join(p.name for p in parameters) or '(none)'}; known are {_KNOWN}"
        )
    return bound


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class _Values:
    """Values of one job by name. Paceline's own names take precedence over the row's columns."""

    def __init__(self, job: ScoreJob) -> None:
        self._job = job

    def __contains__(self, name: str) -> bool:
        return name in _SOURCES or name in self._job.row

    def __getitem__(self, name: str) -> Any:
        if name in _SOURCES:
            return _SOURCES[name](self._job)
        if name in self._job.row:
            return self._job.row[name]
        raise LookupError(f"the row has no column {name!r}, which the scorer asks for")

    def rest(self) -> list[tuple[str, Any]]:
        names = dict.fromkeys((*self._job.row, "question", "answer", "ground_truth"))
        return [(name, self[name]) for name in (*names, "data_source", "extra_info")]


class _ListValues:
    """Values of one job in TRL's form: lists of one element. The dataset's columns take precedence.

    Prompts and completions are chat messages if the dataset's prompt is a list of chat messages, else texts.
    """

    def __init__(self, job: ScoreJob) -> None:
        self._job = job

    def __contains__(self, name: str) -> bool:
        return name in _LISTS or name in self._job.row or name in _SOURCES

    def __getitem__(self, name: str) -> list[Any]:
        if name == "prompts":
            return [self._job.named("question")]
        if name == "completions":
            text = self._job.completion
            is_chat = not isinstance(self._job.named("question") or "", str)
            return [[{"role": "assistant", "content": text}] if is_chat else text]
        row = self._job.row
        return [row[name] if name in row else _Values(self._job)[name]]

    def rest(self) -> list[tuple[str, Any]]:
        names = dict.fromkeys((*_LISTS, *self._job.row, "question", "answer", "ground_truth"))
        return [(name, self[name]) for name in names if name not in _NEVER_COLUMNS]


def _our_columns(job: ScoreJob) -> dict[str, Any]:
    columns = {"question": job.named("question"), "answer": job.named("answer")}
    return columns | ({"transcript": job.transcript} if job.transcript else {})


async def _wait_for(awaitable: Any) -> Any:
    return await awaitable


def _event_loop() -> asyncio.AbstractEventLoop:
    """Return the process's event loop, which all jobs share, so that connections a scorer opens on it stay open."""
    global _loop
    if _loop is None or _loop.is_closed():
        _loop = asyncio.new_event_loop()
        asyncio.set_event_loop(_loop)
    return _loop


_loop: asyncio.AbstractEventLoop | None = None


def _only_score(scores: Any) -> Any:
    """Return the single score. Raise a ValueError unless there is exactly one score for the one completion."""
    if isinstance(scores, (str, Mapping)) or not hasattr(scores, "__len__") or len(scores) != 1:
        raise ValueError(
            "a scorer that takes `completions` must return a list with one score for each, here 1, "
            f"got {scores!r:.200}"
        )
    return scores[0]
