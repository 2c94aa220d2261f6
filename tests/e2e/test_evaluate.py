"""Checkpoints that are evaluated and asked: with the task, the prompt and the sampling of their run."""

import re
from pathlib import Path

import pytest

from rl.tracking.events import read_events
from tests.e2e.runs import run_script, train

SCORER = """\
def score(completion, row):
    return float(len(completion) % 2)

def fail(completion, row):
    raise KeyError("no such column")
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("evaluated") / "run"
    (run_dir.parent / "scorer.py").write_text(SCORER)
    train(
        run_dir, f"task.scorer={run_dir.parent / 'scorer.py'}:score", "trainer.num_steps=2", "task.seed=5",
        "sampling.max_tokens=5", "task.max_digits=1", "task.system_prompt=Add.", "checkpoint.every_steps=1",
        "tracking.wandb.mode=disabled",
    )  # fmt: skip
    return run_dir


def accuracy_of(run_dir: Path) -> str:
    rows = [r for r in read_events(run_dir / "events.jsonl") if r["event"] == "evaluation"]
    return f"{rows[-1]['evaluation/accuracy']:.1%}"


@pytest.mark.parametrize("end", ["", "weights/LATEST", "weights/v2"])
def test_the_accuracy_is_that_of_the_run_itself_and_the_task_is_named(run, end):
    output = run_script("evaluate", f"model.path={run / end}")
    words = re.sub(r"\s+", " ", output)
    assert "task arithmetic, 32 held-out prompts" in words
    assert "of at most 5 tokens, greedily" in words
    assert f"as in {run}/config.yaml" in words
    assert f"{accuracy_of(run)} " in words
    assert str(run / "weights" / "v2") in output.replace("\n", "")
    assert "prompt expected answer" in words


def test_a_scorer_that_always_raises_is_no_accuracy_of_zero(run):
    scorer = f"task.scorer={run.parent / 'scorer.py'}:fail"
    output = run_script("evaluate", f"model.path={run}", scorer, code=1)
    assert "32 of 32 rollouts could not be scored (error: KeyError" in re.sub(r"\s+", " ", output)
    assert "0.0%" not in output
    output = run_script("evaluate", f"model.path={run}", scorer, "reward.max_error_rate=1")
    assert "they count as wrong" in re.sub(r"\s+", " ", output)


def test_an_evaluation_that_cannot_be_scored_ends_training_too(run, tmp_path):
    scorer = f"task.scorer={run.parent / 'scorer.py'}:fail"
    output = train(tmp_path / "run", scorer, code=2)
    assert "32 of 32 rollouts could not be scored" in re.sub(r"\s+", " ", output)


def test_prompts_are_asked_in_the_form_of_the_run_and_are_not_markup(run, monkeypatch):
    from rollout.engine.engine import Engine

    asked = []
    generate = Engine.generate
    monkeypatch.setattr(
        Engine,
        "generate",
        lambda self, prompts, params: (
            asked.append((prompts, params)) or generate(self, prompts, params)
        ),
    )
    output = run_script("generate", f"model.path={run}", 'prompts=["[INST] 2 + 2 = [/INST]"]')
    assert "[INST] 2 + 2 = [/INST]" in output
    ((prompt,), params) = asked[0]
    question = "[INST] 2 + 2 = [/INST]"
    assert [m["content"] for m in prompt] == ["Add.", question, question]
    assert params.max_tokens == 5
