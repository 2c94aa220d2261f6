"""I1: the trainer's log-probability of every sampled token is the engine's, bit for bit."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from kernels.attention import Segment, packed_attention, packed_layout
from kernels.linear_logprobs import linear_logprobs
from rollout.build.engines import build_engine
from rollout.config import SMOLLM2_135M, EngineConfig, ModelConfig
from rollout.core import Completion, Request
from rollout.engine.runner import bytes_per_block
from rollout.models.checkpoint import load_decoder
from rollout.models.decoder import Decoder
from rollout.models.sources import resolve_model
from rollout.text.tokenizer import load_tokenizer
from tests.real_model import skip_without_real_model
from tests.rollout.engine.engines import make_engine, make_group, make_request, prompt, run
from tests.tiny_models import FAMILIES, save_tiny

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Sampled:
    """A finished request: its token log and what the engine said of the sampled part."""

    request: Request
    completion: Completion

    @property
    def log(self) -> list[int]:
        return [*self.request.token_ids, *self.completion.token_ids]


class PackedRows:
    """Token logs packed into one forward; remembers which row predicts each sampled token."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.positions: list[int] = []
        self.segments: list[Segment] = []

    def append(self, token_ids: Sequence[int], prefix: Sequence[int] = ()) -> list[int]:
        """Add tokens that follow the rows `prefix`; returns the rows of the whole sequence."""
        first_row, first_position = len(self.token_ids), len(prefix)
        rows = [*prefix, *range(first_row, first_row + len(token_ids))]
        self.segments.append(
            Segment(
                first_row=first_row,
                num_queries=len(token_ids),
                first_position=first_position,
                key_index=rows,
            )
        )
        self.token_ids += token_ids
        self.positions += range(first_position, len(rows))
        return rows


def pack_whole(samples: Sequence[Sampled]) -> tuple[PackedRows, list[list[int]]]:
    packed = PackedRows()
    return packed, [packed.append(sample.log[:-1]) for sample in samples]


def pack_shared(samples: Sequence[Sampled]) -> tuple[PackedRows, list[list[int]]]:
    """Each prompt once, completions behind it, as shared-prefix training does."""
    packed, prompts, rows = PackedRows(), {}, []
    for sample in samples:
        prompt_ids = sample.request.token_ids
        if prompt_ids not in prompts:
            prompts[prompt_ids] = packed.append(prompt_ids)
        rows.append(packed.append(sample.completion.token_ids[:-1], prompts[prompt_ids]))
    return packed, rows


def trainer_logprobs(decoder: Decoder, samples: Sequence[Sampled], pack) -> list[list[float]]:
    """Of every sampled token, from one forward with gradients over all logs."""
    packed, rows = pack(samples)
    layout = packed_layout(packed.segments, num_rows=len(packed.token_ids))

    def attend(_layer, q_TND, k_TMD, v_TMD):
        return packed_attention(q_TND, k_TMD, v_TMD, layout)

    hidden_TH = decoder(torch.tensor(packed.token_ids), torch.tensor(packed.positions), attend)
    out: list[list[float]] = [[] for _ in samples]
    for temperature in {s.request.params.temperature for s in samples}:
        chosen = [i for i, s in enumerate(samples) if s.request.params.temperature == temperature]
        sources = [r for i in chosen for r in rows[i][len(samples[i].request.token_ids) - 1 :]]
        targets = [t for i in chosen for t in samples[i].completion.token_ids]
        logprobs, _ = linear_logprobs(
            hidden_TH[sources], decoder.lm_head, torch.tensor(targets), temperature=temperature
        )
        assert logprobs.requires_grad
        values = iter(logprobs.tolist())
        for i in chosen:
            out[i] = [next(values) for _ in samples[i].completion.token_ids]
    return out


def assert_equal_bits(decoder: Decoder, samples: Sequence[Sampled], *, num_tokens: int) -> None:
    for pack in (pack_whole, pack_shared):
        rows = trainer_logprobs(decoder, samples, pack)
        trainer = torch.tensor([x for row in rows for x in row], dtype=torch.float32)
        engine = torch.tensor(
            [x for s in samples for x in s.completion.logprobs], dtype=torch.float32
        )
        assert engine.numel() == num_tokens
        assert bool(engine.isfinite().all())
        assert engine.unique().numel() > num_tokens // 2, (
            "too few different values to show anything"
        )
        assert torch.equal(trainer, engine), (
            f"{int((trainer != engine).sum())} of {num_tokens} differ in {pack.__name__}, "
            f"by up to {float((trainer - engine).abs().max()):.2e}"
        )


def sampled(requests: Sequence[Request], answers: dict[str, Completion]) -> list[Sampled]:
    """In another order than they were sampled in."""
    samples = [Sampled(request, answers[request.request_id]) for request in requests]
    random.Random(0).shuffle(samples)
    return samples


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_trainer_computes_the_engines_logprobs_bit_for_bit(tmp_path, family, dtype):
    directory = save_tiny(tmp_path, family, dtype=DTYPES[dtype])
    engine = make_engine(
        directory, dtype=DTYPES[dtype], num_blocks=26, max_requests=12, max_tokens_per_step=40
    )
    first = [
        *make_group(0, prompt(5), size=4, max_tokens=20),
        *make_group(1, prompt(70, start=3), size=3, max_tokens=17, temperature=0.7),
        *make_group(2, prompt(140, start=4), size=4, max_tokens=12),
        make_request("one token", prompt(1, start=9), group_id=3, max_tokens=70, temperature=0.7),
    ]
    second = [
        *make_group(4, prompt(140, start=4), size=3, max_tokens=6, temperature=0.7),
        *make_group(5, (*prompt(70, start=3)[:64], 1, 2, 3), size=3, max_tokens=6),
    ]
    answers = run(engine, first)
    assert engine.stats.num_preemptions > 0
    hits = engine.stats.num_prefix_hit_tokens
    answers |= run(engine, second)
    assert engine.stats.num_prefix_hit_tokens > hits

    decoder = load_decoder(directory, dtype=DTYPES[dtype])
    num_tokens = 4 * 20 + 3 * 17 + 4 * 12 + 70 + 3 * 6 + 3 * 6
    assert_equal_bits(decoder, sampled(first + second, answers), num_tokens=num_tokens)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_trainer_computes_the_engines_logprobs_of_smollm2_bit_for_bit(dtype):
    skip_without_real_model()
    directory = resolve_model(ModelConfig(path=SMOLLM2_135M))
    decoder = load_decoder(directory, dtype=DTYPES[dtype])
    tokenizer = load_tokenizer(directory)
    block_bytes = bytes_per_block(decoder.spec, block_size=16, dtype=DTYPES[dtype])
    engine = build_engine(
        decoder,
        tokenizer,
        # 12 blocks of 16 tokens: a group does not fit, so some are preempted
        EngineConfig(
            block_size=16,
            kv_cache_gb=12.5 * block_bytes / 1e9,
            max_requests=8,
            max_tokens_per_step=24,
        ),
    )
    story = tokenizer("Once upon a time there was a paceline of cyclists who took turns. " * 6)
    requests = [
        *make_group(0, tokenizer("What is 17 + 25?")["input_ids"], size=3, max_tokens=12),
        *make_group(1, story["input_ids"][:70], size=3, max_tokens=12, temperature=0.7),
    ]
    answers = run(engine, requests)
    assert engine.stats.num_preemptions > 0
    assert_equal_bits(decoder, sampled(requests, answers), num_tokens=72)
