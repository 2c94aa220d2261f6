"""One rollout in progress, and its conversation with its environment.

request -> completion -> environment: messages -> request -> ...
                                      or done  -> reward, or a job for the task's scorer
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from rl.environments.contract import Environment, Message, Reply
from rl.rewards.job import ScoreJob
from rl.rewards.outcome import OutcomeKind, ScoreOutcome
from rl.rollouts import Purpose, Rollout, RolloutEnd, RolloutGroup
from rollout.core import Completion, FinishReason, Request, SampleKey, SamplingParams

__all__ = ["Attempt", "GroupKey", "Render"]

GroupKey = tuple[Purpose, int]
"""Purpose and `group_id` of a group."""
Render = Callable[[Sequence[Message]], list[int]]
"""Function that turns an environment's messages into the tokens between two turns of the policy."""


class Attempt:
    """Driver of one rollout, from its prompt to its end.

    Args:
        group: group of the rollout.
        rollout: rollout that contains only its prompt.
        environment: environment of this rollout, closed when the rollout ends.
        params: sampling parameters of every request.
        priority: priority of every request.
        render: renderer of the environment's messages; None if it sends none.
    """

    def __init__(
        self,
        group: RolloutGroup,
        rollout: Rollout,
        environment: Environment,
        params: SamplingParams,
        *,
        priority: int = 0,
        render: Render | None = None,
    ) -> None:
        self.group = group
        self.rollout = rollout
        self.is_cancelled = False
        self._environment = environment
        self._params = params
        self._priority = priority
        self._render = render
        self._rewards: list[float] = []
        prompt = group.prompt
        given = {"question": prompt.question, "answer": prompt.answer}
        row = {**given, **prompt.row, "messages": prompt.messages}
        # seed of the group, because siblings must start in the same state
        seed = params.seed << 32 | group.group_id
        self._transcript: list[Message] = list(environment.start(row, seed))

    @property
    def key(self) -> GroupKey:
        return (self.group.purpose, self.group.group_id)

    def request(self) -> Request:
        """Return the request for the policy's next turn."""
        rollout, group = self.rollout, self.group
        name = f"{group.purpose.value}/{group.group_id}/{rollout.sample_index}/{len(rollout.turns)}"
        return Request(
            request_id=name,
            token_ids=tuple(rollout.log.token_ids),
            params=replace(self._params, n=1),
            key=SampleKey(self._params.seed, group.group_id, rollout.sample_index),
            priority=self._priority,
        )

    def take(self, completion: Completion) -> bool:
        """Append a turn and the environment's reply to it; return True if the rollout has ended.

        Raises:
            RuntimeError: the completion was rejected, or aborted without being cancelled.
        """
        self._check(completion)
        rollout = self.rollout
        rollout.append_completion(completion)
        self._say(completion.text)
        if self.is_cancelled:
            return self._finish(RolloutEnd.CANCELLED)
        if completion.finish_reason is FinishReason.LENGTH:
            return self._finish(RolloutEnd.TURN_CUT)
        reply = self._environment.reply(rollout.turns[-1])
        self._book(reply)
        if reply.is_done:
            return self._finish(RolloutEnd.DONE)
        rollout.log.append_context(self._tokens(reply))
        self._transcript += reply.messages
        return False

    def outcome(self) -> ScoreOutcome | None:
        """Return the sum of the environment's rewards; None if there are none, so that the scorer is needed."""
        if not self._rewards:
            return None
        return ScoreOutcome(kind=OutcomeKind.SCORE, score=sum(self._rewards))

    def job(self) -> ScoreJob:
        """Return the job for the task's scorer: the last turn's text, the prompt's data, and the whole transcript."""
        prompt = self.group.prompt
        return ScoreJob(
            completion=self.rollout.text,
            row=prompt.row,
            prompt=prompt.question,
            answer=prompt.answer,
            transcript=self._transcript,
        )

    def close(self) -> None:
        """Close the environment of a rollout that has not ended."""
        self._environment.close()

    def _check(self, completion: Completion) -> None:
        reason = completion.finish_reason
        is_aborted = reason is FinishReason.ABORTED and not self.is_cancelled
        if reason is FinishReason.REJECTED or is_aborted:
            raise RuntimeError(
                f"request {completion.request_id} of prompt {self.group.prompt.prompt_id} was "
                f"{completion.finish_reason}: {completion.message}"
            )

    def _say(self, text: str) -> None:
        """Add the policy's text to the transcript, after the reply prefix if the prompt ends with one."""
        if self._transcript and self._transcript[-1]["role"] == "assistant":
            prefix = self._transcript.pop()["content"]
            text = f"{prefix}{text}"
        self._transcript.append({"role": "assistant", "content": text})

    def _tokens(self, reply: Reply) -> list[int]:
        if self._render is None or not reply.messages:
            kind = type(self._environment).__name__
            raise RuntimeError(
                f"{kind} continued after turn {len(self.rollout.turns)} with {len(reply.messages)} messages "
                f"({'no' if self._render is None else 'a'} renderer)"
            )
        return self._render(reply.messages)

    def _finish(self, end: RolloutEnd) -> bool:
        if end is not RolloutEnd.DONE:
            self._book(self._environment.end(end))
        self._environment.close()
        self.rollout.end = end
        return True

    def _book(self, reply: Reply) -> None:
        if reply.reward is not None:
            self._rewards.append(reply.reward)
