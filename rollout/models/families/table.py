"""Table of the families that can be loaded."""

from rollout.models.families import llama, mistral, qwen2, qwen3
from rollout.models.families.family import Family

__all__ = ["FAMILIES"]

FAMILIES: dict[str, Family] = {
    module.FAMILY.architecture: module.FAMILY for module in (llama, mistral, qwen2, qwen3)
}
"""Family by the name in `architectures` of config.json."""
