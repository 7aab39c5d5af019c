"""Recordings of a series of checkpoints."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from neuroprobe._core import check_count
from neuroprobe.images import Images, Transform, collect
from neuroprobe.models import Checkpoint, Checkpoints, Layout, Pooling, Sites
from neuroprobe.recording.activations import Activations
from neuroprobe.recording.recorder import ActivationRecorder


def record_checkpoints(
    model: nn.Module,
    checkpoints: Mapping[str, Checkpoint] | Checkpoints,
    images: Images,
    *,
    layers: Sites,
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

    Every file is read once, and the weights are hashed once. Several models are held at once, so that the images are decoded once for
    all of them. Checkpoints with equal weights are recorded once; a warning names them, and their results are the same object.

    Parameters
    ----------
    model : torch.nn.Module
        Never changed.
    checkpoints : mapping from name to state dict or file, or Checkpoints
    images, layers, transform, pooling, layout
        As in `neuroprobe.ActivationRecorder`.
    models_in_memory : int, default 8
        Copies of the model held at once; each round of so many decodes the images anew.
    batch_size, workers, distributed, progress
        As in `neuroprobe.images.collect`.

    Returns
    -------
    dict from name to Activations

    Raises
    ------
    CheckpointError
        A file that cannot be read safely or does not fit the model; all are checked before the first is recorded.
    UnknownNameError, InputError
        As `neuroprobe.ActivationRecorder`.
    """
    check_count("models_in_memory", models_in_memory)
    options: dict[str, Any] = {"pooling": pooling, "layout": layout}
    ActivationRecorder(model, layers, **options)  # whatever is wrong with it shows before anything is read
    series = Checkpoints.of(model, checkpoints)
    for name, first in series.firsts.items():
        if first != name:
            _log.warning("The checkpoints %r and %r have the same weights.", first, name)
    distinct = list(dict.fromkeys(series.firsts.values()))
    found: dict[str, Activations] = {}
    for start in range(0, len(distinct), models_in_memory):
        part = distinct[start : start + models_in_memory]
        recorders = [ActivationRecorder(series.load(name, copy.deepcopy(model)), layers, **options) for name in part]
        consumers = [r.consumer(transform, fingerprint=series.fingerprints[name]) for name, r in zip(part, recorders, strict=True)]
        recorded = collect(
            images, consumers, batch_size=batch_size, workers=workers, distributed=distributed, progress=progress, description="record"
        )
        found.update(zip(part, recorded, strict=True))
    return {name: found[first] for name, first in series.firsts.items()}


_log = logging.getLogger(__name__)
