"""A speculator as a config describes it."""

from rollout.config import DrafterKind, SpeculationConfig
from rollout.speculation.cost_table import CostTable
from rollout.speculation.drafters.drafter import Drafter
from rollout.speculation.drafters.ngram import NgramDrafter
from rollout.speculation.drafters.suffix import SuffixDrafter
from rollout.speculation.speculator import Speculator

__all__ = ["build_speculator"]


def build_speculator(config: SpeculationConfig, costs: CostTable) -> Speculator:
    """AUTO has the suffix drafter, which finds whatever the n-gram one finds."""
    return Speculator(_drafters(config), costs, max_draft_tokens=config.max_draft_tokens)


def _drafters(config: SpeculationConfig) -> list[Drafter]:
    match config.drafter:
        case DrafterKind.NGRAM:
            return [NgramDrafter()]
        case DrafterKind.SUFFIX | DrafterKind.AUTO:
            return [SuffixDrafter(history_tokens=config.history_tokens)]
        case DrafterKind.OFF:
            raise ValueError("engine.speculation.drafter=OFF needs no speculator")
