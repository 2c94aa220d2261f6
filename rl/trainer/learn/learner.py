"""From scored groups to a better policy: one batch, blind to which algorithm it is.

    rollouts -> ask reference, teacher, critic, old policy -> advantages -> pack
             -> (forward/backward -> mismatch check -> step) * steps_per_batch

Whoever is asked computes a tensor over the trained tokens of the whole batch, sample after sample; asking is packed like training.
Every rank has all samples, computes for its share of them (`balance`), and is told what the others computed.
Rollouts whose advantages are all zero are not forwarded, unless something else trains on them (a critic, a KL loss);
they count in the denominator all the same.
"""

import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rl.algorithms.base.algorithm import Algorithm, Stateful
from rl.algorithms.base.signals import Signals
from rl.algorithms.ppo import explained_variance
from rl.config import TrainConfig
from rl.rollouts import Rollout, RolloutGroup
from rl.trainer.learn.backend import Backend, BatchStats, over_ranks, over_steps
from rl.trainer.learn.balance import balance
from rl.trainer.learn.critic import Critic
from rl.trainer.learn.frozen_policy import FrozenPolicy
from rl.trainer.learn.kl_penalty import KLPenalty
from rl.trainer.learn.packing import MicroBatch, TrainingSample, fill_up, loss_weights, pack
from rl.trainer.metrics.mismatch import check_mismatch
from rl.trainer.metrics.staleness import is_fresh
from rl.trainer.metrics.step import training_metrics
from rl.trainer.metrics.stopwatch import Stopwatch
from rl.trainer.ranks.group import ALONE, Ranks
from rl.trainer.weights.lr_schedule import learning_rate
from rollout.config import OnUpdate

__all__ = ["Learner"]

logger = logging.getLogger("paceline")

_BESIDE_POLICY = ("algorithm", "critic", "kl_coef", "reference")
"""Keys of a checkpoint's state that are not the policy's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _MiniBatch:
    """What one optimiser step sees."""

    samples: list[TrainingSample]
    own: list[int]
    """Which of them are this rank's."""
    micro_batches: list[MicroBatch]
    """Of its own samples."""
    denominator: float


class Learner:
    """Trains a policy, and its critic where the algorithm has one.

    Args:
        config: of the run.
        algorithm: made of it.
        backend: the policy's.
        reference: where `algorithm.kl_coef` is above 0.
        teacher: where the algorithm has one.
        critic: where the algorithm has one.
        is_sampled: whether the engine sampled what is trained.
        ranks: that make the same calls.
    """

    def __init__(
        self,
        config: TrainConfig,
        algorithm: Algorithm,
        backend: Backend,
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
        self.backend = backend
        self._reference = reference
        self._teacher = teacher
        self._critic = critic
        self._penalty = KLPenalty(config.algorithm) if reference is not None else None
        self._loss = algorithm.loss
        if self._penalty is not None:
            self._loss = self._penalty.added_to(algorithm.loss)
        self.is_sampled = is_sampled
        self._asks_old_policy = algorithm.needs.old_logprobs or config.trainer.steps_per_batch > 1
        # what has a gradient where the advantage is zero
        is_in_loss = self._penalty is not None and self._penalty.is_in_loss
        self._trains_all = critic is not None or is_in_loss
        self.is_updating = False
        """Weights are between two versions: from the first step on a batch until its new version is published."""

    def learn(
        self, groups: Sequence[RolloutGroup], version: int, stopwatch: Stopwatch
    ) -> dict[str, float]:
        """All steps on one batch; returns metrics.

        Raises:
            MismatchError: the engine's policy is too far from the trainer's.
        """
        with stopwatch("pack"):
            samples = [
                TrainingSample(
                    rollout=rollout,
                    advantages=[0.0] * rollout.num_sampled_tokens,
                    loss_weight=1.0,
                    extras=self._freshness(rollout, version),
                )
                for group in groups
                for rollout in group.rollouts
                if rollout.reward is not None
            ]
        if self._asks_old_policy or self._reference or self._teacher or self._critic:
            with stopwatch("ask"):
                samples = self._ask(samples)
        with stopwatch("pack"):
            samples = self._with_advantages(samples)
        stats, norms, critic_norms = [], [], []
        mini_batches = self._mini_batches(groups, samples, stopwatch)
        for mini_batch in mini_batches:
            with stopwatch("forward_backward"):
                stats.append(self._forward_backward(mini_batch, version))
            self.is_updating = True
            with stopwatch("optimizer"):
                critic_norms.append(self._step_critic(version))
                norms.append(self._step(stats[-1], mini_batch.samples, version))
        total = over_steps(stats)
        metrics = training_metrics(
            total,
            denominator=sum(mini_batch.denominator for mini_batch in mini_batches),
            grad_norm=sum(norms) / len(norms),
            learning_rate=learning_rate(self._config.trainer, version),
        )
        if (
            self._algorithm.needs.is_supervised
        ):  # nobody sampled them: there is nothing to compare with
            metrics = {k: v for k, v in metrics.items() if not k.startswith("mismatch/")}
        metrics["seconds/backward"] = total.backward_seconds  # of seconds/forward_backward
        if self._critic is not None and samples:
            metrics["optimizer/critic_grad_norm"] = sum(critic_norms) / len(critic_norms)
            metrics["value/explained_variance"] = explained_variance(
                _joined(samples, "values"), _joined(samples, "returns")
            )
        return metrics | self._penalty_metrics(metrics)

    def published(self, version: int) -> None:
        """`version` is out: it may become the reference."""
        every = self._config.algorithm.reference_refresh_steps
        if self._reference is not None and every and version % every == 0:
            self._reference.load(self.backend.named_weights())
        self.is_updating = False

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The policy's, under Hugging Face's names, in the compute type, in a fixed order."""
        return self.backend.named_weights()

    def write_beside(self, directory: Path | None) -> None:
        """Adapters and averages into a directory of the weights; None on the ranks that only help."""
        self.backend.write_beside(directory)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; on the ranks behind the first without the policy's."""
        state = self.backend.state_dict()
        if self._critic is not None:
            state["critic"] = self._critic.state_dict()
        if self._penalty is not None:
            state["kl_coef"] = self._penalty.coefficient
        if self._reference is not None and self._config.algorithm.reference_refresh_steps:
            state["reference"] = self._reference.weights()
        if self._algorithm.state is not None:
            name = type(self._algorithm.state).__name__
            state["algorithm"] = {"name": name, "state": self._algorithm.state.state_dict()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What an earlier run saved; what it did not have keeps its beginning.

        Raises:
            ValueError: the run's algorithm has a critic or a state that the checkpoint lacks.
        """
        self.backend.load_state_dict({k: v for k, v in state.items() if k not in _BESIDE_POLICY})
        if self._critic is not None:
            if "critic" not in state:
                raise ValueError(
                    "resume_from must be a run with a critic when algorithm=ppo, got one without; "
                    "start from its weights instead: model=hf model.path=<run>/weights/v<version>"
                )
            self._critic.load_state_dict(state["critic"])
        if self._penalty is not None and "kl_coef" in state and self._config.algorithm.kl_target:
            self._penalty.coefficient = state["kl_coef"]
        if self._reference is not None and "reference" in state:
            self._reference.load(state["reference"].items())
        if self._algorithm.state is not None:
            self._load_algorithm(self._algorithm.state, state.get("algorithm", {}))

    def _load_algorithm(self, algorithm: Stateful, saved: Mapping[str, Any]) -> None:
        name = type(algorithm).__name__
        if saved.get("name") != name:
            raise ValueError(
                f"resume_from must be a run with the state of algorithm {name}, got one of "
                f"{saved.get('name', 'an algorithm without a state')}; start from its weights instead: "
                "model=hf model.path=<run>/weights/v<version>"
            )
        algorithm.load_state_dict(saved["state"])

    def _freshness(self, rollout: Rollout, version: int) -> dict[str, torch.Tensor]:
        if not (self._config.max_staleness and self.is_sampled):
            return {}
        keeps_kv = self._config.engine.on_update is OnUpdate.keep
        return {"is_fresh": is_fresh(rollout, version, keeps_kv=keeps_kv)}

    def _ask(self, samples: list[TrainingSample]) -> list[TrainingSample]:
        """Samples with what others say of their tokens."""
        if not samples:
            return samples
        shares = self._shares(samples)
        micro_batches = self._pack([samples[i] for i in shares[self._ranks.rank]])
        extras: dict[str, torch.Tensor] = {}
        if self._asks_old_policy:
            extras["old_logprobs"] = self.backend.old_logprobs(micro_batches)
        if self._reference is not None:
            extras["ref_logprobs"] = self._reference.logprobs(micro_batches)
        if self._teacher is not None:
            extras["teacher_logprobs"] = self._teacher.logprobs(micro_batches)
        if self._critic is not None:
            extras["values"] = self._critic.old_values(micro_batches)
        everyones = self._ranks.gather({name: values_N.cpu() for name, values_N in extras.items()})
        return _with_extras(samples, _joined_shares(samples, shares, everyones))

    def _with_advantages(self, samples: list[TrainingSample]) -> list[TrainingSample]:
        if not samples:
            return samples
        estimates = self._algorithm.advantages(self._signals(samples))
        advantages = estimates.advantages_N.split(_lengths(samples))
        samples = [
            replace(sample, advantages=advantages_n.tolist())
            for sample, advantages_n in zip(samples, advantages, strict=True)
        ]
        if estimates.returns_N is not None:
            samples = _with_extras(samples, {"returns": estimates.returns_N})
        return samples

    def _signals(self, samples: Sequence[TrainingSample]) -> Signals:
        rollouts = [sample.rollout for sample in samples]
        lengths_S = torch.tensor(_lengths(samples), dtype=torch.int64)
        token_rewards_N = torch.zeros(int(lengths_S.sum()), dtype=torch.float64)
        if self._penalty is not None and not self._penalty.is_in_loss:
            old_N, ref_N = _joined(samples, "old_logprobs"), _joined(samples, "ref_logprobs")
            token_rewards_N += self._penalty.rewards(old_N, ref_N)
        if self._teacher is not None:
            old_N = _joined(samples, "old_logprobs")
            token_rewards_N += _joined(samples, "teacher_logprobs") - old_N
        return Signals(
            # finite: ScoreOutcome refuses others
            rewards_S=torch.tensor([r.reward for r in rollouts], dtype=torch.float64),
            group_ids_S=torch.tensor([r.group_id for r in rollouts], dtype=torch.int64),
            lengths_S=lengths_S,
            token_rewards_N=token_rewards_N,
            values_N=_joined(samples, "values") if self._critic is not None else None,
        )

    def _mini_batches(
        self,
        groups: Sequence[RolloutGroup],
        samples: Sequence[TrainingSample],
        stopwatch: Stopwatch,
    ) -> list[_MiniBatch]:
        """The batch in `steps_per_batch` parts of whole groups."""
        of_group: dict[int, list[TrainingSample]] = {group.group_id: [] for group in groups}
        for sample in samples:
            of_group[sample.rollout.group_id].append(sample)
        per_group, count = list(of_group.values()), self._config.trainer.steps_per_batch
        bounds = [len(per_group) * i // count for i in range(count + 1)]
        with stopwatch("pack"):
            return [
                self._mini_batch([s for group in per_group[start:stop] for s in group])
                for start, stop in itertools.pairwise(bounds)
            ]

    def _mini_batch(self, samples: Sequence[TrainingSample]) -> _MiniBatch:
        """Samples with signal, and the denominator, in which those without it count too."""
        weights, denominator = loss_weights(
            [sample.rollout for sample in samples],
            self._config.algorithm.loss_reduction,
            fixed_length=self._config.sampling.max_tokens,
        )
        kept = [
            replace(sample, loss_weight=weight)
            for sample, weight in zip(samples, weights, strict=True)
            if sample.advantages and (self._trains_all or any(sample.advantages))
        ]
        own = self._shares(kept)[self._ranks.rank]
        return _MiniBatch(
            samples=kept,
            own=own,
            micro_batches=self._pack([kept[i] for i in own]),
            denominator=max(denominator, 1.0),
        )

    def _shares(self, samples: Sequence[TrainingSample]) -> list[list[int]]:
        share_prompts = self._config.trainer.share_prompts
        return balance(samples, self._ranks.count, share_prompts=share_prompts)

    def _pack(self, samples: Sequence[TrainingSample]) -> list[MicroBatch]:
        """This rank's, filled up to as many micro-batches as the busiest rank has."""
        trainer = self._config.trainer
        micro_batches = pack(
            [sample for sample in samples if sample.advantages],
            max_tokens=trainer.max_tokens_per_micro_batch,
            share_prompts=trainer.share_prompts,
        )
        counts = self._ranks.gather(len(micro_batches))
        # a group of processes always has something to sum
        least = 0 if self._ranks is ALONE else 1
        return fill_up(micro_batches, max(least, *counts))

    def _forward_backward(self, mini_batch: _MiniBatch, version: int) -> BatchStats:
        micro_batches, denominator = mini_batch.micro_batches, mini_batch.denominator
        own = self.backend.forward_backward(micro_batches, self._loss, denominator=denominator)
        if own.bad_sample is not None:
            own.bad_sample = mini_batch.own[own.bad_sample]
        stats = over_ranks(self._ranks.gather(own))
        if stats.bad_sample is None and self.is_sampled:
            check_mismatch(stats, self._config.correction, step=version + 1)
        if self._critic is not None:
            own = self._critic.forward_backward(micro_batches, denominator=denominator)
            critic = over_ranks(self._ranks.gather(own))
            stats.sums |= critic.sums
            stats.backward_seconds += critic.backward_seconds
        return stats

    def _step_critic(self, version: int) -> float:
        """The critic's step, where there is one; returns its gradient's norm."""
        settings = self._algorithm.needs.critic
        if self._critic is None or settings is None:
            return 0.0
        norm = self._critic.step(settings.learning_rate)
        if not math.isfinite(norm):
            logger.warning("step %d skipped by the critic: its gradient is not finite", version + 1)
        return norm

    def _step(self, stats: BatchStats, samples: Sequence[TrainingSample], version: int) -> float:
        """Step, or skip it when a loss or the gradient is not finite; returns the gradient's norm."""
        if stats.bad_sample is not None:
            rollout = samples[stats.bad_sample].rollout
            logger.warning(
                "step %d skipped: the loss of group %d, sample %d is not finite",
                version + 1,
                rollout.group_id,
                rollout.sample_index,
            )
            self.backend.clear_gradients()
            return float("nan")
        settings = self._algorithm.needs.critic
        if settings is not None and version < settings.num_warmup_steps:
            self.backend.clear_gradients()
            return 0.0
        norm = self.backend.step(learning_rate(self._config.trainer, version))
        if not math.isfinite(norm):
            logger.warning("step %d skipped: the gradient is not finite", version + 1)
        return norm

    def _penalty_metrics(self, metrics: Mapping[str, float]) -> dict[str, float]:
        if self._penalty is None:
            return {}
        coefficient = self._penalty.coefficient
        if "kl/reference" in metrics:
            self._penalty.adapt(metrics["kl/reference"])
        return {"kl/coef": coefficient}


def _lengths(samples: Sequence[TrainingSample]) -> list[int]:
    return [len(sample.advantages) for sample in samples]


def _joined(samples: Sequence[TrainingSample], name: str) -> torch.Tensor:
    """[N] of all samples, in float64."""
    parts = [sample.extras[name] for sample in samples]
    return torch.cat(parts).double() if parts else torch.zeros(0, dtype=torch.float64)


def _with_extras(
    samples: Sequence[TrainingSample], extras: Mapping[str, torch.Tensor]
) -> list[TrainingSample]:
    """Each [N] tensor, cut into those of each sample."""
    parts = {name: values_N.split(_lengths(samples)) for name, values_N in extras.items()}
    return [
        replace(sample, extras={**sample.extras, **{name: p[i] for name, p in parts.items()}})
        for i, sample in enumerate(samples)
    ]


def _joined_shares(
    samples: Sequence[TrainingSample],
    shares: Sequence[Sequence[int]],
    of_share: Sequence[Mapping[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """[N] of all samples, from the tensors of each share."""
    order = [index for share in shares for index in share]
    lengths = [len(samples[index].advantages) for index in order]
    joined = {}
    for name in of_share[0]:
        parts = torch.cat([tensors[name] for tensors in of_share]).split(lengths)
        by_sample = dict(zip(order, parts, strict=True))
        joined[name] = torch.cat([by_sample[i] for i in range(len(samples))])
    return joined
