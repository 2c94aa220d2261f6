"""A KV cache in plain Python, whose slots hold the whole history that made them."""

from collections.abc import Iterable, Sequence


class PagedMemory:
    """Each written slot holds (version, tokens up to and including its own), so any mix-up of blocks shows."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._blocks: list[list] = [[None] * block_size for _ in range(num_blocks)]

    def copy(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Copy slots, with all reads before all writes, as the runner does."""
        contents = [(target, list(self._blocks[source])) for source, target in pairs]
        for target, content in contents:
            self._blocks[target] = content

    def write(
        self, table: Sequence[int], token_ids: Sequence[int], start: int, end: int, version: int = 0
    ) -> None:
        for p in range(start, end):
            block = self._blocks[table[p // self._block_size]]
            block[p % self._block_size] = (version, tuple(token_ids[: p + 1]))

    def assert_holds(
        self, table: Sequence[int], token_ids: Sequence[int], num_computed: int, version: int = 0
    ) -> None:
        for p in range(num_computed):
            found = self._blocks[table[p // self._block_size]][p % self._block_size]
            assert found == (version, tuple(token_ids[: p + 1])), f"position {p} of {table}"
