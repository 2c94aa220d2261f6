"""Choice of the groups that begin, that form a batch, and that are replaced because they have no signal.

    prompts -> admit (staleness capacity) -> collector -> the next `num_prompts_per_step` groups in `group_id` order

With `max_staleness` S, groups of the S batches after the next one begin, too. Batches consist of groups in `group_id`
order, not in the order of completion. So a group that finishes early waits, a slow group is never overtaken, and none
is consumed more than S versions after it began.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rl.config import TrainConfig
from rl.rollouts import Purpose, RolloutGroup
from rl.runs.checkpoint import RunState
from rl.tasks.prompts import Prompt, PromptOrder
from rl.trainer.collect.admission import Admission
from rl.trainer.collect.collector import Collector
from rl.trainer.collect.demonstrations import Demonstrations
from rl.trainer.collect.encoded_prompts import EncodedPrompts
from rl.trainer.metrics.rollouts import is_uniform
from rl.trainer.metrics.stopwatch import Stopwatch
from rollout.core import SamplingParams

__all__ = ["Batches", "CollectedBatch"]

logger = logging.getLogger("paceline")

_POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectedBatch:
    groups: list[RolloutGroup]
    """Groups in `group_id` order, including those that were replaced."""
    trained: list[RolloutGroup]
    """The `num_prompts_per_step` groups to train on. Of the groups without signal, the first are left out, as many
    as were replaced."""
    num_waiting: int
    """Number of complete groups of later batches."""


class Batches:
    """Source of batches, which takes prompts in their order, continuing after `state`.

    Args:
        config: config of the run.
        prompts: prompts to train on.
        collector: collector of the run.
        state: progress of the run. Groups that were in flight when it was saved begin again.
        answers: answers to learn, for an algorithm that samples none.
        max_resample_batches: maximum number of groups without signal to replace in a step, in batches.
    """

    def __init__(
        self,
        config: TrainConfig,
        prompts: EncodedPrompts,
        collector: Collector,
        state: RunState,
        *,
        answers: Demonstrations | None = None,
        max_resample_batches: int = 0,
    ) -> None:
        self._config = config
        self._prompts = prompts
        self._collector = collector
        self._answers = answers
        self._order = PromptOrder(len(prompts), seed=config.seed)
        self._dropped = state.dropped_groups
        self._next_group = state.accepted_groups + state.dropped_groups
        self._admission = Admission(
            num_prompts_per_step=config.num_prompts_per_step,
            num_steps=config.trainer.num_steps,
            max_staleness=config.max_staleness,
            first_version=state.policy_version,
            first_accepted=state.accepted_groups,
        )
        self._complete: dict[int, RolloutGroup] = {}
        self._max_dropped = max_resample_batches * config.num_prompts_per_step

    @property
    def num_accepted(self) -> int:
        """Number of groups in the batches so far."""
        return self._admission.accepted

    @property
    def num_dropped(self) -> int:
        """Number of groups that were replaced in those batches."""
        return self._dropped

    def next(
        self,
        policy_version: int,
        stopwatch: Stopwatch,
        *,
        progress: Callable[[int, int], None],
        should_stop: Callable[[], bool],
    ) -> CollectedBatch | None:
        """Return the next complete batch; None if told to stop before it is complete.

        A dropped group is replaced by another one. The number of dropped groups depends only on their rewards, and
        the choice among them follows `group_id` order, so a batch never depends on speed.

        Args:
            policy_version: version that the batch will train, and that new groups are sampled from.
            stopwatch: receives the times "rollout" and "score_wait".
            progress: function called with (complete, wanted).
            should_stop: function called between polls; True ends the wait.

        Raises:
            RuntimeError: the batch needs a group that admission does not allow; the message has the counts.
        """
        size = self._config.num_prompts_per_step
        first = self._admission.accepted + self._dropped
        num_dropped = 0
        while True:
            self._admit(policy_version)
            wanted = range(first, first + size + num_dropped)
            missing = [group_id for group_id in wanted if group_id not in self._complete]
            newly_dropped = self._num_to_drop(wanted, is_last=not missing) - num_dropped
            if newly_dropped > 0:
                self._admission.drop(newly_dropped)
                num_dropped += newly_dropped
                continue
            if (
                should_stop()
            ):  # a complete batch is discarded, too: the resumed run will generate the same one
                return None
            if not missing:
                break
            if missing[-1] >= self._next_group:
                raise RuntimeError(
                    f"the batch of version {policy_version} needs group {missing[-1]}, but admission lets only "
                    f"{self._next_group} begin: {self._admission.running} run, {self._admission.accepted} are accepted, "
                    f"{self._dropped + num_dropped} were dropped"
                )
            for group in self._poll(missing, stopwatch):
                self._complete[group.group_id] = group
            progress(sum(group_id in self._complete for group_id in wanted), len(wanted))
        self._admission.accept(size)
        self._dropped += num_dropped
        groups = [self._complete.pop(group_id) for group_id in wanted]
        return CollectedBatch(
            groups=groups,
            trained=self._without_dropped(groups, policy_version),
            num_waiting=len(self._complete),
        )

    def _num_to_drop(self, wanted: Sequence[int], *, is_last: bool) -> int:
        """Count the groups to drop among the complete ones of a batch.

        While groups of later batches are in flight, the time at which a replacement begins changes how far they are
        at the next update. This must not depend on the speed of a scorer, so a replacement then begins only when the
        whole batch is complete; meanwhile the other groups keep the engines busy. Without such groups it begins at
        once.
        """
        if self._config.max_staleness and not is_last:
            return 0
        complete = (self._complete.get(group_id) for group_id in wanted)
        num_uniform = sum(group is not None and is_uniform(group) for group in complete)
        return min(num_uniform, self._max_dropped)

    def _poll(self, missing: Sequence[int], stopwatch: Stopwatch) -> list[RolloutGroup]:
        is_generating = self._collector.is_generating(Purpose.TRAINING, missing)
        with stopwatch("rollout" if is_generating else "score_wait"):
            return self._collector.poll(_POLL_SECONDS, wanted=missing)

    def _without_dropped(
        self, groups: Sequence[RolloutGroup], policy_version: int
    ) -> list[RolloutGroup]:
        trained, num_dropped = [], len(groups) - self._config.num_prompts_per_step
        for group in groups:
            if is_uniform(group) and num_dropped:
                num_dropped -= 1
            else:
                trained.append(group)
        num_left = sum(map(is_uniform, trained))
        if self._max_dropped and num_left:
            logger.warning(
                "step %d: %d of %d groups have equal scores, so they train nothing; algorithm.max_resample_batches=%d "
                "was not enough to replace them",
                policy_version + 1,
                num_left,
                len(trained),
                self._max_dropped // self._config.num_prompts_per_step,
            )
        return trained

    def _admit(self, policy_version: int) -> None:
        capacity = self._admission.capacity(policy_version)
        for _ in range(capacity):
            prompt_id = self._order.prompt_id(self._next_group)
            prompt, token_ids = self._prompts[prompt_id]
            self._begin(prompt, token_ids)
            self._next_group += 1
        self._admission.begin(capacity)

    def _begin(self, prompt: Prompt, token_ids: Sequence[int]) -> None:
        if self._answers is not None:
            text, answer_ids = self._answers(prompt)
            self._collector.demonstrate(
                prompt, token_ids, text=text, answer_ids=answer_ids, group_id=self._next_group
            )
            return
        self._collector.begin(
            prompt,
            token_ids,
            group_id=self._next_group,
            group_size=self._config.group_size,
            params=SamplingParams.of(self._config.sampling, seed=self._config.seed),
            purpose=Purpose.TRAINING,
            num_spare=self._config.num_spare_rollouts,
        )
