"""Turns prompts into scored groups: submits requests, lets environments reply, scores, joins siblings.

    begin(prompt) -> requests -> fleet -> completion -> environment: messages -> request -> ...
                                                                     or done  -> reward, or scorer pool -> group

Over-provisioning: a group with spare rollouts keeps the first `group_size` that end. It cancels the others as soon as these
are there, and is complete when all of them have been answered, so that it knows how far each of them was.
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

# training runs ahead, evaluation is waited for
_PRIORITY = {Purpose.TRAINING: 0, Purpose.EVALUATION: 1}
# no spare rollout is begun while one that is needed waits
_SPARE_PRIORITY = -1


class Collector:
    """Owns everything between a prompt and its scored group. A run has one, for training and evaluation alike.

    Groups of both purposes may be in flight together; `poll` returns those of one purpose and keeps the others.

    Args:
        fleet: generates.
        pool: scores.
        make_environment: makes the environment of each rollout.
        render: renders its messages; None where environments send none after their prompt.
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
        """Rollouts that a group with spare ones still wants."""
        self._tickets: list[tuple[ScoreTicket, list[Attempt]]] = []
        self._complete: list[RolloutGroup] = []

    @property
    def is_idle(self) -> bool:
        return not (self._attempts or self._tickets or self._complete)

    def is_generating(self, purpose: Purpose, group_ids: Collection[int]) -> bool:
        """Whether some of these groups have tokens to come; if not, only scores are missing."""
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
            prompt: what they answer.
            prompt_ids: its tokens.
            group_id: ordinal of the group in the run.
            group_size: rollouts that the group keeps.
            params: parameters of every request, except the number of samples.
            purpose: what the group is for.
            num_spare: rollouts that are begun beyond `group_size`, and take the places of the slowest.
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
        """Begin a group of one rollout that is given instead of sampled; it is scored like any other."""
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
        """Return groups of a purpose that became complete: every sibling is scored, or has the reason why it is not.

        The fleet is polled only while some wanted group has tokens to come; after that there are scores to wait for.
        So how far an inline fleet has come when the last wanted group is complete depends on tokens alone, and never
        on how long anything took.

        Args:
            timeout_seconds: longest wait for the fleet, or for scores.
            purpose: what the groups are for.
            wanted: their `group_id`s; None wants all that are in flight.
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
        """Take the environment's rewards, and ask the scorer where there are none."""
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
        """Return the ended rollouts that their groups keep; set aside the others, and cancel those that are late now.

        Among rollouts that end together, the lowest `sample_index` is kept first, which does not depend on their lengths.
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
        """Let `poll` return a group, if all its rollouts are scored."""
        if group.is_complete:
            self._complete.append(group)
            self._num_places.pop((group.purpose, group.group_id), None)

    def _wait_for_scores(self, awaited: Collection[GroupKey], timeout_seconds: float) -> None:
        """Wait for the scores of some groups, at most until the time is over."""
        deadline = time.monotonic() + timeout_seconds
        for ticket, attempts in self._tickets:
            if any(attempt.key in awaited for attempt in attempts):
                ticket.wait(max(0.0, deadline - time.monotonic()))

    def _book_scores(self) -> None:
        """Book the scores that are there."""
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
    """Count the rollouts without a score; returns the first reason, too."""
    outcomes = [r.outcome for g in groups for r in g.rollouts if r.outcome is not None]
    failed = [outcome for outcome in outcomes if outcome.kind is not OutcomeKind.SCORE]
    return len(failed), failed[0] if failed else None
