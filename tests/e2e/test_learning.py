"""Every algorithm learns: the tiny model copies two letters, after a warm start that has not taught it all."""

import itertools
import json
import random
from pathlib import Path

import pytest

from rl.tracking.events import read_events
from tests.e2e.runs import ROOT, steps_of, train

ALGORITHMS = sorted(path.stem for path in (ROOT / "conf" / "algorithm").glob("*.yaml"))


class Lesson:
    """The task, and what supervised fine-tuning on it left behind."""

    def __init__(self, directory: Path) -> None:
        words = ["".join(pair) for pair in itertools.product("abcdef", repeat=2)]
        random.Random(0).shuffle(words)
        rows = [json.dumps({"question": word, "answer": word}) for word in words]
        (directory / "words.jsonl").write_text("\n".join(rows))
        (directory / "scorer.py").write_text(
            "def score(completion, row):\n"
            "    return sum(a == b for a, b in zip(completion, row['answer'])) / 2\n"
        )
        self.task = (
            "task=dataset", f"task.path={directory / 'words.jsonl'}", "task.num_held_out=6",
            f"task.scorer={directory / 'scorer.py'}:score", "sampling.max_tokens=3",
        )  # fmt: skip
        self.sft = directory / "sft"
        train(
            self.sft, *self.task, "algorithm=sft", "num_prompts_per_step=30", "trainer.num_steps=30",
            "trainer.learning_rate=1e-2", "checkpoint.every_steps=10", "checkpoint.keep=9",
            "evaluation.every_steps=30",
        )  # fmt: skip
        self.beginner, self.teacher = (self.sft / "weights" / f"v{v}" for v in (10, 30))

    def learn(self, run_dir: Path, *overrides: str) -> list[dict]:
        """16 steps from where the beginner stands; returns their metrics."""
        train(
            run_dir, *self.task, "model=hf", f"model.path={self.beginner}", "num_prompts_per_step=16",
            "group_size=8", "trainer.num_steps=16", "trainer.learning_rate=3e-3",
            "evaluation.every_steps=0", "checkpoint.every_steps=0", *overrides,
        )  # fmt: skip
        return steps_of(run_dir)


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    return Lesson(tmp_path_factory.mktemp("lesson"))


def ends(rows: list[dict], key: str) -> tuple[float, float]:
    """At the first step, and over the last four."""
    return rows[0][key], sum(row[key] for row in rows[-4:]) / 4


@pytest.mark.parametrize(
    "name", [n for n in ALGORITHMS if n not in ("sft", "distillation", "custom")]
)
def test_an_algorithm_learns_to_copy(name, lesson, tmp_path):
    critic = ["algorithm.critic_learning_rate=1e-2"] if name == "ppo" else []
    rows = lesson.learn(tmp_path / "run", f"algorithm={name}", *critic)
    first, last = ends(rows, "reward/mean")
    # a reply that does not depend on the prompt gets 1 / 6
    assert first < 0.3
    assert last > 0.45


def test_a_student_learns_to_copy_from_a_teacher_that_was_trained_and_from_no_score(
    lesson, tmp_path
):
    rows = lesson.learn(
        tmp_path / "run",
        "algorithm=distillation",
        f"algorithm.teacher_path={lesson.teacher}",
        "trainer.num_steps=32",
    )
    # the loss is minus the mean of log teacher - log student: the divergence, in nats per token
    first, last = ends(rows, "loss/policy")
    assert first > 2
    assert last < 0.5 * first
    first, last = ends(rows, "reward/mean")
    assert last > first + 0.3


def test_supervised_fine_tuning_learns_by_its_loss_and_says_it_on_its_own(lesson):
    first, last = ends(steps_of(lesson.sft), "loss/policy")
    assert first > 5, "hardly below log 260"
    assert last < 0.3
    rows = read_events(lesson.sft / "events.jsonl")
    accuracy = [r["evaluation/accuracy"] for r in rows if r["event"] == "evaluation"]
    assert accuracy[0] < 0.1
    assert accuracy[-1] > 0.5, "of words that were held out"
