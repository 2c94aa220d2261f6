"""Qwen3: Llama with norms of queries and keys."""

from rollout.models.families.family import WINDOW_KEYS, Family

__all__ = ["FAMILY"]

FAMILY = Family(
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    max_positions=32768,
    num_kv_heads=32,
    head_dim=128,
    has_own_keys=("attention_bias", *WINDOW_KEYS),
    has_qk_norm=True,
    runs_in_one_call=True,
)
