import functools
import gc
import re
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from kernels.philox import philox_uniform
from kernels.sample import sample_reference
from rollout import Engine
from rollout.config import EngineConfig
from rollout.core import FinishReason, SampleKey, SamplingParams
from tests.rollout.engine.engines import draws, make_engine, make_group, make_request, prompt, run

pytestmark = pytest.mark.usefixtures("one_thread")

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@functools.cache
def reference_model(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@torch.no_grad()
def reference_logits(directory, token_ids) -> torch.Tensor:
    """[T, V] of transformers' own model."""
    return reference_model(directory)(torch.tensor([list(token_ids)])).logits[0]


def reference_greedy(directory, token_ids, num_tokens: int) -> list[int]:
    ids = list(token_ids)
    for _ in range(num_tokens):
        ids.append(int(reference_logits(directory, ids)[-1].argmax()))
    return ids[len(token_ids) :]


# --- prompts in, completions out


def test_greedy_decoding_equals_that_of_transformers(llama):
    prompts = [prompt(5), prompt(1, start=9), prompt(70, start=3), prompt(130, start=4)]
    params = replace(GREEDY, max_tokens=24)
    outputs = make_engine(llama).generate(prompts, params)
    for token_ids, (completion,) in zip(prompts, outputs, strict=True):
        assert completion.token_ids == reference_greedy(llama, token_ids, 24)
    assert len({tuple(c.token_ids) for (c,) in outputs}) == 4


def test_there_are_n_completions_of_each_prompt_in_the_order_of_the_prompts(llama):
    prompts = [prompt(40), prompt(3, start=7), prompt(20, start=1)]
    params = [replace(GREEDY, n=n, max_tokens=m) for n, m in ((2, 9), (1, 2), (3, 5))]
    outputs = make_engine(llama, max_requests=2).generate(prompts, params)
    for token_ids, p, completions in zip(prompts, params, outputs, strict=True):
        expected = reference_greedy(llama, token_ids, p.max_tokens)
        assert [c.token_ids for c in completions] == [expected] * p.n


def test_text_is_tokenised_and_chat_messages_go_through_the_template(llama):
    engine = make_engine(llama)
    rendered = [257, *b"user\nhi", 258, 10, 257, *b"assistant\n"]
    text, chat = engine.generate(["hé", [{"role": "user", "content": "hi"}]], GREEDY)
    ids = engine.generate([list("hé".encode()), rendered], GREEDY)
    assert [text[0].token_ids, chat[0].token_ids] == [c[0].token_ids for c in ids]


def test_no_prompts_give_no_completions(llama):
    assert make_engine(llama).generate([]) == []


@pytest.mark.parametrize("empty", ["", [], ()])
def test_an_empty_prompt_is_an_error_and_nothing_is_queued(llama, empty):
    engine = make_engine(llama)
    with pytest.raises(ValueError, match="prompt must not be empty"):
        engine.generate(["fine", empty])
    assert not engine.has_unfinished


def test_chat_messages_need_a_template(llama):
    engine = make_engine(llama)
    template, engine.tokenizer.chat_template = engine.tokenizer.chat_template, None
    try:
        with pytest.raises(ValueError, match="chat messages need a chat template"):
            engine.generate([[{"role": "user", "content": "hi"}]])
    finally:
        engine.tokenizer.chat_template = template
    assert not engine.has_unfinished


@pytest.mark.parametrize("params", [[], [GREEDY], [GREEDY] * 3])
def test_params_are_one_for_all_or_one_per_prompt(llama, params):
    with pytest.raises(ValueError, match=rf"got {len(params)} for 2 prompts"):
        make_engine(llama).generate(["a", "b"], params)


def test_generate_refuses_a_busy_engine_and_says_with_how_many_requests(llama):
    engine = make_engine(llama)
    for request in make_group(0, prompt(5), size=2):
        engine.add_request(request)
    with pytest.raises(RuntimeError, match="idle engine; 2 requests are unfinished"):
        engine.generate(["a"])
    engine.abort("0/0")
    engine.abort("0/1")
    with pytest.raises(RuntimeError, match="idle engine; 2 requests are unfinished"):
        engine.generate(["a"])  # their answers would be lost
    assert {c.request_id for c in engine.step()} == {"0/0", "0/1"}
    assert len(engine.generate(["a"], GREEDY)[0][0].token_ids) == 6


def test_an_engine_is_made_from_a_directory(llama):
    engine = Engine.from_pretrained(
        llama, dtype="float32", config=EngineConfig(kv_cache_gb=0.01, max_context_tokens=64)
    )
    assert engine.generate([prompt(5)], GREEDY)[0][0].token_ids == reference_greedy(
        llama, prompt(5), 6
    )


def test_a_pool_of_no_block_is_refused(llama):
    with pytest.raises(ValueError, match=r"engine\.kv_cache_gb must hold at least one block"):
        Engine.from_pretrained(llama, dtype="float32", config=EngineConfig(kv_cache_gb=1e-9))


def test_work_is_counted_and_a_group_computes_its_prompt_once(llama):
    engine = make_engine(llama)
    run(engine, make_group(0, prompt(40), size=4, max_tokens=3))
    assert engine.stats.num_computed_tokens == 40 + 4 * 2
    assert engine.stats.num_sampled_tokens == 12
    assert engine.stats.num_steps == 3


# --- the same request gives the same bits, whatever happens around it


def mixed_requests() -> list:
    """Every kind of sampling, prompts on both sides of 64 and 128, two groups of siblings."""
    return [
        *make_group(0, prompt(20), size=3),
        *make_group(1, prompt(131, start=3), size=2, temperature=0.7),
        make_request("greedy", prompt(66, start=5), group_id=2, temperature=0),
        make_request("top_k", prompt(9, start=1), group_id=3, top_k=5),
        make_request("top_p", prompt(64, start=2), group_id=4, top_p=0.3, temperature=1.5),
        make_request("min_p", prompt(1, start=8), group_id=5, min_p=0.3, max_tokens=12),
        make_request("all", prompt(33), group_id=6, top_k=20, top_p=0.9, min_p=0.01, seed=3),
        make_request("prefix", (*prompt(131, start=3)[:100], 1, 2), group_id=7),
    ]


@pytest.fixture(scope="module")
def alone(llama, one_thread):
    """What each mixed request draws when it is alone on an engine without a prefix cache."""
    engine = make_engine(llama, prefix_cache=False)
    outcome = {}
    for request in mixed_requests():
        outcome |= draws(run(engine, [request]))
    assert engine.stats.num_preemptions == engine.stats.num_prefix_hit_tokens == 0
    assert sum(len(tokens) for tokens, _ in outcome.values()) == 11 * 8 + 4
    return dict(sorted(outcome.items()))


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"prefix_cache": False},
        {"block_size": 1, "num_blocks": 2048},
        {"block_size": 8},
        {"block_size": 64},
        {"max_requests": 3, "max_tokens_per_step": 3},
        {"max_requests": 7, "max_tokens_per_step": 13},
        {"max_tokens_per_step": 2048},
    ],
    ids=str,
)
def test_batch_block_size_and_chunks_do_not_change_a_bit(llama, alone, limits):
    assert draws(run(make_engine(llama, **limits), mixed_requests())) == alone


def test_the_order_of_arrival_does_not_change_a_bit(llama, alone):
    requests = mixed_requests()
    assert draws(run(make_engine(llama), requests[::-1])) == alone
    engine = make_engine(llama)
    answered = {}
    for request in requests[1::2] + requests[::2]:  # one more with every step
        engine.add_request(request)
        answered |= {c.request_id: c for c in engine.step()}
    assert draws(answered | run(engine)) == alone


def test_the_order_within_a_batch_does_not_change_a_bit(llama, alone, monkeypatch):
    engine = make_engine(llama, max_requests=7, max_tokens_per_step=13)
    schedule, orders = engine._scheduler.schedule, []

    def backwards():
        batch = schedule()
        if batch is None:
            return None
        batch = replace(batch, chunks=batch.chunks[::-1])
        orders.append([chunk.samples for chunk in batch.chunks])
        return batch

    monkeypatch.setattr(engine._scheduler, "schedule", backwards)
    assert draws(run(engine, mixed_requests())) == alone
    assert any(not order[0] and any(order) for order in orders), "an unfinished prompt came first"


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_preemption_does_not_change_a_bit(llama, alone, prefix_cache):
    engine = make_engine(llama, num_blocks=11, prefix_cache=prefix_cache)
    assert draws(run(engine, mixed_requests())) == alone
    assert engine.stats.num_preemptions > 0


def test_prefix_hits_do_not_change_a_bit(llama, alone):
    engine = make_engine(llama)
    run(engine, mixed_requests())
    before = engine.stats.num_prefix_hit_tokens
    assert draws(run(engine, mixed_requests())) == alone
    # full blocks of 16, at least one token short of the prompt; siblings follow their leader
    expected = 16 + 128 + 64 + 0 + 48 + 0 + 32 + 96
    assert engine.stats.num_prefix_hit_tokens - before == expected


def test_siblings_do_not_change_a_bit(llama, alone):
    engine = make_engine(llama)
    group = make_group(0, prompt(20), size=9)
    assert draws(run(engine, group[2:]))["0/2"] == alone["0/2"]
    assert draws(run(engine, group[:2][::-1]))["0/1"] == alone["0/1"]


def test_more_rows_than_the_sampler_takes_at_a_time_do_not_change_a_bit(llama):
    requests = [
        make_request(str(i), prompt(3, start=i), group_id=i, max_tokens=2) for i in range(70)
    ]
    wide = make_engine(llama, max_requests=70, max_tokens_per_step=256, num_blocks=256)
    narrow = make_engine(llama, max_requests=5)
    assert draws(run(wide, requests)) == draws(run(narrow, requests))
    assert wide.stats.num_steps == 2


def test_a_log_continued_by_a_later_request_draws_what_the_first_would_have(llama):
    engine = make_engine(llama)
    (whole,) = run(engine, [make_request("a", prompt(30), max_tokens=12)]).values()
    log = (*prompt(30), *whole.token_ids[:5])
    (rest,) = run(engine, [make_request("b", log, max_tokens=7)]).values()
    assert (rest.token_ids, rest.logprobs) == (whole.token_ids[5:], whole.logprobs[5:])


# --- what is drawn


def test_a_token_is_the_inverse_cdf_of_the_uniform_of_its_key_and_position(llama):
    request = make_request("a", prompt(7), group_id=5, sample_index=2, seed=11, max_tokens=20)
    (completion,) = run(make_engine(llama), [request]).values()
    log = [*prompt(7), *completion.token_ids]
    weights = reference_logits(llama, log).softmax(-1)
    for position in range(7, 27):
        uniform = philox_uniform(torch.tensor([[11, 5, 2]]), torch.tensor([position]))
        assert log[position] == sample_reference(weights[position - 1], float(uniform))


def test_seed_group_and_sample_index_each_give_other_samples(llama):
    keys = [SampleKey(0, 0, 0), SampleKey(1, 0, 0), SampleKey(0, 1, 0), SampleKey(0, 0, 1)]
    requests = [
        replace(make_request(str(i), prompt(5)), key=key) for i, key in enumerate([*keys, keys[0]])
    ]
    outputs = [tuple(c.token_ids) for _, c in sorted(run(make_engine(llama), requests).items())]
    assert len(set(outputs)) == 4
    assert outputs[4] == outputs[0]


def test_generate_gives_each_prompt_and_each_sample_randomness_of_its_own(llama):
    engine = make_engine(llama)
    outputs = engine.generate([prompt(5), prompt(5)], SamplingParams(n=4, max_tokens=8))
    other_seed = engine.generate([prompt(5)], SamplingParams(n=4, max_tokens=8, seed=1))
    again = engine.generate([prompt(5), prompt(5)], SamplingParams(n=4, max_tokens=8))
    everything = [tuple(c.token_ids) for group in outputs + other_seed for c in group]
    assert len(set(everything)) == 12
    assert again == outputs


def test_greedy_takes_the_likeliest_token_and_reports_its_logprob_at_temperature_1(llama):
    request = make_request("a", prompt(6), temperature=0, top_k=1, top_p=0.1, min_p=0.9)
    (completion,) = run(make_engine(llama), [request]).values()
    logprobs = reference_logits(llama, [*prompt(6), *completion.token_ids]).log_softmax(-1)
    expected = [logprobs[5 + i, token] for i, token in enumerate(completion.token_ids)]
    assert completion.token_ids == reference_greedy(llama, prompt(6), 8)
    torch.testing.assert_close(
        torch.tensor(completion.logprobs), torch.stack(expected), rtol=0, atol=1e-5
    )
    assert max(completion.logprobs) < -0.5, "of the whole distribution, not of what top-k left"


def kept_by_hand(logits_V: torch.Tensor, p: SamplingParams) -> dict[int, float]:
    """Probability of each kept token, in plain Python."""
    probabilities = (logits_V.double() / p.temperature).softmax(-1).tolist()
    order = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])
    if p.top_k:
        order = order[: p.top_k]
    total = sum(probabilities[token] for token in order)
    kept, mass = [], 0.0
    for token in order:
        if mass < p.top_p * total:
            kept.append(token)
        mass += probabilities[token]
    kept = [t for t in kept if probabilities[t] >= p.min_p * probabilities[order[0]]]
    total = sum(probabilities[token] for token in kept)
    return {token: probabilities[token] / total for token in kept}


@pytest.mark.parametrize(
    ("truncation", "fewest", "most"),
    [
        ({"top_k": 1}, 1, 1),
        ({"top_k": 3}, 3, 3),
        ({"top_p": 0.2}, 1, 40),
        ({"top_p": 0.6, "temperature": 0.5}, 1, 80),
        ({"min_p": 0.5}, 1, 40),
        ({"min_p": 0.2, "temperature": 2.0}, 2, 259),
        ({"top_k": 30, "top_p": 0.5, "min_p": 0.4}, 1, 29),
    ],
    ids=str,
)
def test_logprobs_are_of_the_truncated_distribution(llama, truncation, fewest, most):
    request = make_request("a", prompt(6), max_tokens=30, **truncation)
    (completion,) = run(make_engine(llama), [request]).values()
    logits = reference_logits(llama, [*prompt(6), *completion.token_ids])
    for i, token in enumerate(completion.token_ids):
        kept = kept_by_hand(logits[5 + i], request.params)
        assert fewest <= len(kept) <= most
        assert token in kept
        expected = torch.tensor(kept[token]).log().item()
        assert completion.logprobs[i] == pytest.approx(expected, abs=1e-4)


def test_the_temperature_divides_the_logits(llama):
    for temperature in (0.3, 1.0, 2.5):
        request = make_request("a", prompt(6), max_tokens=20, temperature=temperature)
        (completion,) = run(make_engine(llama), [request]).values()
        logits = reference_logits(llama, [*prompt(6), *completion.token_ids]) / temperature
        logprobs = logits.log_softmax(-1)
        expected = [logprobs[5 + i, token].item() for i, token in enumerate(completion.token_ids)]
        assert completion.logprobs == pytest.approx(expected, abs=1e-4)


# --- what cannot be served is answered


def test_a_prompt_that_fills_the_context_is_rejected_and_the_others_served(llama):
    engine = make_engine(llama, max_context_tokens=32)
    outputs = engine.generate([prompt(5), prompt(32), prompt(31)], replace(GREEDY, n=2))
    assert [c.finish_reason for group in outputs for c in group] == [
        *[FinishReason.LENGTH] * 2,
        *[FinishReason.REJECTED] * 2,
        *[FinishReason.LENGTH] * 2,
    ]
    rejected = outputs[1][0]
    assert rejected.message.startswith("the prompt has 32 tokens, and the context (32 tokens")
    assert "engine.max_context_tokens" in rejected.message
    assert (rejected.token_ids, rejected.logprobs, rejected.policy_versions) == ([], [], [])
    assert [len(c.token_ids) for c in outputs[0] + outputs[2]] == [6, 6, 1, 1]


def test_a_request_larger_than_the_pool_is_rejected_and_the_largest_that_fits_is_served(llama):
    engine = make_engine(llama, num_blocks=3)  # of 16 tokens, one of them to copy into
    fits = make_request("fits", prompt(20), max_tokens=12)
    large = make_request("large", prompt(20), max_tokens=13)
    answers = run(engine, [large, fits])
    assert answers["large"].finish_reason is FinishReason.REJECTED
    assert "33 tokens need 4 KV blocks and there are 3; raise engine.kv_cache_gb" in (
        answers["large"].message
    )
    assert len(answers["fits"].token_ids) == 12


def test_siblings_fill_the_smallest_pool_without_deadlock(llama):
    group = make_group(0, prompt(20), size=5, max_tokens=12)
    small = make_engine(llama, num_blocks=3)
    assert draws(run(small, group)) == draws(run(make_engine(llama), group))
    assert small.stats.num_preemptions > 0


@pytest.mark.parametrize(
    ("token_ids", "reason"),
    [
        ((), "the prompt is empty"),
        ((1, 260), r"token id 260 .* vocabulary \(260"),
        ((-1, 5), r"token id -1 .* vocabulary \(260"),
    ],
)
def test_a_prompt_that_the_model_cannot_read_is_rejected_and_the_others_served(
    llama, token_ids, reason
):
    answers = run(
        make_engine(llama), [make_request("bad", token_ids), make_request("good", prompt(3))]
    )
    assert answers["bad"].finish_reason is FinishReason.REJECTED
    assert re.search(reason, answers["bad"].message)
    assert len(answers["good"].token_ids) == 8


def test_an_id_in_use_is_refused_until_it_is_answered(llama):
    engine = make_engine(llama, max_context_tokens=32)
    engine.add_request(make_request("a", prompt(5), max_tokens=2))
    with pytest.raises(ValueError, match="request_id must be new, got 'a'"):
        engine.add_request(make_request("a", prompt(6)))
    engine.abort("a")
    engine.add_request(make_request("b", prompt(40)))  # rejected
    for name in ("a", "b"):
        with pytest.raises(ValueError, match=f"request_id must be new, got '{name}'"):
            engine.add_request(make_request(name, prompt(5)))
    assert sorted(run(engine)) == ["a", "b"]
    assert len(run(engine, [make_request("a", prompt(5))])["a"].token_ids) == 8


# --- aborts


@pytest.mark.parametrize(
    ("num_steps", "victim", "num_tokens"),
    [
        (0, 0, 0),  # waiting
        (0, 2, 0),
        (2, 0, 0),  # half its prompt is computed, siblings follow it
        (2, 1, 0),  # following
        (5, 0, 1),  # running, its prompt shared
        (7, 2, 3),
    ],
)
def test_an_aborted_request_is_answered_with_what_it_has_and_changes_no_bit_of_the_others(
    llama, num_steps, victim, num_tokens
):
    limits = {"max_requests": 8, "max_tokens_per_step": 8}
    group = make_group(0, prompt(40), size=3)
    undisturbed = run(make_engine(llama, **limits), group)
    engine = make_engine(llama, **limits)
    for request in group:
        engine.add_request(request)
    for _ in range(num_steps):
        assert engine.step() == []
    name = group[victim].request_id
    engine.abort(name)
    engine.abort(name)  # is finished by now
    answers = run(engine)
    aborted = answers.pop(name)
    assert aborted.finish_reason is FinishReason.ABORTED
    assert len(aborted.token_ids) == num_tokens
    whole = undisturbed.pop(name)
    assert aborted.token_ids == whole.token_ids[:num_tokens]
    assert aborted.logprobs == whole.logprobs[:num_tokens]
    assert answers == undisturbed


def test_aborting_an_unknown_request_changes_nothing(llama):
    engine = make_engine(llama)
    engine.abort("nobody")
    assert not engine.has_unfinished
    run(engine, [make_request("a", prompt(5))])
    engine.abort("a")
    assert not engine.has_unfinished


# --- nothing is left behind


def test_hundreds_of_calls_leave_all_blocks_free_and_no_state_behind(llama):
    engine = make_engine(llama, num_blocks=12, max_requests=4, max_tokens_per_step=16)
    params = SamplingParams(n=2, max_tokens=2)

    def call(i: int) -> None:
        engine.generate([prompt(5 + i % 30, start=i), prompt(2, start=i), prompt(600)], params)

    def num_objects() -> int:
        gc.collect()
        return len(gc.get_objects())

    for i in range(50):
        call(i)
    before = num_objects()
    for i in range(50, 200):
        call(i)
    # cached prefixes come and go; an object kept by each of the 900 requests would show
    assert num_objects() - before < 150
    engine.check_integrity()
    scheduler, blocks = engine._scheduler, engine.blocks
    assert blocks.num_available == blocks.num_blocks == 12
    assert not engine._states
    assert not engine._answered
    assert not scheduler._leaders
    assert not scheduler._running
    assert not scheduler._waiting
    assert len(blocks._cached) == len(blocks._key_of) <= 12


def test_a_block_that_leaks_is_found_when_the_engine_is_idle(llama):
    engine = make_engine(llama)
    engine.blocks.grow([], num_computed=0, num_tokens=1)
    with pytest.raises(RuntimeError, match="1 blocks have wrong reference counts"):
        engine.generate([prompt(5)], GREEDY)
