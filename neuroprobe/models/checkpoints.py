"""Files of weights: read without executing anything, and loaded whole or not at all."""

from __future__ import annotations

import argparse
import copy
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch
from torch import nn

from neuroprobe._core import fingerprint_model
from neuroprobe.exceptions import CheckpointError, MissingDependencyError

#: A state dict, or a file that holds one.
Checkpoint: TypeAlias = "Mapping[str, torch.Tensor] | str | Path"

# torch's own words advise to turn the safety off
_UNPICKLABLE = "Weights only load failed, so it is damaged or holds more than tensors. Save model.state_dict() with torch.save."

_PARALLEL = "module."

_Model = TypeVar("_Model", bound=nn.Module)


def load_state_dict(path: str | Path) -> Mapping[str, torch.Tensor]:
    """Read a state dict: a .safetensors file, or one of torch.save with it alone or under the key "state_dict" or "model".

    An `argparse.Namespace` of options may stand beside it, as in the files of torchvision's training script.

    Raises
    ------
    CheckpointError
        The file is missing or holds anything else.
    MissingDependencyError
        A .safetensors file without the package safetensors.
    """
    if Path(path).suffix == ".safetensors":
        return _load_safetensors(Path(path))
    if is_torchscript(path):
        raise CheckpointError(f"Expected a plain state dict, but {str(path)!r} is a TorchScript archive. Save the model's state_dict().")
    try:
        # training scripts, torchvision's too, keep their options beside the weights; of such a namespace only attributes are set
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"Expected a file of weights, but there is nothing at {str(path)!r}.") from error
    except Exception as error:  # the unpickler raises many kinds
        reason = (
            _UNPICKLABLE if isinstance(error, pickle.UnpicklingError) else (str(error).strip().splitlines() or [type(error).__name__])[0]
        )
        raise CheckpointError(
            f"Expected a file of weights that torch.load(weights_only=True) reads, but {str(path)!r} is not: {reason}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise CheckpointError(f"Expected a state dict in {str(path)!r}, but it holds {type(content).__name__}.")
    return content


def _load_safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingDependencyError(f"Expected the package safetensors for {str(path)!r}. Install it: pip install safetensors") from error
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Expected a safetensors file, but {str(path)!r} cannot be read: {error}.") from error


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive, which can run code; no for one that is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name or name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):  # which the reader of state dicts tells about
        return False


def load_checkpoint(model: _Model, checkpoint: Checkpoint, *, name: str | None = None) -> _Model:
    """Load weights into `model`, every key of it, and return it.

    Keys that all begin with "module.", as `torch.nn.DataParallel` writes them, are taken without it. Counts of batches, which files of
    old versions of torch lack and nothing in evaluation mode reads, stay as they are.

    Raises
    ------
    CheckpointError
        Keys are missing, left over, or of another shape; the message names some. The model is unchanged then.
    """
    state = load_state_dict(checkpoint) if isinstance(checkpoint, (str, Path)) else checkpoint
    own = model.state_dict()
    if all(str(key).startswith(_PARALLEL) for key in state) and not any(key.startswith(_PARALLEL) for key in own):
        state = {key.removeprefix(_PARALLEL): value for key, value in state.items()}
    state = {**{key: value for key, value in own.items() if key.endswith("num_batches_tracked")}, **state}
    missing = [key for key in own if key not in state]
    left_over = [key for key in state if key not in own]
    misfits = [key for key in own if key in state and getattr(own[key], "shape", None) != getattr(state[key], "shape", None)]
    if missing or left_over or misfits:
        what = name or (str(checkpoint) if isinstance(checkpoint, (str, Path)) else "the state dict")
        found = [
            f"{len(keys)} {kind} (such as {keys[0]!r})"
            for kind, keys in (("missing", missing), ("left over", left_over), ("of another shape", misfits))
            if keys
        ]
        raise CheckpointError(f"Expected the weights of {type(model).__name__}, but in {what!r} keys are {', '.join(found)}.")
    model.load_state_dict(state)
    return model


def fingerprint_each(model: nn.Module, checkpoints: Mapping[str, Checkpoint]) -> dict[str, str]:
    """Load every checkpoint into a copy of the model, and return the fingerprints by name.

    Raises
    ------
    CheckpointError
        None are given, or one does not fit.
    """
    return {name: fingerprint_model(loaded) for name, loaded in _loaded(model, checkpoints)}


def _loaded(model: nn.Module, checkpoints: Mapping[str, Checkpoint]) -> Iterator[tuple[str, nn.Module]]:
    """Every checkpoint in turn, in one copy of the model."""
    if not checkpoints:
        raise CheckpointError("Expected at least one checkpoint, but got none.")
    model = copy.deepcopy(model)
    for name, checkpoint in checkpoints.items():
        yield name, load_checkpoint(model, checkpoint, name=name)


def fingerprint_checkpoints(model: nn.Module, checkpoints: Mapping[str, Checkpoint]) -> dict[str, str]:
    """The fingerprints by name, if all of them differ.

    Raises
    ------
    CheckpointError
        As `fingerprint_each`, or two have the same weights.
    """
    fingerprints: dict[str, str] = {}
    names: dict[str, str] = {}
    for name, loaded in _loaded(model, checkpoints):
        fingerprints[name] = fingerprint_model(loaded)
        weights = fingerprint_model(loaded, counters=False)
        if weights in names:
            raise CheckpointError(
                f"Expected checkpoints that differ, but {names[weights]!r} and {name!r} have the same weights. Remove one of them."
            )
        names[weights] = name
    return fingerprints
