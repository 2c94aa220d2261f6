"""What a batch may hold that teaches nothing, or that is not there: each algorithm survives it, and says how much there was."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rl.algorithms.base.config import AlgorithmConfig, LossReduction
from rl.algorithms.cispo import CISPOConfig
from rl.algorithms.dapo import DAPOConfig
from rl.algorithms.distillation import DistillationConfig
from rl.algorithms.dr_grpo import DrGRPOConfig
from rl.algorithms.grpo import GRPOConfig
from rl.algorithms.gspo import GSPOConfig
from rl.algorithms.maxrl import MaxRLConfig
from rl.algorithms.ppo import PPOConfig
from rl.algorithms.registry import make_algorithm
from rl.algorithms.reinforce_pp import ReinforcePPConfig
from rl.algorithms.rloo import RLOOConfig
from rl.algorithms.sft import SFTConfig
from rl.config import RunMode, TrainConfig
from rl.rewards.outcome import OutcomeKind, ScoreOutcome
from rl.rollouts import RolloutGroup
from rl.trainer.config import TrainerConfig
from rl.trainer.learn.build import make_learner
from rl.trainer.learn.learner import Learner
from rl.trainer.metrics.rollouts import RolloutSummary
from rl.trainer.metrics.stopwatch import Stopwatch
from rollout.config import Dtype, ModelConfig, SamplingConfig
from rollout.models.sources.tiny import make_tiny_model
from tests.rl.trainer.rollout_factory import Sample, completion, group, pack_samples, rollout

ALGORITHMS: dict[str, AlgorithmConfig] = {
    "grpo": GRPOConfig(),
    "grpo_sequence_mean": GRPOConfig(loss_reduction=LossReduction.sequence_mean),
    "grpo_kl_in_loss": GRPOConfig(kl_coef=0.1),
    "dr_grpo": DrGRPOConfig(loss_reduction=LossReduction.fixed_length),
    "dapo": DAPOConfig(num_overlong_tokens=2),
    "reinforce_pp": ReinforcePPConfig(),
    "reinforce_pp_baseline": ReinforcePPConfig(use_group_baseline=True),
    "gspo": GSPOConfig(),
    "cispo": CISPOConfig(),
    "rloo": RLOOConfig(),
    "maxrl": MaxRLConfig(),
    "ppo": PPOConfig(),
    "distillation": DistillationConfig(),
    "sft": SFTConfig(),
}
# the loss of these has a gradient where there is no advantage, or nowhere is there none
TRAINS_ALL = {"grpo_kl_in_loss", "ppo"}
HEARS_ALL = {"distillation", "sft", "reinforce_pp", "reinforce_pp_baseline"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    make_tiny_model(directory)
    (directory / "teacher").mkdir()
    make_tiny_model(directory / "teacher", seed=1)
    return directory


def learner_of(directory: Path, algorithm: AlgorithmConfig, **trainer) -> Learner:
    if isinstance(algorithm, DistillationConfig):
        algorithm = replace(algorithm, teacher_path=str(directory / "teacher"))
    config = TrainConfig(
        run_dir="x",
        model=ModelConfig(path=str(directory), dtype=Dtype.float64),
        algorithm=algorithm,
        trainer=TrainerConfig(learning_rate=1e-3, max_grad_norm=1e9, **trainer),
        sampling=SamplingConfig(max_tokens=8),
        mode=RunMode.train_only,  # nobody sampled these tokens
    )
    made = make_algorithm(algorithm, max_tokens=8)
    return make_learner(config, made, source=directory, weights=directory, dtype=torch.float64)


def gradient_of(learner: Learner, groups: list[RolloutGroup]) -> tuple[list[torch.Tensor], int]:
    """Of one batch, and how many tokens were forwarded for it."""
    kept: list[torch.Tensor] = []
    tokens = 0
    backend = learner.policy
    step, forward_backward = backend.step, backend.forward_backward

    def keep_and_step(learning_rate: float) -> float:
        kept.extend(m.grad.clone() for m in backend.state_dict()["masters"])
        return step(learning_rate)

    def count_and_forward(micro_batches, *arguments, **named):
        nonlocal tokens
        tokens += sum(len(b.target_ids_N) for b in micro_batches)
        return forward_backward(micro_batches, *arguments, **named)

    backend.step, backend.forward_backward = keep_and_step, count_and_forward
    metrics = learner.learn(groups, 0, Stopwatch()).metrics()
    assert math.isfinite(metrics["optimizer/grad_norm"])
    return kept, tokens


def sibling(index: int, token_ids: list[int], reward: float | None, group_id: int = 0):
    return rollout([5, 6], token_ids, group_id=group_id, sample_index=index, reward=reward)


SIGNAL = group(sibling(0, [10, 11], 1.0), sibling(1, [20], 0.0), sibling(2, [21], 0.0))
UNIFORM = group(sibling(0, [30], 1.0, 1), sibling(1, [31, 32], 1.0, 1), sibling(2, [33], 1.0, 1))
EMPTY = group(sibling(0, [10, 11], 1.0), sibling(1, [20], 0.0), sibling(2, [], 0.0))
LOST = group(sibling(0, [10, 11], 1.0), sibling(1, [20], 0.0), sibling(2, [21, 22], None))
ALONE = group(sibling(0, [10, 11], 1.0), sibling(1, [20], None))


# --- rows without an advantage


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_rows_are_left_out_only_where_they_have_no_gradient(tiny, name):
    groups = [SIGNAL, UNIFORM]
    learner = learner_of(tiny, ALGORITHMS[name])
    assert learner._trains_all == (name in TRAINS_ALL)
    got, num_forwarded = gradient_of(learner, groups)
    whole = learner_of(tiny, ALGORITHMS[name])
    whole._trains_all = True
    expected, num_all = gradient_of(whole, groups)
    assert num_all == 8
    assert num_forwarded == (8 if name in TRAINS_ALL | HEARS_ALL else 4)
    assert sum(float(g.abs().sum()) for g in got) > 0
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)


def test_a_penalty_in_the_loss_has_a_gradient_where_there_is_no_advantage(tiny):
    # so leaving rows out would be wrong there: once the policy has left its reference
    found = []
    for trains_all in (True, False):
        learner = learner_of(tiny, GRPOConfig(kl_coef=0.1))
        with torch.no_grad():
            for tensor in dict(learner.policy.named_weights()).values():
                tensor.mul_(1.1)
        learner._trains_all = trains_all
        found.append(gradient_of(learner, [SIGNAL, UNIFORM])[0])
    assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(*found, strict=True))


# --- batches with little in them


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
@pytest.mark.parametrize(
    "groups",
    [[EMPTY, UNIFORM], [LOST, UNIFORM], [ALONE], [UNIFORM], [group(sibling(0, [], 1.0))]],
    ids=["empty sample", "missing sibling", "one sibling left", "no variance", "nothing at all"],
)
def test_every_algorithm_takes_a_finite_step(tiny, name, groups):
    learner = learner_of(tiny, ALGORITHMS[name])
    gradients, _ = gradient_of(learner, groups)
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert all(bool(t.isfinite().all()) for _, t in learner.policy.named_weights())


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "maxrl"])
def test_a_batch_without_variance_has_no_gradient(tiny, name):
    gradients, num_forwarded = gradient_of(learner_of(tiny, ALGORITHMS[name]), [UNIFORM])
    assert num_forwarded == 0
    assert not any(float(g.abs().sum()) for g in gradients)


def test_a_missing_sibling_is_no_part_of_the_baseline(tiny):
    without = group(*LOST.rollouts[:2])
    got, expected = (gradient_of(learner_of(tiny, RLOOConfig()), [g])[0] for g in (LOST, without))
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_an_empty_sample_is_part_of_the_baseline_and_of_the_mean_over_sequences(tiny):
    # its reward of 0 makes the advantages 1 and -0.5 instead of 1 and -1, over three rollouts instead of two
    algorithm = RLOOConfig(loss_reduction=LossReduction.sequence_mean)
    learner = learner_of(tiny, algorithm)
    got, _ = gradient_of(learner, [EMPTY])
    plain = learner_of(tiny, algorithm).policy
    samples = [
        Sample(rollout=r, advantages=[advantage] * n, loss_weight=1 / n)
        for r, advantage, n in zip(EMPTY.rollouts[:2], [1.0, -0.5], [2, 1], strict=True)
    ]
    micro_batches = pack_samples(samples, max_tokens=100, share_prompts=True)
    loss = make_algorithm(algorithm, max_tokens=8).loss
    plain.forward_backward(micro_batches, loss, denominator=3.0)
    for a, b in zip(got, plain.state_dict()["masters"], strict=True):
        torch.testing.assert_close(a, b.grad, rtol=1e-9, atol=1e-14)


# --- and how much of it there was


def test_each_kind_is_counted():
    metrics = RolloutSummary.of([EMPTY, LOST, UNIFORM]).metrics()
    assert metrics["rollout/empty_fraction"] == pytest.approx(1 / 9)
    assert metrics["reward/error_rate"] == pytest.approx(1 / 9)
    assert metrics["reward/zero_variance_groups"] == pytest.approx(1 / 3)
    assert metrics["reward/mean"] == pytest.approx((1 + 1 + 3) / 8)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused_where_it_is_made(score):
    with pytest.raises(ValueError, match="finite"):
        ScoreOutcome(kind=OutcomeKind.SCORE, score=score)


def test_a_completion_without_tokens_is_appended_as_it_is():
    made = rollout([5, 6])
    made.append_completion(completion([]))
    assert (made.num_sampled_tokens, len(made.turns)) == (0, 1)
