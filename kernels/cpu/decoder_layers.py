"""Launcher of all layers of a decoder in C: one call instead of 15 per layer.

Shape legend: T = packed tokens, H = hidden size, N = query heads, M = KV heads, D = width of a head, I = width of the
MLP.
"""

import ctypes
from collections.abc import Sequence

import torch

from kernels.attention_layout import AttentionLayout
from kernels.cpu.int8_linear import int8_room
from kernels.cpu.library import native_library
from kernels.cpu.linear import pack_native
from kernels.layer_weights import LayerWeights, LinearWeights
from kernels.paged_kv import PagedKV
from kernels.quantize import activation_levels

__all__ = ["NativeDecoderLayers"]

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


class _Linear(ctypes.Structure):
    _fields_ = [
        *((name, _POINTER) for name in ("weight", "panels", "scale", "bias")),
        ("levels", ctypes.c_float),
        ("in_features", _SIZE),
        ("out_features", _SIZE),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Linear) for name in ("qkv", "o", "gate_up", "down")),
        *((name, _POINTER) for name in ("input_norm", "post_attention_norm", "q_norm", "k_norm")),
        *((name, _POINTER) for name in ("keys", "values", "key_scales", "value_scales")),
    ]


class _Step(ctypes.Structure):
    _names = ("cos_sin", "block_ids", "offsets", "table", "queries", "tasks")
    _fields_ = [*((name, _POINTER) for name in _names), ("num_tasks", _SIZE)]


class _Sizes(ctypes.Structure):
    _fields_ = [
        *((name, _SIZE) for name in ("T", "H", "N", "M", "D", "I", "block_size", "lanes")),
        ("eps", ctypes.c_float),
        ("threads", ctypes.c_int),
    ]


class _Rooms(ctypes.Structure):
    _names = ("normed", "qkv", "q", "attended", "delta", "gate_up", "gated")
    _fields_ = [(name, _POINTER) for name in (*_names, "logsumexp", "integers")]


class NativeDecoderLayers:
    """Implements `kernels.decoder_layers.DecoderLayers`: holds the tensors of all layers and packed copies of their weights.

    Raises:
        ValueError: a tensor is not contiguous, or of a type that C cannot read.
    """

    def __init__(
        self,
        layers: Sequence[LayerWeights],
        caches: Sequence[PagedKV],
        *,
        num_heads: int,
        eps: float,
        num_threads: int | None = None,
    ) -> None:
        _, self._num_kv_heads, self._block_size, self._head_dim = caches[0].keys.shape
        self._lanes = caches[0].lanes if caches[0].lanes > 1 else 0
        self._num_heads = num_heads
        self._eps = eps
        first, heads = layers[0], num_heads * self._head_dim
        self._hidden_size, self._intermediate_size = first.down.weight.shape
        self._room_widths = {
            "normed": self._hidden_size,
            "qkv": first.qkv.weight.shape[0],
            "q": heads,
            "attended": heads,
            "delta": self._hidden_size,
            "gate_up": 2 * self._intermediate_size,
            "gated": self._intermediate_size,
        }
        self._widest_input = max(self._hidden_size, heads, self._intermediate_size)
        self._dtype = first.input_norm.dtype
        self._packed: list[_Packed] = []
        self._layers = (_Layer * len(layers))(
            *(
                _layer(weights, cache, self._dtype, self._packed, num_threads)
                for weights, cache in zip(layers, caches, strict=True)
            )
        )
        self._kept = (layers, caches)  # C holds the addresses of these tensors
        self._run = native_library(self._dtype).paceline_layers  # pyrefly: ignore
        self.seconds = {"linears": 0.0, "attention": 0.0}
        """Time spent in parts of the layers, in all calls since the weights were last packed."""

    def refresh(self, *, num_threads: int | None = None) -> None:
        """Packs the present values of the weights, in the memory of their last packed copies."""
        for weight, packed in self._packed:
            pack_native(weight, self._dtype, into=packed, num_threads=num_threads)
        self.seconds = dict.fromkeys(self.seconds, 0.0)

    def __call__(
        self,
        x_TH: torch.Tensor,
        cos_sin_TD: torch.Tensor,
        block_ids_T: torch.Tensor,
        offsets_T: torch.Tensor,
        layout: AttentionLayout,
    ) -> torch.Tensor:
        """Runs all layers; arguments as in `DecoderLayers`."""
        num_rows = x_TH.shape[0]
        queries_Q3, tasks_W3 = layout.queries_and_tasks
        step_tensors = (cos_sin_TD, block_ids_T, offsets_T, layout.table, queries_Q3, tasks_W3)
        step = _Step(*(t.data_ptr() for t in step_tensors), len(tasks_W3))
        sizes_of_rooms = [num_rows * width for width in self._room_widths.values()]
        rooms = torch.empty(sum(sizes_of_rooms), dtype=self._dtype, device="cpu").split(
            sizes_of_rooms
        )
        logsumexp = torch.empty(num_rows * self._num_heads, dtype=torch.float32, device="cpu")
        integers = int8_room(self._dtype, num_rows, self._widest_input)
        addresses = _Rooms(*(room.data_ptr() for room in (*rooms, logsumexp, integers)))
        sizes = _Sizes(
            T=num_rows,
            H=self._hidden_size,
            N=self._num_heads,
            M=self._num_kv_heads,
            D=self._head_dim,
            I=self._intermediate_size,
            block_size=self._block_size,
            lanes=self._lanes,
            eps=self._eps,
            threads=torch.get_num_threads(),
        )
        seconds = (ctypes.c_double * len(self.seconds))()
        self._run(
            self._layers,
            _SIZE(len(self._layers)),
            _POINTER(x_TH.data_ptr()),
            ctypes.byref(step),
            ctypes.byref(addresses),
            ctypes.byref(sizes),
            seconds,
        )
        for part, spent in zip(self.seconds, seconds, strict=True):
            self.seconds[part] += spent
        return x_TH


_Packed = tuple[torch.Tensor, torch.Tensor]
"""A weight and its packed copy."""


def _layer(
    weights: LayerWeights,
    cache: PagedKV,
    dtype: torch.dtype,
    packed: list[_Packed],
    num_threads: int | None,
) -> _Layer:
    key_scales, value_scales = cache.scales or (None, None)
    stored = dtype if cache.scales is None else torch.int8
    return _Layer(
        *(
            _linear(x, dtype, packed, num_threads)
            for x in (weights.qkv, weights.o, weights.gate_up, weights.down)
        ),
        *(
            _address(x, dtype)
            for x in (
                weights.input_norm,
                weights.post_attention_norm,
                weights.q_norm,
                weights.k_norm,
            )
        ),
        _address(cache.keys, stored),
        _address(cache.values, stored),
        _address(key_scales, torch.float32),
        _address(value_scales, torch.float32),
    )


def _linear(
    linear: LinearWeights, dtype: torch.dtype, packed: list[_Packed], num_threads: int | None
) -> _Linear:
    """Describes one linear op to C; appends its weight and packed copy to `packed`."""
    out_features, in_features = linear.weight.shape
    weight = _address(linear.weight, dtype if linear.scale is None else torch.int8)
    copy = pack_native(linear.weight, dtype, num_threads=num_threads)
    if copy is not None:
        packed.append((linear.weight, copy))
    return _Linear(
        weight,
        None if copy is None else copy.data_ptr(),
        _address(linear.scale, torch.float32),
        _address(linear.bias, dtype),
        activation_levels(in_features),
        in_features,
        out_features,
    )


def _address(tensor: torch.Tensor | None, dtype: torch.dtype) -> int | None:
    """Returns the address of a tensor that C can read.

    Raises:
        ValueError: the tensor has another type, is not contiguous or is not on the CPU.
    """
    if tensor is None:
        return None
    if tensor.dtype is not dtype or not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(
            f"decoder layers need contiguous {dtype} tensors on the CPU, got {tensor.dtype} on {tensor.device}"
        )
    return tensor.data_ptr()
