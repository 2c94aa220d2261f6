"""What tells a family of models apart: how its config.json is read, and what its layers are."""

from dataclasses import dataclass

from rollout.models.layers import DecoderLayer

__all__ = ["WINDOW_KEYS", "Family"]

WINDOW_KEYS = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
"""Keys by which a Qwen says which layers attend within a window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One architecture of Hugging Face. Defaults of keys are those of transformers."""

    architecture: str
    """Name in `architectures` of config.json."""
    model_type: str
    max_positions: int
    """Positions where config.json does not say."""
    num_kv_heads: int | None = None
    """KV heads where config.json does not say; None: as many as query heads."""
    head_dim: int | None = None
    """Width of a head where config.json does not say; None: hidden_size / num_attention_heads."""
    has_own_keys: tuple[str, ...] = ()
    """Optional keys of config.json that this family reads."""
    has_qkv_bias: bool = False
    """Whether queries, keys and values always have a bias, and the output of attention never has one."""
    has_qk_norm: bool = False
    """Whether each head of queries and keys is normalised."""
    layer: type[DecoderLayer] = DecoderLayer
    """Class of its layers."""
    runs_in_one_call: bool = False
    """Whether its layers are those of `kernels.decoder_layers`, which runs all of them in one call. A family must opt in: other
    layers with heads of the same shape would be computed as dense ones."""
