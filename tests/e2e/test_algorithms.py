"""Every algorithm trains the tiny model through the real loop: a policy learns to write even bytes."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rl.runs.checkpoint import load_checkpoint
from rollout.models.sources.tiny import make_tiny_model
from tests.e2e.runs import ROOT, steps_of, train, weights_of
from tests.tiny_models import save_tiny

FEW = ("evaluation.every_steps=0", "num_prompts_per_step=2", "task.system_prompt=''")
QUICK = (*FEW, "trainer.num_steps=2", "trainer.steps_per_batch=2", "trainer.learning_rate=1e-4")
ALGORITHMS = [
    ("algorithm=grpo",),
    ("algorithm=grpo", "algorithm.loss_reduction=sequence_mean", "algorithm.kl_coef=0.1"),
    ("algorithm=dr_grpo",),
    ("algorithm=dapo", "algorithm.num_overlong_tokens=4"),
    ("algorithm=rloo", "algorithm.kl_coef=0.1", "algorithm.kl_placement=reward"),
    ("algorithm=reinforce_pp", "algorithm.kl_coef=0.1", "algorithm.kl_target=0.01"),
    ("algorithm=reinforce_pp_baseline", "algorithm.kl_coef=0.1"),
    ("algorithm=gspo",),
    ("algorithm=cispo", "algorithm.ratio_base=rollout", "correction.max_importance_weight=0"),
    ("algorithm=maxrl",),
    ("algorithm=ppo", "algorithm.kl_coef=0.1", "algorithm.gae_lambda=0.9"),
]


def write_scorer(directory: Path, body: str) -> str:
    path = directory / "scorer.py"
    path.write_text(
        "def share_of_even_bytes(completion):\n"
        "    data = completion.encode()\n"
        "    return sum(b % 2 == 0 for b in data) / max(len(data), 1)\n\n\n"
        f"def score(completion, row):\n    {body}\n"
    )
    return f"task.scorer={path}:score"


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_scorer(tmp_path_factory.mktemp("scorer"), "return share_of_even_bytes(completion)")


@pytest.mark.parametrize("overrides", ALGORITHMS, ids=" ".join)
def test_an_algorithm_trains_through_the_real_loop(overrides, scorer, tmp_path):
    train(tmp_path / "run", scorer, *QUICK, *overrides)
    rows = steps_of(tmp_path / "run")
    assert len(rows) == 2
    for row in rows:
        assert math.isfinite(row["loss/policy"])
        assert row["optimizer/grad_norm"] > 0
        assert row["mismatch/logprob_difference_max"] == 0.0
        assert row["mismatch/effective_sample_fraction"] == pytest.approx(1.0)
        if "algorithm.kl_coef=0.1" in overrides:
            assert math.isfinite(row["kl/reference"])
        if "algorithm=ppo" in overrides:
            assert row["loss/value"] > 0


def make_tiny(directory: Path, *, seed: int = 0) -> None:
    directory.mkdir()
    make_tiny_model(directory, seed=seed)


def same(first: Path, second: Path, version: int) -> bool:
    a, b = weights_of(first, version), weights_of(second, version)
    return all(torch.equal(a[name], b[name]) for name in a)


def whole_and_resumed(tmp_path: Path, *overrides: str) -> tuple[Path, Path]:
    """A run of 4 steps, and one of 2 that another goes on from."""
    whole, half, resumed = (tmp_path / name for name in ("whole", "half", "resumed"))
    train(whole, *overrides, "trainer.num_steps=4")
    train(half, *overrides, "trainer.num_steps=2")
    train(resumed, *overrides, "trainer.num_steps=4", f"resume_from={half}")
    return whole, resumed


def test_ppo_resumes_bit_for_bit_with_its_critic_reference_and_coefficient(scorer, tmp_path):
    whole, resumed = whole_and_resumed(
        tmp_path, scorer, *FEW, "algorithm=ppo", "algorithm.num_critic_warmup_steps=1",
        "algorithm.kl_coef=0.5", "algorithm.kl_target=0.001", "algorithm.reference_refresh_steps=2",
    )  # fmt: skip
    assert same(whole, resumed, 4)
    states = [load_checkpoint(run).trainer_state for run in (whole, resumed)]
    for a, b in zip(*(state["critic"]["masters"] for state in states), strict=True):
        assert torch.equal(a, b)
    assert states[0]["kl_coef"] == states[1]["kl_coef"] != 0.5
    assert all(torch.equal(t, states[1]["reference"][n]) for n, t in states[0]["reference"].items())


def test_a_critic_that_warms_up_leaves_the_policy_alone(scorer, tmp_path):
    run = tmp_path / "run"
    warm_up = ("algorithm=ppo", "algorithm.num_critic_warmup_steps=1", "checkpoint.every_steps=1")
    train(run, scorer, *FEW, *warm_up, "trainer.num_steps=2", "checkpoint.keep=9")
    make_tiny(tmp_path / "tiny")
    begun = load_file(tmp_path / "tiny" / "model.safetensors")
    first, second = weights_of(run, 1), weights_of(run, 2)
    assert all(torch.equal(first[name].float(), begun[name].float()) for name in first)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    losses = [row["loss/value"] for row in steps_of(run)]
    assert losses[1] != losses[0], "the critic did learn"


def test_dapo_replaces_groups_without_signal_and_resumes_bit_for_bit(tmp_path, caplog):
    # prompts whose answer ends in an even digit score the same whatever is said
    body = "return 1.0 if int(row['answer']) % 2 == 0 else share_of_even_bytes(completion)"
    scorer = write_scorer(tmp_path, body)
    whole, resumed = whole_and_resumed(tmp_path, scorer, *FEW, "algorithm=dapo")
    rows = steps_of(whole)
    assert sum(row["rollout/num_dropped_groups"] for row in rows) > 0
    assert "train nothing" not in caplog.text, "every group that is left has signal"
    for row in rows:
        dropped = row["rollout/num_dropped_groups"]
        # what was dropped is all that was uniform, and still counts in what the policy is worth
        assert row["reward/zero_variance_groups"] == pytest.approx(dropped / (2 + dropped))
    assert load_checkpoint(whole).state.dropped_groups == sum(
        row["rollout/num_dropped_groups"] for row in rows
    )
    assert same(whole, resumed, 4)
    assert [r["rollout/num_dropped_groups"] for r in steps_of(resumed)] == [
        r["rollout/num_dropped_groups"] for r in rows[2:]
    ]


def test_an_algorithm_outside_the_tree_trains_and_resumes_bit_for_bit_with_its_state(
    scorer, tmp_path
):
    guide = (ROOT / "docs" / "guide" / "own-algorithm.md").read_text()
    path = tmp_path / "my_algorithm.py"
    path.write_text(guide.partition("```python\n")[2].partition("```")[0])
    own = (
        "algorithm=custom",
        f"algorithm.path={path}:MovingBaseline",
        "algorithm.params.decay=0.8",
    )
    whole, resumed = whole_and_resumed(tmp_path, scorer, *FEW, *own)
    assert all(row["optimizer/grad_norm"] > 0 for row in steps_of(whole))
    assert same(whole, resumed, 4)
    states = [load_checkpoint(run).trainer_state["algorithm"] for run in (whole, resumed)]
    assert states[0] == states[1]
    assert states[0]["state"]["baseline"] > 0
    other = ("algorithm=grpo", "trainer.num_steps=4")
    train(tmp_path / "plain", scorer, *FEW, *other)
    refused = (*own, "trainer.num_steps=6", f"resume_from={tmp_path / 'plain'}")
    output = train(tmp_path / "refused", scorer, *FEW, *refused, code=2)
    assert "must be a run with the state of algorithm MovingBaseline" in output.replace("\n", " ")


def test_a_batch_without_any_signal_is_survived_counted_and_said(tmp_path, caplog):
    scorer = write_scorer(tmp_path, "return 0.5")
    run = tmp_path / "run"
    train(run, scorer, *QUICK, "algorithm=dapo", "algorithm.max_resample_batches=1")
    assert [row["rollout/num_dropped_groups"] for row in steps_of(run)] == [2, 2]
    assert [row["optimizer/grad_norm"] for row in steps_of(run)] == [0.0, 0.0]
    assert "2 of 2 groups have equal scores, so they train nothing" in caplog.text


def test_sft_learns_the_answers_as_a_warm_start_and_resumes_bit_for_bit(tmp_path):
    sft = ("algorithm=sft", *FEW, "trainer.learning_rate=1e-2")
    whole, resumed = whole_and_resumed(tmp_path, *sft)
    rows = steps_of(whole)
    assert rows[-1]["loss/policy"] < rows[0]["loss/policy"]
    assert all(row["reward/mean"] == 1.0 for row in rows), "what it learns is scored: it is right"
    assert not any(name.startswith("mismatch/") for row in rows for name in row)
    assert same(whole, resumed, 4)


def test_distillation_learns_from_a_teacher_and_refuses_another_vocabulary(scorer, tmp_path):
    make_tiny(tmp_path / "teacher", seed=1)
    teacher = ("algorithm=distillation", f"algorithm.teacher_path={tmp_path / 'teacher'}")
    train(tmp_path / "run", scorer, *QUICK, *teacher)
    assert all(row["optimizer/grad_norm"] > 0 for row in steps_of(tmp_path / "run"))
    # a student that is its own teacher has nothing to learn
    make_tiny(tmp_path / "self")
    same_model = ("algorithm=distillation", f"algorithm.teacher_path={tmp_path / 'self'}")
    train(tmp_path / "same", scorer, *FEW, *same_model, "trainer.num_steps=1")
    assert steps_of(tmp_path / "same")[0]["optimizer/grad_norm"] == 0.0
    save_tiny(tmp_path / "other", "llama", vocab_size=300)
    other = ("algorithm=distillation", f"algorithm.teacher_path={tmp_path / 'other'}")
    output = train(tmp_path / "refused", scorer, *FEW, *other, code=2)
    assert "its vocabulary has 300 tokens, the student's 260" in output.replace("\n", " ")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("algorithm=gspo", "algorithm.ratio_base=rollout"), "weights would count it twice"),
        (("algorithm=dapo", "algorithm.num_overlong_tokens=9"), "must be <= sampling.max_tokens (8), got 9"),
        (("algorithm.kl_target=0.1",), "algorithm.kl_coef must be > 0 where kl_target"),
        (("correction.min_importance_weight=0.5",), "0 where correction.mode is truncate"),
        (
            ("correction.mode=mask", "correction.min_importance_weight=0.5", "correction.max_importance_weight=0"),
            "0 where correction.max_importance_weight is, which weighs all alike, got 0.5",
        ),
        (("algorithm=sft", "algorithm.kl_coef=0.1"), "algorithm.kl_coef must be 0 when algorithm=sft"),
        (
            ("algorithm=maxrl", "algorithm.kl_coef=0.1", "algorithm.kl_placement=reward"),
            "algorithm.kl_placement must be loss when algorithm=maxrl",
        ),
        (("trainer.steps_per_batch=3",), "trainer.steps_per_batch must be <= num_prompts_per_step (2)"),
        (("algorithm=distillation",), "algorithm.teacher_path"),
        (("algorithm=sft", "sampling.max_tokens=2"), "sampling.max_tokens must have room for every answer"),
    ],
)  # fmt: skip
def test_what_cannot_train_is_refused_with_the_reason(overrides, message, tmp_path):
    output = train(tmp_path / "run", *FEW, *overrides, code=2)
    assert message in output.replace("\n", " ")


def test_a_mismatch_past_the_limit_stops_the_run_before_it_trains_and_one_below_warns(
    scorer, tmp_path, caplog
):
    int8 = (scorer, *FEW, "engine.weight_dtype=int8", "trainer.num_steps=2")
    output = train(tmp_path / "stopped", *int8, "correction.stop_k3=1e-12", code=2)
    assert "more than correction.stop_k3=1e-12" in output.replace("\n", " ")
    assert steps_of(tmp_path / "stopped") == []
    assert "from step 0" in output.replace("\n", " ")
    assert load_checkpoint(tmp_path / "stopped").state.policy_version == 0
    train(tmp_path / "warned", *int8, "correction.warn_k3=1e-12")
    assert "more than correction.warn_k3=1e-12" in caplog.text
