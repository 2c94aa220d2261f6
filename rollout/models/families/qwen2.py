"""Qwen2: Llama with a bias on queries, keys and values."""

from rollout.models.families.family import WINDOW_KEYS, Family

__all__ = ["FAMILY"]

FAMILY = Family(
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    max_positions=32768,
    num_kv_heads=32,
    has_own_keys=("attention_bias", *WINDOW_KEYS),
    has_qkv_bias=True,
    runs_in_one_call=True,
)
