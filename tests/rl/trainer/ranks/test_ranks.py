"""Two processes train as one does: gradients (I5), losses, checkpoints. Whoever shards what."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rl.algorithms.base.config import KLPlacement
from rl.algorithms.distillation import DistillationConfig
from rl.algorithms.grpo import GRPOConfig
from rl.algorithms.gspo import GSPOConfig
from rl.algorithms.sft import SFTConfig, sft_loss
from rl.trainer.config import TrainerConfig
from rl.trainer.metrics.stopwatch import Stopwatch
from rl.trainer.ranks.group import ALONE, Ranks
from rollout.models.sources.tiny import make_tiny_model
from tests.rl.trainer.rank_learners import (
    DDP,
    FSDP2,
    OFFLOAD,
    ZERO,
    assert_same_gradients,
    gradient,
    groups,
    learner,
    step_once,
)
from tests.rl.trainer.rank_pool import RankPool
from tests.rl.trainer.rollout_factory import Sample, pack_samples

ALGORITHMS = {
    "grpo": GRPOConfig(),
    "gspo": GSPOConfig(),
    "kl_in_reward": GRPOConfig(kl_coef=0.1, kl_placement=KLPlacement.reward),
    "kl_in_loss": GRPOConfig(kl_coef=0.1),
    "sft": SFTConfig(),
}


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("trainer", [DDP, FSDP2], ids=["ddp", "fsdp2"])
def test_the_gradient_does_not_depend_on_how_many_processes_share_the_samples(
    two_ranks: RankPool, tiny, trainer, name
):
    arguments = (tiny, trainer, ALGORITHMS[name], torch.float64)
    (metrics, state), (others_metrics, others_state) = two_ranks(step_once, *arguments)
    truth_metrics, truth = step_once(ALONE, tiny, DDP, ALGORITHMS[name], torch.float64)
    assert_same_gradients(gradient(truth), gradient(state))
    skipped = {"seconds/backward"}
    for key in truth_metrics.keys() - skipped:
        assert metrics[key] == pytest.approx(truth_metrics[key], rel=1e-9, abs=1e-12), key
        assert others_metrics[key] == metrics[key], key
    if trainer is FSDP2:
        assert "masters" not in others_state, "the first rank alone holds the whole state"


def test_a_teacher_is_asked_by_each_rank_for_its_share(two_ranks: RankPool, tiny, tmp_path):
    make_tiny_model(tmp_path, seed=7)
    algorithm = DistillationConfig(teacher_path=str(tmp_path))
    (_, state), _ = two_ranks(step_once, tiny, DDP, algorithm, torch.float64)
    _, truth = step_once(ALONE, tiny, DDP, algorithm, torch.float64)
    assert_same_gradients(gradient(truth), gradient(state))


def counts_and_weights(ranks: Ranks, tiny: Path) -> tuple[int, list[bytes]]:
    made = learner(tiny, ranks, DDP, SFTConfig())
    seen: list[int] = []
    inner = made.policy.forward_backward

    def counting(micro_batches, loss_function, *, denominator):
        seen.append(sum(batch.is_filler for batch in micro_batches))
        seen.append(len(micro_batches))
        return inner(micro_batches, loss_function, denominator=denominator)

    made.policy.forward_backward = counting
    made.learn(groups(), 0, Stopwatch()).metrics()
    made.learn(groups(), 1, Stopwatch()).metrics()
    return seen, [t.numpy().tobytes() for _, t in made.policy.named_weights()]


def test_ranks_forward_equally_many_micro_batches_and_their_copies_never_differ(
    two_ranks: RankPool, tiny
):
    (first, weights), (second, others_weights) = two_ranks(counts_and_weights, tiny)
    assert first[1::2] == second[1::2]
    assert sum(first[::2] + second[::2]) > 0, "a rank was filled up"
    assert weights == others_weights


def learns_from_bad(ranks: Ranks, tiny: Path, trainer: TrainerConfig) -> tuple[float, bool, float]:
    """An infinite advantage on one rank alone; then a good batch."""
    made = learner(tiny, ranks, trainer, SFTConfig())
    before = [t.clone() for _, t in made.policy.named_weights()]
    inner = made.policy.forward_backward

    def spoilt(micro_batches, loss_function, *, denominator):
        if ranks.rank == 1:
            micro_batches[0].advantages_N[-1] = math.inf
        return inner(micro_batches, loss_function, denominator=denominator)

    made.policy.forward_backward = spoilt
    norm = made.learn(groups(), 0, Stopwatch()).metrics()["optimizer/grad_norm"]
    after = [t.clone() for _, t in made.policy.named_weights()]
    made.policy.forward_backward = inner
    good = made.learn(groups(), 1, Stopwatch()).metrics()["optimizer/grad_norm"]
    return norm, all(map(torch.equal, before, after)), good


def test_a_loss_that_is_not_finite_on_one_rank_skips_the_step_on_all(two_ranks: RankPool, tiny):
    for trainer in (DDP, FSDP2, *ZERO):
        for norm, is_unchanged, good in two_ranks(learns_from_bad, tiny, trainer):
            assert math.isnan(norm)
            assert is_unchanged
            assert good > 0, "and the next step is whole"


def losses(ranks: Ranks, tiny: Path, trainer: TrainerConfig) -> tuple[list[float], list[float]]:
    made = learner(tiny, ranks, trainer, SFTConfig())
    rows = [made.learn(groups(), step, Stopwatch()).metrics() for step in range(10)]
    assert all(t.dtype is torch.float32 for _, t in made.policy.named_weights())
    return [row["loss/policy"] for row in rows], [row["optimizer/grad_norm"] for row in rows]


@pytest.mark.parametrize(
    "trainer",
    [
        DDP,
        FSDP2,
        replace(FSDP2, activation_checkpointing=True),
        *ZERO,
        replace(ZERO[3], activation_checkpointing=True),
        OFFLOAD,
    ],
    ids=[
        "ddp",
        "fsdp2",
        "fsdp2_recomputed",
        "zero0",
        "zero1",
        "zero2",
        "zero3",
        "zero3_recomputed",
        "offload",
    ],
)
def test_ten_steps_of_two_processes_have_the_losses_of_one(two_ranks: RankPool, tiny, trainer):
    (got, norms), _ = two_ranks(losses, tiny, trainer)
    truth, true_norms = losses(ALONE, tiny, DDP)
    assert truth[9] < truth[0] - 1, "it learns: the curve says something"
    assert got == pytest.approx(truth, rel=1e-4)
    assert norms == pytest.approx(true_norms, rel=1e-3)


def asked_around_a_step(ranks: Ranks, tiny: Path, trainer: TrainerConfig) -> torch.Tensor:
    """Log-probabilities after a step before which, too, they were asked."""
    backend = learner(tiny, ranks, trainer, SFTConfig()).policy
    samples = [
        Sample(rollout=r, advantages=[1.0] * r.num_sampled_tokens, loss_weight=1.0)
        for r in groups()[0].rollouts
    ]
    batches = pack_samples(samples, max_tokens=400, share_prompts=True)
    # every rank has all of them here
    backend.forward_backward(batches, sft_loss, denominator=100.0 * ranks.count)
    backend.recompute_logprobs(batches)
    backend.step(1e-2)
    return backend.recompute_logprobs(batches)


def test_nothing_that_was_gathered_before_a_step_is_used_after_it(two_ranks: RankPool, tiny):
    truth = asked_around_a_step(ALONE, tiny, DDP)
    for trainer in (DDP, FSDP2, ZERO[3]):
        for got in two_ranks(asked_around_a_step, tiny, trainer):
            torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-4)


def bf16_losses(ranks: Ranks, tiny: Path, trainer: TrainerConfig) -> list[float]:
    made = learner(tiny, ranks, trainer, SFTConfig(), torch.bfloat16)
    rows = [made.learn(groups(), step, Stopwatch()).metrics() for step in range(5)]
    assert all(t.dtype is torch.bfloat16 for _, t in made.policy.named_weights())
    return [row["loss/policy"] for row in rows]


def test_in_bf16_all_of_them_follow_the_curve_of_one_process(two_ranks: RankPool, tiny):
    truth = bf16_losses(ALONE, tiny, DDP)
    for trainer in (DDP, FSDP2, *ZERO[1:]):
        got, _ = two_ranks(bf16_losses, tiny, trainer)
        assert got == pytest.approx(truth, rel=1e-2)


def steps(
    ranks: Ranks, tiny: Path, trainer: TrainerConfig, path: Path | None, saved: Path | None
) -> list[torch.Tensor]:
    """Two steps from `path`; saved."""
    made = learner(tiny, ranks, trainer, SFTConfig())
    first = 0
    if path is not None:
        made.load_state_dict(torch.load(path, weights_only=True, mmap=True))
        first = 2
    for step in range(first, first + 2):
        made.learn(groups(), step, Stopwatch()).metrics()
    state = made.state_dict()
    if ranks.is_first and saved is not None:
        torch.save(state, saved)
    return [t.clone() for _, t in made.policy.named_weights()]


def test_a_checkpoint_of_any_trainer_is_gone_on_from_by_any_other(
    two_ranks: RankPool, tiny, tmp_path
):
    truth_path = tmp_path / "one.pt"
    steps(ALONE, tiny, DDP, None, truth_path)
    truth = steps(ALONE, tiny, DDP, truth_path, None)

    def check(weights: list[torch.Tensor]) -> None:
        for a, b in zip(truth, weights, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

    trainers = {"ddp": DDP, "fsdp2": FSDP2, **{f"zero{z.zero_stage}": z for z in ZERO}}
    names = [*trainers]
    for i, name in enumerate(names):
        path = tmp_path / f"{name}.pt"
        two_ranks(steps, tiny, trainers[name], None, path)
        check(steps(ALONE, tiny, DDP, path, None))
        check(two_ranks(steps, tiny, trainers[name], truth_path, None)[0])
        next_one = trainers[names[(i + 1) % len(names)]]
        check(two_ranks(steps, tiny, next_one, path, None)[0])


def sums(ranks: Ranks) -> list[torch.Tensor]:
    """Several types, and one tensor larger than a message."""
    sizes = [3, 5_000_000, 9_000_000, 2]
    tensors = [torch.full((size,), float(ranks.rank + 1)) for size in sizes]
    tensors.append(torch.full((2, 2), 10.0 * ranks.rank, dtype=torch.float64))
    ranks.all_reduce(tensors)
    return [torch.stack([t.min(), t.max()]) for t in tensors]


def test_each_tensor_becomes_its_sum_over_the_ranks(two_ranks: RankPool):
    for got in two_ranks(sums):
        assert [t.tolist() for t in got] == [[3.0, 3.0]] * 4 + [[10.0, 10.0]]
