"""Files of weights: read without executing anything, and loaded whole or not at all."""

from __future__ import annotations

import argparse
import copy
import itertools
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn

from neuroprobe._core import fingerprint_architecture, fingerprint_model
from neuroprobe.exceptions import CheckpointError, InputError, MissingDependencyError, UnknownNameError, shown, suggest

#: A state dict, or a file that holds one.
Checkpoint: TypeAlias = "Mapping[str, torch.Tensor] | str | Path"

# torch's own words advise to turn the safety off
_UNPICKLABLE = "Weights only load failed, so it is damaged or holds more than tensors. Save model.state_dict() with torch.save."

_PARALLEL = "module."
_COUNTER = "num_batches_tracked"

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
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))
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
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):  # which the reader of state dicts tells about
        return False


def _can_be_mapped(path: str | Path) -> bool:
    """Whether tensors can stay in the file: as torch.save writes it, not compressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
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
    state = _read(checkpoint)
    own = model.state_dict()
    if all(str(key).startswith(_PARALLEL) for key in state) and not any(key.startswith(_PARALLEL) for key in own):
        state = {key.removeprefix(_PARALLEL): value for key, value in state.items()}
    state = {**{key: value for key, value in own.items() if key.endswith(_COUNTER)}, **state}
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


class Checkpoints(Mapping[str, "Mapping[str, torch.Tensor]"]):
    """A series of weights of one model, by name: every file is read once, and every model's weights hashed once.

    Handed on in place of the mapping it was made from. Tensors of files stay in the files (they are mapped into memory), so that a long
    series takes no room.

    Parameters
    ----------
    model : torch.nn.Module
        Never changed.
    checkpoints : mapping from name to state dict or file

    Attributes
    ----------
    fingerprints : dict from name to str
        Of the model with these weights.

    Raises
    ------
    InputError
        What is no mapping from names.
    CheckpointError
        None are given, or one cannot be read safely or does not fit the model.
    """

    def __init__(self, model: nn.Module, checkpoints: Mapping[str, Checkpoint]) -> None:
        if not isinstance(checkpoints, Mapping) or not all(isinstance(name, str) for name in checkpoints):
            raise InputError(f"Expected `checkpoints` as a mapping from names to state dicts or files, but got {shown(checkpoints)}.")
        if not checkpoints:
            raise CheckpointError("Expected at least one checkpoint, but got none.")
        scratch = copy.deepcopy(model)
        self._states: dict[str, Mapping[str, torch.Tensor]] = {}
        self.fingerprints: dict[str, str] = {}
        for name, checkpoint in checkpoints.items():
            self._states[name] = _read(checkpoint)
            self.fingerprints[name] = fingerprint_model(load_checkpoint(scratch, self._states[name], name=name))
        self._of = fingerprint_architecture(model)

    @classmethod
    def of(cls, model: nn.Module, checkpoints: Mapping[str, Checkpoint] | Checkpoints) -> Checkpoints:
        """The checkpoints, made anew unless they are of this model already."""
        made = isinstance(checkpoints, Checkpoints) and checkpoints._of == fingerprint_architecture(model)
        return checkpoints if made else cls(model, checkpoints)  # type: ignore[return-value]

    def __getitem__(self, name: str) -> Mapping[str, torch.Tensor]:
        if name not in self._states:
            raise UnknownNameError(f"Expected a checkpoint's name, but got {name!r}. {suggest(str(name), self._states)}")
        return self._states[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    def load(self, name: str, model: _Model) -> _Model:
        """Load one into a model, and return it."""
        return load_checkpoint(model, self[name], name=name)

    @property
    def firsts(self) -> dict[str, str]:
        """Every checkpoint's name, and the first name under which its weights came."""
        first: dict[str, str] = {}
        return {name: first.setdefault(fingerprint, name) for name, fingerprint in self.fingerprints.items()}

    def check_distinct(self) -> None:
        """Raise `CheckpointError` where two have the same weights, whatever their batch norms have counted."""
        for one, other in itertools.combinations(self._states, 2):
            if _equal(self._states[one], self._states[other]):
                raise CheckpointError(
                    f"Expected checkpoints that differ, but {one!r} and {other!r} have the same weights. Remove one of them."
                )


def _read(checkpoint: Checkpoint) -> Mapping[str, torch.Tensor]:
    return load_state_dict(checkpoint) if isinstance(checkpoint, (str, Path)) else checkpoint


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    mine, theirs = (
        {key.removeprefix(_PARALLEL): value for key, value in state.items() if not key.endswith(_COUNTER)} for state in (one, other)
    )
    return mine.keys() == theirs.keys() and all(
        torch.equal(value.cpu(), theirs[key].to("cpu", value.dtype)) if isinstance(value, torch.Tensor) else value == theirs[key]
        for key, value in mine.items()
    )
