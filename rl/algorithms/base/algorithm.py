"""The interface of an algorithm: two functions, what it needs from the trainer, and its state if it has one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rl.algorithms.base.output import LossOutput
from rl.algorithms.base.signals import Estimates, Signals, Tokens

__all__ = ["Algorithm", "CriticSettings", "LossFunction", "Needs", "Stateful"]

LossFunction = Callable[[Tokens], LossOutput]
"""Returns a sum over the tokens of a micro-batch, and sums to report."""


class Stateful(Protocol):
    """An algorithm that changes from batch to batch. Its state goes into every checkpoint, and comes back on resume."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return tensors, numbers, strings, and lists and dicts of them."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue from a state that `state_dict` returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticSettings:
    """Settings for training a critic."""

    value_clip: float
    """Greatest change of a value on one batch that can still lower the critic's loss."""
    learning_rate: float
    """Learning rate of every step."""
    num_warmup_steps: int = 0
    """Batches at the beginning on which only the critic is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Models and data that an algorithm needs beyond rollouts and scores. By default it needs none."""

    old_logprobs: bool = False
    """The policy's own log-probabilities before the first step on a batch, for the advantages."""
    reference: bool = False
    """Log-probabilities of a frozen copy of the model that the run began with."""
    critic: CriticSettings | None = None
    """A critic; `Signals.values_N` then holds its values."""
    teacher: str = ""
    """A Hugging Face directory or hub id of a teacher; `Signals.token_rewards_N` then holds its log-probability of each
    token minus the policy's. Needs `old_logprobs`."""
    is_supervised: bool = False
    """Whether the completions are the tasks' own answers instead of samples of the policy."""
    max_resample_batches: int = 0
    """Limit on replacing groups that scored the same throughout, in batches per step; 0 replaces none."""

    def __post_init__(self) -> None:
        assert self.old_logprobs or not self.teacher, "a teacher is compared with the old policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """Functions and needs of an algorithm; `rl.algorithms.registry.make_algorithm` makes one from a config."""

    advantages: Callable[[Signals], Estimates]
    """Called once per batch, with all its samples, on every rank."""
    loss: LossFunction
    """Called once per micro-batch."""
    needs: Needs = Needs()
    state: Stateful | None = None
    """None where the algorithm keeps nothing from batch to batch."""
