"""Two processes train as one does: gradients (I5), losses, checkpoints. Whoever shards what."""

import copy
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rl.algorithm_config import (
    AlgorithmConfig,
    CorrectionConfig,
    DistillationConfig,
    GRPOConfig,
    GSPOConfig,
    KLPlacement,
    PPOConfig,
    SFTConfig,
)
from rl.algorithms.sft import sft_loss
from rl.config import (
    DataParallel,
    LoRAConfig,
    OptimizerKind,
    RunMode,
    TrainConfig,
    TrainerBackend,
    TrainerConfig,
)
from rl.rollouts import RolloutGroup
from rl.trainer.algorithm import make_algorithm
from rl.trainer.learner import Learner
from rl.trainer.learner_assembly import make_learner
from rl.trainer.packing import TrainingSample, pack
from rl.trainer.rank_validation import check_ranks
from rl.trainer.ranks import ALONE, Ranks
from rl.trainer.stopwatch import Stopwatch
from rollout.config import Dtype, ModelConfig, ModelSource, SamplingConfig
from rollout.models.sources.tiny import make_tiny_model
from tests.rl.rank_pool import RankPool
from tests.rl.rollout_factory import group, rollout

DDP = TrainerConfig()
FSDP2 = TrainerConfig(data_parallel=DataParallel.FSDP2)
ZERO = [TrainerConfig(backend=TrainerBackend.DEEPSPEED, zero_stage=stage) for stage in range(4)]
OFFLOAD = replace(ZERO[2], offload_optimizer=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    make_tiny_model(directory)
    return directory


def groups(num_groups: int = 3) -> list[RolloutGroup]:
    """Prompts and completions of uneven lengths; the second group scored the same throughout, the last lost a sibling.
    With 180 rows in a micro-batch one rank needs more of them than the other."""
    made = []
    for g in range(num_groups):
        rewards = [[1.0, 0.0, 0.5], [0.3, 0.3, 0.3], [0.0, None, 1.0]][g]
        made.append(
            group(
                *[
                    rollout(
                        [5 + g, 6, *range(40, 40 + 30 * g)],
                        [9 + i, *range(60, 60 + 13 * (i + 1) * (3 - g))],
                        group_id=g,
                        sample_index=i,
                        reward=rewards[i],
                        logprob=-5.5 - 0.2 * i,
                    )
                    for i in range(3)
                ]
            )
        )
    return made


def learner(
    tiny: Path,
    ranks: Ranks,
    trainer: TrainerConfig,
    algorithm: AlgorithmConfig,
    dtype: torch.dtype = torch.float32,
) -> Learner:
    config = TrainConfig(
        run_dir="x",
        model=ModelConfig(source=ModelSource.TINY),
        algorithm=algorithm,
        trainer=replace(
            trainer, max_tokens_per_micro_batch=180, learning_rate=1e-2, max_grad_norm=1e9
        ),
        sampling=SamplingConfig(max_tokens=64),
        # it trains on one batch again and again
        correction=CorrectionConfig(warn_k3=0.0, stop_k3=0.0),
    )
    return make_learner(
        config,
        make_algorithm(algorithm, max_tokens=64),
        source=tiny,
        weights=tiny,
        dtype=dtype,
        ranks=ranks,
    )


def moments(state: dict[str, Any]) -> dict[int, dict[str, torch.Tensor]]:
    return state["optimizer"]["adamw"]["state"]


def gradient(state: dict[str, Any], *, of: str = "policy") -> list[torch.Tensor]:
    """Of the one step that was made, which AdamW has as its first moment: (1 - beta1) g."""
    if of == "critic":
        state = state["critic"]
    own = moments(state)
    return [own[i]["exp_avg"] / (1 - DDP.adam_beta1) for i in sorted(own)]


def step_once(
    ranks: Ranks, tiny: Path, trainer: TrainerConfig, algorithm: AlgorithmConfig, dtype: torch.dtype
) -> tuple[dict[str, float], dict[str, Any]]:
    made = learner(tiny, ranks, trainer, algorithm, dtype)
    metrics = made.learn(groups(), 0, Stopwatch())
    # copies: tensors go to another process in shared memory
    return metrics, copy.deepcopy(made.state_dict())


ALGORITHMS = {
    "grpo": GRPOConfig(),
    "gspo": GSPOConfig(),
    "kl_in_reward": GRPOConfig(kl_coef=0.1, kl_placement=KLPlacement.REWARD),
    "kl_in_loss": GRPOConfig(kl_coef=0.1),
    "sft": SFTConfig(),
}


def assert_same_gradients(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    assert sum(float(g.abs().sum()) for g in first) > 0
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


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


@pytest.mark.parametrize("trainer", [DDP, FSDP2], ids=["ddp", "fsdp2"])
def test_the_critics_gradient_does_not_depend_on_it_either(two_ranks: RankPool, tiny, trainer):
    algorithm = PPOConfig(num_critic_warmup_steps=0)
    (metrics, state), _ = two_ranks(step_once, tiny, trainer, algorithm, torch.float64)
    truth_metrics, truth = step_once(ALONE, tiny, DDP, algorithm, torch.float64)
    assert_same_gradients(gradient(truth), gradient(state))
    assert_same_gradients(gradient(truth, of="critic"), gradient(state, of="critic"))
    assert metrics["loss/value"] == pytest.approx(truth_metrics["loss/value"], rel=1e-9)


def test_a_teacher_is_asked_by_each_rank_for_its_share(two_ranks: RankPool, tiny, tmp_path):
    make_tiny_model(tmp_path, seed=7)
    algorithm = DistillationConfig(teacher_path=str(tmp_path))
    (_, state), _ = two_ranks(step_once, tiny, DDP, algorithm, torch.float64)
    _, truth = step_once(ALONE, tiny, DDP, algorithm, torch.float64)
    assert_same_gradients(gradient(truth), gradient(state))


def counts_and_weights(ranks: Ranks, tiny: Path) -> tuple[int, list[bytes]]:
    made = learner(tiny, ranks, DDP, SFTConfig())
    seen: list[int] = []
    inner = made.backend.forward_backward

    def counting(micro_batches, loss_function, *, denominator):
        seen.append(sum(batch.is_filler for batch in micro_batches))
        seen.append(len(micro_batches))
        return inner(micro_batches, loss_function, denominator=denominator)

    made.backend.forward_backward = counting
    made.learn(groups(), 0, Stopwatch())
    made.learn(groups(), 1, Stopwatch())
    return seen, [t.numpy().tobytes() for _, t in made.backend.named_weights()]


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
    before = [t.clone() for _, t in made.backend.named_weights()]
    inner = made.backend.forward_backward

    def spoilt(micro_batches, loss_function, *, denominator):
        if ranks.rank == 1:
            micro_batches[0].advantages_N[-1] = math.inf
        return inner(micro_batches, loss_function, denominator=denominator)

    made.backend.forward_backward = spoilt
    norm = made.learn(groups(), 0, Stopwatch())["optimizer/grad_norm"]
    after = [t.clone() for _, t in made.backend.named_weights()]
    made.backend.forward_backward = inner
    good = made.learn(groups(), 1, Stopwatch())["optimizer/grad_norm"]
    return norm, all(map(torch.equal, before, after)), good


def test_a_loss_that_is_not_finite_on_one_rank_skips_the_step_on_all(two_ranks: RankPool, tiny):
    for trainer in (DDP, FSDP2, *ZERO):
        for norm, is_unchanged, good in two_ranks(learns_from_bad, tiny, trainer):
            assert math.isnan(norm)
            assert is_unchanged
            assert good > 0, "and the next step is whole"


def losses(ranks: Ranks, tiny: Path, trainer: TrainerConfig) -> tuple[list[float], list[float]]:
    made = learner(tiny, ranks, trainer, SFTConfig())
    rows = [made.learn(groups(), step, Stopwatch()) for step in range(10)]
    assert all(t.dtype is torch.float32 for _, t in made.backend.named_weights())
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


def value_losses(
    ranks: Ranks, tiny: Path, trainer: TrainerConfig, dtype: torch.dtype
) -> list[tuple[float, float]]:
    """Of PPO's ten steps on one batch, with the critic's gradients. The policy learns, too: its old probabilities are asked."""
    made = learner(tiny, ranks, trainer, PPOConfig(critic_learning_rate=1e-2), dtype)
    rows = [made.learn(groups(), step, Stopwatch()) for step in range(10)]
    return [(row["loss/value"], row["optimizer/critic_grad_norm"]) for row in rows]


@pytest.mark.parametrize(
    "trainer", [FSDP2, *ZERO], ids=["fsdp2", "zero0", "zero1", "zero2", "zero3"]
)
def test_a_critic_learns_in_shards_as_it_does_whole(two_ranks: RankPool, tiny, trainer):
    truth = value_losses(ALONE, tiny, DDP, torch.float32)
    assert truth[9][0] < 0.5 * truth[0][0], "it learns: the curve says something"
    for got in two_ranks(value_losses, tiny, trainer, torch.float32):
        for pair, true_pair in zip(got, truth, strict=True):
            assert pair == pytest.approx(true_pair, rel=1e-3)


def test_in_bf16_a_critic_in_shards_follows_the_curve_of_a_whole_one(two_ranks: RankPool, tiny):
    truth = value_losses(ALONE, tiny, DDP, torch.bfloat16)
    for trainer in (FSDP2, *ZERO[1:]):
        got, _ = two_ranks(value_losses, tiny, trainer, torch.bfloat16)
        for (loss, _), (true_loss, _) in zip(got, truth, strict=True):
            assert loss == pytest.approx(true_loss, rel=5e-2)


def critic_steps(
    ranks: Ranks, tiny: Path, trainer: TrainerConfig, path: Path | None, saved: Path | None
) -> list[float]:
    """Two steps of PPO, from `path`; saved. The critic's losses."""
    made = learner(tiny, ranks, trainer, PPOConfig(critic_learning_rate=1e-2))
    if path is not None:
        made.load_state_dict(torch.load(path, weights_only=True, mmap=True))
    rows = [made.learn(groups(), step, Stopwatch()) for step in range(2)]
    state = made.state_dict()
    if ranks.is_first and saved is not None:
        torch.save(state, saved)
    return [row["loss/value"] for row in rows]


def test_a_critics_checkpoint_is_gone_on_from_whoever_wrote_it(two_ranks: RankPool, tiny, tmp_path):
    truth_path = tmp_path / "one.pt"
    critic_steps(ALONE, tiny, DDP, None, truth_path)
    truth = critic_steps(ALONE, tiny, DDP, truth_path, None)
    for name, trainer in {"fsdp2": FSDP2, "zero1": ZERO[1], "zero3": ZERO[3]}.items():
        path = tmp_path / f"{name}.pt"
        two_ranks(critic_steps, tiny, trainer, None, path)
        assert critic_steps(ALONE, tiny, DDP, path, None) == pytest.approx(truth, rel=1e-3), name
        for got in two_ranks(critic_steps, tiny, trainer, truth_path, None):
            assert got == pytest.approx(truth, rel=1e-3), name


def average_after_steps(
    ranks: Ranks, tiny: Path, trainer: TrainerConfig, path: Path, saved: Path | None
) -> None:
    """Three steps, from `saved` if it is given; the weights and their average, written to `path`."""
    made = learner(tiny, ranks, replace(trainer, ema_decay=0.9), SFTConfig())
    if saved is not None:
        made.load_state_dict(torch.load(saved / "state.pt", weights_only=True))
    for step in range(3):
        made.learn(groups(), step, Stopwatch())
    directory = path if ranks.is_first else None
    if directory is not None:
        shutil.copytree(tiny, directory)
    before = {name: t.clone() for name, t in made.named_weights()}
    made.write_beside(directory)
    after = [t.clone() for _, t in made.named_weights()]
    assert all(map(torch.equal, before.values(), after)), "the weights are what they were"
    state = made.state_dict()
    if directory is not None:
        average = average_in(directory)
        lag = max(float((before[name] - tensor).abs().max()) for name, tensor in average.items())
        assert lag > 1e-3, "the average lags behind"
        torch.save(state, directory / "state.pt")


def average_in(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "ema" / "model.safetensors")


def test_the_average_of_weights_in_shards_is_that_of_whole_ones(
    two_ranks: RankPool, tiny, tmp_path
):
    average_after_steps(ALONE, tiny, DDP, tmp_path / "truth", None)
    average_after_steps(ALONE, tiny, DDP, tmp_path / "next", tmp_path / "truth")
    for name, trainer in (("ddp", DDP), ("fsdp2", FSDP2)):
        two_ranks(average_after_steps, tiny, trainer, tmp_path / name, None)
        two_ranks(average_after_steps, tiny, trainer, tmp_path / f"{name}_next", tmp_path / name)
        for path, true_path in ((name, "truth"), (f"{name}_next", "next")):
            truth = average_in(tmp_path / true_path)
            for key, tensor in average_in(tmp_path / path).items():
                torch.testing.assert_close(tensor, truth[key], rtol=1e-3, atol=1e-4)
    first, second = average_in(tmp_path / "truth"), average_in(tmp_path / "next")
    assert max(float((second[k] - t).abs().max()) for k, t in first.items()) > 1e-3, "it moves"


def asked_around_a_step(ranks: Ranks, tiny: Path, trainer: TrainerConfig) -> torch.Tensor:
    """Log-probabilities after a step before which, too, they were asked."""
    backend = learner(tiny, ranks, trainer, SFTConfig()).backend
    samples = [
        TrainingSample(rollout=r, advantages=[1.0] * r.num_sampled_tokens, loss_weight=1.0)
        for r in groups()[0].rollouts
    ]
    batches = pack(samples, max_tokens=400, share_prompts=True)
    # every rank has all of them here
    backend.forward_backward(batches, sft_loss, denominator=100.0 * ranks.count)
    backend.old_logprobs(batches)
    backend.step(1e-2)
    return backend.old_logprobs(batches)


def test_nothing_that_was_gathered_before_a_step_is_used_after_it(two_ranks: RankPool, tiny):
    truth = asked_around_a_step(ALONE, tiny, DDP)
    for trainer in (DDP, FSDP2, ZERO[3]):
        for got in two_ranks(asked_around_a_step, tiny, trainer):
            torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-4)


def bf16_losses(ranks: Ranks, tiny: Path, trainer: TrainerConfig) -> list[float]:
    made = learner(tiny, ranks, trainer, SFTConfig(), torch.bfloat16)
    rows = [made.learn(groups(), step, Stopwatch()) for step in range(5)]
    assert all(t.dtype is torch.bfloat16 for _, t in made.backend.named_weights())
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
        made.learn(groups(), step, Stopwatch())
    state = made.state_dict()
    if ranks.is_first and saved is not None:
        torch.save(state, saved)
    return [t.clone() for _, t in made.backend.named_weights()]


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
    ranks.add_up(tensors)
    return [torch.stack([t.min(), t.max()]) for t in tensors]


def test_each_tensor_becomes_its_sum_over_the_ranks(two_ranks: RankPool):
    for got in two_ranks(sums):
        assert [t.tolist() for t in got] == [[3.0, 3.0]] * 4 + [[10.0, 10.0]]


def config(**changes: Any) -> TrainConfig:
    made = TrainConfig(
        run_dir="x", model=ModelConfig(source=ModelSource.TINY), algorithm=GRPOConfig()
    )
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("changes", "count", "message"),
    [
        (
            {"num_prompts_per_step": 4, "group_size": 2, "trainer": TrainerConfig(steps_per_batch=2)},
            5,
            r"5 processes need a sample each .*, got 2 prompts \(num_prompts_per_step=4 // .*=2\) x group_size=2 = 4 samples",
        ),
        ({"trainer": FSDP2}, 1, r"FSDP2 needs several processes, got 1: set trainer\.num_processes=2"),
        (
            {"trainer": ZERO[2], "algorithm": PPOConfig(num_critic_warmup_steps=3)},
            2,
            r"num_critic_warmup_steps must be 0 .* cannot drop the policy's gradients, got 3",
        ),
        (
            {"trainer": replace(FSDP2, optimizer=OptimizerKind.MUON)},
            2,
            r"optimizer=MUON needs .* it makes whole matrices orthogonal",
        ),
        ({"trainer": replace(ZERO[3], lora=LoRAConfig(rank=4))}, 2, r"lora\.rank needs .* merged"),
        ({"trainer": replace(ZERO[3], ema_decay=0.9)}, 2, r"ema_decay needs .*=TORCH: the average is kept"),
        ({"trainer": replace(ZERO[0], offload_optimizer=True)}, 2, r"zero_stage from 1 on, got 0"),
        ({"trainer": replace(DDP, offload_optimizer=True)}, 2, r"needs trainer\.backend=DEEPSPEED"),
        (
            {"trainer": ZERO[0], "model": ModelConfig(source=ModelSource.TINY, dtype=Dtype.BFLOAT16)},
            2,
            r"zero_stage=0 has no fp32 masters for bfloat16",
        ),
        (
            {"trainer": replace(ZERO[1], data_parallel=DataParallel.FSDP2)},
            2,
            r"DEEPSPEED shards by trainer\.zero_stage",
        ),
        ({"mode": RunMode.ROLLOUT_ONLY}, 2, r"trains nothing: start 1 process, got 2"),
        ({"trainer": replace(DDP, num_processes=2)}, 1, r"num_processes must be 1 in a script that trains in 1 process, got 2"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_numbers(changes, count, message):
    with pytest.raises(ValueError, match=message):
        check_ranks(config(**changes), count)
