"""The critic's gradient and its state. In float64."""

from dataclasses import replace
from pathlib import Path

import torch

from rl.trainer.config import TrainerConfig
from rl.trainer.learn.critic import Critic, ValueHead
from rollout.models.checkpoint import load_decoder
from tests.rl.trainer.rollout_factory import Sample, pack_samples, rollout


def critic_of(
    directory: Path, dtype: torch.dtype = torch.float64, *, value_clip: float = 0.5
) -> Critic:
    decoder = load_decoder(directory, dtype=dtype)
    return Critic(decoder, ValueHead(decoder), TrainerConfig(), value_clip=value_clip)


def samples() -> list[Sample]:
    made = []
    for index in range(6):
        count = index % 3 + 1
        turns = (
            ([9 + index, 30, 60][:count], [90, 91], [12]) if index == 4 else ([9, 30, 60][:count],)
        )
        attempt = rollout(
            [5, 6, 7 + index // 3], *turns, group_id=index // 3, sample_index=index % 3
        )
        total = attempt.num_sampled_tokens
        extras = {
            "values": torch.zeros(total, dtype=torch.float64),
            "returns": torch.linspace(-1, index, total, dtype=torch.float64),
        }
        made.append(
            Sample(
                rollout=attempt,
                advantages=[0.0] * total,
                loss_weight=1.0 / (index + 1),
                extras=extras,
            )
        )
    return made


def trained(critic: Critic, steps: int, **packing) -> Critic:
    for _ in range(steps):
        critic.forward_backward(pack_samples(samples(), **packing), denominator=3.0)
        critic.step(1e-2)
    return critic


WHOLE = {"max_tokens": 1000, "share_prompts": True}


def test_values_begin_at_zero_and_one_is_read_before_every_trained_token(tiny):
    (batch,) = pack_samples(samples(), **WHOLE)
    values = critic_of(tiny).recompute_values([batch])
    assert values.tolist() == [0.0] * sum(s.rollout.num_sampled_tokens for s in samples())
    assert values.dtype == torch.float64


def test_the_gradient_depends_neither_on_the_budget_nor_on_sharing(tiny):
    # after one step: at the beginning the head is zero, and the decoder has no gradient at all
    critic = trained(critic_of(tiny), 1, **WHOLE)
    found = []
    for packing in (
        WHOLE,
        {"max_tokens": 9, "share_prompts": True},
        {"max_tokens": 20, "share_prompts": False},
    ):
        critic._weights.clear_gradients()
        critic.forward_backward(pack_samples(samples(), **packing), denominator=3.0)
        found.append([m.grad.clone() for m in critic.state_dict()["masters"]])
    assert all(float(g.abs().sum()) > 0 for g in found[0]), "every parameter, the head's too"
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


def test_the_sum_is_divided_by_the_denominator(tiny):
    critic = trained(critic_of(tiny), 1, **WHOLE)
    found = []
    for denominator in (3.0, 6.0):
        critic._weights.clear_gradients()
        critic.forward_backward(pack_samples(samples(), **WHOLE), denominator=denominator)
        found.append([m.grad.clone() for m in critic.state_dict()["masters"]])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, 2 * b, rtol=1e-12, atol=0)


def test_it_learns_its_returns(tiny):
    critic = critic_of(tiny)
    losses = []
    for _ in range(30):
        batches = pack_samples(samples(), **WHOLE)
        # values of the step's own beginning: nothing is clipped
        old = critic.recompute_values(batches)
        batches = [replace(b, columns={**b.columns, "values": old}) for b in batches]
        losses.append(critic.forward_backward(batches, denominator=3.0).losses["loss/value"])
        critic.step(1e-2)
    assert losses[-1] < 0.1 * losses[0]


def test_a_values_clip_lets_one_batch_move_it_only_so_far(tiny):
    critic = trained(critic_of(tiny), 20, **WHOLE)
    values = critic.recompute_values(pack_samples(samples(), **WHOLE))
    # old values are 0 throughout; momentum carries it past 0.5, the gradient does not
    free = critic_of(tiny, value_clip=1e9)
    freely = trained(free, 20, **WHOLE).recompute_values(pack_samples(samples(), **WHOLE))
    assert float(values.abs().max()) < 0.7 * float(freely.abs().max())


def test_state_survives_a_round_trip_and_the_next_step_is_bitwise_the_same(tiny):
    first = trained(critic_of(tiny), 1, **WHOLE)
    saved = {
        "masters": [m.detach().clone() for m in first.state_dict()["masters"]],
        "optimizer": first.state_dict()["optimizer"],
    }
    second = critic_of(tiny)
    second.load_state_dict(saved)
    pairs = zip(
        trained(first, 1, **WHOLE).state_dict()["masters"],
        trained(second, 1, **WHOLE).state_dict()["masters"],
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in pairs)
