"""Table of the supported families."""

from rollout.models.families import llama, mistral, qwen2, qwen3
from rollout.models.families.family import Family

__all__ = ["FAMILIES"]

FAMILIES: dict[str, Family] = {
    module.FAMILY.architecture: module.FAMILY for module in (llama, mistral, qwen2, qwen3)
}
"""Families by the name in `architectures` of config.json."""
