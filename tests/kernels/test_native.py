"""kernels/cpu/native: shapes that fill no vector, values at the edges, and how it is built and found missing."""

import logging
import re
import threading

import pytest
import torch
from torch.nn import functional

from kernels.attention import (
    Segment,
    attention_reference,
    packed_attention,
    packed_layout,
)
from kernels.cpu import library
from kernels.cpu.attention import attends_natively
from kernels.cpu.library import native_library
from kernels.cpu.native_functions import runs_natively
from kernels.linear import linear
from kernels.packed_weight import pack_weight
from kernels.rms_norm import rms_norm, rms_norm_reference
from kernels.rope import rope, rope_reference
from kernels.swiglu import swiglu, swiglu_reference
from tests.kernels.accuracy import assert_as_accurate, randn


@pytest.fixture
def no_library_yet(monkeypatch, tmp_path):
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    native_library.cache_clear()
    yield
    monkeypatch.undo()
    native_library.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_features", [1, 7, 8, 9, 15, 17, 31, 33, 100])
@pytest.mark.parametrize("num_rows", range(1, 15))
def test_linear_of_widths_that_fill_no_vector(num_rows, in_features, dtype):
    x = randn(num_rows, in_features, dtype=dtype)
    weight, bias = randn(13, in_features, seed=1, dtype=dtype), randn(13, dtype=dtype)
    truth = x.double() @ weight.double().T + bias.double()
    assert_as_accurate(
        linear(x, weight, bias), peer=functional.linear(x, weight, bias), truth=truth
    )


def test_linear_of_more_columns_than_one_block_of_weights():
    # 128 KB of weights are a block: 1,536 features leave 12 columns, so 100 columns are nine blocks, the last of 4
    x, weight = randn(5, 1536), randn(100, 1536, seed=1)
    truth = x.double() @ weight.double().T
    assert_as_accurate(linear(x, weight), peer=functional.linear(x, weight), truth=truth)


def test_linear_takes_strided_rows_and_weights():
    x, weight = randn(6, 40)[:, ::2], randn(20, 9, seed=1).T
    torch.testing.assert_close(linear(x, weight), x @ weight.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 5, 8, 13, 16, 27, 576])
def test_norm_and_gate_of_widths_that_fill_no_vector(width, dtype):
    x, weight = randn(3, width, dtype=dtype), randn(width, seed=1, dtype=dtype)
    got = rms_norm(x, weight, eps=1e-5)
    truth = rms_norm_reference(x.double(), weight.double(), eps=1e-5)
    assert_as_accurate(got, peer=rms_norm_reference(x, weight, eps=1e-5), truth=truth)
    gate_up = randn(3, 2 * width, seed=2, dtype=dtype)
    truth = swiglu_reference(gate_up.double())
    assert_as_accurate(swiglu(gate_up), peer=swiglu_reference(gate_up), truth=truth)


def test_the_gate_is_right_from_one_end_of_float32_to_the_other():
    gate = torch.tensor([-200.0, -88.5, -87.3, -20.0, -1e-8, 0.0, 1e-8, 20.0, 88.5, 200.0, 3e38])
    got = swiglu(torch.cat([gate, torch.ones_like(gate)])[None])[0]
    truth = functional.silu(gate.double())
    assert ((got.double() - truth).abs() <= 3e-7 * truth.abs() + 1e-35).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear(randn(3, 64), randn(10, 128)), "do not fit weights"),
        (lambda: linear(randn(3, 64), randn(10, 64), randn(9)), "do not fit weights"),
        (lambda: linear(randn(3, 64).bfloat16(), randn(10, 64)), "must be bfloat16"),
        (lambda: rms_norm(randn(3, 64), randn(63), eps=1e-5), "need as many weights"),
        (lambda: rms_norm(randn(3, 64), randn(64).bfloat16(), eps=1e-5), "must be float32"),
        (lambda: rope(randn(3, 2, 8), randn(1, 8)), r"angles \[3, 8\]"),
        (lambda: rope(randn(3, 2, 7), randn(3, 7)), "an even width"),
        (
            lambda: pack_weight(randn(9, 8), torch.float32, into=torch.zeros(8)),
            "packed form of a weight",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_its_bytes_are_read(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_packed_weight_written_over_is_one_packed_anew():
    first, second = randn(19, 9), randn(19, 9, seed=1)
    packed, expected = (pack_weight(weight, torch.float32) for weight in (first, second))
    assert packed is not None
    assert expected is not None
    assert not torch.equal(packed, expected)
    assert pack_weight(second, torch.float32, into=packed, num_threads=2) is packed
    assert torch.equal(packed, expected)


def test_strided_weights_and_biases_are_read_as_they_stand():
    x, weight, bias = randn(4, 9), randn(64, 9, seed=1), randn(128, seed=2)[::2]
    torch.testing.assert_close(linear(x, weight, bias), x @ weight.T + bias)
    scale = randn(18, seed=3)[::2]
    torch.testing.assert_close(rms_norm(x, scale, eps=1e-5), rms_norm_reference(x, scale, eps=1e-5))


def test_a_second_derivative_is_refused_not_wrong():
    x = randn(2, 2, 8).requires_grad_()
    (gradient,) = torch.autograd.grad(rope(x, randn(2, 8)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_value_stays_in_its_row_and_is_seen(value):
    x, weight = randn(6, 24), randn(10, 24, seed=1)
    x[3, 20] = value
    for op in (lambda x: linear(x, weight), lambda x: rms_norm(x, weight[0], eps=1e-5), swiglu):
        assert op(x).isfinite().all(-1).tolist() == [True, True, True, False, True, True]


@pytest.mark.parametrize("head_dim", [8, 24, 32, 40, 64, 128, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (5, 1), (6, 2), (9, 3), (32, 1), (7, 7)])
def test_attention_of_any_head_width_and_group(heads, kv_heads, head_dim):
    num_rows = 70  # past a key block, and past eight tasks of eight queries
    q, k, v = (
        randn(num_rows, n, head_dim, seed=i) for i, n in enumerate((heads, kv_heads, kv_heads))
    )
    segment = Segment(
        first_row=0, num_queries=num_rows, first_position=0, key_index=range(num_rows)
    )
    assert attends_natively(q, kv_heads)
    got = packed_attention(q, k, v, packed_layout([segment], num_rows=num_rows))
    truth = attention_reference(q.double(), k.double(), v.double())
    assert_as_accurate(got, peer=attention_reference(q, k, v), truth=truth)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 1, 12), (2, 1, 264), (33, 1, 8)])
def test_heads_that_native_attention_does_not_take_are_left_to_tensors(heads, kv_heads, head_dim):
    q, k, v = (randn(3, n, head_dim, seed=i) for i, n in enumerate((heads, kv_heads, kv_heads)))
    assert not attends_natively(q, kv_heads)
    segment = Segment(first_row=0, num_queries=3, first_position=0, key_index=range(3))
    got = packed_attention(q, k, v, packed_layout([segment], num_rows=3))
    torch.testing.assert_close(got, attention_reference(q, k, v))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
def test_attention_of_scores_of_any_size(scale):
    q, k, v = (randn(66, 2, 16, seed=i) * s for i, s in enumerate((scale, 1, 1)))
    segment = Segment(first_row=0, num_queries=66, first_position=0, key_index=range(66))
    got = packed_attention(q, k, v, packed_layout([segment], num_rows=66))
    truth = attention_reference(q.double(), k.double(), v.double())
    assert_as_accurate(got, peer=attention_reference(q, k, v), truth=truth)


def test_rope_of_a_slice_of_a_wider_tensor_and_its_gradient():
    heads, table = randn(5, 6, 10), randn(5, 10, seed=1)
    q = heads.split([4, 2], dim=1)[1]
    torch.testing.assert_close(rope(q, table), rope_reference(q, table))
    grad = randn(5, 2, 10, seed=2)
    gradients = []
    for op in (rope, rope_reference):
        leaf = q.clone().requires_grad_()
        gradients.append(torch.autograd.grad(op(leaf, table), leaf, grad)[0])
    torch.testing.assert_close(*gradients)


def test_float32_and_bfloat16_run_in_c_and_nothing_else():
    assert runs_natively(torch.zeros(1))
    assert runs_natively(torch.zeros(1, dtype=torch.bfloat16))
    assert not runs_natively(torch.zeros(1, dtype=torch.float16))
    assert not runs_natively(torch.zeros(1, dtype=torch.float64))


def test_the_number_of_threads_changes_no_bit():
    x, weight = randn(65, 64), randn(200, 64, seed=1)
    num_threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(linear(x, weight))
    finally:
        torch.set_num_threads(num_threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_the_library_is_compiled_once_and_then_found(no_library_yet, tmp_path):
    assert native_library(torch.float32) is not None
    (built,) = (tmp_path / "native").iterdir()
    first = built.stat().st_mtime_ns
    native_library.cache_clear()
    assert native_library(torch.float32) is not None
    assert [path.stat().st_mtime_ns for path in (tmp_path / "native").iterdir()] == [first]


def test_processes_that_compile_at_once_do_not_disturb_each_other(no_library_yet, tmp_path):
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(library._build(()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1
    assert list((tmp_path / "native").iterdir()) == [paths[0]]


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("/no/such/compiler", "/no/such/compiler"),
        ("false", "non-zero exit status"),
        ("gcc -mno-fma", "error: #error .this processor has no AVX2 and FMA"),
    ],
)
def test_without_a_working_compiler_tensors_serve_and_a_warning_says_so(
    compiler, reason, no_library_yet, monkeypatch, caplog, tmp_path
):
    monkeypatch.setenv("CC", compiler)
    with caplog.at_level(logging.WARNING, logger="paceline"):
        assert native_library(torch.float32) is None
    assert "kernels/cpu/native cannot be used" in caplog.text
    assert re.search(reason, caplog.text)
    assert not list((tmp_path / "native").glob("*.so"))
    x, weight = randn(3, 16), randn(5, 16, seed=1)
    torch.testing.assert_close(linear(x, weight), x @ weight.T)


def test_the_environment_can_turn_it_off(no_library_yet, monkeypatch, caplog):
    monkeypatch.setenv("PACELINE_NATIVE", "0")
    assert native_library(torch.float32) is None
    assert not caplog.text, "asked for, so nothing to warn of"
