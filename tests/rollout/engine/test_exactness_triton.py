"""The whole engine and the trainer's forward on Triton, in the interpreter: I1 and I2 hold there as on the CPU path."""

import pytest
import torch

from kernels.attention import packed_attention, packed_layout
from kernels.backends import interpreting_triton
from kernels.linear_logprobs import linear_logprobs
from rollout.models.checkpoint import load_decoder
from tests.kernels.sequences import whole_sequences
from tests.rollout.engine.engines import make_engine, make_group, make_request, prompt, run
from tests.rollout.engine.test_exactness import assert_equal_bits, sampled
from tests.rollout.engine.test_speculation import Scripted, eager, futures_of
from tests.tiny_models import save_tiny


@pytest.fixture
def count_launches(interpreter):
    """Number of kernels launched so far; all ops of the test run in Triton."""
    from tests.kernels.gpu.interpreter.memory import STATE

    with interpreting_triton():
        yield lambda: STATE.num_launches


def requests():
    return [
        *make_group(0, prompt(62), size=2, max_tokens=4, temperature=0.7),
        make_request("short", prompt(5, start=9), group_id=1, max_tokens=6),
    ]


def answers_of(directory, count_launches, drafts=None):
    """Answers of an engine whose 7 blocks of 16 do not hold all requests at once."""
    engine = make_engine(directory, dtype=torch.bfloat16, num_blocks=7, max_tokens_per_step=50)
    if drafts is not None:
        engine.speculator = eager(Scripted(drafts, error_rate=0.3), max_draft_tokens=2)
    before = count_launches()
    answers = run(engine, requests())
    assert count_launches() > before
    return answers, engine


def test_trainer_and_engine_agree_bit_for_bit_and_drafts_change_nothing(tmp_path, count_launches):
    directory = save_tiny(tmp_path, "qwen3", dtype=torch.bfloat16)
    answers, engine = answers_of(directory, count_launches)
    assert engine.stats.num_preemptions > 0
    decoder = load_decoder(directory, dtype=torch.bfloat16)
    assert_equal_bits(decoder, sampled(requests(), answers), num_tokens=14)

    drafted, engine = answers_of(directory, count_launches, drafts=futures_of(answers))
    assert engine.speculator.stats.num_accepted > 0
    for request_id, answer in answers.items():
        assert drafted[request_id].token_ids == answer.token_ids
        assert drafted[request_id].logprobs == answer.logprobs


def test_gradients_of_a_whole_model_agree_with_those_of_the_cpu(tmp_path, count_launches):
    directory = save_tiny(tmp_path, "qwen2", dtype=torch.float32)
    log = torch.tensor(prompt(66))  # one past a key block, and a target

    def gradients() -> dict[str, torch.Tensor]:
        decoder = load_decoder(directory, dtype=torch.float32)
        layout = packed_layout(whole_sequences([65]), num_rows=65)
        attend = lambda _layer, q, k, v: packed_attention(q, k, v, layout)  # noqa: E731
        hidden = decoder(log[:-1], torch.arange(65), attend)
        linear_logprobs(hidden, decoder.lm_head, log[1:])[0].sum().backward()
        return {name: p.grad for name, p in decoder.named_parameters()}

    before = count_launches()
    got = gradients()
    assert count_launches() > before
    with interpreting_triton(False):
        expected = gradients()
    for name, grad in got.items():
        torch.testing.assert_close(
            grad, expected[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
