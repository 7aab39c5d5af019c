"""Cells of a probing study: fit one probe on one layer for one concept, and score it on images it has not seen.

Nothing here needs torch, so that the processes which share the work start fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from neuroprobe.probes import make_probe


@dataclass(frozen=True)
class Split:
    """Rows of the training part and of the held-out part; they share none."""

    train: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]


def fit_cells(
    features: Mapping[str, Mapping[str, npt.NDArray[np.float32]]],
    targets: npt.NDArray[np.int64],
    splits: Mapping[int, Split],
    *,
    probes: Sequence[tuple[str, str]],
) -> list[dict[str, Any]]:
    """Fit and score every probe on every layer with every split.

    Parameters
    ----------
    features : mapping from "pooled" or "spatial" to a mapping from layer to ndarray, [n_images, n_units]
    targets : ndarray, [n_images]
        1 where the concept is, 0 elsewhere.
    splits : mapping from seed to Split
    probes : sequence of (kind, features)

    Returns
    -------
    list of dict
        Rows of a `neuroprobe.ProbeReport`, without concept and checkpoint.
    """
    layers = next(iter(features.values()))
    # the matrices are small: one thread is faster than several, and gives the same bits on every machine's setting
    with threadpool_limits(1):
        return [
            {
                "layer": layer,
                "probe": f"prob-layer-{kind}",
                "scope": "layer",
                "kind": kind,
                "features": name,
                "seed": seed,
                **_fit_and_score(kind, features[name][layer], targets, part, pooled=name == "pooled", seed=seed),
            }
            for seed, part in splits.items()
            for layer in layers
            for kind, name in probes
        ]


def _fit_and_score(
    kind: str, X: npt.NDArray[np.float32], targets: npt.NDArray[np.int64], part: Split, *, pooled: bool, seed: int
) -> dict[str, Any]:
    probe = make_probe(kind, scaling="unit" if pooled else "layer", seed=seed)
    probe.fit(X[part.train], targets[part.train])
    held_out = targets[part.test]
    return {
        "n_train": len(part.train),
        "n_test": len(part.test),
        "train_accuracy": float(np.mean(probe.predict(X[part.train]) == targets[part.train])),
        "test_accuracy": float(np.mean(probe.predict(X[part.test]) == held_out)),
        "baseline": float(max(np.mean(held_out), 1 - np.mean(held_out))),
    }
