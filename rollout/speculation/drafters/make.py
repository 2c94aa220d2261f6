"""The drafters that a config asks for."""

from rollout.config import DrafterKind, SpeculationConfig
from rollout.speculation.drafters.drafter import Drafter
from rollout.speculation.drafters.ngram import NgramDrafter
from rollout.speculation.drafters.suffix import SuffixDrafter

__all__ = ["make_drafters"]


def make_drafters(config: SpeculationConfig) -> list[Drafter]:
    """None for OFF. AUTO has the suffix drafter, which finds whatever the n-gram one finds."""
    match config.drafter:
        case DrafterKind.OFF:
            return []
        case DrafterKind.NGRAM:
            return [NgramDrafter()]
        case DrafterKind.SUFFIX | DrafterKind.AUTO:
            return [SuffixDrafter(history_tokens=config.history_tokens)]
