"""The forward of a decoder over packed rows, shared by policy, reference, teacher and critic.

Shape legend: T = input rows, N = targets, H = width.
"""

from collections.abc import Callable, Sequence

import torch

from kernels.attention import packed_attention
from kernels.linear_logprobs import linear_logprobs
from rl.trainer.batch.packing import MicroBatch
from rollout.models.decoder import Decoder

__all__ = ["over_batch", "policy_logprobs", "target_states"]


@torch.no_grad()
def over_batch(
    forward: Callable[[MicroBatch], torch.Tensor], micro_batches: Sequence[MicroBatch]
) -> torch.Tensor:
    """Join what `forward` returns for all micro-batches, without a gradient: [N]."""
    parts = [forward(batch) for batch in micro_batches]
    return torch.cat(parts) if parts else torch.zeros(0)


def target_states(decoder: Decoder, batch: MicroBatch) -> torch.Tensor:
    """Compute the final hidden state of the row that predicts each target: [N, H]."""

    def attend(
        _layer: int, q_TND: torch.Tensor, k_TMD: torch.Tensor, v_TMD: torch.Tensor
    ) -> torch.Tensor:
        return packed_attention(q_TND, k_TMD, v_TMD, batch.layout)

    hidden_TH = decoder(batch.token_ids_T, batch.positions_T, attend)
    return hidden_TH[batch.source_rows_N]


def policy_logprobs(
    decoder: Decoder, micro_batch: MicroBatch, *, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute [N] log-probabilities of the targets, with grad, and [N] entropies, both in nats."""
    batch = micro_batch.to(decoder.embed_tokens.device)
    return linear_logprobs(
        target_states(decoder, batch),
        decoder.lm_head,
        batch.target_ids_N,
        temperature=temperature,
    )
