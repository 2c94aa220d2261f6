import pytest
import torch

from kernels.numerics import accumulate_dtype, gemm_row_tile, native_dtype, pad_rows

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_probe():
    """The probe is cached for the process: what a planted GEMM taught it must not outlive the test."""
    gemm_row_tile.cache_clear()
    yield
    gemm_row_tile.cache_clear()


def plant_gemm(monkeypatch, fault):
    """A GEMM exact by rows on any machine, plus `fault(rows of the call)`, [rows] or a scalar."""

    def planted(x, weight, bias=None):
        assert bias is None
        return (x[:, None] * weight).sum(-1) + torch.as_tensor(fault(x.shape[0]) * 1.0).view(-1, 1)

    monkeypatch.setattr(torch.nn.functional, "linear", planted)


FAULTS = {
    "none": (lambda rows: 0, 1),
    "of a single row": (lambda rows: rows == 1, 2),
    "of two rows": (lambda rows: rows == 2, 4),
    "below 4 rows": (lambda rows: rows < 4, 4),
    "below 8 rows": (lambda rows: rows < 8, 8),
    "of an odd number of rows": (lambda rows: rows % 2, 2),
    "of rows that fill no tile of 16": (lambda rows: rows % 16 != 0, 16),
    "of the rest after tiles of 16": (lambda rows: torch.arange(rows) >= rows - rows % 16, 16),
    "below 64 rows": (lambda rows: rows < 64, 64),
    "of some 50 rows": (lambda rows: 32 < rows < 100, 0),
    "from 65 rows on": (lambda rows: rows > 64, 0),
    "of any number of rows": (lambda rows: rows, 0),
    "by place": (lambda rows: torch.arange(rows), 0),
    "of the first row": (lambda rows: torch.arange(rows) == 0, 0),
}


@pytest.mark.parametrize(("fault", "tile"), FAULTS.values(), ids=FAULTS)
def test_the_probe_finds_the_smallest_tile_that_a_faulty_gemm_respects(monkeypatch, fault, tile):
    plant_gemm(monkeypatch, fault)
    assert gemm_row_tile(8, 16, torch.float32, CPU) == tile


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("in_features", "out_features"), [(16, 64), (64, 16), (48, 132)])
def test_the_tile_holds_for_rows_the_probe_did_not_see(in_features, out_features, dtype):
    tile = gemm_row_tile(in_features, out_features, dtype, CPU)
    assert tile in (1, 2, 4, 8, 16, 32, 64), "no machine we know needs tiles of exactly 64 here"
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(out_features, in_features, generator=generator).to(dtype)
    x = torch.randn(5 * 64, in_features, generator=generator).to(dtype)
    truth = torch.nn.functional.linear(x, weight)
    for rows in [*range(tile, 50, tile), 64, 128, 192, 320]:
        part = torch.nn.functional.linear(x[-rows:].clone(), weight)
        assert torch.equal(part, truth[-rows:]), f"{rows} rows"


def test_the_probe_runs_once_for_a_shape(monkeypatch):
    gemm_row_tile(8, 16, torch.float32, CPU)
    monkeypatch.setattr(torch.nn.functional, "linear", None)
    assert gemm_row_tile(8, 16, torch.float32, CPU) > 0


def test_the_probe_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    gemm_row_tile(8, 16, torch.float32, CPU)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("rows", "padded"), [(0, 0), (1, 8), (7, 8), (8, 8), (9, 16)])
def test_rows_are_padded_with_zeros_to_the_next_multiple(rows, padded):
    x = torch.ones(rows, 3, 2, dtype=torch.bfloat16)
    got = pad_rows(x, 8)
    assert got.dtype == x.dtype
    assert got.shape == (padded, 3, 2)
    assert torch.equal(got[:rows], x)
    assert not got[rows:].any()


def test_sums_are_kept_in_float32_or_better():
    assert accumulate_dtype(torch.bfloat16) == torch.float32
    assert accumulate_dtype(torch.float16) == torch.float32
    assert accumulate_dtype(torch.float32) == torch.float32
    assert accumulate_dtype(torch.float64) == torch.float64


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx2": True}, torch.float32),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"bf16": True}, torch.bfloat16),
    ],
)
def test_a_cpu_computes_in_bfloat16_only_where_it_multiplies_it(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert native_dtype("cpu") == dtype
    assert native_dtype(torch.device("cuda")) == torch.bfloat16
