"""I2 on the real model: 1,000 rollouts of mixed sampling parameters, with every drafter."""

import itertools

import pytest

from rollout.build.engines import load_engine
from rollout.config import SMOLLM2_135M, DrafterKind, EngineConfig, ModelConfig, SpeculationConfig
from rollout.core import Request, SampleKey, SamplingParams
from rollout.text.prompts import encode_prompt
from tests.real_model import skip_without_real_model
from tests.rollout.engine.engines import draws, run
from tests.rollout.engine.test_speculation import make_eager

NUM_ROLLOUTS, GROUP_SIZE = 1000, 8
SAMPLING = [
    {},
    {"temperature": 0.4},
    {"temperature": 0},
    {"top_k": 20},
    {"top_p": 0.9, "temperature": 0.8},
    {"min_p": 0.05},
    {"temperature": 0.3, "stop": (".", "\n")},
]
LENGTHS = [12, 5, 8]


def make_engine(kind):
    config = EngineConfig(speculation=SpeculationConfig(drafter=kind, max_draft_tokens=3))
    return load_engine(ModelConfig(path=SMOLLM2_135M), config)


def requests_of(tokenizer):
    kinds = itertools.cycle(itertools.product(LENGTHS, SAMPLING))
    for group_id, (max_tokens, sampling) in zip(
        range(NUM_ROLLOUTS // GROUP_SIZE), kinds, strict=False
    ):
        text = f"Sort these numbers: {group_id * 7 % 90}, {group_id % 83}, {group_id * 31 % 100}."
        token_ids = tuple(encode_prompt([{"role": "user", "content": text}], tokenizer))
        params = SamplingParams(max_tokens=max_tokens, **sampling)
        for i in range(GROUP_SIZE):
            yield Request(
                request_id=f"{group_id}/{i}",
                token_ids=token_ids,
                params=params,
                key=SampleKey(0, group_id, i),
            )


@pytest.fixture(scope="module")
def without():
    skip_without_real_model()
    engine = make_engine(DrafterKind.off)
    completions = run(engine, requests_of(engine.tokenizer))
    assert len(completions) == NUM_ROLLOUTS
    return draws(completions)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DrafterKind.ngram, DrafterKind.suffix, DrafterKind.auto])
def test_a_thousand_rollouts_are_the_same_with_drafts(without, kind):
    engine = make_engine(kind)
    assert engine.speculator is not None
    make_eager(engine.speculator)
    assert draws(run(engine, requests_of(engine.tokenizer))) == without
    stats = engine.speculator.take_stats()
    assert stats.num_proposed > 1000
    assert stats.num_accepted > 100
