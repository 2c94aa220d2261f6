"""Tasks' own answers as tokens, which supervised fine-tuning learns."""

from typing import Any

from rl.tasks.prompts import Prompt

__all__ = ["Demonstrations"]


class Demonstrations:
    """Answers to prompts: `answers(prompt)` returns (text, token ids). The ids end with the token that ends a reply.

    If the prompt begins the reply (`task.reply_prefix`), a space separates that beginning and the answer.

    Args:
        tokenizer: tokenizer of the model.
        max_tokens: maximum number of tokens of a completion.
        end_of_reply: token that ends a reply, as `rollout.text.ends` found it.

    Raises:
        ValueError: no token ends a reply.
    """

    def __init__(self, tokenizer: Any, *, max_tokens: int, end_of_reply: int | None) -> None:
        if end_of_reply is None:
            raise ValueError(
                "algorithm=sft needs a token that ends a reply, but neither the model's files nor its chat template names "
                "one; add eos_token_id to generation_config.json"
            )
        self._tokenizer = tokenizer
        self._end_of_reply = end_of_reply
        self._max_tokens = max_tokens

    def __call__(self, prompt: Prompt) -> tuple[str, list[int]]:
        """Return the answer to a prompt; raise a ValueError if the row has none, or one that is too long."""
        answer = prompt.answer
        if answer is None:
            raise ValueError(
                f"algorithm=sft needs an answer for every prompt, but prompt {prompt.prompt_id} has none"
            )
        is_begun = prompt.messages[-1]["role"] == "assistant"
        text = f" {answer}" if is_begun else str(answer)
        token_ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        token_ids.append(self._end_of_reply)
        if len(token_ids) > self._max_tokens:
            raise ValueError(
                f"sampling.max_tokens must have room for every answer with algorithm=sft: that of prompt {prompt.prompt_id} "
                f"has {len(token_ids)} tokens including its end, got {self._max_tokens}"
            )
        return text, token_ids
