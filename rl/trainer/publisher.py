"""Publication of the learner's weights to the fleet, in 8 bits for as long as these are accurate enough."""

import logging
from collections.abc import Callable

from rl.config import RunMode, TrainConfig
from rl.trainer.learn.learner import Learner
from rl.trainer.weights.finite import check_finite
from rollout.config import StorageDtype
from rollout.fleet.base import Fleet
from rollout.models.int8 import int8_weights
from rollout.weights.update import make_update

__all__ = ["Publisher"]

logger = logging.getLogger("paceline")


class Publisher:
    """Publisher that sends every new version to the fleet.

    Args:
        config: config of the run.
        learner: learner with the weights.
        fleet: fleet that receives them.
        gave_up_int8: whether an earlier part of this run went back to plain weights.
    """

    def __init__(
        self, config: TrainConfig, learner: Learner, fleet: Fleet, *, gave_up_int8: bool
    ) -> None:
        self._config = config
        self._learner = learner
        self._fleet = fleet
        self.gave_up_int8 = gave_up_int8
        """Whether the fleet uses plain weights although the config asks for 8 bits."""

    def publish(self, version: int, *, tolerates: Callable[[Exception], bool]) -> None:
        """Update the fleet's weights to `version`.

        Args:
            version: number of the new version.
            tolerates: function that returns True if an error of the fleet follows from a stop of the run. The step
                then counts, and its weights can be saved, even if workers are gone.
        """
        named_weights = self._learner.named_weights()
        if self._is_int8:
            named_weights = int8_weights(named_weights)
        update = make_update(version, named_weights)
        check_finite(update.tensors, version=version)
        try:
            self._fleet.update_weights(update)
        except RuntimeError as error:
            if not tolerates(error):
                raise

    def check_mismatch(self, k3: float | None, *, step: int) -> None:
        """Go back to plain weights, from the next update on, if the engine's policy is too far from the trainer's.

        Args:
            k3: distance of the engine's policy in nats per token; None if nothing could be compared.
            step: number of the step, for the log.
        """
        limit = self._config.correction.max_k3
        has_int8_kv = self._config.engine.kv_dtype is StorageDtype.int8
        is_small = k3 is None or k3 <= limit
        if is_small or not self._learner.is_sampled or not (self._is_int8 or has_int8_kv):
            return
        cure = (
            "the run continues with engine.weight_dtype=plain"
            if self._is_int8
            else "resume the run with engine.kv_dtype=plain, or raise the limit"
        )
        logger.warning(
            "step %d: the engine's policy in 8 bits is %.3g nats per token (K3) from the trainer's, more than "
            "correction.max_k3=%g; %s",
            step,
            k3,
            limit,
            cure,
        )
        self.gave_up_int8 |= self._is_int8

    @property
    def _is_int8(self) -> bool:
        """True if updates are quantized."""
        config = self._config
        wants_int8 = config.engine.weight_dtype is StorageDtype.int8
        return wants_int8 and config.mode is RunMode.full and not self.gave_up_int8
