import random

import pytest

from rollout.engine.block_manager import BlockManager
from tests.rollout.engine.paged_memory import PagedMemory

A, B, C, D, X = ((10 * i, 10 * i + 1, 10 * i + 2, 10 * i + 3) for i in range(1, 6))
"""Contents of a block of four tokens."""


def make(num_blocks: int = 8, *, block_size: int = 4, prefix_cache: bool = True) -> BlockManager:
    return BlockManager(num_blocks=num_blocks, block_size=block_size, prefix_cache=prefix_cache)


def compute(
    blocks: BlockManager, tokens: tuple[int, ...], *, version: int = 0, remember: bool = True
) -> list[int]:
    """A table whose tokens are computed from the start, whatever is cached."""
    table: list[int] = []
    blocks.grow(table, num_computed=0, num_tokens=len(tokens))
    if remember:
        blocks.remember(table, tokens, len(tokens), policy_version=version)
    return table


def num_hits(blocks: BlockManager, tokens: tuple[int, ...], *, version: int = 0) -> int:
    """Blocks of the cached prefix. Changes which were used last."""
    table = blocks.match_prefix(tokens, policy_version=version)
    count = len(table)
    blocks.release(table)
    return count


# --- the life of a block


def test_a_request_holds_just_the_blocks_that_its_tokens_need():
    blocks, table = make(num_blocks=4), []
    for num_computed, num_tokens, held in [
        (0, 1, 1),
        (1, 4, 1),
        (4, 5, 2),
        (5, 12, 3),
        (12, 12, 3),
    ]:
        missing = blocks.num_missing(table, num_computed=num_computed, num_tokens=num_tokens)
        assert missing == held - len(table)
        assert blocks.grow(table, num_computed=num_computed, num_tokens=num_tokens) is None
        assert len(table) == len(set(table)) == held
        assert blocks.num_available == 4 - held
        blocks.check_integrity([table])
    blocks.release(table)
    assert (table, blocks.num_available) == ([], 4)
    blocks.check_integrity([])


def test_two_requests_never_hold_the_same_block():
    blocks = make(num_blocks=4)
    first, second = compute(blocks, A + B, remember=False), compute(blocks, C + D, remember=False)
    assert sorted(first + second) == [0, 1, 2, 3]


def test_growing_past_the_pool_says_that_all_blocks_are_in_use():
    blocks = make(num_blocks=2)
    table = compute(blocks, A + B, remember=False)
    assert blocks.num_missing(table, num_computed=8, num_tokens=9) == 1
    with pytest.raises(RuntimeError, match="no KV block is free: all 2 are in use"):
        blocks.grow(table, num_computed=8, num_tokens=9)


# --- forks and copy on write


def test_a_fork_costs_nothing_and_its_blocks_live_until_the_last_owner_lets_go():
    blocks = make(num_blocks=4)
    first = compute(blocks, A + B, remember=False)
    second = blocks.fork(first)
    assert (second, blocks.num_available) == (first, 2)
    assert second is not first
    blocks.release(first)
    assert blocks.num_available == 2
    blocks.check_integrity([second])
    blocks.release(second)
    assert blocks.num_available == 4
    blocks.check_integrity([])


def test_who_writes_into_a_shared_block_gets_a_copy_and_the_last_owner_writes_in_place():
    blocks = make()
    first = compute(blocks, (*A, 1, 2), remember=False)
    head, shared = first
    tables = [first, blocks.fork(first), blocks.fork(first)]
    copies = []
    for table, missing in zip(tables, (1, 1, 0), strict=True):
        assert blocks.num_missing(table, num_computed=6, num_tokens=7) == missing
        copies.append(blocks.grow(table, num_computed=6, num_tokens=7))
        blocks.check_integrity(tables)
    assert copies == [(shared, tables[0][1]), (shared, tables[1][1]), None]
    assert [table[0] for table in tables] == [head] * 3
    assert tables[2][1] == shared
    assert len({table[1] for table in tables}) == 3


def test_a_shared_block_that_is_full_is_never_copied():
    blocks = make()
    first = compute(blocks, A + B, remember=False)
    second = blocks.fork(first)
    for table in (first, second):
        assert blocks.num_missing(table, num_computed=8, num_tokens=9) == 1
        assert blocks.grow(table, num_computed=8, num_tokens=9) is None
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    blocks.check_integrity([first, second])


def test_a_copy_and_new_blocks_are_counted_together():
    blocks = make(num_blocks=5)
    first = compute(blocks, (*A, 1), remember=False)
    second = blocks.fork(first)
    assert blocks.num_missing(second, num_computed=5, num_tokens=16) == 3
    assert blocks.grow(second, num_computed=5, num_tokens=16) == (first[1], second[1])
    assert blocks.num_available == 0
    blocks.check_integrity([first, second])


# --- prefixes


@pytest.mark.parametrize(
    ("tokens", "hits"),
    [
        (A + B + C + D, 2),
        ((*A, *B, 7), 2),
        (A + B, 1),  # one token must be left to compute, or there is nothing to draw from
        ((*A, 7), 1),
        (A, 0),
        (A[:3], 0),
        ((*A, *B[:3], 99, 7), 1),
        ((99, *A[1:], *B, 7), 0),
        ((*B, 7), 0),  # the same tokens at another place
        ((*X, *B, 7), 0),  # the same tokens after others
    ],
)
def test_a_prefix_is_found_up_to_the_first_block_that_differs(tokens, hits):
    blocks = make()
    table = compute(blocks, (*A, *B, 1, 2))
    assert blocks.match_prefix(tokens, policy_version=0) == table[:hits]


def test_only_what_is_computed_is_remembered():
    blocks = make()
    table: list[int] = []
    blocks.grow(table, num_computed=0, num_tokens=12)
    blocks.remember(table, A + B + C, 7, policy_version=0)
    assert num_hits(blocks, (*A, *B, *C, 7)) == 1
    blocks.remember(table, A + B + C, 12, policy_version=0)
    assert num_hits(blocks, (*A, *B, *C, 7)) == 3


def test_a_prefix_outlives_its_owner_and_can_be_owned_by_many():
    blocks = make(num_blocks=4)
    table = compute(blocks, A + B)
    ids = list(table)
    blocks.release(table)
    assert blocks.num_available == 4
    owners = [blocks.match_prefix((*A, *B, 7), policy_version=0) for _ in range(3)]
    assert owners == [ids] * 3
    assert blocks.num_available == 2
    blocks.check_integrity(owners)
    for owner in owners:
        blocks.release(owner)
    assert blocks.num_available == 4
    blocks.check_integrity([])


def test_a_prefix_hit_never_crosses_versions():
    blocks = make()
    old = compute(blocks, A + B, version=0)
    assert num_hits(blocks, (*A, *B, 7), version=1) == 0
    new = compute(blocks, A + B, version=1)
    for version, table in ((0, old), (1, new)):
        match = blocks.match_prefix((*A, *B, 7), policy_version=version)
        assert match == table
        blocks.release(match)
    assert num_hits(blocks, (*A, *B, 7), version=2) == 0
    blocks.check_integrity([old, new])


def test_a_block_remembered_under_one_version_is_not_renamed_to_the_next():
    blocks = make()
    table = compute(blocks, A + B, version=0)
    blocks.remember(table, A + B, 8, policy_version=1)
    assert num_hits(blocks, (*A, *B, 7), version=1) == 0
    assert num_hits(blocks, (*A, *B, 7), version=0) == 2


def test_tokens_of_equal_hash_are_not_equal():
    assert hash((0, 0, (-1, 5))) == hash((0, 0, (-2, 5)))
    wrap = 2**61 - 1  # Python hashes an integer modulo this
    blocks = make(block_size=2)
    compute(blocks, (-1, 5))
    assert num_hits(blocks, (-2, 5, 7)) == 0
    assert num_hits(blocks, (-1, 5 + wrap, 7)) == 0
    assert num_hits(blocks, (-1, 5, 7)) == 1


def test_a_block_used_for_other_tokens_does_not_inherit_its_children():
    blocks = make(num_blocks=3)
    first = compute(blocks, A)
    (root,) = first
    second = compute(
        blocks, A + B
    )  # its copy of A stays unknown; its B is known as what follows `root`
    blocks.release(first)
    third = compute(blocks, X)  # evicts A
    assert third == [root]
    assert num_hits(blocks, (*X, *B, 7)) == 1
    assert num_hits(blocks, (*A, *B, 7)) == 0
    blocks.check_integrity([second, third])


def test_the_same_prompt_computed_twice_is_kept_once():
    blocks = make(num_blocks=4)
    first, second = compute(blocks, A + B), compute(blocks, A + B)
    ids = list(first)
    blocks.release(second)
    blocks.release(first)
    assert blocks.match_prefix((*A, *B, 7), policy_version=0) == ids
    assert blocks.num_available == 2


def test_without_a_prefix_cache_nothing_is_found():
    blocks = make(prefix_cache=False)
    table = compute(blocks, A + B)
    assert num_hits(blocks, (*A, *B, 7)) == 0
    blocks.release(table)
    assert num_hits(blocks, (*A, *B, 7)) == 0
    assert blocks.num_available == 8
    blocks.check_integrity([])


# --- eviction


def test_free_blocks_are_used_before_a_prefix_is_forgotten():
    blocks = make(num_blocks=4)
    blocks.release(compute(blocks, A + B))
    table: list[int] = []
    blocks.grow(table, num_computed=0, num_tokens=8)
    assert num_hits(blocks, (*A, *B, 7)) == 2
    blocks.grow(table, num_computed=8, num_tokens=9)
    assert num_hits(blocks, (*A, *B, 7)) == 1


def test_the_tail_of_a_prefix_goes_before_its_head():
    blocks = make(num_blocks=3)
    blocks.release(compute(blocks, A + B + C))
    table: list[int] = []
    for num_tokens, hits in ((1, 2), (5, 1), (9, 0)):
        blocks.grow(table, num_computed=0, num_tokens=num_tokens)
        assert num_hits(blocks, (*A, *B, *C, 7)) == hits
        blocks.check_integrity([table])


@pytest.mark.parametrize(("used", "unused"), [(A, C), (C, A)])
def test_the_prefix_unused_for_longest_goes_first(used, unused):
    blocks = make(num_blocks=4)
    blocks.release(compute(blocks, A + B))
    blocks.release(compute(blocks, C + D))
    assert num_hits(blocks, (*used, 7)) == 1
    compute(blocks, X + X + X, remember=False)
    assert num_hits(blocks, (*used, 7)) == 1
    assert num_hits(blocks, (*unused, 7)) == 0


def test_a_prefix_in_use_is_not_evicted():
    blocks = make(num_blocks=3)
    blocks.release(compute(blocks, A + B))
    table = blocks.match_prefix((*A, *B, 7), policy_version=0)
    blocks.grow(table, num_computed=8, num_tokens=12)
    with pytest.raises(RuntimeError, match="no KV block is free"):
        blocks.grow(table, num_computed=12, num_tokens=13)
    assert num_hits(blocks, (*A, *B, 7)) == 2


# --- the recount


def test_the_recount_finds_a_leaked_block():
    blocks = make()
    compute(blocks, A + B)
    with pytest.raises(
        RuntimeError, match="2 blocks have wrong reference counts: block 0 counts 1"
    ):
        blocks.check_integrity([])


def test_the_recount_finds_a_second_owner_who_was_never_counted():
    blocks = make()
    table = compute(blocks, A)
    with pytest.raises(RuntimeError, match="block 0 counts 1, tables hold it 2 times"):
        blocks.check_integrity([table, list(table)])


def test_the_recount_finds_a_block_that_is_free_and_in_use():
    blocks = make()
    table = compute(blocks, A)
    blocks._free.append(table[0])
    with pytest.raises(RuntimeError, match="7 blocks are unused, but 8 are free"):
        blocks.check_integrity([table])


def test_the_recount_finds_a_block_that_is_free_twice():
    blocks = make()
    blocks._free.append(3)
    with pytest.raises(RuntimeError, match="8 blocks are unused, but 9 are free"):
        blocks.check_integrity([])


def test_the_recount_finds_a_block_that_nobody_has():
    blocks = make()
    blocks.release(compute(blocks, A))
    blocks._evictable.clear()
    with pytest.raises(RuntimeError, match="8 blocks are unused, but 7 are free and 0 evictable"):
        blocks.check_integrity([])


def test_the_recount_finds_a_prefix_that_points_at_another_block():
    blocks = make()
    blocks.release(compute(blocks, A))
    (key,) = blocks._cached
    blocks._cached[key] = (5, 1)
    with pytest.raises(RuntimeError, match="prefix cache"):
        blocks.check_integrity([])


def test_the_recount_finds_a_prefix_known_on_one_side_only():
    for forget in ("_cached", "_key_of"):
        blocks = make()
        blocks.release(compute(blocks, A))
        getattr(blocks, forget).clear()
        with pytest.raises(RuntimeError, match="prefix cache"):
            blocks.check_integrity([])


def test_the_recount_finds_a_prefix_whose_block_is_free_to_be_overwritten():
    blocks = make()
    blocks.release(compute(blocks, A))
    block, _ = blocks._evictable.popitem()
    blocks._free.append(block)
    with pytest.raises(RuntimeError, match="1 blocks are free though cached"):
        blocks.check_integrity([])


def test_prefixes_of_older_policies_make_room_before_memory_that_was_never_used():
    blocks = make(num_blocks=8)
    old, running = compute(blocks, A + B, version=0), compute(blocks, C, version=0)
    kept = compute(blocks, D, version=1)
    used = {*old, *kept}
    blocks.release(old)
    blocks.release(kept)
    blocks.forget_older(1)
    assert num_hits(blocks, (*A, *B, 7), version=0) == 0
    assert num_hits(blocks, (*D, 7), version=1) == 1
    assert num_hits(blocks, (*C, 7), version=0) == 1, "a request has it"
    blocks.check_integrity([running])
    assert set(compute(blocks, X + A, version=1)) < used


# --- all of it, at random


class Walk:
    """Requests that grow, fork, end and find prefixes at random, over a memory that shows any mix-up."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.block_size = self.random.choice([1, 2, 3, 4])
        num_blocks = self.random.randint(6, 16)
        self.blocks = make(num_blocks, block_size=self.block_size, prefix_cache=seed % 5 != 0)
        self.memory = PagedMemory(num_blocks, self.block_size)
        self.version = 0
        self.live: list[tuple[list[int], list[int], int]] = []  # table, tokens, num_computed
        self.num_hits = self.num_copies = self.num_evictions = 0

    def step(self) -> None:
        known = len(self.blocks._cached)
        actions = [self.start, self.fork, self.remember, self.end, *[self.grow] * 6]
        self.random.choice(actions)()
        if self.random.random() < 0.01:
            self.change_version()
        self.num_evictions += len(self.blocks._cached) < known
        self.blocks.check_integrity([table for table, _, _ in self.live])
        for table, tokens, num_computed in self.live:
            self.memory.assert_holds(table, tokens, num_computed, self.version)

    def start(self) -> None:
        # two letters and few lengths, so that prefixes recur
        tokens = [self.random.randint(0, 1) for _ in range(self.random.randint(2, 9))]
        table = self.blocks.match_prefix(tokens, policy_version=self.version)
        num_computed = len(table) * self.block_size
        assert num_computed < len(tokens)
        self.num_hits += bool(table)
        self.live.append((table, tokens, num_computed))

    def grow(self) -> None:
        if not self.live:
            return
        table, tokens, num_computed = self.live.pop(self.random.randrange(len(self.live)))
        if num_computed == len(tokens):
            tokens.append(self.random.randint(0, 1))
        end = self.random.randint(num_computed + 1, len(tokens))
        missing = self.blocks.num_missing(table, num_computed=num_computed, num_tokens=end)
        available = self.blocks.num_available
        if missing <= available:
            copy = self.blocks.grow(table, num_computed=num_computed, num_tokens=end)
            assert self.blocks.num_available == available - missing
            self.num_copies += copy is not None
            self.memory.copy([copy] if copy else [])
            self.memory.write(table, tokens, num_computed, end, self.version)
            num_computed = end
        self.live.append((table, tokens, num_computed))

    def fork(self) -> None:
        if self.live:
            table, tokens, num_computed = self.random.choice(self.live)
            self.live.append((self.blocks.fork(table), list(tokens), num_computed))

    def remember(self) -> None:
        if self.live:
            table, tokens, num_computed = self.random.choice(self.live)
            self.blocks.remember(table, tokens, num_computed, policy_version=self.version)

    def end(self) -> None:
        if self.live:
            table, tokens, num_computed = self.live.pop(self.random.randrange(len(self.live)))
            if self.random.random() < 0.7:
                self.blocks.remember(table, tokens, num_computed, policy_version=self.version)
            self.blocks.release(table)

    def change_version(self) -> None:
        while self.live:
            self.end()
        self.version += 1
        if self.random.random() < 0.5:
            self.blocks.forget_older(self.version)


def test_a_random_walk_never_mixes_blocks_up_and_ends_with_all_of_them_free():
    walks = [Walk(seed) for seed in range(30)]
    for walk in walks:
        for _ in range(400):
            walk.step()
        walk.change_version()
        assert walk.blocks.num_available == walk.blocks.num_blocks
        walk.blocks.check_integrity([])
    for count in ("num_hits", "num_copies", "num_evictions"):
        assert sum(getattr(walk, count) for walk in walks) > 100, (
            f"{count}: the walk saw too little"
        )
    assert all(walk.num_hits == 0 for walk in walks[::5]), "no prefix cache there"
