"""Rollouts and groups with contents chosen by hand."""

from rl.rewards.outcome import OutcomeKind, ScoreOutcome
from rl.rollouts import Purpose, Rollout, RolloutGroup
from rl.tasks.prompts import Prompt
from rollout.core import Completion, FinishReason


def completion(
    token_ids: list[int], *, version: int = 0, logprob: float = -1.0, text: str = ""
) -> Completion:
    return Completion(
        request_id="",
        token_ids=token_ids,
        logprobs=[logprob] * len(token_ids),
        policy_versions=[version] * len(token_ids),
        finish_reason=FinishReason.STOP,
        text=text,
    )


def rollout(
    prompt: list[int],
    *turns: list[int],
    group_id: int = 0,
    sample_index: int = 0,
    reward: float | None = 1.0,
    version: int = 0,
    logprob: float = -1.0,
) -> Rollout:
    """`turns` alternate: sampled tokens, an environment's reply, sampled tokens, ..."""
    made = Rollout.begin(prompt, group_id=group_id, sample_index=sample_index)
    for index, token_ids in enumerate(turns):
        if index % 2 == 0:
            made.append_completion(completion(token_ids, version=version, logprob=logprob))
        else:
            made.log.append_context(token_ids)
    if reward is None:
        made.outcome = ScoreOutcome(kind=OutcomeKind.ERROR, message="ValueError: broken")
    else:
        made.outcome = ScoreOutcome(kind=OutcomeKind.SCORE, score=reward)
    return made


def group(*rollouts: Rollout, prompt_id: int = 0) -> RolloutGroup:
    return RolloutGroup(
        group_id=rollouts[0].group_id,
        prompt=Prompt(prompt_id=prompt_id, messages=(), question="1 + 1 =", answer="2", row={}),
        purpose=Purpose.TRAINING,
        rollouts=list(rollouts),
    )
