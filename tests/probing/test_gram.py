from __future__ import annotations

import numpy as np
import pytest
import torch

from neuroprobe.probing._gram import coordinates, gram_matrix, layer_scaled, reduced, unit_scaled


def matrix(n: int, d: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def centered_by_hand(X: torch.Tensor) -> np.ndarray:
    array = X.numpy().astype(np.float64)
    return array - array.mean(axis=0)


@pytest.mark.parametrize("n", [1, 5, 64, 65, 150])
@pytest.mark.parametrize("columns", [7, 4096])
def test_the_gram_matrix_is_that_of_the_centered_rows(n: int, columns: int) -> None:
    X = matrix(n, 50) + 3
    by_hand = np.array([[sum(a * b) for b in centered_by_hand(X)] for a in centered_by_hand(X)])
    np.testing.assert_allclose(gram_matrix(X, columns=columns), by_hand, atol=1e-10)


def test_by_hand() -> None:
    assert gram_matrix(torch.tensor([[1.0, 10], [3, 10]])).tolist() == [[1, -1], [-1, 1]]


def test_a_large_common_part_costs_no_digits() -> None:
    """Centered before the product; float32 products centered afterward would be wrong in the first digit."""
    X = (matrix(40, 20_000) + 1000).float()
    exact = centered_by_hand(X) @ centered_by_hand(X).T
    raw = (X @ X.T).double().numpy()
    middle = np.eye(40) - 1 / 40
    error = np.abs(middle @ gram_matrix(X).numpy() @ middle - exact).max() / np.abs(exact).max()
    afterward = np.abs(middle @ raw @ middle - exact).max() / np.abs(exact).max()
    assert error < 1e-6
    assert afterward > 1e-3


@pytest.mark.parametrize("d", [3, 200])
def test_coordinates_have_the_inner_products(d: int) -> None:
    X = matrix(30, d)
    Z = coordinates(gram_matrix(X))
    assert Z.shape == (30, 30)
    np.testing.assert_allclose(Z @ Z.T, gram_matrix(X), atol=1e-9)
    np.testing.assert_allclose(torch.cdist(Z, Z), torch.cdist(X, X), atol=2e-6)


def test_reduced_is_a_rotation_of_many_and_nothing_for_few() -> None:
    X = matrix(10, 40)[None]
    assert reduced(X).shape == (1, 10, 10)
    np.testing.assert_allclose(torch.cdist(reduced(X), reduced(X)), torch.cdist(X, X), atol=2e-6)
    few = matrix(40, 10)[None]
    assert reduced(few) is few


TRAIN = torch.tensor([[0, 2, 4, 6, 8], [1, 2, 3, 9, 0]])


def test_units_are_scaled_by_the_training_part_alone() -> None:
    X = matrix(10, 4) * torch.tensor([1.0, 10, 0.1, 3]) + 5
    scaled = unit_scaled(X, TRAIN)
    for split, rows in zip(scaled, TRAIN, strict=True):
        part = X[rows].numpy()
        np.testing.assert_allclose(split, (X.numpy() - part.mean(axis=0)) / part.std(axis=0))
    changed = X.clone()
    changed[7] += 100  # an image that is in no training part
    keep = [i for i in range(10) if i != 7]
    assert torch.equal(unit_scaled(changed, TRAIN)[:, keep], scaled[:, keep])


def test_a_layer_is_scaled_by_one_number_of_the_training_part() -> None:
    X = matrix(10, 4) * torch.tensor([1.0, 10, 0.1, 3]) + 5
    for split, rows in zip(layer_scaled(X, TRAIN, n_features=4), TRAIN, strict=True):
        part = X[rows].numpy()
        centered = part - part.mean(axis=0)
        np.testing.assert_allclose(split, (X.numpy() - part.mean(axis=0)) / np.sqrt((centered**2).mean()))


def test_scaling_in_coordinates_is_scaling_of_the_features() -> None:
    X = matrix(10, 300) + 2
    whole = layer_scaled(X, TRAIN, n_features=300)
    small = layer_scaled(coordinates(gram_matrix(X)), TRAIN, n_features=300)
    np.testing.assert_allclose(small @ small.mT, whole @ whole.mT, atol=1e-8)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_constants_become_zero(value: float) -> None:
    X = torch.full((10, 3), value, dtype=torch.float64)
    assert unit_scaled(X, TRAIN).abs().max() < 1e-6
    assert layer_scaled(coordinates(gram_matrix(X)), TRAIN, n_features=3).abs().max() < 1e-6


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_features_whose_squares_float32_cannot_hold(size: float) -> None:
    X = torch.randn(12, 5000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gram_matrix(X * size) / size**2, gram_matrix(X), rtol=1e-4, atol=1e-2)
