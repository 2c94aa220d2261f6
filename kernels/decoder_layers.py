"""All layers of a decoder over a paged cache in one call, instead of 15 calls per layer: for CPUs.

The same functions of `kernels/cpu/native` in the same order, so the same bits as the ops of this package one by one.
Forward only. At one token per step of a 135 M model, the calls were a quarter of the time.

Shape legend: T = packed tokens, H = hidden size, N = query heads, M = KV heads, D = width of a head, I = width of the
MLP.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernels.attention_layout import AttentionLayout
from kernels.cpu.library import native_library
from kernels.cpu.ops import int8_room, pack_native
from kernels.int8_linear import activation_levels
from kernels.paged_kv import PagedKV

__all__ = ["DecoderLayers", "LayerWeights", "LinearWeights"]

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearWeights:
    weight: torch.Tensor
    """[out, in], or int8."""
    scale: torch.Tensor | None = None
    """[out] float32, of int8 weights."""
    bias: torch.Tensor | None = None
    """[out]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    input_norm: torch.Tensor
    qkv: LinearWeights
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    o: LinearWeights
    post_attention_norm: torch.Tensor
    gate_up: LinearWeights
    down: LinearWeights


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


class DecoderLayers:
    """Holds the tensors of all layers, and their matrices laid out anew: for other tensors this must be made again, for new
    values in the same ones there is `refresh`.

    Args:
        layers: weights; contiguous.
        caches: keys and values of each layer.
        num_heads: of queries.
        eps: of every norm.
        num_threads: that lay the matrices out; None: as many as PyTorch has.

    Raises:
        ValueError: something is not contiguous, or of a type or shape that C cannot take; ask `runs_natively` and `takes_heads` first.
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
        self._panels: list[_Panels] = []
        self._layers = (_Layer * len(layers))(
            *(
                _layer(weights, cache, self._dtype, self._panels, num_threads)
                for weights, cache in zip(layers, caches, strict=True)
            )
        )
        self._kept = (layers, caches)  # alive as long as their addresses, as the panels are
        self._run = native_library(self._dtype).paceline_layers  # pyrefly: ignore
        self.seconds = {"linears": 0.0, "attention": 0.0}
        """Spent in parts of the layers, in all calls since the matrices were last laid out."""

    def refresh(self, *, num_threads: int | None = None) -> None:
        """Lay the matrices out again, whose values have changed, in the memory of the last time.

        Args:
            num_threads: None: as many as PyTorch has.
        """
        for weight, panels in self._panels:
            pack_native(weight, self._dtype, into=panels, num_threads=num_threads)
        self.seconds = dict.fromkeys(self.seconds, 0.0)

    def __call__(
        self,
        x_TH: torch.Tensor,
        cos_sin_TD: torch.Tensor,
        block_ids_T: torch.Tensor,
        offsets_T: torch.Tensor,
        layout: AttentionLayout,
    ) -> torch.Tensor:
        """The residual stream [T, H] after the last layer, in the place of `x_TH`; keys and values go into the caches.

        Args:
            x_TH: before the first layer; contiguous.
            cos_sin_TD: rows of the rope table at the tokens' positions; contiguous.
            block_ids_T: int64, of the caches' blocks.
            offsets_T: int64, in the block.
            layout: from `paged_layout`, and of the same tokens.
        """
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


_Panels = tuple[torch.Tensor, torch.Tensor]
"""A matrix, and what `pack_native` made of it."""


def _layer(
    weights: LayerWeights,
    cache: PagedKV,
    dtype: torch.dtype,
    panels: list[_Panels],
    num_threads: int | None,
) -> _Layer:
    key_scales, value_scales = cache.scales or (None, None)
    stored = dtype if cache.scales is None else torch.int8
    return _Layer(
        *(
            _linear(x, dtype, panels, num_threads)
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
    linear: LinearWeights, dtype: torch.dtype, panels: list[_Panels], num_threads: int | None
) -> _Linear:
    """Its panels are appended to `panels`."""
    out_features, in_features = linear.weight.shape
    weight = _address(linear.weight, dtype if linear.scale is None else torch.int8)
    packed = pack_native(linear.weight, dtype, num_threads=num_threads)
    if packed is not None:
        panels.append((linear.weight, packed))
    return _Linear(
        weight,
        None if packed is None else packed.data_ptr(),
        _address(linear.scale, torch.float32),
        _address(linear.bias, dtype),
        activation_levels(in_features),
        in_features,
        out_features,
    )


def _address(tensor: torch.Tensor | None, dtype: torch.dtype) -> int | None:
    """C reads bytes: what is of another type, or not contiguous, is refused."""
    if tensor is None:
        return None
    if tensor.dtype is not dtype or not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(
            f"decoder layers need contiguous {dtype} tensors on the CPU, got {tensor.dtype} on {tensor.device}"
        )
    return tensor.data_ptr()
