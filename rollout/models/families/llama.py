"""Llama, and models that use its architecture (SmolLM)."""

from rollout.models.families.family import Family

__all__ = ["FAMILY"]

FAMILY = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    max_positions=2048,
    has_own_keys=("attention_bias", "mlp_bias"),
    runs_in_one_call=True,
)
