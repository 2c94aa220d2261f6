"""A tiny model's backends and samples to train them on."""

from pathlib import Path

import torch

from rl.algorithms.base.algorithm import LossFunction
from rl.trainer.batch.packing import MicroBatch
from rl.trainer.config import LoRAConfig, TrainerConfig
from rl.trainer.learn.policy_trainer import PolicyTrainer
from rl.trainer.weights.lora import Adapters
from rollout.models.checkpoint import load_decoder
from rollout.models.decoder import Decoder
from tests.rl.trainer.rollout_factory import Sample, pack_samples, rollout


def backend_of(
    directory: Path, dtype: torch.dtype = torch.float64, *, recomputes: bool = False, **config
) -> tuple[PolicyTrainer, Decoder, Adapters | None]:
    """Make a policy trainer and its decoder; with `lora` in the config the decoder has adapters."""
    trainer = TrainerConfig(**config)
    decoder = load_decoder(directory, dtype=dtype)
    decoder.recomputes_layers = recomputes
    adapters = None
    if trainer.lora.rank:
        adapters = Adapters(decoder, trainer.lora, base=str(directory), seed=0)
    return (
        PolicyTrainer(decoder, trainer, temperature=0.7, adapters=adapters),
        decoder,
        adapters,
    )


def lora(rank: int = 3, **config) -> LoRAConfig:
    return LoRAConfig(rank=rank, alpha=6.0, **config)


def micro_batches(*, max_tokens: int = 1000, share_prompts: bool = True) -> list[MicroBatch]:
    """Make micro-batches of two prompts, one of them longer than a key block."""
    samples = [
        Sample(
            rollout=rollout(prompt, [9 + i, 30 + i, 60][: i + 1], group_id=g, sample_index=i),
            advantages=[[1.0, -0.5, 0.25][i]] * (i + 1),
            loss_weight=1.0,
        )
        for g, prompt in enumerate([[5, 6, 7], list(range(40, 110))])
        for i in range(3)
    ]
    return pack_samples(samples, max_tokens=max_tokens, share_prompts=share_prompts)


def train(backend: PolicyTrainer, loss: LossFunction, *, steps: int, rate: float = 1e-2) -> None:
    for _ in range(steps):
        backend.forward_backward(micro_batches(), loss, denominator=12.0)
        backend.step(rate)


def weights(backend: PolicyTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in backend.named_weights()}


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name
