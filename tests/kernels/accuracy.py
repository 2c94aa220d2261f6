"""The bar of every op: at most twice the error that PyTorch itself makes against float64, plus a floor."""

import torch

# of the greatest value, 8 and 1/8 ulp: libraries sum some 1,500 products of float32 in parts, we in one sequence
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 1e-3}


def assert_as_accurate(got: torch.Tensor, *, peer: torch.Tensor, truth: torch.Tensor) -> None:
    assert got.dtype == peer.dtype
    assert got.shape == truth.shape
    budget = 2 * (peer.double() - truth).abs().max() + FLOOR[got.dtype] * truth.abs().max()
    assert (got.double() - truth).abs().max() <= budget


def assert_rows_stand_alone(op, x: torch.Tensor, counts: tuple[int, ...]) -> None:
    """`op` gives each row the same bits in the whole of `x` and among any `counts` of its rows, wherever these start."""
    whole = op(x)
    assert whole.isfinite().all()
    for count in counts:
        for start in {0, 1, x.shape[0] - count}:
            part = op(x[start : start + count])
            expected = whole[start : start + count]
            assert torch.equal(part, expected), f"{count} rows from row {start}"
            # a fresh buffer: another alignment
            part = op(x[start : start + count].clone())
            assert torch.equal(part, expected), f"{count} rows from row {start}, copied"


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
