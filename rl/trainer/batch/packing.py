"""Packs samples into micro-batches, without padding. The prompt of a group is computed once, and so is what a prompt has
in common with the one before it (a system prompt, examples).

A micro-batch has T input rows (tokens that are read) and N targets (tokens that are trained). They are kept
apart, because siblings share their prompt's rows, so that the last prompt row predicts the first token of each,
and because a rollout's last token predicts no target.

Shape legend: T = input rows, N = targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import takewhile

import torch

from kernels.attention import AttentionLayout, Segment, packed_layout
from rl.algorithms.base.config import LossReduction
from rl.rollouts import Rollout
from rl.trainer.batch.training_batch import TrainingBatch

__all__ = ["MicroBatch", "fill_up", "loss_weights", "pack"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Input of one forward: rows, targets, and the batch's columns at the targets."""

    token_ids_T: torch.Tensor  # int64
    positions_T: torch.Tensor  # int64, in the rollout's token log
    layout: AttentionLayout
    source_rows_N: torch.Tensor  # int64, the input row that predicts the target
    target_ids_N: torch.Tensor  # int64
    sample_ids_N: torch.Tensor  # int64, index of the sample in the batch
    span: slice
    """Place of its targets in the batch's columns."""
    columns: Mapping[str, torch.Tensor]
    """[N] each."""

    @property
    def advantages_N(self) -> torch.Tensor:
        return self.columns["advantages"]

    @property
    def loss_weights_N(self) -> torch.Tensor:
        return self.columns["loss_weights"]

    @property
    def rollout_logprobs_N(self) -> torch.Tensor:
        return self.columns["rollout_logprobs"]

    @property
    def is_filler(self) -> bool:
        """Whether the micro-batch has no trained tokens."""
        return not len(self.target_ids_N)

    def with_columns_of(self, batch: TrainingBatch) -> "MicroBatch":
        """Return the same rows with the current columns of the batch."""
        columns = {name: column_N[self.span] for name, column_N in batch.columns.items()}
        return replace(self, columns=columns)

    def to(self, device: torch.device) -> "MicroBatch":
        """Return a copy on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in moved.items():
            if isinstance(value, torch.Tensor):
                moved[name] = value.to(device)
        moved["columns"] = {name: value.to(device) for name, value in self.columns.items()}
        return MicroBatch(**moved)


def loss_weights(
    rollouts: Sequence[Rollout], reduction: LossReduction, *, fixed_length: int
) -> tuple[list[float], float]:
    """Compute the weight of each rollout's tokens, and the denominator of their weighted sum.

    Args:
        rollouts: all that count, including those that are not forwarded because their advantage is 0.
        reduction: `token_mean`: 1, over all tokens. `sequence_mean`: 1 / length, over rollouts. `fixed_length`:
            1 / fixed_length, over rollouts.
        fixed_length: in tokens; read by `fixed_length`.
    """
    lengths = [rollout.num_sampled_tokens for rollout in rollouts]
    match reduction:
        case LossReduction.token_mean:
            return [1.0] * len(lengths), float(sum(lengths))
        case LossReduction.sequence_mean:
            return [1.0 / max(length, 1) for length in lengths], float(len(lengths))
        case LossReduction.fixed_length:
            return [1.0 / fixed_length] * len(lengths), float(len(lengths))


def pack(batch: TrainingBatch, *, max_tokens: int, share_prompts: bool) -> list[MicroBatch]:
    """Pack samples, in their order, into micro-batches of at most `max_tokens` input rows.

    Args:
        batch: siblings stand together. A sample is never split; one without trained tokens is left out.
        max_tokens: input rows of a micro-batch.
        share_prompts: compute a group's prompt, and the beginning it shares with the last one, once per micro-batch.

    Raises:
        ValueError: one sample is longer than `max_tokens`.
    """
    micro_batches: list[MicroBatch] = []
    builder = _Builder(batch, share_prompts)
    for sample_id, rollout in enumerate(batch.rollouts):
        if not batch.lengths[sample_id]:
            continue
        if builder.num_rows and builder.num_rows + builder.cost(rollout) > max_tokens:
            micro_batches.append(builder.build())
            builder = _Builder(batch, share_prompts, first_target=micro_batches[-1].span.stop)
        if builder.cost(rollout) > max_tokens:
            raise ValueError(
                f"trainer.max_tokens_per_micro_batch must hold the longest sample, {builder.cost(rollout)} "
                f"tokens, got {max_tokens}"
            )
        builder.add(sample_id, rollout)
    if builder.num_rows:
        micro_batches.append(builder.build())
    return micro_batches


def fill_up(micro_batches: Sequence[MicroBatch], count: int) -> list[MicroBatch]:
    """Add micro-batches with one row and no target until there are `count`.

    All ranks must make the same number of forwards and backwards, to gather sharded weights and sum gradients.
    """
    builder = _Builder(TrainingBatch.of([]), share_prompts=False)
    builder.add_row()
    return [*micro_batches, *[builder.build()] * (count - len(micro_batches))]


class _Builder:
    """Builds one micro-batch, sample by sample."""

    def __init__(self, batch: TrainingBatch, share_prompts: bool, *, first_target: int = 0) -> None:
        self._batch = batch
        self._share_prompts = share_prompts
        self._first_target = first_target
        self._token_ids: list[int] = []
        self._positions: list[int] = []
        self._segments: list[Segment] = []
        self._source_rows: list[int] = []
        self._target_ids: list[int] = []
        self._sample_ids: list[int] = []
        self._prompt_ids: list[int] = []
        self._prompt_rows: Sequence[int] = ()

    @property
    def num_rows(self) -> int:
        return len(self._token_ids)

    def cost(self, rollout: Rollout) -> int:
        """Input rows that a sample adds."""
        return len(rollout.log) - 1 - self._num_shared(rollout)

    def add(self, sample_id: int, rollout: Rollout) -> None:
        log, num_prompt, num_shared = (
            rollout.log,
            rollout.num_prompt_tokens,
            self._num_shared(rollout),
        )
        prompt_ids = log.token_ids[:num_prompt]
        shared_rows = self._prompt_rows[:num_shared]
        new_rows = self._append(prompt_ids[num_shared:], prefix=shared_rows)
        self._prompt_ids, self._prompt_rows = prompt_ids, [*shared_rows, *new_rows]
        own_rows = self._append(log.token_ids[num_prompt:-1], prefix=self._prompt_rows)
        rows = [*self._prompt_rows, *own_rows]
        trained = [p for p in range(num_prompt, len(log)) if log.loss_mask[p]]
        self._source_rows += [rows[p - 1] for p in trained]
        self._target_ids += [log.token_ids[p] for p in trained]
        self._sample_ids += [sample_id] * len(trained)

    def add_row(self) -> None:
        """Add a row that predicts nothing."""
        self._append([0], prefix=())

    def build(self) -> MicroBatch:
        span = slice(self._first_target, self._first_target + len(self._target_ids))
        return MicroBatch(
            token_ids_T=torch.tensor(self._token_ids),
            positions_T=torch.tensor(self._positions),
            layout=packed_layout(self._segments, num_rows=self.num_rows),
            source_rows_N=torch.tensor(self._source_rows, dtype=torch.int64),
            target_ids_N=torch.tensor(self._target_ids, dtype=torch.int64),
            sample_ids_N=torch.tensor(self._sample_ids, dtype=torch.int64),
            span=span,
            columns={name: column_N[span] for name, column_N in self._batch.columns.items()},
        )

    def _num_shared(self, rollout: Rollout) -> int:
        """Tokens of its prompt that have rows already: the beginning that it shares with the last prompt."""
        if not self._share_prompts:
            return 0
        prompt_ids = rollout.log.token_ids[: rollout.num_prompt_tokens]
        if prompt_ids == self._prompt_ids:  # a sibling's
            return len(prompt_ids)
        pairs = zip(prompt_ids, self._prompt_ids, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _append(self, token_ids: Sequence[int], *, prefix: Sequence[int]) -> range:
        """Add input rows that follow `prefix` in their sequence; returns them."""
        rows = range(self.num_rows, self.num_rows + len(token_ids))
        if not token_ids:
            return rows
        self._segments.append(
            Segment(
                first_row=rows.start,
                num_queries=len(rows),
                first_position=len(prefix),
                key_index=[*prefix, *rows],
            )
        )
        self._token_ids += token_ids
        self._positions += range(len(prefix), len(prefix) + len(rows))
        return rows
