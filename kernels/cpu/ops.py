"""Launchers of native/: shapes and addresses, no arithmetic. Callers ask `runs_natively` first.

Shape legend: T = rows, K = in features, N = out features or query heads, H = width, I = width of the MLP,
M = KV heads, D = width of a head.
"""

import ctypes
import functools
from types import SimpleNamespace

import torch

from kernels.cpu.library import native_library

__all__ = [
    "QUERIES_PER_TASK",
    "VOCAB_BLOCK",
    "attends_natively",
    "attention_native",
    "int8_linear_native",
    "linear_native",
    "pack_native",
    "rms_norm_native",
    "rope_native",
    "runs_natively",
    "sample_native",
    "swiglu_native",
    "takes_heads",
    "vocab_sums_native",
]

VOCAB_BLOCK = 1024
"""As in native/vocabulary.c."""
QUERIES_PER_TASK = 8
"""Of attention; this and the limits below are as in native/attention.c."""
_MAX_HEAD_DIM = 256
_MAX_GROUP = 32

_POINTER = ctypes.c_void_p
_SIZE = ctypes.c_int64
_THREADS = ctypes.c_int


def runs_natively(x: torch.Tensor) -> bool:
    """Whether the ops of this file take `x`: float32 or bfloat16, on the CPU, and native/ could be compiled."""
    return _is_native(x.dtype, x.device)


def _is_native(dtype: torch.dtype, device: torch.device) -> bool:
    return device.type == "cpu" and native_library(dtype) is not None


_ARGUMENTS = {
    "linear": [*[_POINTER] * 5, *[_SIZE] * 3, _THREADS],
    "pack": [*[_POINTER] * 2, *[_SIZE] * 2, _THREADS],
    "panel_places": [*[_SIZE] * 2],
    "vocab_sums": [*[_POINTER] * 5, *[_SIZE] * 2, _THREADS],
    "sample": [*[_POINTER] * 6, *[_SIZE] * 2],
    "int8_linear": [*[_POINTER] * 2, ctypes.c_float, *[_POINTER] * 5, *[_SIZE] * 3, _THREADS],
    "int8_pack": [*[_POINTER] * 2, *[_SIZE] * 2, _THREADS],
    "int8_panel_places": [*[_SIZE] * 2],
    "int8_room": [*[_SIZE] * 2],
    "rms_norm": [*[_POINTER] * 4, _SIZE, _SIZE, ctypes.c_float, _THREADS],
    "swiglu": [_POINTER, _POINTER, _SIZE, _SIZE, _THREADS],
    "rope": [_POINTER, _SIZE, _POINTER, _POINTER, *[_SIZE] * 3, _THREADS],
    "lanes": [],
    "attention": [
        *[_POINTER] * 6,
        *[_SIZE] * 4,
        *[_POINTER] * 2,
        _SIZE,
        *[_POINTER] * 2,
        *[_SIZE] * 3,
        _THREADS,
    ],
}


@functools.cache
def _functions(dtype: torch.dtype) -> SimpleNamespace:
    """The functions of native/ for tensors of `dtype` by name, without their prefix."""
    library, functions = native_library(dtype), SimpleNamespace()
    for name, types in _ARGUMENTS.items():
        function = getattr(library, f"paceline_{name}")
        function.argtypes = types
        function.restype = _SIZE if name.endswith(("lanes", "panel_places", "room")) else None
        setattr(functions, name, function)
    return functions


def pack_native(
    weight_NK: torch.Tensor,
    dtype: torch.dtype,
    *,
    into: torch.Tensor | None = None,
    num_threads: int | None = None,
) -> torch.Tensor | None:
    """The weight's values as they are now, laid out as C reads them: int32, as large as the weight or a little larger.

    Args:
        weight_NK: of type `dtype`, or int8.
        dtype: of the rows that will be multiplied by it.
        into: what this gave for a weight of the same shape and type, to be written over: memory used for the first time
            takes 20 times as long as the rest.
        num_threads: None: as many as PyTorch has.

    Returns:
        None where the weight is read as it stands. With few rows in a call, laying it out takes longer than multiplying.
    """
    if not _is_native(dtype, weight_NK.device):
        return None
    weight_NK = weight_NK.detach().contiguous()
    out_features, in_features = weight_NK.shape
    prefix = "int8_" if weight_NK.dtype is torch.int8 else ""
    if not prefix:
        _require(dtype, weight_NK)
    functions = vars(_functions(dtype))
    num_places = functions[f"{prefix}panel_places"](in_features, out_features)
    if num_places == 0:
        return None
    panels = torch.empty(num_places, dtype=torch.int32, device="cpu") if into is None else into
    if panels.shape != (num_places,) or panels.dtype is not torch.int32:
        raise ValueError(
            f"panels of a weight {tuple(weight_NK.shape)} are int32 [{num_places}], got {panels.dtype} "
            f"{tuple(panels.shape)}"
        )
    functions[f"{prefix}pack"](
        weight_NK.data_ptr(),
        panels.data_ptr(),
        in_features,
        out_features,
        num_threads or torch.get_num_threads(),
    )
    return panels


def linear_native(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    panels: torch.Tensor | None = None,
) -> torch.Tensor:
    """[T, K], [N, K], [N] -> [T, N]; the same bits with panels, from `pack_native` of the weight, as without."""
    _check_linear("linear", x_TK, weight_NK, bias_N)
    _require(x_TK.dtype, weight_NK)
    x_TK, weight_NK = x_TK.contiguous(), weight_NK.contiguous()
    bias_N = None if bias_N is None else bias_N.contiguous()
    (num_rows, in_features), out_features = x_TK.shape, weight_NK.shape[0]
    out_TN = torch.empty(num_rows, out_features, dtype=x_TK.dtype, device="cpu")
    _functions(x_TK.dtype).linear(
        x_TK.data_ptr(),
        weight_NK.data_ptr(),
        None if panels is None else panels.data_ptr(),
        None if bias_N is None else bias_N.data_ptr(),
        out_TN.data_ptr(),
        num_rows,
        in_features,
        out_features,
        torch.get_num_threads(),
    )
    return out_TN


def int8_room(dtype: torch.dtype, num_rows: int, in_features: int) -> torch.Tensor:
    """What `int8_linear_native` needs for the integers that rows of type `dtype`, `in_features` wide or less, become."""
    size = _functions(dtype).int8_room(num_rows, in_features)
    return torch.empty(size, dtype=torch.int16, device="cpu")


def int8_linear_native(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    scale_N: torch.Tensor,
    bias_N: torch.Tensor | None,
    panels: torch.Tensor | None = None,
    *,
    levels: int,
) -> torch.Tensor:
    """[T, K], [N, K] int8, [N] float32, [N] like x -> [T, N]; `levels` as in `kernels.int8_linear`."""
    _check_linear("int8_linear", x_TK, weight_NK, bias_N, scale_N=scale_N)
    if weight_NK.dtype is not torch.int8:
        raise ValueError(f"int8_linear: weights must be int8, got {weight_NK.dtype}")
    x_TK, weight_NK, scale_N = x_TK.contiguous(), weight_NK.contiguous(), scale_N.contiguous()
    bias_N = None if bias_N is None else bias_N.contiguous()
    (num_rows, in_features), out_features = x_TK.shape, weight_NK.shape[0]
    room = int8_room(x_TK.dtype, num_rows, in_features)
    out_TN = torch.empty(num_rows, out_features, dtype=x_TK.dtype, device="cpu")
    _functions(x_TK.dtype).int8_linear(
        x_TK.data_ptr(),
        room.data_ptr(),
        levels,
        weight_NK.data_ptr(),
        None if panels is None else panels.data_ptr(),
        scale_N.data_ptr(),
        None if bias_N is None else bias_N.data_ptr(),
        out_TN.data_ptr(),
        num_rows,
        in_features,
        out_features,
        torch.get_num_threads(),
    )
    return out_TN


def rms_norm_native(
    x: torch.Tensor, weight_H: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """[..., H] -> the same, and [..., 1] the inverse root mean square of each row."""
    rows, weight_H = x.contiguous(), weight_H.contiguous()
    width = rows.shape[-1]
    if weight_H.shape != (width,):
        raise ValueError(
            f"rms_norm: rows of {width} need as many weights, got {tuple(weight_H.shape)}"
        )
    _require(rows.dtype, weight_H)
    out = torch.empty(rows.shape, dtype=rows.dtype, device="cpu")
    inverse = torch.empty(*rows.shape[:-1], 1, dtype=torch.float32, device="cpu")
    _functions(rows.dtype).rms_norm(
        rows.data_ptr(),
        weight_H.data_ptr(),
        out.data_ptr(),
        inverse.data_ptr(),
        inverse.numel(),
        width,
        eps,
        torch.get_num_threads(),
    )
    return out, inverse


def swiglu_native(gate_up_TI: torch.Tensor) -> torch.Tensor:
    """[T, 2*I] -> [T, I]."""
    gate_up_TI = gate_up_TI.contiguous()
    num_rows, width = gate_up_TI.shape
    out_TI = torch.empty(num_rows, width // 2, dtype=gate_up_TI.dtype, device="cpu")
    _functions(gate_up_TI.dtype).swiglu(
        gate_up_TI.data_ptr(), out_TI.data_ptr(), num_rows, width // 2, torch.get_num_threads()
    )
    return out_TI


def rope_native(x_TND: torch.Tensor, cos_sin_TD: torch.Tensor) -> torch.Tensor:
    """[T, N, D], and angles [T, D] in float32 -> [T, N, D]."""
    num_rows, num_heads, head_dim = x_TND.shape
    x_TND = _dense_rows(x_TND)
    cos_sin_TD = cos_sin_TD.contiguous()
    if head_dim % 2 or cos_sin_TD.shape != (num_rows, head_dim):
        raise ValueError(
            f"rope: heads {tuple(x_TND.shape)} need an even width and angles [{num_rows}, {head_dim}], got "
            f"{tuple(cos_sin_TD.shape)}"
        )
    _require(torch.float32, cos_sin_TD)
    out_TND = torch.empty(num_rows, num_heads, head_dim, dtype=x_TND.dtype, device="cpu")
    _functions(x_TND.dtype).rope(
        x_TND.data_ptr(),
        x_TND.stride(0),
        cos_sin_TD.data_ptr(),
        out_TND.data_ptr(),
        num_rows,
        num_heads,
        head_dim,
        torch.get_num_threads(),
    )
    return out_TND


def _scale_addresses(
    keys: torch.Tensor,
    values: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor] | None,
    dtype: torch.dtype,
) -> tuple[int | None, int | None]:
    """Of keys and of values; None without scales. C reads bytes: what has another type or shape is refused."""
    if scales is None:
        _require(dtype, keys, values)
        return None, None
    _require(torch.float32, *scales)
    for integers, scale in zip((keys, values), scales, strict=True):
        if integers.dtype is not torch.int8 or scale.shape != integers.shape[:-1]:
            raise ValueError(
                f"keys and values with scales {tuple(scale.shape)} must be int8 and of one more dimension, got "
                f"{integers.dtype} {tuple(integers.shape)}"
            )
        if not scale.is_contiguous():
            raise ValueError("scales of keys and values must be contiguous")
    return scales[0].data_ptr(), scales[1].data_ptr()


def _check_linear(
    op: str,
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    scale_N: torch.Tensor | None = None,
) -> None:
    """Refuse what does not fit the weights in size, or the rows in type; the weights' type is the caller's."""
    out_features, in_features = weight_NK.shape
    vectors = [vector for vector in (bias_N, scale_N) if vector is not None]
    if x_TK.shape[1] != in_features or any(len(vector) != out_features for vector in vectors):
        raise ValueError(
            f"{op}: rows of {x_TK.shape[1]} do not fit weights {tuple(weight_NK.shape)}, or a bias or scale does not"
        )
    if bias_N is not None:
        _require(x_TK.dtype, bias_N)
    if scale_N is not None:
        _require(torch.float32, scale_N)


def _require(dtype: torch.dtype, *tensors: torch.Tensor) -> None:
    """C reads bytes: another type would be read past its end."""
    for tensor in tensors:
        if tensor.dtype is not dtype:
            raise ValueError(
                f"operands must be {str(dtype).removeprefix('torch.')}, got {tensor.dtype}"
            )


def _dense_rows(x_TND: torch.Tensor) -> torch.Tensor:
    """The same, its rows dense; they may lie apart, as slices of a wider tensor do."""
    is_dense = x_TND.stride()[1:] == (x_TND.shape[2], 1)
    return x_TND if is_dense else x_TND.contiguous()


def attends_natively(q_TND: torch.Tensor, num_kv_heads: int) -> bool:
    """Whether `attention_native` takes these heads."""
    num_heads, head_dim = q_TND.shape[1:]
    return runs_natively(q_TND) and takes_heads(num_heads, num_kv_heads, head_dim)


def takes_heads(num_heads: int, num_kv_heads: int, head_dim: int) -> bool:
    """Whether attention in C does."""
    if head_dim % 8 or head_dim > _MAX_HEAD_DIM or num_heads % num_kv_heads:
        return False
    return num_heads // num_kv_heads <= _MAX_GROUP


def cache_lanes(
    dtype: torch.dtype,
    device: torch.device,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
) -> int:
    """How many keys a cache should interleave (`kernels.paged_kv.PagedKV.lanes`) for attention in C; 1 where rows are as good."""
    has_heads = takes_heads(num_heads, num_kv_heads, head_dim)
    lanes = _functions(dtype).lanes() if has_heads and _is_native(dtype, device) else 1
    return 1 if block_size % lanes else lanes


def attention_native(
    q_TND: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    queries_Q3: torch.Tensor,
    tasks_W3: torch.Tensor,
    table: torch.Tensor,
    keys_per_index: int,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    lanes: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Block-fold attention; `queries_Q3`, `tasks_W3` and `table` are those of `kernels.attention.AttentionLayout`.

    Args:
        q_TND: [T, N, D].
        keys: [rows, M, D] packed (`keys_per_index` 1), or [blocks, M, keys_per_index, D] paged; contiguous.
        values: like keys.
        queries_Q3: int64.
        tasks_W3: int64.
        table: int64, rows or blocks.
        keys_per_index: keys behind one entry of the table.
        scales: of keys and of values, float32 [blocks, M, keys_per_index], where those are int8.
        lanes: how many keys are interleaved, as in `kernels.paged_kv.PagedKV`.

    Returns:
        [T, N, D], and the logsumexp of the scores, float32 [T, N]; zeros in rows of no segment.
    """
    q_TND = q_TND.contiguous()
    num_heads, head_dim = q_TND.shape[1:]
    num_kv_heads = keys.shape[1]
    if not (keys.is_contiguous() and values.is_contiguous() and keys.shape == values.shape):
        raise ValueError("attention: keys and values must be contiguous and of one shape")
    key_scales, value_scales = _scale_addresses(keys, values, scales, q_TND.dtype)
    out_TND = torch.zeros_like(q_TND)
    logsumexp_TN = q_TND.new_zeros(q_TND.shape[:2], dtype=torch.float32)
    _functions(q_TND.dtype).attention(
        q_TND.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        key_scales,
        value_scales,
        table.data_ptr(),
        keys_per_index,
        num_kv_heads * keys_per_index * head_dim,
        keys_per_index * head_dim,
        lanes if lanes > 1 else 0,
        queries_Q3.data_ptr(),
        tasks_W3.data_ptr(),
        tasks_W3.shape[0],
        out_TND.data_ptr(),
        logsumexp_TN.data_ptr(),
        num_heads,
        num_kv_heads,
        head_dim,
        torch.get_num_threads(),
    )
    return out_TND, logsumexp_TN


def vocab_sums_native(
    logits_TV: torch.Tensor, inverse_temperature_T: torch.Tensor, *, with_moment: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Maximum [T], cumulative sums [T, J] and sum of x e^x [T], if asked for, as in `kernels.token_logprobs.VocabSums`."""
    num_rows, vocab_size = logits_TV.shape
    _require_rows(logits_TV, inverse_temperature_T)
    num_blocks = -(-vocab_size // VOCAB_BLOCK)
    maximum_T, moment_T = torch.empty(num_rows), torch.empty(num_rows) if with_moment else None
    cumulative_TJ = torch.empty(num_rows, num_blocks)
    _functions(logits_TV.dtype).vocab_sums(
        logits_TV.data_ptr(),
        inverse_temperature_T.data_ptr(),
        maximum_T.data_ptr(),
        cumulative_TJ.data_ptr(),
        None if moment_T is None else moment_T.data_ptr(),
        num_rows,
        vocab_size,
        torch.get_num_threads(),
    )
    return maximum_T, cumulative_TJ, moment_T


def sample_native(
    logits_TV: torch.Tensor,
    inverse_temperature_T: torch.Tensor,
    maximum_T: torch.Tensor,
    cumulative_TJ: torch.Tensor,
    uniforms_T: torch.Tensor,
) -> torch.Tensor:
    """[T] token ids, int64; what `vocab_sums_native` gave for these rows, and a uniform for each."""
    num_rows, vocab_size = logits_TV.shape
    _require_rows(logits_TV, inverse_temperature_T, maximum_T, cumulative_TJ, uniforms_T)
    tokens_T = torch.empty(num_rows, dtype=torch.int64, device="cpu")
    _functions(logits_TV.dtype).sample(
        logits_TV.data_ptr(),
        inverse_temperature_T.data_ptr(),
        maximum_T.data_ptr(),
        cumulative_TJ.data_ptr(),
        uniforms_T.data_ptr(),
        tokens_T.data_ptr(),
        num_rows,
        vocab_size,
    )
    return tokens_T


def _require_rows(logits_TV: torch.Tensor, *per_row: torch.Tensor) -> None:
    """As many float32 entries as rows, and all contiguous."""
    _require(torch.float32, *per_row)
    for tensor in (logits_TV, *per_row):
        if len(tensor) != len(logits_TV) or not tensor.is_contiguous():
            raise ValueError(
                f"logits {tuple(logits_TV.shape)} need contiguous tensors of as many rows, got {tuple(tensor.shape)}"
            )
