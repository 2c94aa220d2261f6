"""What reaches the backend, and in which portions; what others say of a token stays with that token."""

import functools
import math
from collections.abc import Sequence

import pytest
import torch

from rl.algorithms.base.config import AlgorithmConfig, KLEstimator, KLPlacement, LossReduction
from rl.algorithms.distillation import DistillationConfig
from rl.algorithms.grpo import GRPOConfig
from rl.algorithms.ppo import PPOConfig, explained_variance
from rl.algorithms.registry import make_algorithm
from rl.algorithms.rloo import RLOOConfig, rloo_loss
from rl.config import TrainConfig
from rl.trainer.batch.packing import MicroBatch
from rl.trainer.config import TrainerConfig
from rl.trainer.learn.kl_penalty import KLPenalty
from rl.trainer.learn.learner import Learner
from rl.trainer.metrics.mismatch import MismatchError, check_mismatch
from rl.trainer.metrics.stopwatch import Stopwatch
from rl.trainer.metrics.sums import LossSums, MismatchSums
from rollout.config import TINY, ModelConfig, SamplingConfig
from tests.rl.algorithms.batches import gradient, tokens
from tests.rl.trainer.rollout_factory import group, rollout


class RecordingBackend:
    """Log-probability of a token: minus its id over 100."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[MicroBatch], float]] = []
        self.rates: list[float] = []
        self.losses: dict[str, float] = {}
        self.tokens: dict[str, float] = {}
        self.k3 = 0.0

    def forward_backward(self, micro_batches, loss_function, *, denominator) -> LossSums:
        self.seen.append((list(micro_batches), denominator))
        num_tokens = sum(len(b.target_ids_N) for b in micro_batches)
        weights = float(num_tokens)
        mismatch = MismatchSums(
            num_fresh=num_tokens, k3=self.k3, weight=weights, squared_weight=weights
        )
        return LossSums(
            losses=dict(self.losses),
            tokens=dict(self.tokens),
            mismatch=mismatch,
            num_tokens=num_tokens,
        )

    def recompute_logprobs(self, micro_batches) -> torch.Tensor:
        return torch.cat([-b.target_ids_N.double() / 100 for b in micro_batches])

    def step(self, learning_rate: float) -> float:
        self.rates.append(learning_rate)
        return 1.0


class Says:
    """Reference, teacher or critic: a function of the token's id."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def logprobs(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        return torch.cat([self.scale * b.target_ids_N.double() for b in micro_batches])

    recompute_values = logprobs

    def forward_backward(self, micro_batches, *, denominator) -> LossSums:
        self.batches = list(micro_batches)
        return LossSums(losses={"loss/value": 1.0}, num_tokens=1)

    def step(self, learning_rate: float) -> float:
        return 1.0


def learner(
    algorithm: AlgorithmConfig, backend: RecordingBackend, *, steps: int = 1, **others
) -> Learner:
    config = TrainConfig(
        run_dir="x",
        model=ModelConfig(path=TINY),
        algorithm=algorithm,
        trainer=TrainerConfig(steps_per_batch=steps, learning_rate=0.5),
        sampling=SamplingConfig(max_tokens=8),
    )
    return Learner(config, make_algorithm(algorithm, max_tokens=8), backend, **others)


# group 1 has lost a sibling to its scorer, group 2 scored the same throughout
GROUPS = [
    group(
        rollout([1], [10, 11], group_id=0, sample_index=0, reward=1.0),
        rollout([1], [20], group_id=0, sample_index=1, reward=0.0),
    ),
    group(
        rollout([2], [30], group_id=1, sample_index=0, reward=4.0),
        rollout([2], [40, 41, 42], group_id=1, sample_index=1, reward=None),
        rollout([2], [50, 51], group_id=1, sample_index=2, reward=0.0),
    ),
    group(
        rollout([3], [60, 61], group_id=2, sample_index=0, reward=0.7),
        rollout([3], [70], group_id=2, sample_index=1, reward=0.7),
    ),
]


def targets(batches: Sequence[MicroBatch], name: str) -> list[float]:
    return [x for b in batches for x in getattr(b, name).tolist()]


def test_rollouts_without_signal_or_score_are_not_forwarded_and_those_without_signal_count():
    backend = RecordingBackend()
    learner(RLOOConfig(loss_reduction=LossReduction.token_mean), backend).learn(
        GROUPS, 0, Stopwatch()
    ).metrics()
    ((batches, denominator),) = backend.seen
    assert targets(batches, "target_ids_N") == [10, 11, 20, 30, 50, 51]
    assert targets(batches, "advantages_N") == [1.0, 1.0, -1.0, 4.0, -4.0, -4.0]
    assert denominator == 2 + 1 + 1 + 2 + 2 + 1
    assert backend.rates == [0.5]


def test_steps_divide_the_batch_by_whole_groups_each_with_its_own_denominator():
    backend = RecordingBackend()
    metrics = learner(GRPOConfig(), backend, steps=2).learn(GROUPS, 0, Stopwatch()).metrics()
    assert [targets(b, "target_ids_N") for b, _ in backend.seen] == [[10, 11, 20], [30, 50, 51]]
    assert [d for _, d in backend.seen] == [3.0, 6.0]
    assert len(backend.rates) == 2
    assert metrics["optimizer/grad_norm"] == 1.0
    # the policy before the first step, though the second is computed after it
    for batches, _ in backend.seen:
        old = [x for b in batches for x in b.columns["old_logprobs"].tolist()]
        assert old == [-t / 100 for t in targets(batches, "target_ids_N")]


def test_a_penalty_in_the_reward_is_taken_off_each_token_and_every_rollout_is_heard():
    algorithm = RLOOConfig(
        kl_coef=0.5, kl_placement=KLPlacement.reward, kl_estimator=KLEstimator.k1
    )
    backend = RecordingBackend()
    learner(algorithm, backend, reference=Says(-0.02)).learn(GROUPS[:1], 0, Stopwatch()).metrics()
    ((batches, _),) = backend.seen
    # K1 of a token: -id / 100 + 2 id / 100; rewards 1 - 0.5 * 0.21 and 0 - 0.5 * 0.20
    advantage = (1 - 0.105) - (0 - 0.1)
    expected = [advantage, advantage, -advantage]
    assert targets(batches, "advantages_N") == pytest.approx(expected)


def test_a_tokens_advantage_stays_with_its_token():
    backend, teacher = RecordingBackend(), Says(-0.03)
    learner(DistillationConfig(teacher_path="x"), backend, teacher=teacher).learn(
        GROUPS, 0, Stopwatch()
    ).metrics()
    ((batches, _),) = backend.seen
    # the teacher's -3 id / 100 minus the student's -id / 100: another number for every token
    expected = [-0.02 * token for token in targets(batches, "target_ids_N")]
    assert targets(batches, "advantages_N") == pytest.approx(expected)


def test_a_penalty_in_the_loss_trains_on_rollouts_without_signal_too():
    backend = RecordingBackend()
    learner(GRPOConfig(kl_coef=0.5), backend, reference=Says(-0.02)).learn(
        GROUPS, 0, Stopwatch()
    ).metrics()
    ((batches, _),) = backend.seen
    assert targets(batches, "target_ids_N") == [10, 11, 20, 30, 50, 51, 60, 61, 70]
    ref = [x for b in batches for x in b.columns["ref_logprobs"].tolist()]
    assert ref == pytest.approx([-0.02 * t for t in targets(batches, "target_ids_N")])


def test_a_critic_sees_every_token_with_its_own_return_and_warms_up_alone():
    backend, critic = RecordingBackend(), Says(0.01)
    backend.clear_gradients = lambda: backend.rates.append(math.nan)
    algorithm = PPOConfig(num_critic_warmup_steps=1)
    made = learner(algorithm, backend, critic=critic)
    metrics = made.learn(GROUPS, 0, Stopwatch()).metrics()
    assert metrics["loss/value"] == pytest.approx(1 / 9)
    assert targets(critic.batches, "target_ids_N") == [10, 11, 20, 30, 50, 51, 60, 61, 70]
    returns = [x for b in critic.batches for x in b.columns["returns"].tolist()]
    # gamma and lambda 1: the return of every token is the score
    assert returns == pytest.approx([1, 1, 0, 4, 0, 0, 0.7, 0.7, 0.7])
    made.learn(GROUPS, 1, Stopwatch()).metrics()
    assert [math.isnan(rate) for rate in backend.rates] == [True, False]


def test_losses_are_reported_over_the_denominator_that_divides_their_gradient():
    backend = RecordingBackend()
    backend.losses, backend.tokens = {"loss/policy": 6.0}, {"policy/entropy": 6.0}
    made = learner(GRPOConfig(loss_reduction=LossReduction.sequence_mean), backend, steps=2)
    metrics = made.learn(GROUPS, 0, Stopwatch()).metrics()
    # 6 rollouts with a score, 2 steps; 6 tokens were forwarded
    assert metrics["loss/policy"] == pytest.approx(12 / 6)
    assert metrics["policy/entropy"] == pytest.approx(12 / 6)
    one = learner(GRPOConfig(), backend).learn(GROUPS, 0, Stopwatch()).metrics()
    assert one["loss/policy"] == pytest.approx(6 / 9), "those without signal count too"


def test_advantages_and_values_are_carried_over_what_an_environment_said():
    backend, critic = RecordingBackend(), Says(0.01)
    # sampled 10, 20 with 90, 91 between; alone beside it, a rollout of one token
    batch = group(
        rollout([1], [10], [90, 91], [20], group_id=0, sample_index=0, reward=1.0),
        rollout([1], [30], group_id=0, sample_index=1, reward=0.0),
    )
    algorithm = PPOConfig(gamma=0.5, gae_lambda=0.5)
    metrics = learner(algorithm, backend, critic=critic).learn([batch], 0, Stopwatch()).metrics()
    returns = [x for b in critic.batches for x in b.columns["returns"].tolist()]
    # deltas: 0 + 0.5 * 0.2 - 0.1, 1 - 0.2, 0 - 0.3; gamma * lambda = 0.25
    raw = torch.tensor([0.0 + 0.25 * 0.8, 0.8, -0.3], dtype=torch.float64)
    values = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    assert returns == pytest.approx((raw + values).tolist())
    whitened = (raw - raw.mean()) / (raw.std(correction=0) + 1e-6)
    assert targets(critic.batches, "advantages_N") == pytest.approx(whitened.tolist())
    assert metrics["value/explained_variance"] == pytest.approx(
        explained_variance(values, raw + values)
    )


def test_a_critic_learns_from_rollouts_without_signal_too():
    backend, critic = RecordingBackend(), Says(0.0)
    learner(PPOConfig(), backend, critic=critic).learn(GROUPS[2:], 0, Stopwatch()).metrics()
    assert targets(critic.batches, "advantages_N") == [0.0, 0.0, 0.0]
    assert targets(critic.batches, "target_ids_N") == [60, 61, 70]


@pytest.mark.parametrize(("every", "expected"), [(2, [2, 4]), (0, [])])
def test_the_reference_becomes_the_policy_every_so_many_versions_and_never_unasked(every, expected):
    backend, reference, loaded = RecordingBackend(), Says(0.0), []
    reference.load = loaded.append
    algorithm = GRPOConfig(kl_coef=0.5, reference_refresh_steps=every)
    made = learner(algorithm, backend, reference=reference)
    for version in range(1, 6):
        backend.named_weights = functools.partial(int, version)
        made.published(version)
    assert loaded == expected


def test_a_critics_step_that_is_not_finite_is_said(caplog):
    critic = Says(0.01)
    critic.step = lambda _rate: math.nan
    metrics = (
        learner(PPOConfig(), RecordingBackend(), critic=critic)
        .learn(GROUPS, 4, Stopwatch())
        .metrics()
    )
    assert "step 5 skipped by the critic: its gradient is not finite" in caplog.text
    assert math.isnan(metrics["optimizer/critic_grad_norm"])


def test_a_batch_without_any_score_still_takes_its_step():
    lost = group(rollout([1], [10], group_id=0, reward=None))
    backend = RecordingBackend()
    metrics = learner(RLOOConfig(), backend).learn([lost], 0, Stopwatch()).metrics()
    assert backend.seen == [([], 1.0)]
    assert metrics["optimizer/grad_norm"] == 1.0


def test_weights_are_between_versions_from_the_first_step_until_the_version_is_out():
    backend = RecordingBackend()
    made = learner(GRPOConfig(), backend)
    backend.k3 = 1e9
    with pytest.raises(MismatchError, match=r"more than correction\.stop_k3=2"):
        made.learn(GROUPS, 0, Stopwatch()).metrics()
    assert not made.is_updating, "stopped before the step: what there is can be saved"
    assert backend.rates == []
    backend.k3 = 0.0
    made.learn(GROUPS, 0, Stopwatch()).metrics()
    assert made.is_updating
    made.published(1)
    assert not made.is_updating


def test_a_divergence_that_is_not_a_number_stops_the_run():
    sums = MismatchSums(k3=math.nan, num_fresh=3)
    config = learner(GRPOConfig(), RecordingBackend())._config.correction
    with pytest.raises(MismatchError):
        check_mismatch(sums, config, step=1)


def test_a_penalty_adds_to_a_loss_and_reports_the_divergence_in_either_place():
    made = tokens([-1.0, -2.0], [-1.0, -2.0], [1.0, 1.0], ref=[-2.0, -4.0])
    for placement, expected, gradients in (
        (KLPlacement.loss, -2 + 0.1 * (0.5 + 2.0), [-1 + 0.1 * 1.0, -1 + 0.1 * 2.0]),
        (KLPlacement.reward, -2, [-1.0, -1.0]),
    ):
        penalty = KLPenalty(
            RLOOConfig(kl_coef=0.1, kl_estimator=KLEstimator.k2, kl_placement=placement)
        )
        out = penalty.added_to(rloo_loss)(made)
        assert out.loss.item() == pytest.approx(expected)
        assert out.metrics["kl/reference"].item() == pytest.approx(2.5)
        assert gradient(penalty.added_to(rloo_loss), made) == pytest.approx(gradients)


def test_an_adapted_coefficient_is_the_one_that_is_used_in_either_place():
    made = tokens([-1.0, -2.0], [-1.0, -2.0], [1.0, 1.0], ref=[-2.0, -4.0])
    config = RLOOConfig(kl_coef=0.1, kl_target=0.01, kl_estimator=KLEstimator.k2)
    penalty = KLPenalty(config)
    loss = penalty.added_to(rloo_loss)
    penalty.adapt(9.0)
    assert loss(made).loss.item() == pytest.approx(-2 + 0.102 * 2.5)
    rewards = penalty.rewards(made.base_logprobs_N, made.ref_logprobs_N)
    assert rewards.tolist() == pytest.approx([-0.102 * 0.5, -0.102 * 2.0])
