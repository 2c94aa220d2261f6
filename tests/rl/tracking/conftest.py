import math
from collections.abc import Callable
from typing import Any

import pytest

Row = dict[str, Any]


@pytest.fixture
def make_sample() -> Callable[..., Row]:
    """A row of samples.jsonl; keywords replace its values."""

    def make(**changes: Any) -> Row:
        row = {
            "step": 1, "policy_version": 1, "prompt_id": 7, "group_id": 3, "sample_index": 0,
            "prompt": "13 + 4 = ?", "completion": "17", "answer": "17", "reward": 1.0,
            "outcome": "score", "finish_reason": "stop", "num_tokens": 2,
 "rendered_prompt": "<|user|>12 + 35 =<|assistant|>",
        }  # fmt: skip
        return row | changes

    return make


@pytest.fixture
def make_step() -> Callable[..., Row]:
    """The metrics of one step; `|` replaces some."""

    def make(step: int) -> Row:
        return {
            "step": step,
            "policy_version": step,
            "reward/mean": 0.5 + 0.3 * math.sin(step),
            "rollout/length_mean": 6.1,
            "rollout/tokens_per_second": 1234.0,
            "policy/entropy": 0.43,
            "mismatch/logprob_difference_max": 0.0,
            "seconds/rollout": 1.5,
            "seconds/score_wait": 0.25,
            "seconds/forward_backward": 2.0,
            "seconds/optimizer": 0.5,
            "seconds/publish": 0.125,
            "seconds/step": 5.0,
        }

    return make


@pytest.fixture
def make_evaluation() -> Callable[..., Row]:
    def make(step: int, accuracy: float) -> Row:
        return {
            "step": step,
            "policy_version": step,
            "evaluation/accuracy": accuracy,
            "evaluation/num_prompts": 1000,
        }

    return make
