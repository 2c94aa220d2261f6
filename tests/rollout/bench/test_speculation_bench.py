"""The comparison with and without drafts counts right and refuses different outputs."""

import pytest

from rollout.bench.speculation import make_cell, measure_speculation, serve
from rollout.config import DrafterKind, EngineConfig, Scenario, SpeculationConfig
from rollout.engine.core import Request, SampleKey, SamplingParams
from rollout.engine.engine import Engine
from rollout.models.sources.tiny import make_tiny_model


@pytest.fixture
def engine(tmp_path):
    make_tiny_model(tmp_path)
    config = EngineConfig(
        kv_cache_gb=0.02,
        block_size=16,
        speculation=SpeculationConfig(drafter=DrafterKind.SUFFIX, max_draft_tokens=4),
    )
    return Engine.from_pretrained(tmp_path, dtype="float32", config=config)


def cell_of(scenario, concurrency, **options):
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    options = {"concurrency": concurrency, "tokens_per_run": 24} | options
    return make_cell(scenario, lambda i: [10 + i, 5, 6], params, **options)


def test_cells_have_as_many_requests_as_their_name_says():
    few, many = (cell_of(Scenario.SECOND_EPOCH, c) for c in (1, 20))
    assert (len(few.prompts), few.group_size) == (1, 4), "24 tokens at 6 per request"
    assert (len(many.prompts), many.group_size) == (3, 8), "20 in flight, in whole groups"
    long = cell_of(Scenario.SIBLINGS, 64, tokens_per_run=130)
    assert long.params.max_tokens == 6
    short = make_cell(
        Scenario.SIBLINGS,
        lambda _: [5],
        SamplingParams(max_tokens=500),
        concurrency=256,
        tokens_per_run=1024,
    )
    assert short.params.max_tokens == 32, "at most 8 times 1,024 tokens in all"
    assert cell_of(Scenario.UNPREDICTABLE, 1).params.temperature == 1.5


@pytest.mark.parametrize("scenario", list(Scenario))
def test_every_scenario_is_compared_and_leaves_the_engine_as_it_was(engine, scenario):
    original = engine.speculator
    result = measure_speculation(engine, cell_of(scenario, 3), pairs=2)
    assert engine.speculator is original
    assert original.state_dict() == {"SuffixDrafter": {"rollouts": []}}
    assert (result["scenario"], result["pairs"]) == (scenario.value, 2)
    assert result["ratio_min"] <= result["ratio"] <= result["ratio_max"]
    assert result["accepted_tokens"] <= result["proposed_tokens"]
    assert 1 <= result["tokens_per_step_off"] <= 3
    assert 0 < result["draft_time_share"] < 1


def test_outputs_that_differ_are_not_reported(engine, monkeypatch):
    original = engine.step

    def wrong_with_drafts():
        completions = original()
        if engine.speculator is not None:
            for completion in completions:
                completion.logprobs[-1] -= 1e-6
        return completions

    monkeypatch.setattr(engine, "step", wrong_with_drafts)
    with pytest.raises(RuntimeError, match=r"request 0/0 differs with drafts: nothing is reported"):
        measure_speculation(engine, cell_of(Scenario.SIBLINGS, 2), pairs=1)


def test_an_engine_without_a_drafter_has_nothing_to_compare(engine):
    engine.speculator = None
    with pytest.raises(ValueError, match="must not be OFF"):
        measure_speculation(engine, cell_of(Scenario.SIBLINGS, 2), pairs=1)


def test_no_more_requests_are_in_flight_than_asked_for(engine):
    requests = [
        Request(
            request_id=str(i),
            token_ids=(5, 6 + i),
            params=SamplingParams(max_tokens=1 + i, ignore_eos=True),
            key=SampleKey(0, i, 0),
        )
        for i in range(7)
    ]
    seen = []
    original = engine.step

    def counting():
        seen.append(len(engine._states))
        return original()

    engine.step = counting
    assert serve(engine, requests, 2).keys() == {str(i) for i in range(7)}
    assert max(seen) == 2
