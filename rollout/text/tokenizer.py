"""Tokenizer in a model directory, with the chat template that the config asks for."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollout.config import ModelConfig
from rollout.models.json_file import read_json
from rollout.text.templates import set_chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["check_vocabulary", "load_tokenizer"]

_GENERIC_CLASSES = (
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
)  # names before and since transformers 5
_JSON_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def load_tokenizer(directory: Path, model: ModelConfig | None = None) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a model directory.

    Args:
        directory: Hugging Face directory.
        model: config whose `chat_template` and `chat_template_kwargs` replace the tokenizer's; None: the tokenizer's
            own template.

    Raises:
        ValueError: there is no tokenizer, one of its files is damaged, or there is no template as
            `model.chat_template` names.
    """
    tokenizer = _load(directory)
    if model is not None:
        set_chat_template(tokenizer, model.chat_template, model.chat_template_kwargs)
    return tokenizer


def check_vocabulary(tokenizer: Any, vocab_size: int, directory: Path) -> None:
    """Compare a tokenizer's ids with the size of the embedding.

    Raises:
        ValueError: an id lies beyond the embedding.
    """
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if largest >= vocab_size:
        raise ValueError(
            f"the tokenizer of {directory} has the token {token!r} with id {largest}, and the embedding has "
            f"{vocab_size} rows (ids up to {vocab_size - 1}); take the tokenizer of this model, or resize its embedding"
        )


def _load(directory: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # takes a second to import

    tokenizer_class = _checked_class(directory)
    is_generic = tokenizer_class in _GENERIC_CLASSES and (directory / "tokenizer.json").is_file()
    # AutoTokenizer gives the same tokenizer, but first imports model code for 3 s
    kind = PreTrainedTokenizerFast if is_generic else AutoTokenizer
    try:
        tokenizer = kind.from_pretrained(directory)
    except Exception as error:
        raise ValueError(
            f"the tokenizer of {directory} cannot be loaded ({type(error).__name__}: {_first_line(error)}); copy its files "
            "again, or add tokenizer.json"
        ) from error
    if tokenizer is None:
        raise ValueError(f"model directory {directory} has no tokenizer; add tokenizer.json")
    return tokenizer


def _checked_class(directory: Path) -> str:
    """Return the class that tokenizer_config.json names, or "". Read every JSON file once, so that an error names
    the damaged one."""
    contents = {
        name: read_json(directory / name) for name in _JSON_FILES if (directory / name).is_file()
    }
    return contents.get("tokenizer_config.json", {}).get("tokenizer_class", "")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no reason given").splitlines()[0]
