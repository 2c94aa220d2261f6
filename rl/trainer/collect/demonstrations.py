"""The tasks' own answers as tokens: the completions that supervised fine-tuning learns."""

from typing import Any

from rl.tasks.prompts import Prompt

__all__ = ["Demonstrations"]


class Demonstrations:
    """`answers(prompt)` is (text, token ids). The ids end with the token that ends a reply.

    Where the prompt begins the reply (`task.reply_prefix`), a space comes between that and the answer.

    Args:
        tokenizer: of the model.
        max_tokens: of a completion.
        end_of_reply: the token that ends a reply, as `rollout.text.ends` resolved it.

    Raises:
        ValueError: no token ends a reply.
    """

    def __init__(self, tokenizer: Any, *, max_tokens: int, end_of_reply: int | None) -> None:
        if end_of_reply is None:
            raise ValueError(
                "algorithm=sft needs a token that ends a reply, and neither the model's files nor its chat template name "
                "one; add eos_token_id to generation_config.json"
            )
        self._tokenizer = tokenizer
        self._end_of_reply = end_of_reply
        self._max_tokens = max_tokens

    def __call__(self, prompt: Prompt) -> tuple[str, list[int]]:
        """Raises `ValueError` where the row has no answer, or one that does not fit."""
        answer = prompt.answer
        if answer is None:
            raise ValueError(
                f"algorithm=sft needs an answer for every prompt, and prompt {prompt.prompt_id} has none"
            )
        is_begun = prompt.messages[-1]["role"] == "assistant"
        text = f" {answer}" if is_begun else str(answer)
        token_ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        token_ids.append(self._end_of_reply)
        if len(token_ids) > self._max_tokens:
            raise ValueError(
                f"sampling.max_tokens must hold every answer when algorithm=sft: that of prompt {prompt.prompt_id} "
                f"has {len(token_ids)} tokens with its end, got {self._max_tokens}"
            )
        return text, token_ids
