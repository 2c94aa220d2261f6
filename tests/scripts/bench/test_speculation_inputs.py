"""What the benches of speculation take from a run: its past rollouts, the prompts they answer, its versions."""

import pytest
import torch

from rl.runs.checkpoint import Checkpointer, RunState
from rl.tasks.config import ArithmeticConfig
from rollout.config import EngineConfig, SamplingConfig
from rollout.models.checkpoint import load_decoder
from rollout.models.sources.tiny import make_tiny_model
from scripts.bench.config import BenchDriftConfig
from scripts.bench.drift.measure import measure_drift
from scripts.bench.drift.versions import draw_drift, load_versions
from scripts.bench.speculation.history import answered_prompts, past_rollouts

ROLLOUTS = [[[7, 8], 3, [1, 2, 3]], [[9], 4, [5]]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    make_tiny_model(directory)
    return directory


def write_run(run_dir, model, versions, fleet_state):
    weights = dict(load_decoder(model, dtype=torch.float32).hf_tensors())
    checkpointer = Checkpointer(run_dir, source=model, keep=9)
    for version in versions:
        checkpointer.save(
            RunState(policy_version=version, accepted_groups=0),
            named_weights=((name, tensor + 0.01 * version) for name, tensor in weights.items()),
            trainer_state={},
            fleet_state=fleet_state,
        )
    return run_dir


def test_past_rollouts_are_those_of_the_newest_checkpoint(model, tmp_path):
    past = {"SuffixDrafter": {"rollouts": ROLLOUTS}}
    assert past_rollouts(write_run(tmp_path, model, [3], {"speculation": past})) == past


def test_a_run_without_a_history_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="history_from must be a run directory with a checkpoint"):
        past_rollouts(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"train with engine.speculation.drafter=auto"):
        past_rollouts(write_run(tmp_path, model, [3], {}))


def test_only_prompts_with_past_rollouts_are_taken_and_too_few_are_an_error():
    prompts = [("a", [7]), ("b", [7, 8]), ("c", [8]), ("d", [9])]
    prompt = answered_prompts({"SuffixDrafter": {"rollouts": ROLLOUTS}}, prompts)
    assert (prompt(1), prompt(0)) == ([9], [7, 8])
    with pytest.raises(
        ValueError, match="rollouts of 3 of the task's prompts or more, but has rollouts of 2"
    ):
        prompt(2)


def drift_config(run, **options):
    return BenchDriftConfig(
        run=str(run),
        task=ArithmeticConfig(num_held_out=4, num_train=16),
        engine=EngineConfig(kv_cache_gb=0.02),
        sampling=SamplingConfig(max_tokens=6),
        num_prompts=2,
        group_size=2,
        **options,
    )


def test_a_curve_is_drawn_from_the_versions_of_a_run(model, tmp_path):
    run = write_run(tmp_path / "run", model, [1, 2, 3], {})
    versions = list(load_versions(drift_config(run, versions=[3, 1])))
    assert [v.number for v in versions] == [1, 3]
    assert versions[0].history != versions[0].answers, "drawn anew"
    results = list(measure_drift(versions, max_draft_tokens=4, progress=lambda: None))
    assert results[1]["kl_per_token"] > 0
    draw_drift(results, tmp_path / "drift.png", title="run")
    assert (tmp_path / "drift.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("versions", [[1, 5], [1]])
def test_versions_that_are_not_there_are_named(model, tmp_path, versions):
    run = write_run(tmp_path, model, [1, 2], {})
    with pytest.raises(ValueError, match=r"has \[1, 2\], asked for"):
        load_versions(drift_config(run, versions=versions))
