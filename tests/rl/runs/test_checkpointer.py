from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rl.runs.checkpoint import Checkpointer, RunState, load_checkpoint
from rollout.models.checkpoint import load_decoder
from rollout.models.sources.tiny import make_tiny_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    make_tiny_model(directory)
    return directory


def save(checkpointer: Checkpointer, source: Path, version: int) -> Path:
    decoder = load_decoder(source, dtype=torch.float32)
    named = ((name, t.detach() + version) for name, t in decoder.hf_tensors())
    return checkpointer.save(
        RunState(policy_version=version, accepted_groups=4 * version),
        named_weights=named,
        trainer_state={"masters": [torch.full((2,), float(version))]},
        fleet_state={"history": [[1, 2], 3]},
    )


def test_a_checkpoint_is_a_hugging_face_directory_with_its_trainer_state_beside_it(
    tmp_path, source
):
    run_dir = tmp_path / "run"
    path = save(Checkpointer(run_dir, source=source, keep=2), source, 3)
    assert path == run_dir / "weights" / "v3"
    assert (run_dir / "weights" / "LATEST").read_text().strip() == "v3"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ours = dict(load_decoder(path, dtype=torch.float32).hf_tensors())
    theirs = model.state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
    checkpoint = load_checkpoint(run_dir)
    assert checkpoint.state == RunState(policy_version=3, accepted_groups=12)
    assert checkpoint.trainer_state is not None
    assert checkpoint.trainer_state["masters"][0].tolist() == [3.0, 3.0]
    assert checkpoint.fleet_state == {"history": [[1, 2], 3]}
    assert checkpoint.weights == path


def test_old_versions_go_with_their_trainer_state_and_the_newest_stay(tmp_path, source):
    checkpointer = Checkpointer(tmp_path / "run", source=source, keep=2)
    for version in (1, 2, 5):
        save(checkpointer, source, version)
    names = sorted(p.name for p in (tmp_path / "run").rglob("v*"))
    assert names == ["v2", "v2.pt", "v5", "v5.pt"]
    assert checkpointer.latest == 5


def test_weights_stay_a_grace_time_for_who_follows_latest_and_large_trainer_states_do_not(
    tmp_path, source
):
    checkpointer = Checkpointer(tmp_path / "run", source=source, keep=1, grace_seconds=1000)
    for version in (1, 2, 3):
        save(checkpointer, source, version)
    names = sorted(p.name for p in (tmp_path / "run").rglob("v*"))
    assert names == ["v1", "v2", "v3", "v3.pt"]


def test_resuming_from_a_directory_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"resume_from must be a run directory with a checkpoint"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("keeps", [0.0, 0.5])
def test_a_truncated_trainer_state_is_named(tmp_path, source, keeps):
    save(Checkpointer(tmp_path, source=source, keep=2), source, 3)
    path = tmp_path / "trainer" / "v3.pt"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keeps)])
    with pytest.raises(ValueError, match=f"{path} is missing, truncated or damaged"):
        load_checkpoint(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path} is missing"):
        load_checkpoint(tmp_path)
