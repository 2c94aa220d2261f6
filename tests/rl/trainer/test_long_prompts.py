"""Prompts that are too long for the context: named with their row, or left out and counted."""

import json
import logging

import pytest

from rl.tasks.config import DatasetConfig
from rl.tasks.task import Task, load_task
from rl.trainer.checks import check_context
from rl.trainer.collect import encoded_prompts
from rl.trainer.collect.encoded_prompts import EncodedPrompts, leave_out_long
from rl.trainer.first_prompt import first_prompt_plan


class LetterTokenizer:
    """One token per character."""

    def decode(self, token_ids, *, skip_special_tokens):
        return "".join(map(chr, token_ids))


@pytest.fixture(autouse=True)
def letters(monkeypatch):
    def encode(prompts, tokenizer):
        return [[ord(c) for c in messages[-1]["content"]] for messages in prompts]

    monkeypatch.setattr(encoded_prompts, "encode_prompts", encode)


@pytest.fixture
def config(tmp_path) -> DatasetConfig:
    """40 rows, of which row 31 has 50 characters and the others two."""
    rows = [{"question": f"{i:02}" * (25 if i == 31 else 1), "answer": i} for i in range(1, 41)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetConfig(path=str(path), num_held_out=4)


def task_of(config: DatasetConfig, **keys) -> Task:
    return load_task(DatasetConfig(path=config.path, num_held_out=4, **keys))


def test_a_prompt_that_is_too_long_is_named_by_the_row_of_its_file(config):
    prompts = EncodedPrompts(task_of(config).train, LetterTokenizer())
    with pytest.raises(
        ValueError,
        match=r"50 tokens \(row 31 of .*a\.jsonl\).* has room for 50 .*task\.max_prompt_tokens=49$",
    ):
        check_context(prompts, len(prompts), max_tokens=9, max_context_tokens=50, what="training")
    assert check_context(prompts, 9, max_tokens=9, max_context_tokens=50, what="training") == 2


def test_completions_that_may_be_cut_by_the_context_are_said(config, caplog):
    prompts = EncodedPrompts(task_of(config).train, LetterTokenizer())
    with caplog.at_level(logging.WARNING, logger="paceline"):
        check_context(prompts, len(prompts), max_tokens=10, max_context_tokens=60, what="training")
        assert not caplog.records
        check_context(
            prompts, len(prompts), max_tokens=4096, max_context_tokens=60, what="training"
        )
    assert (
        "sampling.max_tokens=4096 is more than fits: the context has room for 60 tokens"
        in caplog.text
    )


def test_long_prompts_are_left_out_and_counted_and_the_others_numbered_again(config, caplog):
    task, limits = task_of(config), DatasetConfig(path=config.path, max_prompt_tokens=49)
    with caplog.at_level(logging.WARNING, logger="paceline"):
        shorter = leave_out_long(task, limits, LetterTokenizer())
    assert "left out 1 of 36 training prompts" in caplog.text
    assert [p.prompt_id for p in (*shorter.train, *shorter.held_out)] == list(range(39))
    assert {p.question for p in task.train} - {p.question for p in shorter.train} == {"31" * 25}
    with pytest.raises(ValueError, match=r"of which the shortest has 2 tokens, got 1"):
        leave_out_long(
            task, DatasetConfig(path=config.path, max_prompt_tokens=1), LetterTokenizer()
        )


def test_the_first_prompt_is_shown_with_its_last_tokens_and_without_a_long_middle(config):
    first = first_prompt_plan(EncodedPrompts(task_of(config).train, LetterTokenizer()))
    assert first["first prompt"] == "02"
    assert first["its last tokens"] == "'0' '2'"
    assert first["its answer"] == f"2 (row 2 of {config.path})"
    long = task_of(config, user_prompt="x" * 5000 + "{question}")
    shown = first_prompt_plan(EncodedPrompts(long.train, LetterTokenizer()))["first prompt"]
    assert shown.startswith("xxx")
    assert shown.endswith("xx02")
    assert " ... 3,802 characters ... " in shown
