"""What a draft may take: blocks and tokens that nobody else needs."""

import pytest

from rollout.core import Chunk, Request, RequestState, SampleKey, SamplingParams
from rollout.engine.block_manager import BlockManager
from rollout.engine.scheduler import Scheduler


def scheduler_of(*prompt_lengths, num_blocks=64, max_tokens_per_step=64, prefix_cache=False):
    """A scheduler whose requests have computed their prompts and drawn a token; block size 4."""
    blocks = BlockManager(num_blocks=num_blocks, block_size=4, prefix_cache=prefix_cache)
    scheduler = Scheduler(blocks, max_requests=8, max_tokens_per_step=max_tokens_per_step)
    states = []
    for i, length in enumerate(prompt_lengths):
        request = Request(
            request_id=str(i),
            token_ids=tuple(range(100 * i, 100 * i + length)),
            params=SamplingParams(),
            key=SampleKey(0, i, 0),
        )
        states.append(RequestState.of(request))
        scheduler.add(states[-1])
    batch = scheduler.schedule()
    assert batch is not None
    for chunk in batch.chunks:
        scheduler.computed(chunk)
        chunk.state.token_ids.append(7)
    return scheduler, states


def drafted(scheduler, drafts):
    """Draft lengths by request of the next step."""
    batch = scheduler.schedule()
    batch = scheduler.with_drafts(batch, drafts)
    scheduler.check_integrity()
    return {chunk.state.request.request_id: len(chunk.draft) for chunk in batch.chunks}, batch


def test_a_draft_gets_the_blocks_it_writes_and_gives_back_those_of_wrong_tokens():
    scheduler, (state,) = scheduler_of(4)
    lengths, batch = drafted(scheduler, {state: [1] * 9})
    assert lengths == {"0": 9}
    assert len(state.block_table) == 4, "14 tokens"
    (chunk,) = batch.chunks
    scheduler.computed(chunk)
    scheduler.accept(state, 2)
    assert (state.num_computed, len(state.block_table)) == (7, 2)
    scheduler.check_integrity()


def test_a_draft_leaves_a_block_for_each_running_request():
    # two requests of two blocks each, the second just begun; two blocks free are the reserve, one more is not
    for num_blocks, expected in ((6, 0), (7, 4)):
        scheduler, (first, _) = scheduler_of(4, 4, num_blocks=num_blocks)
        lengths, _ = drafted(scheduler, {first: [1] * 4})
        assert lengths == {"0": expected, "1": 0}
        assert scheduler.num_preemptions == 0


def test_a_draft_that_fits_the_last_block_needs_none_to_be_free():
    scheduler, (first, _) = scheduler_of(4, 4, num_blocks=4)
    assert drafted(scheduler, {first: [1] * 3})[0] == {"0": 3, "1": 0}


@pytest.mark.parametrize(("budget", "expected"), [(8, {"0": 5, "1": 1}), (4, {"0": 2, "1": 0})])
def test_drafts_share_what_is_left_of_the_token_budget_first_come_first_served(budget, expected):
    scheduler, (first, second) = scheduler_of(1, 1, max_tokens_per_step=budget)
    assert drafted(scheduler, {first: [1] * 5, second: [1] * 5})[0] == expected


def test_a_chunk_counts_its_draft_as_rows_but_not_as_tokens():
    state = RequestState.of(
        Request(request_id="a", token_ids=(1, 2), params=SamplingParams(), key=SampleKey(0, 0, 0))
    )
    chunk = Chunk(state, 2, draft=(5, 6, 7))
    assert (chunk.num_tokens, chunk.num_rows, chunk.samples) == (2, 5, True)
