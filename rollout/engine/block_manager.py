"""Owners of KV blocks. Plain Python.

    FREE -> USED (by one request, or shared) -> FREE                 blocks that are not full
    FREE -> USED -> CACHED (full, kept for a later prefix) -> USED | FREE (evicted, oldest first; or of an older policy)

A block is shared by counting references: siblings share their prompt's blocks, and a request that writes into a
shared one first gets a copy. The key of a cached block is (policy version, the block before it, its tokens),
compared by value, so neither a stale hit nor a hash collision can be expressed.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

__all__ = ["BlockManager"]

_PrefixKey = tuple[int, int, tuple[int, ...]]
_ROOT = 0


class BlockManager:
    """Counts references to `num_blocks` blocks of `block_size` tokens."""

    def __init__(self, *, num_blocks: int, block_size: int, prefix_cache: bool) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._prefix_cache = prefix_cache
        self._references = [0] * num_blocks
        self._free = deque(range(num_blocks))
        self._evictable: OrderedDict[int, None] = (
            OrderedDict()
        )  # cached, unreferenced, oldest first
        self._cached: dict[_PrefixKey, tuple[int, int]] = {}  # -> (block, serial)
        self._key_of: dict[int, _PrefixKey] = {}
        self._next_serial = _ROOT + 1

    @property
    def num_available(self) -> int:
        """Blocks that can be allocated now, by eviction if need be."""
        return len(self._free) + len(self._evictable)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def num_missing(self, table: Sequence[int], *, num_computed: int, num_tokens: int) -> int:
        """Blocks to allocate before a request may write up to `num_tokens`, copies of shared ones included."""
        writes_shared = self._shared_index(table, num_computed) is not None
        return self.blocks_for(num_tokens) - len(table) + writes_shared

    def grow(
        self, table: list[int], *, num_computed: int, num_tokens: int
    ) -> tuple[int, int] | None:
        """Make room up to `num_tokens`; the returned (from, to) must be copied before writing.

        Raises:
            RuntimeError: fewer blocks are available than `num_missing` says.
        """
        copy = None
        shared = self._shared_index(table, num_computed)
        if shared is not None:
            source = table[shared]
            table[shared] = self._allocate()
            self._references[source] -= 1
            copy = (source, table[shared])
        while len(table) < self.blocks_for(num_tokens):
            table.append(self._allocate())
        return copy

    def shrink(self, table: list[int], *, num_tokens: int) -> None:
        """Gives back the blocks after those of the first `num_tokens`; no other request may own them."""
        surplus = table[self.blocks_for(num_tokens) :]
        del table[self.blocks_for(num_tokens) :]
        self.release(surplus)

    def fork(self, table: Sequence[int]) -> list[int]:
        """Adds an owner to every block of a table; returns its copy of the table."""
        for block in table:
            self._references[block] += 1
        return list(table)

    def release(self, table: list[int]) -> None:
        """Gives up a table; cached blocks can be found until they are evicted."""
        # from the end, so that eviction takes the tail of a prefix before its head
        for block in reversed(table):
            self._references[block] -= 1
            if self._references[block]:
                continue
            if block in self._key_of:
                self._evictable[block] = None
            else:
                self._free.appendleft(block)  # the next to be used: its memory is warm
        table.clear()

    def match_prefix(self, token_ids: Sequence[int], *, policy_version: int) -> list[int]:
        """Returns the blocks of the longest cached prefix, with the caller as owner; leaves at least one token to compute."""
        table: list[int] = []
        for _, entry in self._walk(token_ids, len(token_ids) - 1, policy_version):
            if entry is None:
                break
            block = entry[0]
            self._evictable.pop(block, None)
            self._references[block] += 1
            table.append(block)
        return table

    def remember(
        self,
        table: Sequence[int],
        token_ids: Sequence[int],
        num_computed: int,
        *,
        policy_version: int,
    ) -> None:
        """Caches the full blocks of the first `num_computed` tokens, so that later requests find them."""
        if not self._prefix_cache:
            return
        keys = self._walk(token_ids, num_computed, policy_version)
        for block, (key, entry) in zip(table, keys, strict=False):
            if entry is None and block not in self._key_of:
                self._cached[key] = (block, self._next_serial)
                self._key_of[block] = key
                self._next_serial += 1
            elif entry is None:
                return  # computed under another version: not to be found under this one

    def forget(self) -> None:
        """Empties the prefix cache; blocks in use stay with their owners."""
        self._free.extendleft(self._evictable)
        self._evictable.clear()
        self._cached.clear()
        self._key_of.clear()

    def forget_older(self, policy_version: int) -> None:
        """Free cached blocks of older versions, which no request can use, so that they are reused first."""
        for block in [b for b in self._evictable if self._key_of[b][0] < policy_version]:
            self._evict(block)
            self._free.appendleft(block)

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Recount all blocks and references from the tables of the living requests.

        Raises:
            RuntimeError: a count differs; names the block and both counts.
        """
        counts = [0] * self.num_blocks
        for table in tables:
            for block in table:
                counts[block] += 1
        wrong = [b for b in range(self.num_blocks) if counts[b] != self._references[b]]
        if wrong:
            b = wrong[0]
            raise RuntimeError(
                f"{len(wrong)} blocks have wrong reference counts: block {b} counts {self._references[b]}, "
                f"tables hold it {counts[b]} times"
            )
        unused = {b for b in range(self.num_blocks) if counts[b] == 0}
        idle = [*self._free, *self._evictable]
        if len(idle) != len(set(idle)) or set(idle) != unused:
            raise RuntimeError(
                f"{len(unused)} blocks are unused, but {len(self._free)} are free and {len(self._evictable)} evictable"
            )
        known = {block: key for key, (block, _) in self._cached.items()}
        if known != self._key_of:
            raise RuntimeError(
                f"the prefix cache points at {len(known)} blocks, and {len(self._key_of)} know their key"
            )
        forgotten = [b for b in self._free if b in known] + [
            b for b in self._evictable if b not in known
        ]
        if forgotten:
            raise RuntimeError(
                f"{len(forgotten)} blocks are free though cached, or evictable though not: "
                f"block {forgotten[0]} among them"
            )

    def _shared_index(self, table: Sequence[int], num_computed: int) -> int | None:
        """Return the index of the partly filled block to be written next, if someone else owns it too."""
        index = num_computed // self.block_size
        if num_computed % self.block_size and self._references[table[index]] > 1:
            return index
        return None

    def _allocate(self) -> int:
        if self._free:
            block = self._free.popleft()
        elif self._evictable:
            block = next(iter(self._evictable))
            self._evict(block)
        else:
            raise RuntimeError(f"no KV block is free: all {self.num_blocks} are in use")
        self._references[block] = 1
        return block

    def _evict(self, block: int) -> None:
        del self._evictable[block]
        del self._cached[self._key_of.pop(block)]

    def _walk(
        self, token_ids: Sequence[int], num_tokens: int, policy_version: int
    ) -> Iterable[tuple[_PrefixKey, tuple[int, int] | None]]:
        """Yields key and cached entry of each full block in turn; the key of a block needs the entry before it."""
        parent = _ROOT
        for start in range(0, num_tokens - self.block_size + 1, self.block_size):
            key = (policy_version, parent, tuple(token_ids[start : start + self.block_size]))
            yield key, self._cached.get(key)
            entry = self._cached.get(key)  # again: the caller may just have added it
            if entry is None:
                return
            parent = entry[1]
