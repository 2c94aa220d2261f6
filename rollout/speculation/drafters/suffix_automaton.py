"""An incremental suffix automaton over several sequences, which keeps what followed. No torch.

    state = a set of substrings that end at the same places; `length` of the longest, `link` to the longest suffix that
            ends at more places

Blumer et al., "The smallest automaton recognizing the subwords of a text" (1985); sequences may branch off one another
as in a trie (Mohri et al., 2009). At most two states per token; a token is added in amortised constant time, plus the
suffixes whose counts it raises.

Sampling is inverse CDF: in one context of one policy a greater uniform gives the same token or a later one of the
vocabulary. So the draws seen there, sorted by their uniforms, say what another uniform will give: the token of its neighbours, and
where those differ, one of the two. Frequencies would place the border between two tokens to within n**-0.5 of n draws,
neighbours do to within 1 / n.
"""

from bisect import bisect

__all__ = ["ROOT", "SuffixAutomaton"]

ROOT = 0
_NEIGHBOURS = 2  # on each side: one is worse, three are better for an unsure policy and worse for a sure one (docs/log)


class SuffixAutomaton:
    """States are numbers; `ROOT` is the empty string."""

    def __init__(self) -> None:
        self._next: list[dict[int, int]] = [{}]
        self._counts: list[dict[int, int]] = [{}]  # of each token after the state's strings
        self._draws: list[list[tuple[float, int]]] = [[]]  # those that were drawn
        self._num_sorted = [0]  # of these, when last asked: most states never are
        self._link = [-1]
        self._length = [0]

    def __len__(self) -> int:
        return len(self._link)

    def append(self, state: int, token_id: int, *, uniform: float | None = None) -> int:
        """The state after a sequence that ended in `state` has grown by one token.

        Args:
            state: state at which the sequence ended.
            token_id: token that followed.
            uniform: uniform that it was drawn with; None: it was not drawn, as in a prompt, or drawn greedily.
        """
        self._count(state, token_id, uniform)
        there = self._next[state].get(token_id)
        if there is not None:
            is_whole = self._length[there] == self._length[state] + 1
            return there if is_whole else self._split(state, token_id, there)
        new = self._add(self._length[state] + 1, {}, {}, [])
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

    def likeliest(self, state: int, uniform: float | None) -> tuple[int, float]:
        """The token that this uniform should give, and how sure that is: its share of the votes of the draws nearest to the
        uniform, times n / (n + 1) of n draws. Votes weigh less with distance.

        Of a greedy request (None), and where nothing was drawn, it is the most frequent token.
        """
        draws = self._draws[state]
        if uniform is None or not draws:
            return self.most_frequent(state)
        count = len(draws)
        if len(self._counts[state]) == 1:
            return draws[0][1], count / (count + 1)
        if self._num_sorted[state] != count:
            draws.sort()
            self._num_sorted[state] = count
        at = bisect(draws, (uniform,))
        votes: dict[int, float] = {}
        for drawn_with, token_id in draws[max(at - _NEIGHBOURS, 0) : at + _NEIGHBOURS]:
            vote = 1 / (abs(drawn_with - uniform) + 1 / count)
            votes[token_id] = votes.get(token_id, 0.0) + vote
        best = max(votes, key=votes.__getitem__)
        return best, votes[best] / sum(votes.values()) * count / (count + 1)

    def follow(self, state: int, token_id: int) -> int:
        return self._next[state][token_id]

    def _count(self, state: int, token_id: int, uniform: float | None) -> None:
        """The token followed the state's strings, and all suffixes of them."""
        draw = None if uniform is None else (uniform, token_id)
        while state >= 0:
            counts = self._counts[state]
            counts[token_id] = counts.get(token_id, 0) + 1
            if draw:
                self._draws[state].append(draw)
            state = self._link[state]

    def _split(self, state: int, token_id: int, there: int) -> int:
        """Part the strings of `there` that end `state` + token from the longer ones."""
        clone = self._add(
            self._length[state] + 1,
            self._next[there].copy(),
            self._counts[there].copy(),
            self._draws[there].copy(),
        )
        self._link[clone] = self._link[there]
        self._link[there] = clone
        while state >= 0 and self._next[state].get(token_id) == there:
            self._next[state][token_id] = clone
            state = self._link[state]
        return clone

    def _add(
        self,
        length: int,
        following: dict[int, int],
        counts: dict[int, int],
        draws: list[tuple[float, int]],
    ) -> int:
        self._next.append(following)
        self._counts.append(counts)
        self._draws.append(draws)
        self._num_sorted.append(0)
        self._link.append(-1)
        self._length.append(length)
        return len(self._link) - 1
