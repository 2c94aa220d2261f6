"""Files for servers, written next to a version's weights, so that prompts and sampling are those of training.

generation_config.json    temperature, limits, stops and end-of-sequence ids of the run
prompt.json               system prompt, texts around a question, and an example in the form that the model saw
chat_template.jinja       chat template of the run, if the config set one
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.tasks.config import TaskConfig
from rl.tasks.prompts import Prompt
from rollout.config import ModelConfig, SamplingConfig
from rollout.models.json_file import read_json
from rollout.text.chat import render_chat

__all__ = ["ServedFiles"]

_KEPT = ("bos_token_id", "pad_token_id")
"""Keys of a model's own generation_config.json that stay unchanged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedFiles:
    """Writer of the files of one run.

    Args:
        model: config of the model; its chat template is written if the config set one.
        task: config of the task, with the texts around a question.
        sampling: sampling parameters of the run.
        tokenizer: tokenizer with the chat template in use.
        eos_token_ids: tokens that end a completion.
        example: a prompt of the run.
    """

    model: ModelConfig
    task: TaskConfig
    sampling: SamplingConfig
    tokenizer: Any
    eos_token_ids: tuple[int, ...]
    example: Prompt

    def write(self, directory: Path) -> None:
        """Write the files to a directory that already contains those of the model."""
        _write_json(directory / "generation_config.json", self._generation(directory))
        _write_json(directory / "prompt.json", self._prompt())
        if self.model.chat_template or self.model.chat_template_kwargs:
            path = directory / "chat_template.jinja"
            path.write_text(self.tokenizer.chat_template, encoding="utf-8")

    def _generation(self, directory: Path) -> dict[str, Any]:
        path = directory / "generation_config.json"
        before = read_json(path) if path.is_file() else {}
        sampling = self.sampling
        settings = {key: before[key] for key in _KEPT if key in before}
        settings |= {
            "do_sample": sampling.temperature > 0,
            "max_new_tokens": sampling.max_tokens,
            "top_k": sampling.top_k,  # 0 is off; without the key transformers would use 50
            "top_p": sampling.top_p,
        }
        if sampling.temperature > 0:
            settings["temperature"] = sampling.temperature
        if sampling.min_p:
            settings["min_p"] = sampling.min_p
        if self.eos_token_ids:
            settings["eos_token_id"] = list(self.eos_token_ids)
        if sampling.stop:
            settings["stop_strings"] = list(sampling.stop)
        return settings

    def _prompt(self) -> dict[str, Any]:
        messages = [dict(message) for message in self.example.messages]
        return {
            "system_prompt": self.task.system_prompt,
            "user_prompt": self.task.user_prompt,
            "reply_prefix": self.task.reply_prefix,
            "stop": list(self.sampling.stop),
            "chat_template_kwargs": dict(self.model.chat_template_kwargs),
            "example": {"messages": messages, "prompt": render_chat(messages, self.tokenizer)},
        }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
