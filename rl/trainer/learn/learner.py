"""Turns scored groups into a better policy. It does not know which algorithm it runs.

    rollouts -> columns: reference, teacher, critic, old policy -> advantages -> mini-batches
             -> (forward/backward -> mismatch check -> step) * steps_per_batch

Every rank has all samples of a batch, computes for its share of them, and gets the columns that the others computed.
Samples whose advantages are all zero are not forwarded, unless something else trains on them (a critic, a KL loss);
they count in the denominator all the same.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rl.algorithms.base.algorithm import Algorithm
from rl.algorithms.ppo import explained_variance
from rl.config import TrainConfig
from rl.rollouts import RolloutGroup
from rl.trainer.batch.division import Divider
from rl.trainer.batch.mini_batches import MiniBatch, MiniBatches
from rl.trainer.batch.training_batch import TrainingBatch
from rl.trainer.learn.advantages import with_advantages
from rl.trainer.learn.critic import Critic
from rl.trainer.learn.frozen_policy import FrozenPolicy
from rl.trainer.learn.kl_penalty import KLPenalty
from rl.trainer.learn.policy_trainer import PolicyTrainer
from rl.trainer.learn.recompute import Recomputation
from rl.trainer.learn.saved_state import algorithm_state, load_algorithm_state, split_state
from rl.trainer.metrics.mismatch import check_mismatch
from rl.trainer.metrics.staleness import is_fresh
from rl.trainer.metrics.stopwatch import Stopwatch
from rl.trainer.metrics.sums import LossSums, over_ranks, over_steps
from rl.trainer.metrics.training import CriticResult, LearningResult
from rl.trainer.ranks.group import ALONE, Ranks
from rl.trainer.weights.lr_schedule import learning_rate
from rollout.config import OnUpdate

__all__ = ["Learner"]

logger = logging.getLogger("paceline")


class Learner:
    """Trains a policy, and its critic where the algorithm has one.

    Args:
        config: config of the run.
        algorithm: made from the config.
        policy: trains the policy.
        reference: the frozen reference, where `algorithm.needs` asks for one.
        teacher: the frozen teacher, where it asks for one.
        critic: the critic, where it asks for one.
        is_sampled: whether the engine sampled what is trained.
        ranks: processes that make the same calls.
    """

    def __init__(
        self,
        config: TrainConfig,
        algorithm: Algorithm,
        policy: PolicyTrainer,
        *,
        reference: FrozenPolicy | None = None,
        teacher: FrozenPolicy | None = None,
        critic: Critic | None = None,
        is_sampled: bool = True,
        ranks: Ranks = ALONE,
    ) -> None:
        self._config = config
        self._ranks = ranks
        self._algorithm = algorithm
        self.policy = policy
        self.is_sampled = is_sampled
        self._reference = reference
        self._critic = critic
        self._penalty = KLPenalty(config.algorithm) if reference is not None else None
        self._loss = algorithm.loss
        if self._penalty is not None:
            self._loss = self._penalty.added_to(algorithm.loss)
        steps = config.trainer.steps_per_batch
        divider = Divider(config.trainer, ranks)
        self._recomputation = Recomputation(
            divider,
            policy=policy if algorithm.needs.old_logprobs or steps > 1 else None,
            reference=reference,
            teacher=teacher,
            critic=critic,
        )
        self._mini_batches = MiniBatches(
            divider,
            count=steps,
            reduction=config.algorithm.loss_reduction,
            max_tokens=config.sampling.max_tokens,
        )
        # what has a gradient where the advantage is zero
        is_in_loss = self._penalty is not None and self._penalty.is_in_loss
        self._trains_all = critic is not None or is_in_loss
        self.is_updating = False
        """Whether weights are between two versions: from the first step on a batch until its new version is published."""

    def learn(
        self, groups: Sequence[RolloutGroup], version: int, stopwatch: Stopwatch
    ) -> LearningResult:
        """Make all steps on one batch.

        Raises:
            MismatchError: the engine's policy is too far from the trainer's.
        """
        with stopwatch("pack"):
            batch, division = self._batch(groups, version), None
        if self._recomputation.is_needed and len(batch):
            with stopwatch("ask"):
                batch, division = self._recomputation.add_columns(batch)
        with stopwatch("pack"):
            batch = with_advantages(batch, self._algorithm, self._penalty)
            mini_batches = self._mini_batches.of(
                batch, groups, trains_all=self._trains_all, divided=division
            )
        sums, norms, critic_norms = [], [], []
        for mini_batch in mini_batches:
            with stopwatch("forward_backward"):
                sums.append(self._forward_backward(mini_batch, version))
            self.is_updating = True
            with stopwatch("optimizer"):
                critic_norms.append(self._step_critic(version))
                norms.append(self._step(sums[-1], batch, version))
        total = over_steps(sums)
        return LearningResult(
            sums=total,
            denominator=sum(mini_batch.denominator for mini_batch in mini_batches),
            grad_norm=sum(norms) / len(norms),
            learning_rate=learning_rate(self._config.trainer, version),
            has_engine_logprobs=not self._algorithm.needs.is_supervised,
            tracks_freshness=self._tracks_freshness,
            critic=self._critic_result(batch, critic_norms),
            kl_coefficient=self._adapt_penalty(total),
        )

    def published(self, version: int) -> None:
        """Note that `version` is out; it becomes the reference where that is due."""
        every = self._config.algorithm.reference_refresh_steps
        if self._reference is not None and every and version % every == 0:
            self._reference.load(self.policy.named_weights())
        self.is_updating = False

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the policy's weights under Hugging Face's names, in the compute type, in a fixed order."""
        return self.policy.named_weights()

    def write_beside(self, directory: Path | None) -> None:
        """Write adapters and averages into a directory of the weights; None on the ranks that only help."""
        self.policy.write_beside(directory)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint; the policy's part is only on the first rank."""
        state = self.policy.state_dict()
        if self._critic is not None:
            state["critic"] = self._critic.state_dict()
        if self._penalty is not None:
            state["kl_coef"] = self._penalty.coefficient
        if self._reference is not None and self._config.algorithm.reference_refresh_steps:
            state["reference"] = self._reference.weights()
        return state | algorithm_state(self._algorithm)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what an earlier run saved; a reference or coefficient that it did not have keeps its initial value.

        Raises:
            ValueError: the algorithm has a critic or a state that the checkpoint lacks.
        """
        policy_state, others = split_state(state)
        self.policy.load_state_dict(policy_state)
        if self._critic is not None:
            if "critic" not in others:
                raise ValueError(
                    "resume_from must be a run with a critic when algorithm=ppo, got one without; "
                    "start from its weights instead: model=hf model.path=<run>/weights/v<version>"
                )
            self._critic.load_state_dict(others["critic"])
        if self._penalty is not None and "kl_coef" in others and self._config.algorithm.kl_target:
            self._penalty.coefficient = others["kl_coef"]
        if self._reference is not None and "reference" in others:
            self._reference.load(others["reference"].items())
        load_algorithm_state(self._algorithm, others)

    @property
    def _tracks_freshness(self) -> bool:
        return bool(self._config.max_staleness and self.is_sampled)

    def _batch(self, groups: Sequence[RolloutGroup], version: int) -> TrainingBatch:
        """Make a batch of the rollouts that have a score."""
        scored = [r for group in groups for r in group.rollouts if r.reward is not None]
        batch = TrainingBatch.of(scored)
        if not (self._tracks_freshness and scored):
            return batch
        keeps_kv = self._config.engine.on_update is OnUpdate.keep
        fresh = [is_fresh(rollout, version, keeps_kv=keeps_kv) for rollout in scored]
        return batch.with_columns({"is_fresh": torch.cat(fresh)})

    def _forward_backward(self, mini_batch: MiniBatch, version: int) -> LossSums:
        micro_batches, denominator = mini_batch.micro_batches, mini_batch.denominator
        own = self.policy.forward_backward(micro_batches, self._loss, denominator=denominator)
        if own.bad_sample is not None:
            own.bad_sample = mini_batch.own[own.bad_sample]
        sums = over_ranks(self._ranks.gather(own))
        if sums.bad_sample is None and self.is_sampled:
            check_mismatch(sums.mismatch, self._config.correction, step=version + 1)
        if self._critic is not None:
            own = self._critic.forward_backward(micro_batches, denominator=denominator)
            critic = over_ranks(self._ranks.gather(own))
            sums.losses |= critic.losses
            sums.tokens |= critic.tokens
            sums.backward_seconds += critic.backward_seconds
        return sums

    def _step_critic(self, version: int) -> float:
        """Step the critic, where there is one; returns its gradient's norm."""
        settings = self._algorithm.needs.critic
        if self._critic is None or settings is None:
            return 0.0
        norm = self._critic.step(settings.learning_rate)
        if not math.isfinite(norm):
            logger.warning("step %d skipped by the critic: its gradient is not finite", version + 1)
        return norm

    def _step(self, sums: LossSums, batch: TrainingBatch, version: int) -> float:
        """Step, or skip it when a loss or the gradient is not finite; returns the gradient's norm."""
        if sums.bad_sample is not None:
            rollout = batch.rollouts[sums.bad_sample]
            logger.warning(
                "step %d skipped: the loss of group %d, sample %d is not finite",
                version + 1,
                rollout.group_id,
                rollout.sample_index,
            )
            self.policy.clear_gradients()
            return float("nan")
        settings = self._algorithm.needs.critic
        if settings is not None and version < settings.num_warmup_steps:
            self.policy.clear_gradients()
            return 0.0
        norm = self.policy.step(learning_rate(self._config.trainer, version))
        if not math.isfinite(norm):
            logger.warning("step %d skipped: the gradient is not finite", version + 1)
        return norm

    def _critic_result(self, batch: TrainingBatch, norms: Sequence[float]) -> CriticResult | None:
        if self._critic is None or not len(batch):
            return None
        return CriticResult(
            grad_norm=sum(norms) / len(norms),
            explained_variance=explained_variance(batch["values"].double(), batch["returns"]),
        )

    def _adapt_penalty(self, sums: LossSums) -> float | None:
        """Adapt the penalty's coefficient after a batch; returns the one that was used."""
        if self._penalty is None:
            return None
        coefficient = self._penalty.coefficient
        divergence = self._penalty.divergence(sums)
        if divergence is not None:
            self._penalty.adapt(divergence)
        return coefficient
