"""Limits of an engine: which requests can never fit, and when a completion ends."""

from dataclasses import dataclass
from typing import Any

from rollout.core import FinishReason, Request, RequestState
from rollout.engine.block_manager import BlockManager
from rollout.text.stops import ends_with_stop

__all__ = ["EngineLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """Limits that model and config set for requests."""

    vocab_size: int
    max_context_tokens: int
    """Most tokens of a prompt and its completion together."""
    eos_token_ids: tuple[int, ...]
    tokenizer: Any
    """Tokenizer that reads completions for stop strings."""

    def why_impossible(self, request: Request, blocks: BlockManager) -> str:
        """Returns why a request can never be served; empty if it can."""
        length = len(request.token_ids)
        if length == 0:
            return "the prompt is empty"
        for token_id in (min(request.token_ids), max(request.token_ids)):
            if not 0 <= token_id < self.vocab_size:
                return f"token id {token_id} is not in the model's vocabulary ({self.vocab_size} tokens)"
        if length >= self.max_context_tokens:
            return (
                f"the prompt has {length} tokens, and the context ({self.max_context_tokens} tokens: "
                "engine.max_context_tokens or the model's own limit) leaves no room for a completion"
            )
        longest = min(length + request.params.max_tokens, self.max_context_tokens)
        # one more, since a shared block is copied while its original is still held
        needed = blocks.blocks_for(longest) + 1
        if needed > blocks.num_blocks:
            return (
                f"{longest} tokens need {needed} KV blocks and there are {blocks.num_blocks}; "
                "raise engine.kv_cache_gb or lower max_tokens"
            )
        return ""

    def finish_reason(self, state: RequestState, token_id: int) -> FinishReason | None:
        """Returns why a request ends with its last token, `token_id`; None if it goes on."""
        params = state.request.params
        if params.ends_at(token_id, eos_token_ids=self.eos_token_ids):
            return FinishReason.STOP
        if params.stop and ends_with_stop(state.output_ids, params.stop, self.tokenizer):
            return FinishReason.STOP
        is_full = len(state.token_ids) >= self.max_context_tokens
        return FinishReason.LENGTH if is_full or state.num_output >= params.max_tokens else None
