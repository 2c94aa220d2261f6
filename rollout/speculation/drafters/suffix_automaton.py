"""An incremental suffix automaton over several sequences, which counts what followed. No torch.

    state = a set of substrings that end at the same places; `length` of the longest, `link` to the longest suffix that
            ends at more places

Blumer et al., "The smallest automaton recognizing the subwords of a text" (1985); sequences may branch off one another
as in a trie (Mohri et al., 2009). At most two states per token; a token is added in amortised constant time, plus the
suffixes whose counts it raises.
"""

__all__ = ["ROOT", "SuffixAutomaton"]

ROOT = 0


class SuffixAutomaton:
    """States are numbers; `ROOT` is the empty string."""

    def __init__(self) -> None:
        self._next: list[dict[int, int]] = [{}]
        self._counts: list[dict[int, int]] = [{}]  # of each token after the state's strings
        self._link = [-1]
        self._length = [0]

    def __len__(self) -> int:
        return len(self._link)

    def append(self, state: int, token_id: int) -> int:
        """The state after a sequence that ended in `state` has grown by one token."""
        suffix = state
        while suffix >= 0:
            counts = self._counts[suffix]
            counts[token_id] = counts.get(token_id, 0) + 1
            suffix = self._link[suffix]
        there = self._next[state].get(token_id)
        if there is not None:
            is_whole = self._length[there] == self._length[state] + 1
            return there if is_whole else self._split(state, token_id, there)
        new = self._add(self._length[state] + 1, {}, {})
        suffix = state
        while suffix >= 0 and token_id not in self._next[suffix]:
            self._next[suffix][token_id] = new
            suffix = self._link[suffix]
        if suffix < 0:
            self._link[new] = ROOT
            return new
        there = self._next[suffix][token_id]
        is_whole = self._length[there] == self._length[suffix] + 1
        self._link[new] = there if is_whole else self._split(suffix, token_id, there)
        return new

    def longest_repeated(self, state: int) -> int:
        """The state of the longest suffix that something has followed; ROOT if none has."""
        while not self._next[state] and state != ROOT:
            state = self._link[state]
        return state

    def match_length(self, state: int) -> int:
        return self._length[state]

    def most_frequent(self, state: int) -> tuple[int, float]:
        """The token that most often followed, the latest of equals, and its share of all that did and one more.

        One more (Laplace's rule): what followed once, and always so, says less than what did thirty times.
        """
        counts = self._counts[state]
        most, best = 0, -1
        for token_id, count in counts.items():
            if count >= most:
                most, best = count, token_id
        return best, most / (sum(counts.values()) + 1)

    def follow(self, state: int, token_id: int) -> int:
        return self._next[state][token_id]

    def _split(self, state: int, token_id: int, there: int) -> int:
        """Part the strings of `there` that end `state` + token from the longer ones."""
        clone = self._add(
            self._length[state] + 1, self._next[there].copy(), self._counts[there].copy()
        )
        self._link[clone] = self._link[there]
        self._link[there] = clone
        while state >= 0 and self._next[state].get(token_id) == there:
            self._next[state][token_id] = clone
            state = self._link[state]
        return clone

    def _add(self, length: int, following: dict[int, int], counts: dict[int, int]) -> int:
        self._next.append(following)
        self._counts.append(counts)
        self._link.append(-1)
        self._length.append(length)
        return len(self._link) - 1
