"""Watches how far the engine's policy is from the trainer's."""

import logging

from rl.algorithms.base.config import CorrectionConfig
from rl.trainer.learn.backend import BatchStats

__all__ = ["MismatchError", "check_mismatch"]

logger = logging.getLogger("paceline")


class MismatchError(RuntimeError):
    """The engine samples from another policy than the one that is trained."""


def check_mismatch(stats: BatchStats, config: CorrectionConfig, *, step: int) -> None:
    """Before the optimiser's step. Tokens of earlier versions do not count: those differ because the policy has moved.

    Raises:
        MismatchError: past `correction.stop_k3`.
    """
    if not stats.num_fresh_tokens:
        return
    k3 = stats.sums["mismatch/k3"] / stats.num_fresh_tokens
    summary = (
        f"step {step}: the engine's policy is {k3:.3g} nats per token (K3) from the trainer's, at most "
        f"{stats.max_logprob_difference:.3g} at one token"
    )
    # written so that NaN stops the run, too
    if config.stop_k3 and not k3 <= config.stop_k3:
        raise MismatchError(
            f"{summary}: more than correction.stop_k3={config.stop_k3:g}; look for what differs between the two "
            "(engine.weight_dtype, engine.kv_dtype, sampling), or raise the limit"
        )
    if config.warn_k3 and k3 > config.warn_k3:
        logger.warning("%s: more than correction.warn_k3=%g", summary, config.warn_k3)
