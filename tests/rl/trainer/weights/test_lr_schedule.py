import pytest

from rl.trainer.config import LRSchedule, TrainerConfig
from rl.trainer.weights.lr_schedule import learning_rate


def rates(schedule: LRSchedule, *, num_steps: int, num_warmup_steps: int) -> list[float]:
    config = TrainerConfig(
        num_steps=num_steps,
        num_warmup_steps=num_warmup_steps,
        learning_rate=1.0,
        lr_schedule=schedule,
    )
    return [learning_rate(config, step) for step in range(num_steps)]


def test_warm_up_rises_linearly_and_its_first_step_is_not_wasted():
    assert rates(LRSchedule.constant, num_steps=5, num_warmup_steps=4) == [0.25, 0.5, 0.75, 1, 1]


def test_linear_decay_starts_full_and_would_reach_zero_one_step_past_the_last():
    assert rates(LRSchedule.linear, num_steps=4, num_warmup_steps=0) == [1, 0.75, 0.5, 0.25]


def test_cosine_is_half_way_down_at_half_time():
    assert rates(LRSchedule.cosine, num_steps=6, num_warmup_steps=2) == pytest.approx(
        [0.5, 1.0, 1.0, (1 + 2**-0.5) / 2, 0.5, (1 - 2**-0.5) / 2]
    )


def test_a_run_resumed_past_its_end_has_no_negative_rate():
    config = TrainerConfig(num_steps=4, learning_rate=1.0, lr_schedule=LRSchedule.linear)
    assert learning_rate(config, 9) == 0.0
