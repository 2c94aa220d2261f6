import pytest
import torch

from kernels.gpu.paged_kv import LEVELS, write_kv_triton
from kernels.paged_kv import PagedKV
from tests.kernels.accuracy import randn

BLOCKS, BLOCK_SIZE = 3, 4
PLACES = ([2, 0, 2, 1], [3, 0, 0, 3])  # blocks, offsets


def rows(num_heads: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values as slices of wider rows, as the fused projection gives them."""
    wide = randn(4, 2 * num_heads + 1, width, dtype=dtype)
    return wide[:, 1 : num_heads + 1], wide[:, num_heads + 1 :]


def written(k, v, stored: torch.dtype, device: str) -> tuple[torch.Tensor, ...]:
    """Keys and values of a cache filled with 7 before, and scales if it is quantized."""
    shape = (BLOCKS, k.shape[1], BLOCK_SIZE, k.shape[2])
    cache = [torch.full(shape, 7.0).to(stored).to(device) for _ in range(2)]
    scales = None
    if stored in LEVELS:
        scales = tuple(torch.full(shape[:-1], 7.0).to(device) for _ in range(2))
    places = (torch.tensor(x).to(device) for x in PLACES)
    write_kv_triton(k.to(device), v.to(device), *places, *cache, scales)
    return tuple(x.cpu() for x in (*cache, *(scales or ())))


@pytest.mark.parametrize(("num_heads", "width"), [(1, 8), (3, 24), (9, 128)])
def test_plain_rows_are_copied_and_nothing_else_changes(num_heads, width, device):
    k, v = rows(num_heads, width, torch.bfloat16)
    expected = PagedKV(
        keys=torch.full((BLOCKS, num_heads, BLOCK_SIZE, width), 7.0).bfloat16(),
        values=torch.full((BLOCKS, num_heads, BLOCK_SIZE, width), 7.0).bfloat16(),
    )
    expected.write(k, v, *(torch.tensor(x) for x in PLACES))
    keys, values = written(k, v, torch.bfloat16, device)
    assert torch.equal(keys, expected.keys)
    assert torch.equal(values, expected.values)


def hard_rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Ties between two integers, a row of zeros, one too small for its inverse, and ones that are not finite."""
    k = torch.zeros(4, 2, 24)
    k[0, 0, :3] = torch.tensor([127.0, 0.5, 2.5])
    k[0, 1] = 1e-31
    k[1, 0, 0], k[1, 1, 5] = float("inf"), float("nan")
    k[2] = randn(2, 24)
    k[3, 0, :2] = torch.tensor([3e38, -1e38])
    k[3, 1] = randn(24, seed=2) * 1e-20
    return k, -k.flip(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_int8_rows_are_the_bits_of_the_op(dtype, device):
    k, v = (x.to(dtype) for x in hard_rows())
    shape = (BLOCKS, 2, BLOCK_SIZE, 24)
    integers = [torch.full(shape, 7, dtype=torch.int8) for _ in range(2)]
    scales = tuple(torch.full(shape[:-1], 7.0) for _ in range(2))
    PagedKV(keys=integers[0], values=integers[1], scales=scales).write(
        k, v, *(torch.tensor(x) for x in PLACES)
    )
    got = written(k, v, torch.int8, device)
    for tensor, expected in zip(got, (*integers, *scales), strict=True):
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0, equal_nan=True)


def test_fp8_rows_use_the_whole_range_with_a_scale_per_token_and_head(device):
    k, v = rows(3, 24, torch.bfloat16)
    keys, values, key_scales, value_scales = written(k, v, torch.float8_e4m3fn, device)
    for stored, scale, x in ((keys, key_scales, k), (values, value_scales, v)):
        for row, (block, offset) in enumerate(zip(*PLACES, strict=True)):
            assert stored[block, :, offset].float().abs().amax(-1).tolist() == [448.0] * 3
            greatest = x[row].float().abs().amax(-1)
            torch.testing.assert_close(scale[block, :, offset], greatest / 448)
            back = stored[block, :, offset].float() * scale[block, :, offset, None]
            torch.testing.assert_close(back, x[row].float(), rtol=2**-4, atol=2e-4)
    assert (keys == 7).sum() >= (BLOCKS * BLOCK_SIZE - 4) * 3 * 24
