"""First prompt in the form that the model sees, shown before training starts."""

from rl.trainer.collect.encoded_prompts import EncodedPrompts

__all__ = ["first_prompt_plan"]

_MAX_CHARS = 1200
_NUM_LAST_TOKENS = 6


def first_prompt_plan(prompts: EncodedPrompts) -> dict[str, str]:
    """Return the rendered first prompt, its last tokens, and its gold answer."""
    prompt, token_ids = prompts[0]
    text = prompts.render(token_ids)
    last = [prompts.render([token_id]) for token_id in token_ids[-_NUM_LAST_TOKENS:]]
    return {
        "first prompt": _without_middle(text),
        "its last tokens": " ".join(repr(token) for token in last),
        "its answer": _without_middle(str(prompt.answer))
        + (f" ({prompt.origin})" if prompt.origin else ""),
    }


def _without_middle(text: str) -> str:
    half = _MAX_CHARS // 2
    num_left_out = len(text) - 2 * half
    if num_left_out <= 0:
        return text
    return f"{text[:half]} ... {num_left_out:,} characters ... {text[-half:]}"
