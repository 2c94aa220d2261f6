"""Starting point of a run: the model, or another run's latest checkpoint."""

from dataclasses import asdict
from pathlib import Path

import torch

from rl.config import TrainConfig
from rl.runs.checkpoint import Checkpoint, RunState, load_checkpoint
from rl.trainer.learn.learner import Learner
from rollout.models.decoder import Decoder
from rollout.models.spec import read_spec

__all__ = ["start_of", "take_weights"]


def start_of(config: TrainConfig, source: Path) -> Checkpoint:
    """Load the checkpoint that the run continues from, or create that of a new run.

    Raises:
        ValueError: the checkpoint belongs to another model.
    """
    if config.resume_from:
        checkpoint = load_checkpoint(Path(config.resume_from))
        _check_architecture(config.resume_from, checkpoint.weights, source)
        return checkpoint
    return Checkpoint(weights=source, state=RunState(policy_version=0, accepted_groups=0))


def _check_architecture(resume_from: str, weights: Path, source: Path) -> None:
    theirs, ours = asdict(read_spec(weights)), asdict(read_spec(source))
    # the tokens that end a completion may differ
    names = [n for n in ours if theirs[n] != ours[n] and n != "eos_token_ids"]
    if names:
        differences = ", ".join(f"{n} {theirs[n]} instead of {ours[n]}" for n in names)
        raise ValueError(
            f"resume_from must be a run of the same model as `model`, got {resume_from!r} with {differences}; "
            "resume with that run's own model"
        )


@torch.no_grad()
def take_weights(decoder: Decoder, learner: Learner, *, is_resumed: bool) -> None:
    """Copy the trainer's weights to the engine's decoder.

    Raises:
        ValueError: the weights of the checkpoint do not match its optimizer state.
    """
    own = dict(decoder.hf_tensors())
    for name, tensor in learner.named_weights():
        if is_resumed and not torch.equal(own[name], tensor):
            raise ValueError(
                f"resume_from has another {name} than its optimizer state gives in this run; keep model.path and "
                "model.dtype as they were (for adapters, model.path is the base model)"
            )
        own[name].copy_(tensor)
