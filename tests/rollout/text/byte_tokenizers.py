"""Byte tokenizers for tests, with other templates and special tokens."""

from typing import Any

from rollout.models.sources.tiny import BOS, IM_END, PAD
from rollout.models.sources.tiny import byte_tokenizer as tiny_tokenizer

# what Qwen3's template does to replies, in short: an empty think block, spaces stripped
QWEN3_LIKE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_tokenizer(chat_template: Any = None, *, eos_token: str = IM_END, adds_bos: bool = False):
    """The tiny model's tokenizer, under another template."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    fast = tiny_tokenizer()
    if adds_bos:
        fast.post_processor = TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, fast.token_to_id(BOS))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token=BOS, eos_token=eos_token, pad_token=PAD
    )
    tokenizer.chat_template = chat_template
    return tokenizer
