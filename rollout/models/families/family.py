"""Properties of a family of models: the reading of its config.json, and its layers."""

from dataclasses import dataclass

from rollout.models.layers import DecoderLayer

__all__ = ["WINDOW_KEYS", "Family"]

WINDOW_KEYS = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
"""Keys by which a Qwen declares the layers that attend only within a window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Architecture in Hugging Face's sense. Defaults for missing keys of config.json are those of transformers."""

    architecture: str
    """Name in `architectures` of config.json."""
    model_type: str
    max_positions: int
    """Maximum number of positions if config.json does not declare it."""
    num_kv_heads: int | None = None
    """Number of KV heads if config.json does not declare it; None: the number of query heads."""
    head_dim: int | None = None
    """Width of a head if config.json does not declare it; None: hidden_size / num_attention_heads."""
    has_own_keys: tuple[str, ...] = ()
    """Optional keys of config.json that this family reads."""
    has_qkv_bias: bool = False
    """Whether queries, keys and values always have a bias, and the output of attention never has one."""
    has_qk_norm: bool = False
    """Whether each head of queries and keys is normalized."""
    layer: type[DecoderLayer] = DecoderLayer
    """Class of the family's layers."""
    runs_in_one_call: bool = False
    """Whether `kernels.decoder_layers`, which runs all layers in one call, computes this family's layers. A family
    must opt in, because other layers with heads of the same shape would be computed as dense ones."""
