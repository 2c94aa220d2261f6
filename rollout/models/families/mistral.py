"""Mistral: Llama with a sliding window."""

from rollout.models.families.family import Family

__all__ = ["FAMILY"]

FAMILY = Family(
    architecture="MistralForCausalLM",
    model_type="mistral",
    max_positions=131072,
    num_kv_heads=8,
    has_own_keys=("sliding_window",),
    runs_in_one_call=True,
)
