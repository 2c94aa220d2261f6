"""A config as plain data: what YAML, JSON and W&B hold."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

__all__ = ["plain_data"]


def plain_data(value: Any) -> Any:
    """Dicts, lists and scalars of a value; members of enums by name. Texts stay as they are, whatever they contain."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(item) for item in value]
    return value
