"""The comparison with and without drafts counts right and refuses different outputs."""

from dataclasses import replace

import pytest

from rollout.config import DrafterKind, EngineConfig, Scenario, SpeculationConfig
from rollout.core import Request, SampleKey, SamplingParams
from rollout.engine.engine import Engine
from rollout.models.sources.tiny import make_tiny_model
from rollout.speculation.cost_table import CostTable
from scripts.bench.config import BenchSpeculationConfig
from scripts.bench.speculation.cells import expected_seconds, make_cell, make_cells
from scripts.bench.speculation.measure import measure_speculation, requests_of, serve
from tests.rollout.engine.test_speculation import make_eager


@pytest.fixture
def engine(tmp_path):
    make_tiny_model(tmp_path)
    config = EngineConfig(
        kv_cache_gb=0.02,
        block_size=16,
        speculation=SpeculationConfig(drafter=DrafterKind.suffix, max_draft_tokens=4),
    )
    return Engine.from_pretrained(tmp_path, dtype="float32", config=config)


def cell_of(scenario, concurrency, *, pairs=1, **options):
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    options = {"concurrency": concurrency, "tokens_per_run": 24, "mean_tokens": 6.0} | options
    cell = make_cell(scenario, lambda i: [10 + i, 5, 6], params, **options)
    return replace(cell, pairs=pairs)


def test_cells_have_as_many_requests_as_their_name_says():
    few, many = (cell_of(Scenario.second_epoch, c) for c in (1, 20))
    assert (len(few.prompts), few.group_size) == (1, 4), "24 tokens at 6 per request"
    assert (len(many.prompts), many.group_size) == (3, 8), "20 in flight, in whole groups"
    long = cell_of(Scenario.siblings, 64, tokens_per_run=130)
    assert long.params.max_tokens == 6
    short = make_cell(
        Scenario.siblings,
        lambda _: [5],
        SamplingParams(max_tokens=500),
        concurrency=256,
        tokens_per_run=1024,
        mean_tokens=500,
    )
    assert short.params.max_tokens == 32, "at most 8 times 1,024 tokens in all"
    assert cell_of(Scenario.unpredictable, 1).params.temperature == 1.5


def test_short_completions_make_more_requests_but_for_those_that_cannot_be_predicted_to_end():
    cells = [cell_of(s, 1, mean_tokens=2.2) for s in (Scenario.siblings, Scenario.unpredictable)]
    assert [(cell.num_requests, cell.expected_tokens) for cell in cells] == [(16, 2), (4, 6)]


def test_pairs_are_run_where_they_are_asked_for_and_prompts_with_a_history_where_they_have_one():
    cells = make_cells(
        list(Scenario),
        [1, 8],
        paired=[8],
        pairs=7,
        prompt=lambda i: [i, 5],
        answered=lambda i: [i, 6],
        params=SamplingParams(max_tokens=6),
        tokens_per_run=24,
        tail_requests=40,
        mean_tokens=6.0,
    )
    found = {(c.scenario, c.concurrency): (c.pairs, c.prompts[0][1]) for c in cells}
    assert found == {
        (Scenario.siblings, 1): (1, 5),
        (Scenario.siblings, 8): (1, 5),
        (Scenario.second_epoch, 1): (1, 6),
        (Scenario.second_epoch, 8): (7, 6),
        (Scenario.unpredictable, 1): (1, 5),
        (Scenario.unpredictable, 8): (7, 5),
        (Scenario.tail, 40): (7, 6),
    }


def test_the_time_that_cells_take_follows_from_the_costs_of_steps():
    costs = CostTable({1: 1.0, 101: 11.0})  # 0.9 + 0.1 per row
    one = cell_of(Scenario.siblings, 1)  # 4 requests of 6 tokens, one prompt of 3
    assert expected_seconds(one, costs) == pytest.approx(3 * (1.2 + 24 * 1.0))
    tail = cell_of(Scenario.tail, 128, pairs=7)  # 64 in flight on average, 16 prompts
    assert expected_seconds(tail, costs) == pytest.approx(15 * (16 * 1.2 + 6 * 7.3))


def test_the_full_bench_takes_less_than_half_an_hour_at_90_and_900_tokens_a_second():
    costs = CostTable({1: 1 / 90, 64: 64 / 900, 256: 256 / 950})
    config = BenchSpeculationConfig()
    cells = make_cells(
        config.scenarios,
        config.concurrency,
        paired=config.paired_concurrency,
        pairs=config.pairs,
        prompt=lambda _: [0] * 100,
        answered=lambda _: [0] * 100,
        params=SamplingParams.of(config.sampling),
        tokens_per_run=config.tokens_per_run,
        tail_requests=config.tail_requests,
        mean_tokens=config.sampling.max_tokens,
    )
    assert sum(expected_seconds(cell, costs) for cell in cells) < 1800


def test_a_history_from_elsewhere_is_used_and_that_of_the_first_run_is_not(engine):
    cell = cell_of(Scenario.second_epoch, 3)
    cell = replace(cell, params=replace(cell.params, max_tokens=40))
    speculator, engine.speculator = make_eager(engine.speculator), None
    completions = serve(engine, requests_of(cell, epoch=1), 3)
    rollouts = [
        [list(request.token_ids), 0, completions[request.request_id].token_ids]
        for request in requests_of(cell, epoch=1)
    ]
    engine.speculator = speculator
    own, foreign = (
        measure_speculation(engine, cell, past=past)
        for past in (None, {"SuffixDrafter": {"rollouts": rollouts}})
    )
    assert foreign["accepted_tokens"] > 2 * own["accepted_tokens"] + 20, "it tells the future"


@pytest.mark.parametrize("scenario", list(Scenario))
def test_every_scenario_is_compared_and_leaves_the_engine_as_it_was(engine, scenario):
    original = engine.speculator
    result = measure_speculation(engine, cell_of(scenario, 3, pairs=2))
    assert engine.speculator is original
    assert original.state_dict() == {"SuffixDrafter": {"rollouts": [], "acceptance": []}}
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
        measure_speculation(engine, cell_of(Scenario.siblings, 2))


def test_an_engine_without_a_drafter_has_nothing_to_compare(engine):
    engine.speculator = None
    with pytest.raises(ValueError, match="must not be off"):
        measure_speculation(engine, cell_of(Scenario.siblings, 2))


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
