"""Builds the learner of a run: the policy's trainer, and the models that its algorithm needs."""

from pathlib import Path

import torch

from rl.algorithms.base.algorithm import Algorithm, Needs
from rl.algorithms.base.config import CorrectionConfig, RatioBase
from rl.algorithms.base.correction import Corrector
from rl.config import RunMode, TrainConfig
from rl.trainer.config import DataParallel, TrainerBackend, TrainerConfig
from rl.trainer.learn.critic import Critic, ValueHead
from rl.trainer.learn.frozen_policy import FrozenPolicy
from rl.trainer.learn.learner import Learner
from rl.trainer.learn.policy_trainer import PolicyTrainer
from rl.trainer.ranks.group import ALONE, Ranks
from rl.trainer.weights.base import TrainedWeights
from rl.trainer.weights.lora import Adapters
from rollout.config import Dtype, ModelConfig
from rollout.models.checkpoint import load_decoder
from rollout.models.decoder import Decoder
from rollout.models.sources import resolve_model

__all__ = ["make_learner", "trains_on_samples"]


def trains_on_samples(mode: RunMode, needs: Needs) -> bool:
    """Whether the engine sampled what is trained, so that its log-probabilities mean something.

    It did not sample random completions (`mode=train_only`) or the tasks' own answers, and `mode=rollout_only` trains nothing.
    """
    return mode is RunMode.full and not needs.is_supervised


def make_learner(
    config: TrainConfig,
    algorithm: Algorithm,
    *,
    source: Path,
    weights: Path,
    dtype: torch.dtype,
    ranks: Ranks = ALONE,
    kind: type[Learner] = Learner,
) -> Learner:
    """Make the learner of a run, before it loads a checkpoint's state.

    Args:
        config: config of the run.
        algorithm: made from the config.
        source: directory of the model that the very first run began with; it is the reference and the critic's start.
        weights: directory of the weights to train.
        dtype: compute type.
        ranks: processes that train together; all call this.
        kind: class of the learner.

    Raises:
        ValueError: the teacher cannot be loaded, or has another vocabulary; another rank found a mistake.
    """
    needs, trainer = algorithm.needs, config.trainer
    # the base of adapters is what the very first run began with; a checkpoint's weights have them merged
    policy = _trained_decoder(source if trainer.lora.rank else weights, trainer, dtype)
    adapters = None
    if trainer.lora.rank:
        adapters = Adapters(policy, trainer.lora, base=str(source), seed=config.seed)
    critic_decoder = _trained_decoder(source, trainer, dtype) if needs.critic else None
    temperature = config.sampling.temperature
    reference = teacher = None
    if needs.reference:
        reference = FrozenPolicy(load_decoder(source, dtype=dtype), temperature=temperature)
    if needs.teacher:
        decoder = _teacher(needs.teacher, config.model.dtype, policy=policy, dtype=dtype)
        teacher = FrozenPolicy(decoder, temperature=temperature)
    # before the first collective of tensors, in which others would wait for a rank that found a mistake
    ranks.check(None)
    is_sampled = trains_on_samples(config.mode, needs)
    policy_trainer = _policy_trainer(
        config, policy, adapters=adapters, is_sampled=is_sampled, ranks=ranks
    )
    critic = None
    if critic_decoder is not None and needs.critic is not None:
        value_clip = needs.critic.value_clip
        critic = _critic(critic_decoder, trainer, value_clip=value_clip, ranks=ranks)
    return kind(
        config,
        algorithm,
        policy_trainer,
        reference=reference,
        teacher=teacher,
        critic=critic,
        is_sampled=is_sampled,
        ranks=ranks,
    )


def _policy_trainer(
    config: TrainConfig,
    policy: Decoder,
    *,
    adapters: Adapters | None,
    is_sampled: bool,
    ranks: Ranks,
) -> PolicyTrainer:
    """Make the policy's trainer; tokens that the engine did not sample are not corrected."""
    return PolicyTrainer(
        policy,
        config.trainer,
        temperature=config.sampling.temperature,
        corrector=_corrector(config.correction) if is_sampled else None,
        ratio_base=config.algorithm.ratio_base if is_sampled else RatioBase.old,
        adapters=adapters,
        weights=_shards(policy, config.trainer, ranks, ema_decay=config.trainer.ema_decay),
        ranks=ranks,
    )


def _trained_decoder(path: Path, config: TrainerConfig, dtype: torch.dtype) -> Decoder:
    decoder = load_decoder(path, dtype=dtype)
    decoder.recomputes_layers = config.activation_checkpointing
    return decoder


def _critic(decoder: Decoder, config: TrainerConfig, *, value_clip: float, ranks: Ranks) -> Critic:
    head = ValueHead(decoder)
    weights = _shards(decoder, config, ranks, head=head)
    return Critic(decoder, head, config, value_clip=value_clip, weights=weights, ranks=ranks)


def _shards(
    decoder: Decoder,
    config: TrainerConfig,
    ranks: Ranks,
    *,
    head: ValueHead | None = None,
    ema_decay: float = 0.0,
) -> TrainedWeights | None:
    """Shard the weights as `trainer.backend` and `data_parallel` say; None where every rank has a copy."""
    if config.backend is TrainerBackend.deepspeed:
        from rl.trainer.weights.deepspeed import DeepSpeedWeights

        return DeepSpeedWeights(decoder, config, ranks=ranks, head=head)
    if config.data_parallel is DataParallel.fsdp2:
        from rl.trainer.weights.fsdp import FSDPWeights

        return FSDPWeights(decoder, config, ranks=ranks, head=head, ema_decay=ema_decay)
    return None


def _corrector(config: CorrectionConfig) -> Corrector:
    return Corrector(
        max_weight=config.max_importance_weight,
        min_weight=config.min_importance_weight,
        level=config.level,
        mode=config.mode,
        max_mean_log_ratio=config.max_mean_log_ratio,
        max_sample_k3=config.max_sample_k3,
    )


def _teacher(
    teacher_path: str, model_dtype: Dtype, *, policy: Decoder, dtype: torch.dtype
) -> Decoder:
    path = resolve_model(
        ModelConfig(path=teacher_path, dtype=model_dtype), key="algorithm.teacher_path"
    )
    teacher = load_decoder(path, dtype=dtype)
    if teacher.spec.vocab_size != policy.spec.vocab_size:
        raise ValueError(
            f"algorithm.teacher_path must be a model with the student's tokenizer: its vocabulary has "
            f"{teacher.spec.vocab_size} tokens, the student's {policy.spec.vocab_size}"
        )
    return teacher
