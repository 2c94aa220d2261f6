"""Turns prompts into scored groups: submits requests, lets the environment answer, scores, joins siblings.

begin(prompt) -> requests -> fleet -> completion -> environment: reply, or done -> scorer pool -> group

Over-provisioning: of a group with spare rollouts the first `group_size` to be done are kept. The others are cancelled as
soon as these are there, and their group is complete when they have been answered, so that it knows how far each of them was.
"""

import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from rl.environments.environment import Environment
from rl.rewards.outcome import OutcomeKind, ScoreOutcome
from rl.rewards.pool import ScoreJob, ScorerPool, ScoreTicket
from rl.rollouts import NO_VERSION, Purpose, Rollout, RolloutGroup
from rl.tasks.prompts import Prompt
from rollout.core import Completion, FinishReason, Request, SampleKey, SamplingParams
from rollout.fleet.base import Fleet

__all__ = ["Collector"]


_GroupKey = tuple[Purpose, int]  # and group_id
_PRIORITY = {
    Purpose.TRAINING: 0,
    Purpose.EVALUATION: 1,
}  # training runs ahead, evaluation is waited for
_SPARE_PRIORITY = -1  # no spare rollout is begun while one that is needed waits


@dataclass(slots=True)
class _Attempt:
    """A rollout in the making."""

    group: RolloutGroup
    rollout: Rollout
    params: SamplingParams
    priority: int = 0
    is_cancelled: bool = False

    @property
    def key(self) -> _GroupKey:
        return (self.group.purpose, self.group.group_id)


class Collector:
    """Owns everything between a prompt and its scored group. One for the run, training and evaluation alike.

    Groups of both purposes may be in flight together; whoever polls for one gets none of the other, which are kept.
    """

    def __init__(self, fleet: Fleet, pool: ScorerPool, environment: Environment) -> None:
        self._fleet = fleet
        self._pool = pool
        self._environment = environment
        self._attempts: dict[str, _Attempt] = {}
        self._num_generating: Counter[_GroupKey] = Counter()
        self._num_places: dict[_GroupKey, int] = {}
        """Rollouts that a group with spare ones still wants."""
        self._tickets: list[tuple[ScoreTicket, list[_Attempt]]] = []
        self._complete: list[RolloutGroup] = []

    @property
    def is_idle(self) -> bool:
        return not (self._attempts or self._tickets or self._complete)

    def is_generating(self, purpose: Purpose, group_ids: Collection[int]) -> bool:
        """Whether some of these groups have tokens to come; if not, all that is missing of them are scores."""
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
            group_id: of the group.
            group_size: rollouts that it has when it is complete.
            params: of every request; the number of samples aside.
            purpose: of the group.
            num_spare: rollouts that are begun besides, and take the places of the slowest.
        """
        group = RolloutGroup(
            group_id=group_id,
            prompt=prompt,
            purpose=purpose,
            rollouts=[
                Rollout(
                    group_id=group_id,
                    sample_index=i,
                    num_prompt_tokens=len(prompt_ids),
                    token_ids=list(prompt_ids),
                )
                for i in range(group_size + num_spare)
            ],
        )
        attempts = [
            _Attempt(
                group,
                rollout,
                params,
                _PRIORITY[purpose] if rollout.sample_index < group_size else _SPARE_PRIORITY,
            )
            for rollout in group.rollouts
        ]
        self._num_generating[purpose, group_id] = len(attempts)
        if num_spare:
            self._num_places[purpose, group_id] = group_size
        self._fleet.submit([self._request(attempt) for attempt in attempts])

    def demonstrate(
        self,
        prompt: Prompt,
        prompt_ids: Sequence[int],
        *,
        text: str,
        answer_ids: Sequence[int],
        group_id: int,
    ) -> None:
        """A group of one rollout that is given instead of sampled; it is scored like any other."""
        rollout = Rollout(
            group_id=group_id,
            sample_index=0,
            num_prompt_tokens=len(prompt_ids),
            token_ids=list(prompt_ids),
        )
        rollout.append_completion(
            Completion(
                request_id=f"answer/{group_id}",
                token_ids=list(answer_ids),
                logprobs=[0.0] * len(answer_ids),
                policy_versions=[NO_VERSION] * len(answer_ids),
                finish_reason=FinishReason.STOP,
                text=text,
            )
        )
        group = RolloutGroup(
            group_id=group_id, prompt=prompt, purpose=Purpose.TRAINING, rollouts=[rollout]
        )
        ticket = self._pool.submit([ScoreJob(completion=text, row=prompt.row)])
        self._tickets.append((ticket, [_Attempt(group, rollout, SamplingParams())]))

    def poll(
        self,
        timeout_seconds: float,
        *,
        purpose: Purpose = Purpose.TRAINING,
        wanted: Collection[int] | None = None,
    ) -> list[RolloutGroup]:
        """Groups of a purpose that became complete: every sibling is scored, or has the reason why it is not.

        The fleet is polled while some wanted group has tokens to come, and no longer: then there are scores to wait for.
        So how far an inline fleet has come when the last wanted group is complete depends on tokens alone, and never
        on how long anything took.

        Args:
            timeout_seconds: to wait for the fleet, or for scores.
            purpose: of the groups.
            wanted: their `group_id`s; None: of all that are in flight.
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
        ended = []
        for completion in self._fleet.poll(timeout_seconds):
            attempt = self._attempts.pop(completion.request_id)
            if self._has_ended(attempt, completion):
                ended.append(attempt)
        done = self._keep(ended) if self._num_places else ended
        if done:
            jobs = [ScoreJob(completion=a.rollout.text, row=a.group.prompt.row) for a in done]
            self._tickets.append((self._pool.submit(jobs), done))
        self._fleet.status().check()
        self._num_generating -= Counter(attempt.key for attempt in ended)

    def _has_ended(self, attempt: _Attempt, completion: Completion) -> bool:
        """Append a completion; False if the rollout goes on.

        Raises:
            RuntimeError: it could not be computed, or was aborted by nobody here.
        """
        reason = completion.finish_reason
        is_aborted = reason is FinishReason.ABORTED and not attempt.is_cancelled
        if reason is FinishReason.REJECTED or is_aborted:
            raise RuntimeError(
                f"request {completion.request_id} of prompt {attempt.group.prompt.prompt_id} was "
                f"{completion.finish_reason}: {completion.message}"
            )
        attempt.rollout.append_completion(completion)
        reply = None if attempt.is_cancelled else self._environment.reply(attempt.rollout)
        if reply is None:
            return True
        attempt.rollout.append_context(reply)
        self._fleet.submit([self._request(attempt)])
        return False

    def _keep(self, ended: Sequence[_Attempt]) -> list[_Attempt]:
        """Those of the rollouts that ended which their groups want; the others, and whoever is late now, are set aside.

        Of those that end together the lowest `sample_index` is kept first, which says nothing of their lengths.
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
        """Let `poll` return a group, if nothing of it is missing any more."""
        if group.is_complete:
            self._complete.append(group)
            self._num_places.pop((group.purpose, group.group_id), None)

    def _wait_for_scores(self, awaited: Collection[_GroupKey], timeout_seconds: float) -> None:
        """Wait for the scores of some groups, or for the time to be over."""
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

    def _request(self, attempt: _Attempt) -> Request:
        rollout, group = attempt.rollout, attempt.group
        turn = len(rollout.turns)
        request_id = f"{group.purpose.value}/{group.group_id}/{rollout.sample_index}/{turn}"
        self._attempts[request_id] = attempt
        return Request(
            request_id=request_id,
            token_ids=tuple(rollout.token_ids),
            params=replace(attempt.params, n=1),
            key=SampleKey(attempt.params.seed, group.group_id, rollout.sample_index),
            priority=attempt.priority,
        )


def count_unscored(groups: Sequence[RolloutGroup]) -> tuple[int, ScoreOutcome | None]:
    """How many rollouts have no score, and the first reason."""
    outcomes = [r.outcome for g in groups for r in g.rollouts if r.outcome is not None]
    failed = [outcome for outcome in outcomes if outcome.kind is not OutcomeKind.SCORE]
    return len(failed), failed[0] if failed else None
