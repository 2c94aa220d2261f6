"""Turns prompts into scored groups: submits requests, lets the environment answer, scores, joins siblings.

begin(prompt) -> requests -> fleet -> completion -> environment: reply, or done -> scorer pool -> group
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from rl.data.prompts import Prompt
from rl.environments import Environment
from rl.rewards.outcome import OutcomeKind, ScoreOutcome
from rl.rewards.pool import ScoreJob, ScorerPool, ScoreTicket
from rl.rollouts import NO_VERSION, Purpose, Rollout, RolloutGroup
from rollout.engine.core import Completion, FinishReason, Request, SampleKey, SamplingParams
from rollout.fleet.fleet import Fleet

__all__ = ["Collector"]


_GroupKey = tuple[Purpose, int]  # and group_id
_PRIORITY = {
    Purpose.TRAINING: 0,
    Purpose.EVALUATION: 1,
}  # training runs ahead, evaluation is waited for


@dataclass(slots=True)
class _Attempt:
    """A rollout in the making."""

    group: RolloutGroup
    rollout: Rollout
    params: SamplingParams

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
    ) -> None:
        """Submit the siblings of one prompt."""
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
                for i in range(group_size)
            ],
        )
        attempts = [_Attempt(group, rollout, params) for rollout in group.rollouts]
        self._num_generating[purpose, group_id] = group_size
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
            timeout_seconds: to wait for the fleet.
            purpose: of the groups.
            wanted: their `group_id`s; None: of all that are in flight.
        """
        if wanted is None:
            wanted = self._in_flight(purpose)
        if self.is_generating(purpose, wanted):
            self._take_completions(timeout_seconds)
        must_wait = not self.is_generating(purpose, wanted)
        self._book_scores({(purpose, group_id) for group_id in wanted} if must_wait else set())
        complete = [group for group in self._complete if group.purpose is purpose]
        self._complete = [group for group in self._complete if group.purpose is not purpose]
        return complete

    def _in_flight(self, purpose: Purpose) -> set[int]:
        attempts = [*self._attempts.values(), *(a for _, scored in self._tickets for a in scored)]
        return {a.group.group_id for a in attempts if a.group.purpose is purpose}

    def _take_completions(self, timeout_seconds: float) -> None:
        done = []
        for completion in self._fleet.poll(timeout_seconds):
            attempt = self._attempts.pop(completion.request_id)
            if self._is_done(attempt, completion):
                done.append(attempt)
        if done:
            jobs = [ScoreJob(completion=a.rollout.text, row=a.group.prompt.row) for a in done]
            self._tickets.append((self._pool.submit(jobs), done))
        self._fleet.status().check()
        self._num_generating -= Counter(attempt.key for attempt in done)

    def _is_done(self, attempt: _Attempt, completion: Completion) -> bool:
        """Append a completion; True if it is to be scored, False if it goes on or could not be computed."""
        if completion.finish_reason in (FinishReason.REJECTED, FinishReason.ABORTED):
            raise RuntimeError(
                f"request {completion.request_id} of prompt {attempt.group.prompt.prompt_id} was "
                f"{completion.finish_reason}: {completion.message}"
            )
        attempt.rollout.append_completion(completion)
        reply = self._environment.reply(attempt.rollout)
        if reply is None:
            return True
        attempt.rollout.append_context(reply)
        self._fleet.submit([self._request(attempt)])
        return False

    def _book_scores(self, awaited: Collection[_GroupKey]) -> None:
        """Book the scores that are there, and wait for those of some groups."""
        pending = []
        for ticket, attempts in self._tickets:
            if not (ticket.done() or any(attempt.key in awaited for attempt in attempts)):
                pending.append((ticket, attempts))
                continue
            for attempt, outcome in zip(attempts, ticket.outcomes(), strict=True):
                attempt.rollout.outcome = outcome
                if attempt.group.is_complete:
                    self._complete.append(attempt.group)
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
            priority=_PRIORITY[group.purpose],
        )


def count_unscored(groups: Sequence[RolloutGroup]) -> tuple[int, ScoreOutcome | None]:
    """How many rollouts have no score, and the first reason."""
    outcomes = [r.outcome for g in groups for r in g.rollouts if r.outcome is not None]
    failed = [outcome for outcome in outcomes if outcome.kind is not OutcomeKind.SCORE]
    return len(failed), failed[0] if failed else None
