"""Recordings of a series of checkpoints."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence

from torch import nn

from neuroprobe._core import check_count
from neuroprobe.images import Images, Transform, collect
from neuroprobe.models import Checkpoint, Layout, Pooling, fingerprint_each, load_checkpoint
from neuroprobe.recording.activations import Activations
from neuroprobe.recording.recorder import ActivationRecorder


def _same_weights(model: nn.Module, checkpoints: Mapping[str, Checkpoint]) -> dict[str, str]:
    """Every checkpoint's name, and the first name under which its weights came."""
    first: dict[str, str] = {}
    names = {}
    for name, fingerprint in fingerprint_each(model, checkpoints).items():
        names[name] = first.setdefault(fingerprint, name)
        if names[name] != name:
            _log.warning("The checkpoints %r and %r have the same weights.", names[name], name)
    return names


def record_checkpoints(
    model: nn.Module,
    checkpoints: Mapping[str, Checkpoint],
    images: Images,
    *,
    layers: Sequence[str],
    transform: Transform,
    pooling: Pooling = "mean",
    layout: Layout | None = None,
    models_in_memory: int = 8,
    batch_size: int = 64,
    workers: int = 0,
    distributed: bool = False,
    progress: bool | None = None,
) -> dict[str, Activations]:
    """Record a series of checkpoints of one model.

    Several are held at once, so that the images are decoded once for all of them. Checkpoints with equal weights are
    recorded once; a warning names them, and their results are the same object.

    Parameters
    ----------
    model : torch.nn.Module
        Never changed.
    checkpoints : mapping from name to state dict or file
    images, layers, transform, pooling, layout
        As in `neuroprobe.ActivationRecorder`.
    models_in_memory : int, default 8
        Copies of the model held at once; each round of so many decodes the images anew.
    batch_size, workers, distributed, progress
        As in `neuroprobe.images.passes.collect`.

    Returns
    -------
    dict from name to Activations

    Raises
    ------
    CheckpointError
        A file that cannot be read safely or does not fit the model; all are checked before the first is recorded.
    """
    check_count("models_in_memory", models_in_memory)
    names = _same_weights(model, checkpoints)
    distinct = list(dict.fromkeys(names.values()))
    found: dict[str, Activations] = {}
    for start in range(0, len(distinct), models_in_memory):
        part = distinct[start : start + models_in_memory]
        copies = [load_checkpoint(copy.deepcopy(model), checkpoints[name], name=name) for name in part]
        consumers = [ActivationRecorder(m, layers, pooling=pooling, layout=layout).consumer(transform) for m in copies]
        recorded = collect(
            images, consumers, batch_size=batch_size, workers=workers, distributed=distributed, progress=progress, description="record"
        )
        found.update(zip(part, recorded, strict=True))
    return {name: found[first] for name, first in names.items()}


_log = logging.getLogger(__name__)
