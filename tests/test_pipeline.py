"""The whole path in one call, at sites: with the identity as basis what the layer gives, with a basis that permutes the permuted units."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch

from neuroprobe import ClipEncoder, ConceptSource, Site
from neuroprobe.models import Directions
from neuroprobe.pipeline import dissect_model, probe_model
from neuroprobe.world import CLIP_PATH, load_target, target_transform, world_images, world_vocabulary

LAYER = "features.6"
ORDER = torch.tensor([5, 0, 3, 7, 1, 6, 2, 4])
BASES = {"same": torch.eye(8), "permuted": torch.eye(8)[ORDER]}
SITES = [LAYER, *(Site(LAYER, basis=Directions(rows), name=name) for name, rows in BASES.items())]


@pytest.fixture(scope="module")
def arguments() -> tuple[Any, ...]:
    return load_target(), world_images(60, seed=2), ConceptSource(ClipEncoder(CLIP_PATH, device="cpu"), world_vocabulary())


def test_dissect(arguments: tuple[Any, ...]) -> None:
    report = dissect_model(*arguments, layers=SITES, transform=target_transform(), n_null=0, n_bootstrap=0, progress=False)
    rows = {layer: table.sort_values("unit").reset_index(drop=True) for layer, table in report.table.groupby("layer")}
    columns = ["unit", "concept", "score", "status", "margin"]
    pd.testing.assert_frame_equal(rows["same"][columns], rows[LAYER][columns])
    moved = rows[LAYER].iloc[ORDER].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows["permuted"][columns[1:]], moved[columns[1:]])
    assert report.metadata["activations"]["sites"]["permuted"] == SITES[2].identity  # type: ignore[union-attr]


def test_probe(arguments: tuple[Any, ...]) -> None:
    options: dict[str, Any] = {"n_positive": 10, "n_negative": 20, "seeds": [0], "probes": [("linear", "pooled")]}
    report = probe_model(*arguments, layers=SITES, scopes=["neuron"], transform=target_transform(), progress=False, **options)
    rows = {layer: table.set_index("concept") for layer, table in report.table.groupby("layer")}
    columns = ["test_accuracy", "auroc", "unit", "p_value"]
    pd.testing.assert_frame_equal(rows["same"][columns], rows[LAYER][columns])
    moved = rows["permuted"].assign(unit=rows["permuted"]["unit"].map(dict(enumerate(ORDER.tolist()))))
    pd.testing.assert_frame_equal(moved[columns], rows[LAYER][columns], check_dtype=False)
