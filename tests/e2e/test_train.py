"""Whole runs of the tiny model, as a user starts them."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rl.runs.checkpoint import load_checkpoint
from rl.tracking.events import read_events
from rollout import Engine, SamplingParams
from tests.e2e.runs import ANYTHING, ROOT, command, steps_of, train, weights_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    run_dir = tmp_path_factory.mktemp("e2e") / "run"
    output = train(run_dir, "trainer.num_steps=4", "checkpoint.every_steps=2")
    return run_dir, output


def test_a_run_leaves_everything_it_promises(finished):
    run_dir, output = finished
    names = {path.name for path in run_dir.iterdir()}
    assert names >= {
        "config.yaml",
        "events.jsonl",
        "samples.jsonl",
        "curves.png",
        "weights",
        "trainer",
    }
    assert "Held-out accuracy" in output
    assert str(run_dir / "weights" / "v4") in output.replace("\n", "")
    kinds = [row["event"] for row in read_events(run_dir / "events.jsonl")]
    assert kinds == [
        "run_start", "evaluation", "step", "step", "evaluation", "checkpoint", "step", "step",
        "evaluation", "checkpoint", "run_end",
    ]  # fmt: skip


def test_trainer_and_engine_agree_bit_for_bit_at_every_step(finished):
    measured = [row for row in steps_of(finished[0]) if "mismatch/logprob_difference_max" in row]
    assert measured, "no step had a group with signal"
    assert all(row["mismatch/logprob_difference_max"] == 0.0 for row in measured)
    assert all(row["mismatch/k3"] == 0.0 for row in measured)


def test_every_phase_is_timed_and_the_phases_fit_into_the_step(finished):
    for row in steps_of(finished[0]):
        not_phases = ("seconds/step", "seconds/backward")  # the latter is in forward_backward
        phases = [v for k, v in row.items() if k.startswith("seconds/") and k not in not_phases]
        assert row.get("seconds/backward", 0.0) <= row["seconds/forward_backward"]
        assert {"seconds/rollout", "seconds/forward_backward", "seconds/publish"} <= set(row)
        assert sum(phases) <= row["seconds/step"]


def test_the_same_command_gives_the_same_run(finished, tmp_path):
    again = tmp_path / "again"
    train(again, "trainer.num_steps=4", "checkpoint.every_steps=2")
    first, second = weights_of(finished[0], 4), weights_of(again, 4)
    assert all(torch.equal(first[name], second[name]) for name in first)
    samples = [(d / "samples.jsonl").read_text() for d in (finished[0], again)]
    assert samples[0] == samples[1]


def test_a_run_that_speculates_trains_the_same_weights_and_keeps_its_history(finished, tmp_path):
    run_dir = tmp_path / "speculating"
    overrides = ("trainer.num_steps=4", "checkpoint.every_steps=2")
    train(run_dir, *overrides, "engine.speculation.drafter=suffix")
    plain, speculating = weights_of(finished[0], 4), weights_of(run_dir, 4)
    assert all(torch.equal(plain[name], speculating[name]) for name in plain)
    assert all("speculation/draft_seconds" in row for row in steps_of(run_dir))
    history = load_checkpoint(run_dir).fleet_state["speculation"]["SuffixDrafter"]["rollouts"]
    assert {version for _, version, *_ in history} == {0, 1, 2, 3, 4}, "evaluations, too"
    assert {len(key) for *_, key, _ in history if isinstance(key, list)} == {3}, "of what was drawn"


def test_resuming_gives_bitwise_the_weights_of_the_run_that_was_not_interrupted(finished, tmp_path):
    half = tmp_path / "half"
    train(half, "trainer.num_steps=2")
    resumed = tmp_path / "resumed"
    train(resumed, "trainer.num_steps=4", f"resume_from={half}")
    assert [row["step"] for row in steps_of(resumed)] == [3, 4]
    first, second = weights_of(finished[0], 4), weights_of(resumed, 4)
    assert all(torch.equal(first[name], second[name]) for name in first)


def differences(run_dir: Path) -> list[float]:
    rows = steps_of(run_dir)
    return [row.get("mismatch/logprob_difference_max", -1.0) for row in rows]


def test_int8_rollouts_train_measure_their_mismatch_and_resume_bit_for_bit(tmp_path):
    int8 = (ANYTHING, "engine.weight_dtype=int8", "correction.max_k3=1")
    whole, half, resumed = (tmp_path / name for name in ("whole", "half", "resumed"))
    train(whole, *int8, "trainer.num_steps=4")
    measured = [d for d in differences(whole) if d >= 0]
    assert measured, "no step had a group with signal"
    assert all(0 < d < 0.5 for d in measured)
    train(half, *int8, "trainer.num_steps=2")
    train(resumed, *int8, "trainer.num_steps=4", f"resume_from={half}")
    first, second = weights_of(whole, 4), weights_of(resumed, 4)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_int8_is_given_up_past_the_limit_and_stays_so_when_resumed(tmp_path, caplog):
    int8 = (ANYTHING, "engine.weight_dtype=int8", "correction.max_k3=1e-12")
    whole, half, resumed = (tmp_path / name for name in ("whole", "half", "resumed"))
    train(whole, *int8, "trainer.num_steps=4")
    assert caplog.text.count("the run continues with engine.weight_dtype=plain") == 1
    measured = differences(whole)
    given_up = next(i for i, d in enumerate(measured) if d > 0)
    assert given_up < 3, "a later step can show what follows"
    assert set(measured[given_up + 1 :]) <= {0.0, -1.0}
    train(half, *int8, f"trainer.num_steps={given_up + 1}")
    train(resumed, *int8, "trainer.num_steps=4", f"resume_from={half}")
    assert set(differences(resumed)) <= {0.0, -1.0}
    first, second = weights_of(whole, 4), weights_of(resumed, 4)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_transformers_loads_the_checkpoint_and_says_the_same_greedily(finished):
    path = finished[0] / "weights" / "v4"
    engine = Engine.from_pretrained(path, dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    prompt = engine.tokenizer("12 + 35 =")["input_ids"]
    (completion,) = engine.generate([prompt], SamplingParams(temperature=0, max_tokens=12))[0]
    theirs = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
    assert theirs[0, len(prompt) :].tolist() == completion.token_ids


def test_rollout_only_trains_nothing_and_train_only_generates_nothing(tmp_path):
    train(tmp_path / "a", "debug=rollout_only", "trainer.num_steps=2", "sampling.max_tokens=4")
    rows = steps_of(tmp_path / "a")
    assert len(rows) == 2
    assert all("reward/mean" in row and "optimizer/grad_norm" not in row for row in rows)
    assert not (tmp_path / "a" / "weights").exists()
    train(tmp_path / "b", "debug=train_only", "trainer.num_steps=2", "sampling.max_tokens=4")
    rows = steps_of(tmp_path / "b")
    assert all(row["optimizer/grad_norm"] > 0 for row in rows)


def test_a_run_directory_that_holds_a_run_is_refused_in_one_sentence(finished):
    output = train(finished[0], code=2)
    assert output.startswith("error: ")
    assert "already contains a run" in output
    assert "Traceback" not in output


def test_ctrl_c_in_the_middle_ends_cleanly_and_keeps_a_checkpoint(tmp_path):
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, *command(run_dir, "trainer.num_steps=100000", "evaluation.every_steps=0")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (run_dir / "events.jsonl").exists() or len(steps_of(run_dir)) < 2:
        assert time.monotonic() < deadline, "no step within two minutes"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    latest = int((run_dir / "weights" / "LATEST").read_text().strip().removeprefix("v"))
    assert latest == steps_of(run_dir)[-1]["step"]
    assert read_events(run_dir / "events.jsonl")[-1]["status"] == "interrupted"


def write_scorer(tmp_path: Path, body: str) -> str:
    path = tmp_path / "scorer.py"
    path.write_text(f"import time\n\n\ndef score(completion, row):\n    {body}\n")
    return f"task.scorer={path}:score"


def test_a_users_scorer_by_import_path_sets_the_reward(tmp_path):
    scorer = write_scorer(tmp_path, "return 0.25")
    train(tmp_path / "run", scorer, "trainer.num_steps=1", "evaluation.every_steps=0")
    assert steps_of(tmp_path / "run")[0]["reward/mean"] == 0.25


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise KeyError('no such column')", "error: KeyError"),
        ("return float('nan')", "nan"),
        ("time.sleep(1000)", "timeout"),
    ],
)
def test_a_scorer_that_fails_stops_the_run_with_one_sentence_never_a_silent_zero(
    tmp_path, body, reason
):
    output = train(
        tmp_path / "run",
        write_scorer(tmp_path, body),
        "reward.time_limit_seconds=0.2",
        "evaluation.every_steps=0",
        code=2,
    )
    assert "rollouts could not be scored" in output
    assert reason in output
    assert "reward.max_error_rate" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model=hf", "model.path=/no/such/model"), "/no/such/model"),
        (("task=dataset", "task.path=/no/such/file.jsonl"), "/no/such/file.jsonl"),
        (("engine.max_context_tokens=20",), "engine.max_context_tokens"),
        (("trainer.max_tokens_per_micro_batch=20",), "trainer.max_tokens_per_micro_batch"),
        (("sampling.top_p=0.9",), "sampling.top_k, top_p and min_p must be off"),
        (("sampling.temperature=0",), "sampling.temperature must be > 0 in training"),
        (("task.scorer=nowhere:score",), "task.scorer=nowhere:score"),
    ],
)
def test_a_mistake_is_one_sentence_before_any_work(tmp_path, overrides, message):
    output = train(tmp_path / "run", *overrides, code=2)
    assert output.startswith("error: ")
    assert message in output.replace("\n", " ")
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "events.jsonl").exists()


def test_a_dataset_without_the_named_column_lists_those_it_has(tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"q": f"{i}", "a": i}) + "\n" for i in range(50)))
    output = train(tmp_path / "run", "task=dataset", f"task.path={data}", code=2)
    assert "task.prompt_column must be a column of" in output
    assert "there are q, a" in output.replace("\n", " ")


def test_a_run_warns_of_what_it_leaves_out_and_hydra_does_not_silence_it(tmp_path, caplog):
    # a third of the rollouts cannot be scored: allowed, and said
    scorer = write_scorer(tmp_path, "return 1.0 if len(completion) % 3 else float('nan')")
    overrides = ("reward.max_error_rate=1", "trainer.num_steps=1", "evaluation.every_steps=0")
    train(tmp_path / "run", scorer, *overrides)
    assert "rollouts could not be scored" in caplog.text
    assert "they are left out of this step" in caplog.text
