import random
import zlib
from collections import Counter
from collections.abc import Sequence

import pytest

from rollout.core import (
    Request,
    RequestState,
    SampleKey,
    SamplingParams,
    Status,
    StepBatch,
)
from rollout.engine.block_manager import BlockManager
from rollout.engine.scheduler import Scheduler
from tests.rollout.engine.paged_memory import PagedMemory


class Loop:
    """The engine's loop without a model: checks every batch, writes a simulated cache, draws made-up tokens."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_requests: int = 8,
        max_tokens_per_step: int = 16,
        prefix_cache: bool = False,
    ) -> None:
        self.max_requests = max_requests
        self.max_tokens_per_step = max_tokens_per_step
        self.blocks = BlockManager(
            num_blocks=num_blocks, block_size=block_size, prefix_cache=prefix_cache
        )
        self.memory = PagedMemory(num_blocks, block_size)
        self.scheduler = Scheduler(
            self.blocks, max_requests=max_requests, max_tokens_per_step=max_tokens_per_step
        )
        self.states: dict[str, RequestState] = {}
        self.finished: list[str] = []
        self.num_copies = 0

    def add(
        self,
        request_id: str,
        prompt: Sequence[int],
        *,
        group_id: int | None = None,
        seed: int = 0,
        max_tokens: int = 50,
    ) -> RequestState:
        """Without a `group_id` the request is a group of its own."""
        number = len(self.states)
        state = RequestState.of(
            Request(
                request_id=request_id,
                token_ids=tuple(prompt),
                params=SamplingParams(max_tokens=max_tokens),
                key=SampleKey(seed, 1000 + number if group_id is None else group_id, number),
            )
        )
        self.states[request_id] = state
        self.scheduler.add(state)
        return state

    def step(self) -> dict[str, int]:
        """Tokens computed by request, in the order of the batch."""
        batch = self.scheduler.schedule()
        if batch is None:
            return {}
        self._check(batch)
        plan = {chunk.state.request.request_id: chunk.num_tokens for chunk in batch.chunks}
        self._compute(batch)
        drawing = [state for chunk in batch.chunks for state in self.scheduler.computed(chunk)]
        for state in drawing:
            token = zlib.crc32(f"{state.request.request_id}@{len(state.token_ids)}".encode()) % 3
            state.token_ids.append(token)
            if state.num_output == state.request.params.max_tokens:
                self.end(state)
        self.scheduler.check_integrity()
        return plan

    def end(self, state: RequestState) -> None:
        self.scheduler.finish(state)
        assert state.status is Status.FINISHED
        assert state.block_table == []
        self.finished.append(state.request.request_id)

    def run(self, max_steps: int = 2000) -> None:
        for _ in range(max_steps):
            if not self.step():
                break
        assert len(self.finished) == len(self.states), "not everything finished"
        self.assert_idle()

    def assert_idle(self) -> None:
        self.scheduler.check_integrity()
        assert (self.scheduler.num_waiting, self.scheduler.num_running) == (0, 0)
        assert self.blocks.num_available == self.blocks.num_blocks
        assert self.scheduler._leaders == {}

    def _check(self, batch: StepBatch) -> None:
        states = [chunk.state for chunk in batch.chunks]
        assert len(set(map(id, states))) == len(states), "scheduled twice"
        assert sum(chunk.num_tokens for chunk in batch.chunks) <= self.max_tokens_per_step
        assert self.scheduler.num_running <= self.max_requests
        owners = Counter(b for state in self.scheduler.states() for b in state.block_table)
        for chunk in batch.chunks:
            state, end = chunk.state, chunk.state.num_computed + chunk.num_tokens
            assert state.status is Status.RUNNING
            assert state.num_computed < end <= len(state.token_ids)
            assert len(state.block_table) == self.blocks.blocks_for(end)
            first_written = state.num_computed // self.blocks.block_size
            assert all(owners[b] == 1 for b in state.block_table[first_written:]), "shared write"

    def _compute(self, batch: StepBatch) -> None:
        self.num_copies += len(batch.block_copies)
        self.memory.copy(batch.block_copies)
        spans = [(c.state, c.state.num_computed, c.num_tokens) for c in batch.chunks]
        for state, start, count in spans:
            self.memory.write(state.block_table, state.token_ids, start, start + count)
        for state, start, count in spans:  # as attention reads: after all of the batch is written
            self.memory.assert_holds(state.block_table, state.token_ids, start + count)


def test_an_idle_scheduler_has_nothing_to_do():
    loop = Loop()
    assert loop.scheduler.schedule() is None
    loop.assert_idle()


# --- the token budget


def test_a_long_prompt_is_prefilled_in_what_decoding_leaves_of_the_budget():
    loop = Loop(max_tokens_per_step=8)
    loop.add("short", range(2))
    loop.add("long", range(30))
    assert loop.step() == {"short": 2, "long": 6}
    for _ in range(3):
        assert loop.step() == {"short": 1, "long": 7}
    assert loop.step() == {"short": 1, "long": 3}
    assert loop.step() == {"short": 1, "long": 1}


def test_decoding_goes_before_a_prompt_that_began_earlier():
    loop = Loop(max_tokens_per_step=8)
    for name in ("a", "b", "c"):
        loop.add(name, range(4), group_id=1)
    loop.add("long", range(30))
    assert loop.step() == {"a": 4, "long": 4}  # b and c join the running ones behind `long`
    assert list(loop.step().items()) == [("a", 1), ("b", 1), ("c", 1), ("long", 5)]


def test_prompts_are_taken_in_their_order_of_arrival_until_the_budget_is_spent():
    loop = Loop(max_tokens_per_step=16)
    for name in ("a", "b", "c"):
        loop.add(name, range(10))
    assert list(loop.step().items()) == [("a", 10), ("b", 6)]
    assert list(loop.step().items()) == [("a", 1), ("b", 4), ("c", 10)]


def test_no_more_requests_run_than_allowed_followers_included():
    loop = Loop(max_requests=3)
    for name in ("a", "b", "c", "d"):
        loop.add(name, range(4), group_id=1, max_tokens=2)
    loop.add("e", range(4), max_tokens=2)
    assert loop.step() == {"a": 4}
    assert (loop.scheduler.num_running, loop.scheduler.num_waiting) == (3, 2)
    assert loop.step() == {"a": 1, "b": 1, "c": 1}
    assert loop.finished == ["a", "b", "c"]
    assert loop.step() == {"d": 4, "e": 4}
    loop.run()


# --- siblings


def test_a_group_computes_its_prompt_once_and_draws_together():
    loop = Loop(max_tokens_per_step=4)
    group = [loop.add(name, range(10), group_id=1) for name in ("a", "b", "c", "d")]
    assert [loop.step() for _ in range(2)] == [{"a": 4}] * 2
    assert [s.status for s in group] == [Status.RUNNING] + [Status.FOLLOWING] * 3
    assert [s.num_output for s in group] == [0] * 4
    assert loop.step() == {"a": 2}
    assert [s.status for s in group] == [Status.RUNNING] * 4
    assert [s.num_output for s in group] == [1] * 4
    assert loop.blocks.num_available == 64 - 3
    assert loop.step() == {"a": 1, "b": 1, "c": 1, "d": 1}
    assert loop.num_copies == 3, "the last owner of the half-filled block writes in place"
    assert loop.blocks.num_available == 64 - 2 - 4


def test_a_prompt_that_spends_the_budget_to_the_last_token_is_computed_once_too():
    loop = Loop(max_tokens_per_step=4)
    for name in ("a", "b", "c"):
        loop.add(name, range(8), group_id=1)
    loop.add("z", range(4))
    assert [loop.step() for _ in range(2)] == [{"a": 4}] * 2
    assert loop.step() == {"a": 1, "b": 1, "c": 1, "z": 1}


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": [0, 1, 2, 3, 9], "group_id": 1},
        {"prompt": range(4), "group_id": 1},
        {"prompt": range(5), "group_id": 2},
        {"prompt": range(5), "group_id": 1, "seed": 1},
    ],
    ids=["another prompt", "a prefix", "another group", "another seed"],
)
def test_only_siblings_of_the_same_prompt_follow(other):
    loop = Loop()
    loop.add("a", range(5), group_id=1)
    loop.add("b", **other)
    assert loop.step() == {"a": 5, "b": len(other["prompt"])}
    loop.add("late", range(5), group_id=1)  # the prompt is computed, but nobody leads any more
    assert loop.step() == {"a": 1, "b": 1, "late": 5}


def test_a_second_prompt_of_a_group_is_led_by_nobody_while_the_first_is_computed():
    loop = Loop(max_tokens_per_step=8)
    loop.add("a", range(10), group_id=1, max_tokens=2)
    loop.add("other", range(50, 55), group_id=1, max_tokens=2)
    loop.add("b", range(10), group_id=1, max_tokens=2)
    assert loop.step() == {"a": 8}
    assert loop.step() == {"a": 2, "other": 5}
    loop.run()


def test_a_sibling_that_comes_while_the_prompt_is_computed_follows_too():
    loop = Loop(max_tokens_per_step=8)
    loop.add("a", range(12), group_id=1)
    assert loop.step() == {"a": 8}
    late = loop.add("b", range(12), group_id=1)
    assert loop.step() == {"a": 4}
    assert late.num_output == 1


def test_when_the_leader_is_aborted_its_followers_go_back_in_order_and_the_first_leads():
    loop = Loop(max_tokens_per_step=4, max_requests=4)
    leader, *followers = [loop.add(name, range(10), group_id=1) for name in ("a", "b", "c")]
    loop.add("z", range(100, 104))
    assert loop.step() == {"a": 4}
    loop.end(leader)
    assert [s.status for s in followers] == [Status.WAITING] * 2
    loop.scheduler.check_integrity()
    assert loop.step() == {"b": 4}
    assert followers[1].status is Status.FOLLOWING
    assert [loop.step() for _ in range(2)] == [{"b": 4}, {"b": 2, "z": 2}]
    assert [s.num_output for s in followers] == [1, 1]


def test_a_prompt_begun_by_an_aborted_leader_is_continued_from_the_prefix_cache():
    loop = Loop(max_tokens_per_step=9, prefix_cache=True)
    leader, follower = [loop.add(name, range(20), group_id=1) for name in ("a", "b")]
    assert loop.step() == {"a": 9}
    loop.end(leader)
    assert loop.step() == {"b": 9}
    assert loop.scheduler.num_prefix_hit_tokens == 8
    assert follower.num_computed == 17
    assert loop.step() == {"b": 3}


def test_an_aborted_follower_leaves_the_others_alone():
    loop = Loop(max_tokens_per_step=4)
    a, b, c = [loop.add(name, range(6), group_id=1) for name in ("a", "b", "c")]
    assert loop.step() == {"a": 4}
    loop.end(b)
    assert loop.step() == {"a": 2}
    assert [s.num_output for s in (a, b, c)] == [1, 0, 1]
    assert loop.step() == {"a": 1, "c": 1}


def test_an_aborted_request_leaves_the_queue():
    loop = Loop(max_requests=1)
    loop.add("a", range(4), max_tokens=1)
    b = loop.add("b", range(4), max_tokens=1)
    loop.add("c", range(4), max_tokens=1)
    loop.end(b)
    assert [loop.step() for _ in range(3)] == [{"a": 4}, {"c": 4}, {}]


# --- when blocks run out


def test_the_youngest_is_preempted_though_it_does_not_ask_for_a_block_itself():
    loop = Loop(num_blocks=5)
    loop.add("a", range(3))
    b, c = loop.add("b", range(4)), loop.add("c", range(4))
    assert loop.step() == {"a": 3, "b": 4, "c": 4}
    assert loop.step() == {"a": 1, "b": 1, "c": 1}
    assert loop.blocks.num_available == 0
    assert loop.step() == {"a": 1, "b": 1}
    assert (b.status, c.status) == (Status.RUNNING, Status.WAITING)
    assert (c.num_computed, c.block_table, c.num_output) == (0, [], 2)
    assert loop.scheduler.num_preemptions == 1


def test_who_was_preempted_is_first_in_the_queue_and_computes_its_whole_log_again():
    loop = Loop(num_blocks=5)
    loop.add("a", range(3), max_tokens=6)
    loop.add("b", range(4), max_tokens=6)
    c = loop.add("c", range(4), max_tokens=6)
    for _ in range(2):
        loop.step()
    loop.add("z", range(1), max_tokens=1)
    log = list(c.token_ids)
    plans = [loop.step() for _ in range(5)]
    assert plans[:4] == [{"a": 1, "b": 1}] * 4  # a and b end here
    assert list(plans[4].items()) == [("c", 6), ("z", 1)]
    assert c.token_ids[:-1] == log
    loop.run()
    assert c.num_output == 6


def test_a_preempted_request_finds_its_own_blocks_in_the_prefix_cache():
    loop = Loop(num_blocks=5, prefix_cache=True)
    loop.add("a", range(3), max_tokens=6)
    loop.add("b", range(10, 14), max_tokens=5)  # a third block would evict what c left
    c = loop.add("c", range(20, 24), max_tokens=6)
    for _ in range(3):
        loop.step()
    assert c.status is Status.WAITING
    hits = loop.scheduler.num_prefix_hit_tokens
    loop.run()
    assert loop.scheduler.num_prefix_hit_tokens == hits + 4


def test_when_the_leader_is_preempted_its_followers_wait_behind_it():
    loop = Loop(num_blocks=6, max_tokens_per_step=6)
    loop.add("x", range(3), max_tokens=6)
    loop.add("y", range(2), max_tokens=6)
    group = [loop.add(name, range(20), group_id=1, max_tokens=1) for name in ("a", "b")]
    assert loop.step() == {"x": 3, "y": 2, "a": 1}
    assert [s.status for s in group] == [Status.RUNNING, Status.FOLLOWING]
    while group[0].status is Status.RUNNING:
        loop.step()
        assert group[0].num_output == 0
    assert loop.scheduler.num_preemptions == 1
    assert [s.status for s in group] == [Status.WAITING] * 2
    assert [s.request.request_id for s in loop.scheduler.states()][:2] == ["a", "b"]
    loop.run()
    assert loop.finished[-2:] == ["a", "b"]


def test_a_newcomer_leaves_a_block_for_each_request_that_runs():
    for num_blocks, runs in ((3, False), (4, True)):
        loop = Loop(num_blocks=num_blocks)
        loop.add("a", range(2))
        loop.step()
        loop.add("b", range(8))
        assert loop.step() == ({"a": 1, "b": 8} if runs else {"a": 1})
        loop.scheduler.check_integrity()


def test_a_request_alone_may_take_the_whole_pool():
    loop = Loop(num_blocks=3)
    loop.add("a", range(11), max_tokens=2)
    assert [loop.step(), loop.step()] == [{"a": 11}, {"a": 1}]
    loop.assert_idle()


def test_a_newcomer_that_must_wait_gives_its_prefix_back():
    loop = Loop(num_blocks=5, prefix_cache=True)
    loop.add("a", range(8), max_tokens=1)
    loop.step()
    loop.add("b", range(50, 58))
    loop.step()
    waiting = loop.add("c", range(16))
    assert loop.step() == {"b": 1}
    assert (waiting.block_table, waiting.num_computed) == ([], 0)
    assert loop.scheduler.num_prefix_hit_tokens == 0
    loop.scheduler.check_integrity()


# --- the recount


def test_the_recount_finds_a_running_request_of_another_state():
    loop = Loop()
    state = loop.add("a", range(4))
    loop.step()
    state.status = Status.FINISHED
    with pytest.raises(RuntimeError, match=r"request a runs, but is Status\.FINISHED"):
        loop.scheduler.check_integrity()


def test_the_recount_finds_a_waiting_request_with_blocks():
    loop = Loop()
    state = loop.add("a", range(4))
    loop.blocks.grow(state.block_table, num_computed=0, num_tokens=4)
    with pytest.raises(RuntimeError, match="request a waits, but is"):
        loop.scheduler.check_integrity()


def test_the_recount_finds_blocks_of_a_request_that_is_gone():
    loop = Loop()
    loop.add("a", range(4))
    loop.step()
    loop.scheduler._running.clear()
    with pytest.raises(RuntimeError, match="wrong reference counts"):
        loop.scheduler.check_integrity()


# --- all of it, at random


def test_the_oldest_request_progresses_in_every_step():
    num_preemptions = 0
    for seed in range(40):
        source = random.Random(seed)
        loop = Loop(num_blocks=source.randint(6, 9), max_tokens_per_step=source.choice([8, 16]))
        for i in range(10):
            prompt = range(source.randint(1, 9))
            loop.add(str(i), prompt, max_tokens=source.randint(1, 11))
        while len(loop.finished) < 10:
            running = loop.scheduler._running
            oldest = running[0] if running else loop.scheduler._waiting[0]
            assert oldest.request.request_id in loop.step()
        loop.assert_idle()
        num_preemptions += loop.scheduler.num_preemptions
    assert num_preemptions > 40, "the pools were too large to show anything"


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_any_schedule_ends_with_everything_answered_and_all_blocks_free(prefix_cache):
    totals: Counter[str] = Counter()
    for seed in range(300):
        source = random.Random(seed)
        block_size, max_requests = source.choice([1, 2, 4]), source.randint(1, 6)
        loop = Loop(
            block_size=block_size,
            # 12 + 8 tokens at most, and one block to copy into
            num_blocks=-(-20 // block_size) + 1 + source.randint(0, 3),
            max_requests=max_requests,
            max_tokens_per_step=max_requests + source.randint(0, 3),
            prefix_cache=prefix_cache,
        )
        num_groups = source.randint(4, 8)
        for step in range(2000):
            if num_groups and source.random() < 0.4:
                num_groups -= 1
                prompt = [source.randint(0, 1) for _ in range(source.randint(1, 12))]
                for i in range(source.randint(1, 5)):
                    # some "siblings" are at a later turn, with a prompt of their own
                    own = prompt if source.random() < 0.8 else [*prompt, i][:12]
                    name, limit = f"{num_groups}/{i}", source.randint(1, 8)
                    loop.add(name, own, group_id=num_groups, max_tokens=limit)
            if source.random() < 0.1:
                alive = [s for s in loop.states.values() if s.status is not Status.FINISHED]
                if alive:
                    victim = source.choice(alive)
                    totals[f"aborted while {victim.status.value}"] += 1
                    loop.end(victim)
            plan = loop.step()
            unfinished = loop.scheduler.num_waiting + loop.scheduler.num_running
            assert unfinished + len(loop.finished) == len(loop.states)
            assert plan or not unfinished, f"seed {seed}, step {step}: nothing was computed"
            if not (unfinished or num_groups):
                break
        assert sorted(loop.finished) == sorted(loop.states)
        loop.assert_idle()
        totals["preemptions"] += loop.scheduler.num_preemptions
        totals["copies"] += loop.num_copies
        totals["prefix hits"] += loop.scheduler.num_prefix_hit_tokens
    for event in ("preemptions", "copies"):
        assert totals[event] > 50, totals
    for status in ("waiting", "following", "running"):
        assert totals[f"aborted while {status}"] > 5, totals
    assert (totals["prefix hits"] > 50) == prefix_cache, totals
