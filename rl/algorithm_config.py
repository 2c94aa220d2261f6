"""The schema of the `algorithm` group and of `correction`. Defaults are each algorithm's own, from its paper."""

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from rollout.config import require


class LossReduction(Enum):
    token_mean = "token_mean"
    sequence_mean = "sequence_mean"
    fixed_length = "fixed_length"


class KLEstimator(Enum):
    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


class KLPlacement(Enum):
    loss = "loss"
    reward = "reward"


class RatioBase(Enum):
    old = "old"
    """The trainer's own policy at the start of the step."""
    rollout = "rollout"
    """The engine's, as it reported: the ratio then carries the mismatch, too."""


class CorrectionLevel(Enum):
    token = "token"
    sequence = "sequence"


class CorrectionMode(Enum):
    truncate = "truncate"
    mask = "mask"


@dataclass(kw_only=True)
class AlgorithmConfig:
    """Base of the `algorithm` group."""

    loss_reduction: LossReduction = LossReduction.token_mean
    """`token_mean`: every trained token weighs the same; `sequence_mean`: every rollout does; `fixed_length`: tokens
    weigh 1 / (rollouts * sampling.max_tokens)."""
    ratio_base: RatioBase = RatioBase.old
    """Whose probability the current policy's is divided by."""
    kl_coef: float = 0.0
    """Of the divergence from the reference, the model that the run began with; 0: no reference is kept."""
    kl_estimator: KLEstimator = KLEstimator.k3
    """`k1` is for the reward (as a loss its gradient is zero on average), `k2` has the reverse KL's gradient, `k3` nearly so."""
    kl_placement: KLPlacement = KLPlacement.loss
    """`loss`: differentiated; `reward`: taken off each token's reward."""
    kl_target: float = 0.0
    """In nats per token: `kl_coef` is adapted, by at most 2 % a step, until the divergence is this; 0: it is fixed."""
    reference_refresh_steps: int = 0
    """Every so many steps the reference becomes the policy; 0: it stays."""

    def __post_init__(self) -> None:
        require(self.kl_coef >= 0, "algorithm.kl_coef", ">= 0", self.kl_coef)
        require(self.kl_target >= 0, "algorithm.kl_target", ">= 0", self.kl_target)
        require(
            self.kl_coef > 0 or not (self.kl_target or self.reference_refresh_steps),
            "algorithm.kl_coef",
            "> 0 where kl_target or reference_refresh_steps is set",
            self.kl_coef,
        )
        require(
            self.reference_refresh_steps >= 0,
            "algorithm.reference_refresh_steps",
            ">= 0",
            self.reference_refresh_steps,
        )


@dataclass(kw_only=True)
class ClippedConfig(AlgorithmConfig):
    """Algorithms with a clipped ratio."""

    clip_low: float = 0.2
    """The ratio is kept at or above 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio is kept at or below 1 + clip_high."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.clip_low < 1, "algorithm.clip_low", "in (0, 1)", self.clip_low)
        require(self.clip_high > 0, "algorithm.clip_high", "> 0", self.clip_high)


@dataclass(kw_only=True)
class GRPOConfig(ClippedConfig):
    normalize_std: bool = True
    """Divide a group's centred rewards by their standard deviation."""


@dataclass(kw_only=True)
class DrGRPOConfig(ClippedConfig):
    loss_reduction: LossReduction = LossReduction.fixed_length


@dataclass(kw_only=True)
class DAPOConfig(ClippedConfig):
    clip_high: float = 0.28
    num_overlong_tokens: int = 0
    """The last tokens before sampling.max_tokens, over which a penalty grows from 0 to 1; 0: none."""
    max_refills: int = 10
    """Groups that scored the same throughout are replaced, at most num_prompts_per_step times this in a step; 0: never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.num_overlong_tokens >= 0,
            "algorithm.num_overlong_tokens",
            ">= 0",
            self.num_overlong_tokens,
        )
        require(self.max_refills >= 0, "algorithm.max_refills", ">= 0", self.max_refills)


@dataclass(kw_only=True)
class RLOOConfig(AlgorithmConfig):
    loss_reduction: LossReduction = LossReduction.fixed_length


@dataclass(kw_only=True)
class ReinforcePPConfig(ClippedConfig):
    use_group_baseline: bool = False
    """Centre the rewards of each group before they are normalised over the batch."""


@dataclass(kw_only=True)
class GSPOConfig(ClippedConfig):
    clip_low: float = 3e-4
    clip_high: float = 4e-4
    loss_reduction: LossReduction = LossReduction.sequence_mean


@dataclass(kw_only=True)
class CISPOConfig(AlgorithmConfig):
    max_ratio: float = 5.0
    """Greatest weight of a token; the bound itself, not its offset from 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max_ratio >= 1, "algorithm.max_ratio", ">= 1", self.max_ratio)


@dataclass(kw_only=True)
class MaxRLConfig(AlgorithmConfig):
    loss_reduction: LossReduction = LossReduction.fixed_length

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.kl_coef == 0 or self.kl_placement is KLPlacement.loss,
            "algorithm.kl_placement",
            "loss when algorithm=maxrl, which divides by a mean reward that a penalty would shift",
            self.kl_placement.name,
        )


@dataclass(kw_only=True)
class PPOConfig(ClippedConfig):
    gamma: float = 1.0
    """Discount per token."""
    gae_lambda: float = 1.0
    """1: the score alone says what a token was worth; towards 0: the critic does."""
    value_clip: float = 0.2
    """How far a value may move on one batch and still lower the critic's loss; felt with trainer.steps_per_batch > 1."""
    critic_learning_rate: float = 1e-5
    """The same at every step, whatever `trainer.lr_schedule` is."""
    num_critic_warmup_steps: int = 0
    """Steps at the beginning in which only the critic learns."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.gamma <= 1, "algorithm.gamma", "in (0, 1]", self.gamma)
        require(0 <= self.gae_lambda <= 1, "algorithm.gae_lambda", "in [0, 1]", self.gae_lambda)
        require(self.value_clip > 0, "algorithm.value_clip", "> 0", self.value_clip)
        require(
            self.critic_learning_rate > 0,
            "algorithm.critic_learning_rate",
            "> 0",
            self.critic_learning_rate,
        )
        require(
            self.num_critic_warmup_steps >= 0,
            "algorithm.num_critic_warmup_steps",
            ">= 0",
            self.num_critic_warmup_steps,
        )


@dataclass(kw_only=True)
class DistillationConfig(AlgorithmConfig):
    teacher_path: str = MISSING
    """A Hugging Face directory or hub id, with the tokenizer of the model that is trained."""


@dataclass(kw_only=True)
class SFTConfig(AlgorithmConfig):
    """One answer per prompt, whatever `group_size` is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.kl_coef == 0,
            "algorithm.kl_coef",
            "0 when algorithm=sft: the policy sampled no answer, so nothing would estimate its divergence",
            self.kl_coef,
        )


@dataclass(kw_only=True)
class CorrectionConfig:
    """For engines that sample from a slightly other policy; in exact mode it changes nothing."""

    max_importance_weight: float = 2.0
    """Tokens are weighted by trainer's over engine's probability, at most by this; 0: all alike."""
    min_importance_weight: float = 0.0
    """Below this, `mask` leaves a token out, too."""
    level: CorrectionLevel = CorrectionLevel.token
    """`token`: each token's own ratio; `sequence`: that of its whole rollout."""
    mode: CorrectionMode = CorrectionMode.truncate
    """Past the limit: `truncate` to it, or `mask`, leave out."""
    max_mean_log_ratio: float = 0.0
    """Rollouts whose tokens' mean log ratio is further than this from 0 are left out; 0: none."""
    max_sample_k3: float = 0.0
    """Rollouts past this divergence, in nats per token, are left out; 0: none."""
    max_k3: float = 0.2
    """Past this divergence of the two in one step, in nats per token, engines in 8 bits go on in plain weights. Its tail
    is heavy: one of 1,000 tokens that is e^3 times as probable to the trainer gives 0.016, one e^5 times 0.14."""
    warn_k3: float = 0.1
    """Past this divergence in one step a warning is logged; 0: never."""
    stop_k3: float = 2.0
    """Past this one the run stops before it trains on the step; 0: never."""

    def __post_init__(self) -> None:
        require(
            self.max_importance_weight == 0 or self.max_importance_weight >= 1,
            "correction.max_importance_weight",
            "0 or >= 1",
            self.max_importance_weight,
        )
        require(
            0 <= self.min_importance_weight <= 1,
            "correction.min_importance_weight",
            "in [0, 1]",
            self.min_importance_weight,
        )
        require(
            self.mode is CorrectionMode.mask or self.min_importance_weight == 0,
            "correction.min_importance_weight",
            "0 where correction.mode is truncate, which has no lower limit",
            self.min_importance_weight,
        )
        require(
            self.max_importance_weight > 0 or self.min_importance_weight == 0,
            "correction.min_importance_weight",
            "0 where correction.max_importance_weight is, which weighs all alike",
            self.min_importance_weight,
        )
        require(self.max_k3 > 0, "correction.max_k3", "> 0", self.max_k3)
        for key in ("max_mean_log_ratio", "max_sample_k3", "warn_k3", "stop_k3"):
            require(getattr(self, key) >= 0, f"correction.{key}", ">= 0", getattr(self, key))
