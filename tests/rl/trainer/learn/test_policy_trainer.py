"""I5: gradients do not depend on micro-batch size, packing, or sharing of prompts. In float64."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernels.attention import attention_reference
from rl.algorithms.base.algorithm import LossFunction
from rl.algorithms.base.config import KLEstimator, RatioBase
from rl.algorithms.base.correction import Corrector
from rl.algorithms.base.kl import kl_loss
from rl.algorithms.base.signals import Tokens
from rl.algorithms.cispo import CISPOConfig
from rl.algorithms.custom import CustomConfig
from rl.algorithms.dapo import DAPOConfig
from rl.algorithms.distillation import DistillationConfig
from rl.algorithms.dr_grpo import DrGRPOConfig
from rl.algorithms.grpo import GRPOConfig, grpo_loss
from rl.algorithms.gspo import GSPOConfig
from rl.algorithms.maxrl import MaxRLConfig
from rl.algorithms.ppo import PPOConfig
from rl.algorithms.registry import ALGORITHMS, make_algorithm
from rl.algorithms.reinforce_pp import ReinforcePPConfig
from rl.algorithms.rloo import RLOOConfig, rloo_loss
from rl.algorithms.sft import SFTConfig
from rl.trainer.config import TrainerConfig
from rl.trainer.learn.policy_trainer import PolicyTrainer
from rollout.models.checkpoint import load_decoder
from rollout.models.decoder import Decoder
from tests.rl.trainer.rollout_factory import Sample, pack_samples, rollout

LOSS = functools.partial(grpo_loss, clip_low=0.2, clip_high=0.2)
# the second begins like the first; the third is longer than a key block, and parts from the fourth past it
PROMPTS = [[5, 6, 7], [5, 6, 8, 9], list(range(40, 40 + 70)), [*range(40, 40 + 66), 7, 7]]


def backend_of(directory: Path, dtype: torch.dtype, **config) -> PolicyTrainer:
    decoder = load_decoder(directory, dtype=dtype)
    return PolicyTrainer(decoder, TrainerConfig(**config), temperature=0.7)


def samples(logprob: float = -1.0) -> list[Sample]:
    return [
        Sample(
            rollout=rollout(
                prompt,
                [9 + i, 30 + i, 60][: i + 1],
                group_id=g,
                sample_index=i,
                logprob=logprob,
            ),
            advantages=[[1.0, -0.5, 0.25][i]] * (i + 1),
            loss_weight=1.0 / (i + 1),
        )
        for g, prompt in enumerate(PROMPTS)
        for i in range(3)
    ]


def gradients(backend: PolicyTrainer, micro_batches) -> list[torch.Tensor]:
    backend.clear_gradients()
    backend.forward_backward(micro_batches, LOSS, denominator=12.0)
    return [m.grad.clone() for m in backend.state_dict()["masters"]]


# ranges narrow enough, and bounds low enough, for some tokens below to be clipped
CONFIGS = [
    GRPOConfig(),
    DrGRPOConfig(),
    DAPOConfig(),
    RLOOConfig(),
    ReinforcePPConfig(),
    GSPOConfig(clip_low=0.2, clip_high=0.2),
    CISPOConfig(max_ratio=1.5),
    MaxRLConfig(),
    PPOConfig(),
    DistillationConfig(teacher_path="x"),
    SFTConfig(),
]
LOSSES = {type(c).__name__: make_algorithm(c, max_tokens=8).loss for c in CONFIGS} | {
    f"kl {e.name}": functools.partial(kl_loss, coefficient=0.5, estimator=e) for e in KLEstimator
}


def test_every_algorithm_is_tried():
    every = {entry.schema for entry in ALGORITHMS.values()}
    assert {type(config) for config in CONFIGS} == every - {CustomConfig}


def off_policy_samples() -> list[Sample]:
    """Ratios far from 1, some past every clip; weights and advantages differ between the tokens of a sample."""
    made = []
    for index, sample in enumerate(samples()[:6]):  # of the short prompts
        count = sample.rollout.num_sampled_tokens
        offsets = torch.arange(count, dtype=torch.float64) * 0.15 - 5.7 + 0.07 * (index % 5)
        ref = torch.linspace(-6.0, -5.0, count, dtype=torch.float64)
        extras = {"old_logprobs": offsets, "ref_logprobs": ref}
        advantages = [a * (1 + n) for n, a in enumerate(sample.advantages)]
        made.append(replace(sample, advantages=advantages, extras=extras))
    return made


@pytest.mark.parametrize("name", LOSSES)
def test_no_algorithms_gradient_depends_on_batching_or_sharing(tiny, name):
    decoder = load_decoder(tiny, dtype=torch.float64)
    # the rollouts' log-probabilities are -1 each: some samples are vetoed, some are not
    corrector = Corrector(max_weight=0.0, max_sample_k3=3.6)
    backend = PolicyTrainer(decoder, TrainerConfig(), temperature=0.7, corrector=corrector)

    def grads(**packing) -> list[torch.Tensor]:
        backend.clear_gradients()
        batches = pack_samples(off_policy_samples(), **packing)
        stats = backend.forward_backward(batches, LOSSES[name], denominator=12.0)
        assert 0 < stats.mismatch.num_left_out < stats.num_tokens
        return [m.grad.clone() for m in backend.state_dict()["masters"]]

    truth = grads(max_tokens=1000, share_prompts=True)
    assert sum(float(g.abs().sum()) for g in truth) > 0
    for packing in (
        {"max_tokens": 8, "share_prompts": True},
        {"max_tokens": 14, "share_prompts": False},
    ):
        for a, b in zip(truth, grads(**packing), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


def padded_gradients(
    decoder: Decoder, samples: Sequence[Sample], loss_function: LossFunction
) -> list[torch.Tensor]:
    """As most trainers do it: a rectangle, plain causal attention over whole rows, weight 0 on prompts and padding."""
    width = max(len(s.rollout.log.token_ids) for s in samples)

    def rows(name: str) -> torch.Tensor:
        """[B, width], zero where nothing is trained."""
        made = torch.zeros(len(samples), width, dtype=torch.float64)
        for row, sample in zip(made, samples, strict=True):
            trained = torch.tensor(sample.rollout.log.loss_mask).nonzero()[:, 0]
            values = sample.extras.get(name)
            if values is None:  # a micro-batch has these in float32
                values = torch.tensor(getattr(sample, name), dtype=torch.float32).double()
            row[trained] = values
        return made[:, 1:].flatten()

    def attend(_layer, *qkv: torch.Tensor) -> torch.Tensor:
        sequences = zip(*(x.split(width) for x in qkv), strict=True)
        return torch.cat([attention_reference(q, k, v) for q, k, v in sequences])

    ids = [s.rollout.log.token_ids + [0] * (width - len(s.rollout.log.token_ids)) for s in samples]
    ids_BW = torch.tensor(ids)
    positions_T = torch.arange(width).repeat(len(samples))
    hidden_BWH = decoder(ids_BW.flatten(), positions_T, attend).view(*ids_BW.shape, -1)
    logits_TV = hidden_BWH[:, :-1].flatten(0, 1) @ decoder.lm_head.T / 0.7
    logprobs_T = logits_TV.log_softmax(-1).gather(1, ids_BW[:, 1:].reshape(-1, 1))[:, 0]
    tokens = Tokens(
        logprobs_N=logprobs_T,
        base_logprobs_N=rows("old_logprobs"),
        advantages_N=rows("advantages"),
        loss_weights_N=rows("loss_weight"),
        sample_ids_N=torch.arange(len(samples)).repeat_interleave(width - 1),
        ref_logprobs_N=rows("ref_logprobs"),
    )
    (loss_function(tokens).loss / 12.0).backward()
    return [p.grad for p in decoder.parameters()]


@pytest.mark.parametrize("name", LOSSES)
def test_no_algorithms_gradient_depends_on_packing_against_padding(tiny, name):
    backend = backend_of(tiny, torch.float64)
    backend.forward_backward(
        pack_samples(off_policy_samples(), max_tokens=1000, share_prompts=True),
        LOSSES[name],
        denominator=12.0,
    )
    got = [m.grad for m in backend.state_dict()["masters"]]
    decoder = load_decoder(tiny, dtype=torch.float64)
    expected = padded_gradients(decoder, off_policy_samples(), LOSSES[name])
    assert sum(float(g.abs().sum()) for g in got) > 0
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    ("max_tokens", "share_prompts"), [(75, True), (75, False), (150, False), (1000, False)]
)
def test_the_gradient_depends_neither_on_the_budget_nor_on_sharing(tiny, max_tokens, share_prompts):
    backend = backend_of(tiny, torch.float64)
    truth = gradients(backend, pack_samples(samples(), max_tokens=1000, share_prompts=True))
    micro_batches = pack_samples(samples(), max_tokens=max_tokens, share_prompts=share_prompts)
    assert max_tokens == 1000 or len(micro_batches) > 1
    got = gradients(backend, micro_batches)
    assert sum(float(g.abs().sum()) for g in truth) > 0
    for a, b in zip(truth, got, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


def test_the_gradient_is_the_derivative_of_the_loss(tiny):
    # central differences along the gradient's own direction
    backend = backend_of(tiny, torch.float64)
    micro_batches = pack_samples(samples(), max_tokens=1000, share_prompts=True)
    masters = backend.state_dict()["masters"]
    start = [backend.logprobs(b)[0].detach() for b in micro_batches]

    def loss() -> float:
        total = 0.0
        for batch, old in zip(micro_batches, start, strict=True):
            logprobs, _ = backend.logprobs(batch)
            weights, advantages = batch.loss_weights_N.double(), batch.advantages_N.double()
            tokens = Tokens(
                logprobs_N=logprobs,
                base_logprobs_N=old,
                advantages_N=advantages,
                loss_weights_N=weights,
                sample_ids_N=batch.sample_ids_N,
            )
            total += float(LOSS(tokens).loss.detach())
        return total / 12.0

    grads = gradients(backend, micro_batches)
    norm = sum(float(g.square().sum()) for g in grads) ** 0.5
    epsilon = 1e-6
    moved = []
    for sign in (1, -1):
        with torch.no_grad():
            for m, g in zip(masters, grads, strict=True):
                m += sign * epsilon * g / norm
        moved.append(loss())
        with torch.no_grad():
            for m, g in zip(masters, grads, strict=True):
                m -= sign * epsilon * g / norm
    assert (moved[0] - moved[1]) / (2 * epsilon) == pytest.approx(norm, rel=1e-5)


def test_bf16_gradients_are_accumulated_in_fp32_masters(tiny):
    backend = backend_of(tiny, torch.bfloat16)
    micro_batches = pack_samples(samples(), max_tokens=80, share_prompts=True)
    grads = gradients(backend, micro_batches * 4)
    assert {g.dtype for g in grads} == {torch.float32}
    once = gradients(backend, micro_batches)
    for a, b in zip(grads, once, strict=True):
        torch.testing.assert_close(
            a, 4 * b, rtol=1e-5, atol=1e-7
        )  # a bf16 sum would be off by 1e-2


def test_a_step_far_below_bf16_resolution_still_moves_the_master(tiny):
    backend = backend_of(tiny, torch.bfloat16, max_grad_norm=1e9)
    micro_batches = pack_samples(samples(), max_tokens=1000, share_prompts=True)
    before = [m.clone() for m in backend.state_dict()["masters"]]
    backend.forward_backward(micro_batches, LOSS, denominator=12.0)
    backend.step(1e-7)
    after = backend.state_dict()["masters"]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_norm_is_reported_before_clipping_and_the_gradient_is_cleared(tiny):
    backend = backend_of(tiny, torch.float32, max_grad_norm=1e-3)
    micro_batches = pack_samples(samples(), max_tokens=1000, share_prompts=True)
    grads = gradients(backend, micro_batches)
    expected = sum(float(g.square().sum()) for g in grads) ** 0.5
    assert backend.step(0.0) == pytest.approx(expected, rel=1e-5)
    assert expected > 1e-3
    assert all(float(m.grad.abs().sum()) == 0 for m in backend.state_dict()["masters"])


def test_an_infinite_advantage_names_its_sample_and_a_nan_gradient_changes_nothing(tiny):
    backend = backend_of(tiny, torch.float32)
    bad = samples()
    bad[4] = replace(bad[4], advantages=[float("inf")] * 2)
    stats = backend.forward_backward(
        pack_samples(bad, max_tokens=1000, share_prompts=True), LOSS, denominator=1.0
    )
    assert stats.bad_sample == 4
    before = [m.clone() for m in backend.state_dict()["masters"]]
    backend.state_dict()["masters"][0].grad[0] = float("nan")
    backend.step(1.0)
    after = backend.state_dict()["masters"]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_mismatch_is_that_of_the_trainers_policy_from_the_engines(tiny):
    backend = backend_of(tiny, torch.float64)
    (batch,) = pack_samples(off_policy_samples(), max_tokens=1000, share_prompts=True)
    sums = backend.forward_backward([batch], LOSS, denominator=1.0).mismatch
    # the rollouts' log-probabilities are -1 each
    d = batch.columns["old_logprobs"] + 1.0
    assert sums.k3 == pytest.approx(float((d.exp() - 1 - d).sum()))
    assert sums.difference == pytest.approx(float(d.abs().sum()))


def test_a_sample_whose_engine_or_reference_said_nan_is_the_one_that_is_named(tiny):
    decoder = load_decoder(tiny, dtype=torch.float64)
    corrector = Corrector(max_weight=2.0)
    backend = PolicyTrainer(decoder, TrainerConfig(), temperature=0.7, corrector=corrector)
    made = off_policy_samples()
    made[3].rollout.log.rollout_logprobs[-1] = float("nan")
    batches = pack_samples(made, max_tokens=1000, share_prompts=True)
    assert backend.forward_backward(batches, LOSS, denominator=1.0).bad_sample == 3
    made = off_policy_samples()
    made[4].extras["ref_logprobs"][1] = float("-inf")
    batches = pack_samples(made, max_tokens=1000, share_prompts=True)
    assert backend.forward_backward(batches, LOSSES["kl k2"], denominator=1.0).bad_sample == 4


def test_state_survives_a_round_trip_and_the_next_step_is_bitwise_the_same(tiny):
    micro_batches = pack_samples(samples(), max_tokens=1000, share_prompts=True)

    def one_step(backend: PolicyTrainer) -> None:
        backend.forward_backward(micro_batches, LOSS, denominator=12.0)
        backend.step(1e-3)

    first = backend_of(tiny, torch.float32)
    one_step(first)
    saved = {
        "masters": [m.detach().clone() for m in first.state_dict()["masters"]],
        "optimizer": first.state_dict()["optimizer"],
    }
    second = backend_of(tiny, torch.float32)
    second.load_state_dict(saved)
    one_step(first)
    one_step(second)
    pairs = zip(first.named_weights(), second.named_weights(), strict=True)
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)


def test_each_token_weighs_as_its_importance_says(tiny):
    # a policy at its own start: the gradient of exp(p - old) is that of p, so weights can be checked from outside
    batches = pack_samples(samples(logprob=-6.0), max_tokens=1000, share_prompts=True)
    decoder = load_decoder(tiny, dtype=torch.float64)
    corrected = PolicyTrainer(
        decoder, TrainerConfig(), temperature=0.7, corrector=Corrector(max_weight=1.5)
    )
    got = gradients(corrected, batches)
    (batch,) = batches
    plain = backend_of(tiny, torch.float64)
    old = plain.logprobs(batch)[0].detach()
    ratio = (old - batch.rollout_logprobs_N.double()).exp().clamp(max=1.5)
    assert float(ratio.min()) < 1.0 < float(ratio.max()), "some are truncated, some are not"
    weights = (batch.loss_weights_N.double() * ratio).tolist()
    logprobs = plain.logprobs(batch)[0]
    terms = torch.tensor(weights, dtype=torch.float64) * batch.advantages_N.double()
    (-(terms * logprobs).sum() / 12.0).backward()
    for a, b in zip(got, plain.state_dict()["masters"], strict=True):
        torch.testing.assert_close(a, b.grad, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("base", RatioBase)
def test_ratios_are_to_the_old_policy_or_to_the_engines_as_the_config_says(tiny, base):
    decoder = load_decoder(tiny, dtype=torch.float64)
    backend = PolicyTrainer(decoder, TrainerConfig(), temperature=0.7, ratio_base=base)
    seen = []

    def loss(tokens: Tokens):
        seen.append(tokens.base_logprobs_N)
        return rloo_loss(tokens)

    (batch,) = pack_samples(off_policy_samples(), max_tokens=1000, share_prompts=True)
    backend.forward_backward([batch], loss, denominator=1.0)
    expected = batch.columns["old_logprobs"]
    if base is RatioBase.rollout:
        expected = batch.rollout_logprobs_N.double()
    assert torch.equal(seen[0], expected)
