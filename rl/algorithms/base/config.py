"""Schema of what all algorithms share in the `algorithm` group, and of `correction`. It imports no torch."""

from dataclasses import dataclass
from enum import Enum

from rollout.config import require

__all__ = [
    "AlgorithmConfig",
    "ClippedConfig",
    "CorrectionConfig",
    "CorrectionLevel",
    "CorrectionMode",
    "KLEstimator",
    "KLPlacement",
    "LossReduction",
    "RatioBase",
]


class LossReduction(Enum):
    """Denominator of the loss."""

    token_mean = "token_mean"
    sequence_mean = "sequence_mean"
    fixed_length = "fixed_length"


class KLEstimator(Enum):
    """Estimator of the divergence from the reference; formulas are in kl.py."""

    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


class KLPlacement(Enum):
    """Place of the KL penalty."""

    loss = "loss"
    reward = "reward"


class RatioBase(Enum):
    """Policy whose probability the current one is divided by."""

    old = "old"
    """The trainer's own policy at the start of the step."""
    rollout = "rollout"
    """The engine's policy, as it reported; the ratio then includes the mismatch between engine and trainer."""


class CorrectionLevel(Enum):
    """Span of the ratio that weights a token."""

    token = "token"
    sequence = "sequence"


class CorrectionMode(Enum):
    """Treatment of weights past a limit."""

    truncate = "truncate"
    mask = "mask"


@dataclass(kw_only=True)
class AlgorithmConfig:
    """Keys that all algorithms have; base of the `algorithm` group."""

    loss_reduction: LossReduction = LossReduction.token_mean
    """`token_mean`: every trained token weighs the same; `sequence_mean`: every rollout does; `fixed_length`: tokens
    weigh 1 / (rollouts * sampling.max_tokens)."""
    ratio_base: RatioBase = RatioBase.old
    """Policy whose probability is the divisor of the ratio: the trainer's own before the step, or the engine's as it reported."""
    kl_coef: float = 0.0
    """Coefficient of the divergence from the reference, the model that the run began with; 0: no reference is kept."""
    kl_estimator: KLEstimator = KLEstimator.k3
    """`k1` is for the reward (as a loss its gradient is zero on average), `k2` has the reverse KL's gradient, `k3` nearly so."""
    kl_placement: KLPlacement = KLPlacement.loss
    """`loss`: differentiated; `reward`: taken off each token's reward."""
    kl_target: float = 0.0
    """Divergence in nats per token towards which `kl_coef` is adapted, by at most 2 % a step; 0 keeps `kl_coef` fixed."""
    reference_refresh_steps: int = 0
    """Steps after which the reference becomes a copy of the policy, again and again; 0 keeps the first reference."""

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
    """Keys of algorithms with a clipped ratio."""

    clip_low: float = 0.2
    """The ratio is kept at or above 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio is kept at or below 1 + clip_high."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.clip_low < 1, "algorithm.clip_low", "in (0, 1)", self.clip_low)
        require(self.clip_high > 0, "algorithm.clip_high", "> 0", self.clip_high)


@dataclass(kw_only=True)
class CorrectionConfig:
    """Correction for engines that sample from a slightly different policy; in exact mode it changes nothing.

    Four thresholds are in k3, the divergence between the engine's and the trainer's policy in nats per token:
    r - 1 - log r, r = trainer's over engine's probability, averaged over tokens. It is 0 in exact mode and about 0.001 to
    0.02 in 8 bits. From mild to severe: `warn_k3` logs, `max_k3` takes engines out of 8 bits, `stop_k3` ends the run;
    `max_sample_k3` limits single rollouts.
    """

    max_importance_weight: float = 2.0
    """Limit on the weight of a token, the trainer's over the engine's probability; 0 weights all tokens alike."""
    min_importance_weight: float = 0.0
    """Weight below which `mode` `mask` leaves a token out; 0: no lower limit."""
    level: CorrectionLevel = CorrectionLevel.token
    """Ratio that weights a token: `token`: its own; `sequence`: that of its whole rollout."""
    mode: CorrectionMode = CorrectionMode.truncate
    """Treatment of weights past a limit: `truncate` sets them to the limit, `mask` leaves the tokens out."""
    max_mean_log_ratio: float = 0.0
    """Rollouts whose tokens' mean log ratio is further than this from 0 are left out; 0: none."""
    max_sample_k3: float = 0.0
    """Rollouts whose own k3, averaged over their tokens, is greater than this are left out of the loss; 0: none."""
    max_k3: float = 0.2
    """Engines in 8 bits go on with plain weights once the k3 of a whole step is greater than this. Rare tokens dominate k3:
    one of 1,000 that is e^3 times as probable to the trainer gives 0.016, one that is e^5 times gives 0.14."""
    warn_k3: float = 0.1
    """A warning is logged when the k3 of a whole step is greater than this; 0: never."""
    stop_k3: float = 2.0
    """The run stops before it trains on a step whose k3 is greater than this; 0: never."""

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
