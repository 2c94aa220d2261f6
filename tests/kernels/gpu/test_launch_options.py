"""Tiles and warps depend on widths only: on a GPU another tile rounds otherwise, which the interpreter cannot show."""

import pytest
import torch

import kernels.gpu.attention.forward
import kernels.gpu.linears.linear
import kernels.gpu.rms_norm
from kernels.attention import packed_layout
from tests.kernels.sequences import make_qkv, whole_sequences

pytestmark = pytest.mark.usefixtures("interpreter")


class Recorder:
    """Stands in for a kernel: keeps the options of its launches."""

    def __init__(self) -> None:
        self.options: list[dict] = []

    def __getitem__(self, grid):
        return lambda *args, **options: self.options.append(options)


def options_of(monkeypatch, module, kernel: str, run, sizes) -> list[dict]:
    recorder = Recorder()
    monkeypatch.setattr(module, kernel, recorder)
    for size in sizes:
        run(size)
    assert len(recorder.options) == len(sizes)
    return recorder.options


def test_a_linear_has_one_tile_for_any_number_of_rows(monkeypatch):
    module = kernels.gpu.linears.linear
    weight = torch.zeros(200, 64)
    run = lambda rows: module.linear_triton(torch.zeros(rows, 64), weight)  # noqa: E731
    first, *others = options_of(monkeypatch, module, "_linear_kernel", run, [1, 16, 129, 1000])
    assert all(options == first for options in others)


def test_a_norm_has_one_tile_for_any_number_of_rows(monkeypatch):
    module = kernels.gpu.rms_norm
    run = lambda rows: module.rms_norm_triton(torch.zeros(rows, 65), torch.ones(65), eps=1e-5)  # noqa: E731
    first, *others = options_of(monkeypatch, module, "_rms_norm_fwd_kernel", run, [1, 16, 1000])
    assert all(options == first for options in others)


def test_attention_has_one_tile_for_one_query_and_for_many(monkeypatch):
    module = kernels.gpu.attention.forward

    def run(rows):
        layout = packed_layout(whole_sequences([rows]), num_rows=rows)
        module.attention_triton(*make_qkv(rows), layout, blocks_per_program=0)

    first, *others = options_of(monkeypatch, module, "_attention_fwd_kernel", run, [1, 40, 200])
    assert all(options == first for options in others)
