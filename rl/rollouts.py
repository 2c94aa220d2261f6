"""Rollouts: one attempt at a prompt, and groups of attempts at the same prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from rl.rewards.outcome import ScoreOutcome
from rl.tasks.prompts import Prompt
from rollout.core import Completion, FinishReason

__all__ = ["NO_VERSION", "Purpose", "Rollout", "RolloutEnd", "RolloutGroup", "TokenLog", "Turn"]

NO_VERSION = -1
"""Policy version of tokens that were not sampled."""


class Purpose(Enum):
    TRAINING = "training"
    EVALUATION = "evaluation"


class RolloutEnd(Enum):
    """Reason why a rollout has ended."""

    DONE = "done"
    """The environment ended it."""
    TURN_CUT = "turn_cut"
    """The policy's last turn was cut off at `sampling.max_tokens` or at the end of the context."""
    CANCELLED = "cancelled"
    """It was not needed, because its group was complete without it."""


@dataclass(slots=True)
class TokenLog:
    """Tokens of a rollout, in order. The log only grows; all four lists have the same length."""

    token_ids: list[int] = field(default_factory=list)
    loss_mask: list[bool] = field(default_factory=list)
    """True for tokens that the policy sampled, which are trained."""
    rollout_logprobs: list[float] = field(default_factory=list)
    """Log-probabilities as the engine reported them; 0 where nothing was sampled."""
    policy_versions: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.token_ids)

    def append_context(self, token_ids: Sequence[int]) -> None:
        """Append tokens that the policy reads: the prompt, or an environment's reply."""
        self.token_ids += token_ids
        self.loss_mask += [False] * len(token_ids)
        self.rollout_logprobs += [0.0] * len(token_ids)
        self.policy_versions += [NO_VERSION] * len(token_ids)

    def append_sampled(
        self, token_ids: Sequence[int], *, logprobs: Sequence[float], policy_versions: Sequence[int]
    ) -> None:
        """Append tokens that the policy sampled, with their log-probabilities and versions."""
        self.token_ids += token_ids
        self.loss_mask += [True] * len(token_ids)
        self.rollout_logprobs += logprobs
        self.policy_versions += policy_versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of the policy: a span of the rollout's log, and its text."""

    start: int
    stop: int
    """Index after the last token."""
    finish_reason: FinishReason
    text: str


@dataclass(slots=True, kw_only=True)
class Rollout:
    """One attempt at a prompt: its tokens, the policy's turns in them, and its outcome."""

    group_id: int
    sample_index: int
    num_prompt_tokens: int
    log: TokenLog
    turns: list[Turn] = field(default_factory=list)
    end: RolloutEnd | None = None
    """Reason why the rollout has ended; None before that."""
    outcome: ScoreOutcome | None = None
    """Outcome of scoring; None before that."""

    @classmethod
    def begin(cls, prompt_ids: Sequence[int], *, group_id: int, sample_index: int) -> "Rollout":
        """Create a rollout that contains only its prompt."""
        log = TokenLog()
        log.append_context(prompt_ids)
        return cls(
            group_id=group_id,
            sample_index=sample_index,
            num_prompt_tokens=len(prompt_ids),
            log=log,
        )

    def append_completion(self, completion: Completion) -> None:
        """Append a turn of the policy."""
        start = len(self.log)
        self.log.append_sampled(
            completion.token_ids,
            logprobs=completion.logprobs,
            policy_versions=completion.policy_versions,
        )
        turn = Turn(
            start=start,
            stop=len(self.log),
            finish_reason=completion.finish_reason,
            text=completion.text,
        )
        self.turns.append(turn)

    @property
    def text(self) -> str:
        """Text of the policy's last turn."""
        return self.turns[-1].text if self.turns else ""

    @property
    def prompt_ids(self) -> list[int]:
        """Tokens of the prompt."""
        return self.log.token_ids[: self.num_prompt_tokens]

    @property
    def num_sampled_tokens(self) -> int:
        return sum(self.log.loss_mask)

    @property
    def reward(self) -> float | None:
        """Score of the rollout; None if scoring failed or has not happened yet."""
        return None if self.outcome is None else self.outcome.score


@dataclass(slots=True, kw_only=True)
class RolloutGroup:
    """All rollouts of one prompt. `group_id` numbers the groups of a run in order, and is never reused."""

    group_id: int
    prompt: Prompt
    purpose: Purpose
    rollouts: list[Rollout]
    surplus: list[Rollout] = field(default_factory=list)
    """Spare rollouts that were not kept. They are neither scored nor trained, and aborted ones are incomplete."""

    @property
    def is_complete(self) -> bool:
        return all(rollout.outcome is not None for rollout in self.rollouts)

    def set_aside(self, rollout: Rollout) -> None:
        """Move one rollout from the group to `surplus`."""
        self.rollouts = [kept for kept in self.rollouts if kept is not rollout]
        self.surplus.append(rollout)
