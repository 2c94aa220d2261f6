"""Chooses what to compute next: continuous batching, chunked prefill, preemption by recompute. Plain Python.

A step first decodes every running request, then gives what is left of its token budget to prompts, oldest
first. When blocks run out, the youngest request is preempted and recomputed later, which in exact mode gives
the same bits. Siblings of a group whose prompt is being computed follow it instead of computing it again.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from rollout.core import Chunk, RequestState, Status, StepBatch
from rollout.engine.block_manager import BlockManager

__all__ = ["Scheduler"]


class Scheduler:
    """Owns the waiting and running requests and, through them, the blocks in use."""

    def __init__(
        self, blocks: BlockManager, *, max_requests: int, max_tokens_per_step: int
    ) -> None:
        self.blocks = blocks
        self.policy_version = 0
        self.is_draining = False
        """No request is begun; one that was preempted goes on if it has drawn tokens, which must not be of two versions."""
        self.num_preemptions = 0
        self.num_prefix_hit_tokens = 0
        self._max_requests = max_requests
        self._max_tokens_per_step = max_tokens_per_step
        self._waiting: deque[RequestState] = deque()
        self._running: list[RequestState] = []  # oldest first
        self._leaders: dict[
            tuple[int, int], RequestState
        ] = {}  # by group, while the prompt is computed

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return sum(1 + len(state.followers) for state in self._running)

    @property
    def num_begun(self) -> int:
        """Requests that have drawn a token, or are being computed."""
        return self.num_running + sum(state.num_output > 0 for state in self._waiting)

    def add(self, state: RequestState) -> None:
        """Queues a request after those of its priority or a higher one."""
        index = len(self._waiting)
        while index and self._waiting[index - 1].request.priority < state.request.priority:
            index -= 1
        self._waiting.insert(index, state)

    def states(self) -> Iterator[RequestState]:
        """Every unfinished request."""
        yield from self._waiting
        for state in self._running:
            yield state
            yield from state.followers

    def blocks_in_use(self) -> set[int]:
        return {block for state in self.states() for block in state.block_table}

    def begin_version(self, policy_version: int, *, keeps_kv: bool) -> None:
        """Notes that other weights compute from now on. Requests in flight return to the queue, oldest first, to be computed
        again; with `keeps_kv`, only those that have drawn no token yet."""
        for state in reversed(self._running.copy()):
            if not (keeps_kv and state.num_output):
                self._preempt(state)
        self.policy_version = policy_version
        self.blocks.forget_older(policy_version)

    def schedule(self) -> StepBatch | None:
        """The next step's work, blocks allocated; None when there is nothing to do."""
        budget = self._max_tokens_per_step
        chunks: list[Chunk] = []
        copies: list[tuple[int, int]] = []
        scheduled: set[RequestState] = set()
        # decoding requests before unfinished prompts: a long prompt must not stall them
        for state in sorted(self._running, key=lambda s: s.num_remaining > 1):
            if state.status is not Status.RUNNING or budget == 0:
                continue  # preempted for an older one, just now
            num_tokens = min(state.num_remaining, budget)
            if not self._make_room(state, num_tokens, scheduled):
                continue
            self._take(state, num_tokens, chunks, copies)
            scheduled.add(state)
            budget -= num_tokens
        while self.num_running < self._max_requests and (state := self._next_waiting()):
            num_tokens = self._admit(state, budget)
            if num_tokens is None:
                break
            self._waiting.remove(state)
            if state.status is Status.RUNNING:
                self._take(state, num_tokens, chunks, copies)
                budget -= num_tokens
        return StepBatch(tuple(chunks), tuple(copies)) if chunks else None

    def with_drafts(
        self, batch: StepBatch, drafts: Mapping[RequestState, Sequence[int]]
    ) -> StepBatch:
        """Adds drafts to the chunks of a step, and allocates their blocks.

        What does not fit the token budget, or would take a block that a running request may soon need, is left out:
        a draft never preempts anyone.
        """
        budget = self._max_tokens_per_step - sum(chunk.num_tokens for chunk in batch.chunks)
        chunks = []
        for chunk in batch.chunks:
            draft = tuple(drafts.get(chunk.state, ()))[:budget]
            if draft and self._extend(chunk, len(draft)):
                chunk = replace(chunk, draft=draft)
                budget -= len(draft)
            chunks.append(chunk)
        return replace(batch, chunks=tuple(chunks))

    def accept(self, state: RequestState, num_tokens: int) -> None:
        """Book the first `num_tokens` of the draft that has run, now part of the log; blocks of the rest go back."""
        state.num_computed += num_tokens
        self.blocks.shrink(state.block_table, num_tokens=state.num_computed)

    def computed(self, chunk: Chunk) -> list[RequestState]:
        """Book a chunk that has run; returns who draws a token from its last row, siblings included."""
        state = chunk.state
        samples = chunk.samples
        state.num_computed += chunk.num_tokens
        if not samples:
            return []
        followers, state.followers = state.followers, []
        if chunk.num_tokens > 1 or state.num_output == 0:
            self._remember(
                state
            )  # a prompt, or a request that was computed again, for its siblings
        if self._leaders.get(state.group) is state:
            del self._leaders[state.group]
        for follower in followers:
            follower.block_table = self.blocks.fork(state.block_table)
            follower.num_computed = state.num_computed
            follower.kv_version = state.kv_version
            follower.status = Status.RUNNING
        self._running.extend(followers)
        return [state, *followers]

    def finish(self, state: RequestState) -> None:
        """Take a request out, wherever it is, and free its blocks."""
        if state.status is Status.WAITING:
            self._waiting.remove(state)
        elif state.status is Status.FOLLOWING:
            self._leaders[state.group].followers.remove(state)
        else:
            self._remember(state)
            self._running.remove(state)
            self._dismiss(state)
        state.status = Status.FINISHED

    def check_integrity(self) -> None:
        """Recount blocks and states.

        Raises:
            RuntimeError: a block is leaked or held twice, or a request is in the wrong place.
        """
        self.blocks.check_integrity(state.block_table for state in self.states())
        for state in self._waiting:
            if state.status is not Status.WAITING or state.block_table or state.followers:
                raise RuntimeError(
                    f"request {state.request.request_id} waits, but is {state.status} with blocks"
                )
        for state in self._running:
            if state.status is not Status.RUNNING:
                raise RuntimeError(
                    f"request {state.request.request_id} runs, but is {state.status}"
                )

    def _take(
        self,
        state: RequestState,
        num_tokens: int,
        chunks: list[Chunk],
        copies: list[tuple[int, int]],
    ) -> None:
        copy = self.blocks.grow(
            state.block_table,
            num_computed=state.num_computed,
            num_tokens=state.num_computed + num_tokens,
        )
        chunks.append(Chunk(state, num_tokens))
        if copy is not None:
            copies.append(copy)

    def _num_missing(self, state: RequestState, num_tokens: int) -> int:
        return self.blocks.num_missing(
            state.block_table,
            num_computed=state.num_computed,
            num_tokens=state.num_computed + num_tokens,
        )

    def _make_room(
        self, state: RequestState, num_tokens: int, scheduled: set[RequestState]
    ) -> bool:
        """Preempt the youngest unscheduled requests until `state` fits; False when it had to go itself."""
        while self._num_missing(state, num_tokens) > self.blocks.num_available:
            victim = next(s for s in reversed(self._running) if s not in scheduled)
            self._preempt(victim)
            self.num_preemptions += 1
            if victim is state:
                return False
        return True

    def _extend(self, chunk: Chunk, num_tokens: int) -> bool:
        """Allocates blocks for more tokens of a chunk; returns False if no blocks are free for them."""
        state = chunk.state
        end = state.num_computed + chunk.num_tokens + num_tokens
        missing = self.blocks.blocks_for(end) - len(state.block_table)
        if missing > 0 and missing + self.num_running > self.blocks.num_available:
            return False
        copy = self.blocks.grow(state.block_table, num_computed=state.num_computed, num_tokens=end)
        assert copy is None, "the chunk itself has had the shared block copied"
        return True

    def _next_waiting(self) -> RequestState | None:
        return next((s for s in self._waiting if s.num_output or not self.is_draining), None)

    def _admit(self, state: RequestState, budget: int) -> int | None:
        """Move the head of the queue to RUNNING or FOLLOWING: tokens to compute now; None: it must wait."""
        leader = self._leaders.get(state.group)
        if leader is not None and leader.token_ids == state.token_ids:
            state.status = Status.FOLLOWING
            leader.followers.append(state)
            return 0
        if budget == 0:
            return None
        state.block_table = self.blocks.match_prefix(
            state.token_ids, policy_version=self.policy_version
        )
        state.num_computed = len(state.block_table) * self.blocks.block_size
        num_tokens = min(state.num_remaining, budget)
        # every running request may need one more block soon: admitting into those would only thrash
        reserve = self.num_running
        if (
            self._num_missing(state, num_tokens) + reserve > self.blocks.num_available
            and self._running
        ):
            self.blocks.release(state.block_table)
            state.num_computed = 0
            return None
        state.status = Status.RUNNING
        state.kv_version = self.policy_version
        self._running.append(state)
        self.num_prefix_hit_tokens += state.num_computed
        if state.num_output == 0:
            self._leaders.setdefault(state.group, state)
        return num_tokens

    def _preempt(self, state: RequestState) -> None:
        self._remember(state)
        self._running.remove(state)
        self._dismiss(state)
        state.status = Status.WAITING
        self._waiting.appendleft(state)

    def _dismiss(self, state: RequestState) -> None:
        """Free the blocks of a request that leaves, and send its followers back to the queue."""
        self.blocks.release(state.block_table)
        state.num_computed = 0
        if self._leaders.get(state.group) is state:
            del self._leaders[state.group]
        for follower in reversed(state.followers):
            follower.status = Status.WAITING
            self._waiting.appendleft(follower)
        state.followers = []

    def _remember(self, state: RequestState) -> None:
        """Let later requests of this version find its blocks, unless an earlier version computed some of them."""
        if state.kv_version != self.policy_version:
            return
        self.blocks.remember(
            state.block_table,
            state.token_ids,
            state.num_computed,
            policy_version=self.policy_version,
        )
