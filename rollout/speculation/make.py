"""Makes the speculator that a config asks for."""

from pathlib import Path

from rollout.config import DrafterKind, EngineConfig, ModelConfig
from rollout.engine.block_manager import BlockManager
from rollout.engine.runner import Runner
from rollout.models.checkpoint import load_decoder
from rollout.models.decoder import Decoder
from rollout.models.packed_decoder import PackedDecoder
from rollout.models.sources import resolve_model
from rollout.models.spec import read_spec
from rollout.speculation.drafters.drafter import Drafter
from rollout.speculation.drafters.model import ModelDrafter
from rollout.speculation.drafters.ngram import NgramDrafter
from rollout.speculation.drafters.suffix import SuffixDrafter
from rollout.speculation.measure_costs import measure_costs
from rollout.speculation.speculator import Speculator

__all__ = ["check_draft_model", "history_tokens", "make_speculator"]


def make_speculator(
    config: EngineConfig,
    *,
    runner: Runner,
    weights: PackedDecoder,
    blocks: BlockManager,
    max_context_tokens: int,
) -> Speculator | None:
    """Makes drafters and measures what steps cost; None if the config asks for no drafter.

    Args:
        config: config of the engine.
        runner: runs the steps of the engine.
        weights: model that drafts are verified by.
        blocks: block manager of the engine, which is idle.
        max_context_tokens: most tokens of a request.

    Raises:
        ValueError: the draft model cannot be loaded, or has another vocabulary.
    """
    drafters = _make_drafters(config, weights.decoder)
    if not drafters:
        return None
    costs = measure_costs(
        runner,
        weights,
        blocks,
        max_rows=config.max_tokens_per_step,
        max_context=max_context_tokens,
    )
    return Speculator(
        drafters,
        costs,
        max_draft_tokens=config.speculation.max_draft_tokens,
        eos_token_ids=weights.decoder.spec.eos_token_ids,
    )


def _make_drafters(config: EngineConfig, target: Decoder) -> list[Drafter]:
    """None for `off`. `auto` has the suffix drafter, which finds whatever the n-gram one finds, and a model if one is named.

    Raises:
        ValueError: the draft model cannot be had, or has another vocabulary.
    """
    speculation = config.speculation
    match speculation.drafter:
        case DrafterKind.off:
            return []
        case DrafterKind.ngram:
            return [NgramDrafter()]
        case DrafterKind.suffix:
            return [SuffixDrafter(history_tokens=speculation.history_tokens)]
        case DrafterKind.model:
            return [_model_drafter(config, target)]
        case DrafterKind.auto:
            suffix = SuffixDrafter(history_tokens=speculation.history_tokens)
            return [suffix, _model_drafter(config, target)] if speculation.model_path else [suffix]


def history_tokens(config: EngineConfig) -> int:
    """Returns the most tokens of past rollouts that the drafters of a config keep."""
    has_history = config.speculation.drafter in (DrafterKind.suffix, DrafterKind.auto)
    return config.speculation.history_tokens if has_history else 0


def check_draft_model(config: EngineConfig, target: Decoder) -> None:
    """Refuses a draft model that workers could not load.

    Raises:
        ValueError: the draft model cannot be had, or has another vocabulary.
    """
    speculation = config.speculation
    if speculation.model_path and speculation.drafter in (DrafterKind.model, DrafterKind.auto):
        _draft_directory(speculation.model_path, target)


def _draft_directory(path: str, target: Decoder) -> Path:
    """Returns the directory of the draft model. Only the size of the vocabulary is compared."""
    directory = resolve_model(ModelConfig(path=path), key="engine.speculation.model_path")
    size, target_size = read_spec(directory).vocab_size, target.spec.vocab_size
    if size != target_size:
        raise ValueError(
            f"engine.speculation.model_path must be a model of the same vocabulary: {path} has {size} tokens, "
            f"the model it drafts for has {target_size}"
        )
    return directory


def _model_drafter(config: EngineConfig, target: Decoder) -> ModelDrafter:
    """Loads the draft model, in the type and on the device of the target."""
    directory = _draft_directory(config.speculation.model_path, target)
    weight = target.embed_tokens
    return ModelDrafter(
        load_decoder(directory, dtype=weight.dtype, device=weight.device),
        kv_cache_gb=config.speculation.kv_cache_gb,
        block_size=config.block_size,
        max_context=config.max_context_tokens,
    )
