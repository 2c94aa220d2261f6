"""From scored groups to micro-batches: packed rows without padding, a group's prompt once, and what a prompt has
in common with the one before it (a system prompt, examples) once too.

A micro-batch has T input rows (tokens that are read) and N targets (tokens that are trained). They are kept
apart, because siblings share their prompt's rows, so that the last prompt row predicts the first token of each,
and because a rollout's last token is a target that nobody reads.

Shape legend: T = input rows, N = targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import takewhile

import torch

from kernels.attention import AttentionLayout, Segment, packed_layout
from rl.algorithms.base.config import LossReduction
from rl.rollouts import Rollout

__all__ = ["MicroBatch", "TrainingSample", "fill_up", "loss_weights", "pack"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSample:
    """One rollout with what the loss needs to know of it."""

    rollout: Rollout
    advantages: Sequence[float]
    """Of each trained token."""
    loss_weight: float
    """Of every trained token; never 0."""
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """More of each trained token: `old_logprobs`, `ref_logprobs`, `values`, `returns`, `is_fresh`. All samples have the
    same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """What one forward sees."""

    token_ids_T: torch.Tensor  # int64
    positions_T: torch.Tensor  # int64, in the rollout's token log
    layout: AttentionLayout
    source_rows_N: torch.Tensor  # int64, the input row that predicts the target
    target_ids_N: torch.Tensor  # int64
    sample_ids_N: torch.Tensor  # int64, index of the sample in the batch
    loss_weights_N: torch.Tensor  # fp32
    advantages_N: torch.Tensor  # fp32
    rollout_logprobs_N: torch.Tensor  # fp32, as the engine reported
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)  # [N], those of the samples

    @property
    def is_filler(self) -> bool:
        """Nothing in it is trained."""
        return not len(self.target_ids_N)

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in moved.items():
            if isinstance(value, torch.Tensor):
                moved[name] = value.to(device)
        moved["extras"] = {name: value.to(device) for name, value in self.extras.items()}
        return MicroBatch(**moved)


def loss_weights(
    rollouts: Sequence[Rollout], reduction: LossReduction, *, fixed_length: int
) -> tuple[list[float], float]:
    """Weight of each rollout's tokens, and the denominator of their weighted sum.

    Args:
        rollouts: all that count, also those that will not be forwarded because their advantage is 0.
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


def pack(
    samples: Sequence[TrainingSample], *, max_tokens: int, share_prompts: bool
) -> list[MicroBatch]:
    """Pack samples, in their order, into micro-batches of at most `max_tokens` input rows.

    Args:
        samples: siblings stand together. A sample is never split.
        max_tokens: input rows of a micro-batch.
        share_prompts: compute a group's prompt, and the beginning it shares with the last one, once per micro-batch.

    Raises:
        ValueError: a sample alone is longer than `max_tokens`.
    """
    micro_batches: list[MicroBatch] = []
    builder = _Builder(share_prompts)
    for sample_id, sample in enumerate(samples):
        if builder.num_rows and builder.num_rows + builder.cost(sample) > max_tokens:
            micro_batches.append(builder.build())
            builder = _Builder(share_prompts)
        if builder.cost(sample) > max_tokens:
            raise ValueError(
                f"trainer.max_tokens_per_micro_batch must hold the longest sample, {builder.cost(sample)} "
                f"tokens, got {max_tokens}"
            )
        builder.add(sample_id, sample)
    if builder.num_rows:
        micro_batches.append(builder.build())
    return micro_batches


def fill_up(micro_batches: Sequence[MicroBatch], count: int) -> list[MicroBatch]:
    """`count` micro-batches, those that are missing with one row and no target: sharded weights are gathered, and
    gradients summed, by ranks that all make as many forwards and backwards."""
    builder = _Builder(share_prompts=False)
    builder.add_row()
    return [*micro_batches, *[builder.build()] * (count - len(micro_batches))]


class _Builder:
    """One micro-batch in the making."""

    def __init__(self, share_prompts: bool) -> None:
        self._share_prompts = share_prompts
        self._token_ids: list[int] = []
        self._positions: list[int] = []
        self._segments: list[Segment] = []
        self._targets: dict[str, list[float]] = {
            name: []
            for name in (
                "source_rows",
                "target_ids",
                "sample_ids",
                "loss_weights",
                "advantages",
                "logprobs",
            )
        }
        self._extras: dict[str, list[torch.Tensor]] = {}
        self._prompt_ids: list[int] = []
        self._prompt_rows: Sequence[int] = ()

    @property
    def num_rows(self) -> int:
        return len(self._token_ids)

    def cost(self, sample: TrainingSample) -> int:
        """Input rows that a sample adds."""
        return len(sample.rollout.log.token_ids) - 1 - self._num_shared(sample.rollout)

    def add(self, sample_id: int, sample: TrainingSample) -> None:
        rollout = sample.rollout
        num_prompt, num_shared = rollout.num_prompt_tokens, self._num_shared(rollout)
        prompt_ids = rollout.log.token_ids[:num_prompt]
        shared_rows = self._prompt_rows[:num_shared]
        new_rows = self._append(prompt_ids[num_shared:], prefix=shared_rows)
        self._prompt_ids, self._prompt_rows = prompt_ids, [*shared_rows, *new_rows]
        own_rows = self._append(rollout.log.token_ids[num_prompt:-1], prefix=self._prompt_rows)
        rows = [*self._prompt_rows, *own_rows]
        trained = [
            p for p in range(num_prompt, len(rollout.log.token_ids)) if rollout.log.loss_mask[p]
        ]
        self._targets["source_rows"] += [rows[p - 1] for p in trained]
        self._targets["target_ids"] += [rollout.log.token_ids[p] for p in trained]
        self._targets["sample_ids"] += [sample_id] * len(trained)
        self._targets["loss_weights"] += [sample.loss_weight] * len(trained)
        self._targets["advantages"] += sample.advantages
        self._targets["logprobs"] += [rollout.log.rollout_logprobs[p] for p in trained]
        assert len(sample.advantages) == len(trained), "an advantage for every trained token"
        for name, values in sample.extras.items():
            self._extras.setdefault(name, []).append(values)

    def add_row(self) -> None:
        """A row that predicts nothing."""
        self._append([0], prefix=())

    def build(self) -> MicroBatch:
        t: Mapping[str, list[float]] = self._targets
        return MicroBatch(
            token_ids_T=torch.tensor(self._token_ids),
            positions_T=torch.tensor(self._positions),
            layout=packed_layout(self._segments, num_rows=self.num_rows),
            source_rows_N=torch.tensor(t["source_rows"], dtype=torch.int64),
            target_ids_N=torch.tensor(t["target_ids"], dtype=torch.int64),
            sample_ids_N=torch.tensor(t["sample_ids"], dtype=torch.int64),
            loss_weights_N=torch.tensor(t["loss_weights"], dtype=torch.float32),
            advantages_N=torch.tensor(t["advantages"], dtype=torch.float32),
            rollout_logprobs_N=torch.tensor(t["logprobs"], dtype=torch.float32),
            extras={name: torch.cat(values) for name, values in self._extras.items()},
        )

    def _num_shared(self, rollout: Rollout) -> int:
        """Tokens of its prompt that have rows already: those it begins with like the last prompt."""
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
