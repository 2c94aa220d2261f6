"""Rollouts and groups with contents chosen by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from rl.rewards.outcome import OutcomeKind, ScoreOutcome
from rl.rollouts import Purpose, Rollout, RolloutGroup
from rl.tasks.prompts import Prompt
from rl.trainer.batch.packing import MicroBatch, pack
from rl.trainer.batch.training_batch import TrainingBatch
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


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One rollout with its columns of a batch."""

    rollout: Rollout
    advantages: Sequence[float]
    loss_weight: float = 1.0
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)


def batch_of(samples: Sequence[Sample]) -> TrainingBatch:
    """Make a batch of samples that all have the same extra columns."""
    batch = TrainingBatch.of([sample.rollout for sample in samples])
    advantages = [advantage for sample in samples for advantage in sample.advantages]
    columns = {
        name: torch.cat([sample.extras[name] for sample in samples]) for name in samples[0].extras
    }
    columns["advantages"] = torch.tensor(advantages, dtype=torch.float32)
    weights = [sample.loss_weight for sample in samples]
    columns["loss_weights"] = batch.per_token(weights, torch.float32)
    return batch.with_columns(columns)


def pack_samples(
    samples: Sequence[Sample], *, max_tokens: int, share_prompts: bool
) -> list[MicroBatch]:
    return pack(batch_of(samples), max_tokens=max_tokens, share_prompts=share_prompts)
