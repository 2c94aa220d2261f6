"""Watches how far the engine's policy is from the trainer's."""

import logging

from rl.algorithms.base.config import CorrectionConfig
from rl.trainer.metrics.sums import MismatchSums

__all__ = ["MismatchError", "check_mismatch"]

logger = logging.getLogger("paceline")


class MismatchError(RuntimeError):
    """The engine samples from another policy than the one that is trained."""


def check_mismatch(sums: MismatchSums, config: CorrectionConfig, *, step: int) -> None:
    """Compare fresh tokens before the optimiser's step; warns past `correction.warn_k3`.

    Raises:
        MismatchError: K3 per token is above `correction.stop_k3`.
    """
    k3 = sums.mean_k3
    if k3 is None:
        return
    summary = (
        f"step {step}: the engine's policy is {k3:.3g} nats per token (K3) from the trainer's, at most "
        f"{sums.max_difference:.3g} at one token"
    )
    # written so that NaN stops the run, too
    if config.stop_k3 and not k3 <= config.stop_k3:
        raise MismatchError(
            f"{summary}: more than correction.stop_k3={config.stop_k3:g}; look for what differs between the two "
            "(engine.weight_dtype, engine.kv_dtype, sampling), or raise the limit"
        )
    if config.warn_k3 and k3 > config.warn_k3:
        logger.warning("%s: more than correction.warn_k3=%g", summary, config.warn_k3)
