"""Turns prompts into scored groups: submits requests, lets the environment answer, scores, joins siblings.

begin(prompt) -> requests -> fleet -> completion -> environment: reply, or done -> scorer pool -> group
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rl.data.prompts import Prompt
from rl.environments import Environment
from rl.rewards.outcome import OutcomeKind, ScoreOutcome
from rl.rewards.pool import ScoreJob, ScorerPool, ScoreTicket
from rl.rollouts import NO_VERSION, Purpose, Rollout, RolloutGroup
from rollout.engine.core import Completion, FinishReason, Request, SampleKey, SamplingParams
from rollout.fleet.fleet import Fleet

__all__ = ["Collector"]


@dataclass(slots=True)
class _Attempt:
    """A rollout in the making."""

    group: RolloutGroup
    rollout: Rollout
    params: SamplingParams


class Collector:
    """Owns everything between a prompt and its scored group. One for the run, training and evaluation alike."""

    def __init__(self, fleet: Fleet, pool: ScorerPool, environment: Environment) -> None:
        self._fleet = fleet
        self._pool = pool
        self._environment = environment
        self._attempts: dict[str, _Attempt] = {}
        self._tickets: list[tuple[ScoreTicket, list[_Attempt]]] = []

    @property
    def is_idle(self) -> bool:
        return not (self._attempts or self._tickets)

    @property
    def is_generated(self) -> bool:
        """Nothing is left to generate: what is in flight, if anything, is being scored."""
        return not self._attempts

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

    def poll(self, timeout_seconds: float) -> list[RolloutGroup]:
        """Groups that became complete: every sibling is scored, or has the reason why it is not."""
        done = []
        for completion in self._fleet.poll(timeout_seconds):
            attempt = self._attempts.pop(completion.request_id)
            if self._is_done(attempt, completion):
                done.append(attempt)
        if done:
            jobs = [ScoreJob(completion=a.rollout.text, row=a.group.prompt.row) for a in done]
            self._tickets.append((self._pool.submit(jobs), done))
        return self._book_scores()

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

    def _book_scores(self) -> list[RolloutGroup]:
        # with nothing left to generate there is nothing to overlap with: wait for the scores
        must_wait = not self._attempts
        complete: list[RolloutGroup] = []
        pending = []
        for ticket, attempts in self._tickets:
            if not (must_wait or ticket.done()):
                pending.append((ticket, attempts))
                continue
            for attempt, outcome in zip(attempts, ticket.outcomes(), strict=True):
                attempt.rollout.outcome = outcome
                if attempt.group.is_complete:
                    complete.append(attempt.group)
        self._tickets = pending
        return complete

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
        )


def count_unscored(groups: Sequence[RolloutGroup]) -> tuple[int, ScoreOutcome | None]:
    """How many rollouts have no score, and the first reason."""
    outcomes = [r.outcome for g in groups for r in g.rollouts if r.outcome is not None]
    failed = [outcome for outcome in outcomes if outcome.kind is not OutcomeKind.SCORE]
    return len(failed), failed[0] if failed else None
