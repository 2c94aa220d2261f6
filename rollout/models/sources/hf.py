"""Hugging Face checkpoints from a local directory or a repository of the hub."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from rollout.weights.store import WeightStore

_WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
# folders contain other formats (onnx/, original/); consolidated* is a second copy of the weights in Mistral's format
_UNWANTED = ["*/*", "consolidated*"]


def resolve_hf(path: str, *, key: str = "model.path") -> Path:
    """Return the local directory of `path`. A hub id is downloaded first. Published weights give their newest
    version.

    Raises:
        ValueError: `path` is neither a directory nor an accessible repository, or has no safetensors files.
    """
    local = Path(path).expanduser()
    directory = _newest(local) if local.exists() else _download(path, key)
    _check_checkpoint(directory, path, key)
    return directory


def _newest(path: Path) -> Path:
    """Return the newest version if `path` is a run, its directory of weights, or the LATEST in it; else return
    `path`."""
    if path.name == "LATEST" and path.is_file():
        path = path.parent
    for root in (path, path / "weights"):
        store = WeightStore(root)
        version = store.latest()
        if version is not None:
            return store.path(version)
    return path


def _download(repo_id: str, key: str) -> Path:
    try:
        return Path(snapshot_download(repo_id, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except HFValidationError:
        raise ValueError(
            f"{key} must be an existing Hugging Face directory or a hub id, got {repo_id!r}: "
            "there is no such directory, and a hub id reads 'name' or 'organisation/name'"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise ValueError(
            f"{key}={repo_id!r} is not a local directory and could not be downloaded from the Hugging Face hub; "
            "check the spelling and the network (HF_HUB_OFFLINE=1 forbids downloads), "
            "log in if the model is gated, or set it to a local directory"
        ) from error


def _check_checkpoint(directory: Path, path: str, key: str) -> None:
    if not directory.is_dir():
        raise ValueError(f"{key} must be a directory, got the file {path!r}; name its folder")
    if not (directory / "config.json").is_file():
        raise ValueError(
            f"{key}={path!r} holds no config.json; it must be a Hugging Face model directory"
        )
    if any(directory.glob("*.safetensors")):
        return
    has_pickles = any(directory.glob("*.bin")) or any(directory.glob("*.pt"))
    found = "weights in .bin or .pt files only" if has_pickles else "no weights"
    raise ValueError(
        f"{key}={path!r} must hold *.safetensors, got {found}; "
        "write them with transformers: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
    )
