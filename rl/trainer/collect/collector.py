"""Collector that turns prompts into scored groups: it submits requests, gets the environments' replies, and has
rollouts scored.

    begin(prompt) -> requests -> fleet -> completion -> environment: messages -> request -> ...
                                                                     or done  -> reward, or scorer pool -> group

Over-provisioning: a group with spare rollouts keeps the first `group_size` that end, and then cancels the others. It
is complete when the cancelled ones have been answered too, so that their progress is known.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from rl.environments.contract import Environment
from rl.environments.single_turn import SingleTurn
from rl.rewards.outcome import OutcomeKind, ScoreOutcome
from rl.rewards.pool import ScorerPool, ScoreTicket
from rl.rollouts import NO_VERSION, Purpose, Rollout, RolloutGroup
from rl.tasks.prompts import Prompt
from rl.trainer.collect.attempt import Attempt, GroupKey, Render
from rollout.core import Completion, FinishReason, SamplingParams
from rollout.fleet.base import Fleet

__all__ = ["Collector", "count_unscored"]

# training runs ahead, but the run waits for an evaluation
_PRIORITY = {Purpose.TRAINING: 0, Purpose.EVALUATION: 1}
# a spare rollout begins only if no other one waits
_SPARE_PRIORITY = -1


class Collector:
    """Owner of all rollouts between a prompt and its scored group. A run has one collector, for training and
    evaluation.

    Groups of both purposes may be in flight together; `poll` returns those of one purpose and keeps the others.

    Args:
        fleet: fleet that generates completions.
        pool: pool that scores them.
        make_environment: function that creates the environment of each rollout.
        render: renderer of the environments' messages; None if they send none after the prompt.
    """

    def __init__(
        self,
        fleet: Fleet,
        pool: ScorerPool,
        make_environment: Callable[[], Environment] = SingleTurn,
        *,
        render: Render | None = None,
    ) -> None:
        self._fleet = fleet
        self._pool = pool
        self._make_environment = make_environment
        self._render = render
        self._attempts: dict[str, Attempt] = {}
        self._num_generating: Counter[GroupKey] = Counter()
        self._num_places: dict[GroupKey, int] = {}
        """Number of rollouts that each group with spare ones still keeps."""
        self._tickets: list[tuple[ScoreTicket, list[Attempt]]] = []
        self._complete: list[RolloutGroup] = []

    @property
    def is_idle(self) -> bool:
        return not (self._attempts or self._tickets or self._complete)

    def is_generating(self, purpose: Purpose, group_ids: Collection[int]) -> bool:
        """Return whether some of these groups still generate tokens; if not, only scores are missing."""
        return any(self._num_generating[purpose, group_id] for group_id in group_ids)

    def begin(
        self,
        prompt: Prompt,
        prompt_ids: Sequence[int],
        *,
        group_id: int,
        group_size: int,
        params: SamplingParams,
        purpose: Purpose,
        num_spare: int = 0,
    ) -> None:
        """Submit the siblings of one prompt.

        Args:
            prompt: prompt of the group.
            prompt_ids: tokens of the prompt.
            group_id: number of the group in the run.
            group_size: number of rollouts that the group keeps.
            params: sampling parameters of every request, except the number of samples.
            purpose: purpose of the group.
            num_spare: number of rollouts that begin beyond `group_size`; the group does not keep its slowest
                rollouts.
        """
        rollouts = [
            Rollout.begin(prompt_ids, group_id=group_id, sample_index=i)
            for i in range(group_size + num_spare)
        ]
        group = RolloutGroup(group_id=group_id, prompt=prompt, purpose=purpose, rollouts=rollouts)
        attempts = [
            Attempt(
                group,
                rollout,
                self._make_environment(),
                params,
                priority=_PRIORITY[purpose]
                if rollout.sample_index < group_size
                else _SPARE_PRIORITY,
                render=self._render,
            )
            for rollout in rollouts
        ]
        self._num_generating[purpose, group_id] = len(attempts)
        if num_spare:
            self._num_places[purpose, group_id] = group_size
        self._submit(attempts)

    def demonstrate(
        self,
        prompt: Prompt,
        prompt_ids: Sequence[int],
        *,
        text: str,
        answer_ids: Sequence[int],
        group_id: int,
    ) -> None:
        """Begin a group of one rollout whose answer is given instead of sampled. It is scored like any other."""
        rollout = Rollout.begin(prompt_ids, group_id=group_id, sample_index=0)
        group = RolloutGroup(
            group_id=group_id, prompt=prompt, purpose=Purpose.TRAINING, rollouts=[rollout]
        )
        attempt = Attempt(group, rollout, SingleTurn(), SamplingParams())
        attempt.take(
            Completion(
                request_id=f"answer/{group_id}",
                token_ids=list(answer_ids),
                logprobs=[0.0] * len(answer_ids),
                policy_versions=[NO_VERSION] * len(answer_ids),
                finish_reason=FinishReason.STOP,
                text=text,
            )
        )
        self._score([attempt])

    def poll(
        self,
        timeout_seconds: float,
        *,
        purpose: Purpose = Purpose.TRAINING,
        wanted: Collection[int] | None = None,
    ) -> list[RolloutGroup]:
        """Return the groups of a purpose that became complete: each sibling has a score, or a reason why it has none.

        The fleet is polled only while a wanted group still generates tokens. So the progress of an inline fleet, at
        the time the last wanted group is complete, depends only on tokens, and never on durations.

        Args:
            timeout_seconds: maximum wait for the fleet, or for scores.
            purpose: purpose of the groups.
            wanted: `group_id`s of the wanted groups; None: all in flight.
        """
        if wanted is None:
            wanted = self._in_flight(purpose)
        if self.is_generating(purpose, wanted):
            self._take_completions(timeout_seconds)
        must_wait = not self.is_generating(purpose, wanted)
        if must_wait:
            self._wait_for_scores({(purpose, group_id) for group_id in wanted}, timeout_seconds)
        self._book_scores()
        complete = [group for group in self._complete if group.purpose is purpose]
        self._complete = [group for group in self._complete if group.purpose is not purpose]
        return complete

    def _in_flight(self, purpose: Purpose) -> set[int]:
        attempts = [*self._attempts.values(), *(a for _, scored in self._tickets for a in scored)]
        return {a.group.group_id for a in attempts if a.group.purpose is purpose}

    def _take_completions(self, timeout_seconds: float) -> None:
        ended, going_on = [], []
        for completion in self._fleet.poll(timeout_seconds):
            attempt = self._attempts.pop(completion.request_id)
            (ended if attempt.take(completion) else going_on).append(attempt)
        if going_on:
            self._submit(going_on)
        self._score(self._keep(ended) if self._num_places else ended)
        self._fleet.status().check()
        self._num_generating -= Counter(attempt.key for attempt in ended)

    def _submit(self, attempts: Sequence[Attempt]) -> None:
        requests = [attempt.request() for attempt in attempts]
        self._attempts |= dict(zip((r.request_id for r in requests), attempts, strict=True))
        self._fleet.submit(requests)

    def _score(self, ended: Sequence[Attempt]) -> None:
        """Take the environment's rewards; submit rollouts without any to the scorer."""
        unscored = []
        for attempt in ended:
            attempt.rollout.outcome = attempt.outcome()
            if attempt.rollout.outcome is None:
                unscored.append(attempt)
            else:
                self._hand_over(attempt.group)
        if unscored:
            jobs = [attempt.job() for attempt in unscored]
            self._tickets.append((self._pool.submit(jobs), unscored))

    def _keep(self, ended: Sequence[Attempt]) -> list[Attempt]:
        """Return the ended rollouts that their groups keep; set the others aside, and cancel rollouts that are now
        too late.

        Among rollouts that end together, the lowest `sample_index` is kept first, which does not depend on their
        lengths.
        """
        kept = []
        for attempt in sorted(ended, key=lambda attempt: attempt.rollout.sample_index):
            num_places = self._num_places.get(attempt.key)
            if num_places == 0:
                attempt.group.set_aside(attempt.rollout)
                self._hand_over(attempt.group)
                continue
            if num_places is not None:
                self._num_places[attempt.key] = num_places - 1
            kept.append(attempt)
        late = {
            request_id: attempt
            for request_id, attempt in self._attempts.items()
            if self._num_places.get(attempt.key) == 0 and not attempt.is_cancelled
        }
        for attempt in late.values():
            attempt.is_cancelled = True
        if late:
            self._fleet.cancel(list(late))
        return kept

    def _hand_over(self, group: RolloutGroup) -> None:
        """Make `poll` return a group, if all its rollouts are scored."""
        if group.is_complete:
            self._complete.append(group)
            self._num_places.pop((group.purpose, group.group_id), None)

    def _wait_for_scores(self, awaited: Collection[GroupKey], timeout_seconds: float) -> None:
        """Wait for the scores of some groups, at most until the timeout."""
        deadline = time.monotonic() + timeout_seconds
        for ticket, attempts in self._tickets:
            if any(attempt.key in awaited for attempt in attempts):
                ticket.wait(max(0.0, deadline - time.monotonic()))

    def _book_scores(self) -> None:
        """Store the scores that have arrived."""
        pending = []
        for ticket, attempts in self._tickets:
            if not ticket.done():
                pending.append((ticket, attempts))
                continue
            for attempt, outcome in zip(attempts, ticket.outcomes(), strict=True):
                attempt.rollout.outcome = outcome
                self._hand_over(attempt.group)
        self._tickets = pending

    def close(self) -> None:
        """Close the environments of rollouts that have not ended."""
        for attempt in self._attempts.values():
            attempt.close()


def count_unscored(groups: Sequence[RolloutGroup]) -> tuple[int, ScoreOutcome | None]:
    """Count the rollouts without a score; return the first reason, too."""
    outcomes = [r.outcome for g in groups for r in g.rollouts if r.outcome is not None]
    failed = [outcome for outcome in outcomes if outcome.kind is not OutcomeKind.SCORE]
    return len(failed), failed[0] if failed else None
