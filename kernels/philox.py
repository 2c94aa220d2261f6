"""Philox4x32-10: one uniform per (key, position), stateless (Salmon et al., SC 2011).

Randomness that is a function of who asks and where, so the same request draws the same numbers on any
worker, in any batch, after any crash.
"""

import torch

from kernels.backends import is_interpreting

__all__ = ["philox_uniform"]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox_4x32(counter_4B: torch.Tensor, key_2B: torch.Tensor) -> torch.Tensor:
    """Maps counters [4, B] and keys [2, B] to random words [4, B], all 32-bit words in int64."""
    c0, c1, c2, c3 = counter_4B.unbind()
    k0, k1 = key_2B.unbind()
    for _ in range(_ROUNDS):
        # a product of two 32-bit words wraps int64 to the right 64 bits; the mask makes the shift unsigned
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, high1 = (product0 >> 32) & _MASK, (product1 >> 32) & _MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, product1 & _MASK, high0 ^ c3 ^ k1, product0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack([c0, c1, c2, c3])


def philox_uniform(sample_keys_B3: torch.Tensor, positions_B: torch.Tensor) -> torch.Tensor:
    """Returns one uniform in [0, 1) per row, which depends only on the key and position of that row.

    Args:
        sample_keys_B3: [B, 3] int64: seed, group_id, sample_index; group_id below 2**64, sample_index
            below 2**32.
        positions_B: [B] int64, index in the token log, below 2**32.

    Returns:
        [B] float32, multiples of 2**-24.
    """
    if positions_B.is_cuda or is_interpreting():
        from kernels.gpu.vocabulary.philox import philox_uniform_triton

        return philox_uniform_triton(sample_keys_B3, positions_B)
    seed, group_id, sample_index = sample_keys_B3.unbind(-1)
    counter = torch.stack(
        [positions_B & _MASK, sample_index & _MASK, group_id & _MASK, (group_id >> 32) & _MASK]
    )
    key = torch.stack([seed & _MASK, (seed >> 32) & _MASK])
    words = philox_4x32(counter, key)
    return (words[0] >> 8).float() * 2.0**-24
