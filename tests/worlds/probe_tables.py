"""Tables of probes for several test files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

BLOG = (("linear", "pooled"), ("nonlinear", "pooled"), ("nonlinear", "spatial"))


def probe_table(
    *,
    layers: Sequence[str] = ("a", "b", "c"),
    checkpoints: Sequence[str] = ("model",),
    concepts: Sequence[str] = ("red", "blue"),
    probes: Sequence[tuple[str, str]] = BLOG,
    scopes: Sequence[str] = ("layer",),
    n_seeds: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """A row per cell and seed with 30 positives and 60 negatives held out, all counts drawn from a seed."""
    generator = np.random.default_rng(seed)
    rows = []
    for concept in concepts:
        for checkpoint in checkpoints:
            for place, layer in enumerate(layers):
                for scope in scopes:
                    for kind, features in probes:
                        for split in range(n_seeds):
                            share = 0.7 + 0.25 * place / len(layers)
                            positives, negatives = generator.binomial(30, share - 0.1), generator.binomial(60, share)
                            rows.append(
                                {
                                    "concept": concept, "checkpoint": checkpoint, "layer": layer, "probe": f"prob-{scope}-{kind}",
                                    "scope": scope, "kind": kind, "features": features, "seed": split, "n_train": 210, "n_test": 90,
                                    "train_accuracy": 1.0, "test_accuracy": (positives + negatives) / 90, "baseline": 2 / 3,
                                    "balanced_accuracy": (positives / 30 + negatives / 60) / 2, "auroc": generator.uniform(0.5, 1),
                                    "sensitivity": positives / 30, "n_test_positive": 30,
                                    "unit": int(generator.integers(4)) if scope == "neuron" else np.nan,
                                }
                            )  # fmt: skip
    return pd.DataFrame(rows)


def unit_table(*, layers: Sequence[str] = ("a", "b"), concepts: Sequence[str] = ("red", "blue"), width: int = 10) -> pd.DataFrame:
    """Every unit by itself; unit 7 of the last layer carries every concept."""
    generator = np.random.default_rng(0)
    rows = [
        {"concept": concept, "checkpoint": "model", "layer": layer, "unit": unit, "kind": "linear", "test_accuracy": 0.67, "baseline": 0.67}
        for concept in concepts
        for layer in layers
        for unit in range(width)
    ]
    table = pd.DataFrame(rows)
    carries = (table["layer"] == layers[-1]) & (table["unit"] == 7)
    found = np.where(carries, 0.97, generator.uniform(0.45, 0.6, len(table)))
    return table.assign(auroc=found, p_value=np.where(carries, 1e-9, 0.4), q_value=np.where(carries, 1e-7, 0.8))
