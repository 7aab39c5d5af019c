"""Vectors without the directions they share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from similarities import close, scores

from neuroprobe.statistics import decorrelated
from neuroprobe.statistics.decorrelation import SHRINKAGE


def slow_decorrelated(vectors: np.ndarray, shrinkage: float) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    centered = vectors - vectors.mean(axis=0)
    covariance = np.cov(centered, rowvar=False, bias=True)
    added = covariance + shrinkage * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    values, axes = np.linalg.eigh(added)
    return centered @ axes @ np.diag(1 / np.sqrt(values)) @ axes.T


@pytest.mark.parametrize("shrinkage", [SHRINKAGE, 1e-3, 10.0])
@pytest.mark.parametrize(("n", "d"), [(50, 8), (50, 50), (51, 50), (50, 51), (20, 64), (2, 5)])
def test_decorrelated_is_the_formula(n: int, d: int, shrinkage: float) -> None:
    vectors = scores(n, d=d, concepts=1).image_vectors
    expected = torch.from_numpy(slow_decorrelated(vectors.numpy(), shrinkage)).float()
    close(decorrelated(vectors, shrinkage=shrinkage), expected, atol=1e-5)


def test_without_shrinkage_worth_mentioning_covariances_are_the_unit_matrix() -> None:
    vectors = torch.randn(400, 6, generator=torch.Generator().manual_seed(4)) @ torch.diag(torch.tensor([9.0, 5, 3, 2, 1, 0.5]))
    found = decorrelated(vectors, shrinkage=1e-9)
    close(found.T @ found / 400, torch.eye(6), atol=1e-4)
    assert found.mean(dim=0).abs().max() < 1e-5


def test_images_that_are_all_the_same_are_finite() -> None:
    assert torch.isfinite(decorrelated(torch.ones(10, 4))).all()
    assert (decorrelated(torch.zeros(10, 4)) == 0).all()
