"""The learning rate of each step."""

import math

from rl.trainer.config import LRSchedule, TrainerConfig

__all__ = ["learning_rate"]


def learning_rate(config: TrainerConfig, step: int) -> float:
    """Compute the learning rate of step 0, 1, ...: linear warm-up to the full rate, then the schedule.

    The decays reach 0 at `num_steps`, one step past the last.
    """
    if step < config.num_warmup_steps:
        return config.learning_rate * (step + 1) / config.num_warmup_steps
    span = max(config.num_steps - config.num_warmup_steps, 1)
    progress = min((step - config.num_warmup_steps) / span, 1.0)
    match config.lr_schedule:
        case LRSchedule.constant:
            return config.learning_rate
        case LRSchedule.linear:
            return config.learning_rate * (1 - progress)
        case LRSchedule.cosine:
            return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
