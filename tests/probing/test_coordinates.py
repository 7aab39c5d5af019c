from __future__ import annotations

import numpy as np
import pytest
import torch

from neuroprobe.probing._coordinates import Coordinates, Scaler, column_blocks, coordinates, reduced
from neuroprobe.probing._coordinates import gram_matrix as gram_of_blocks


def scaled(X: torch.Tensor, train: torch.Tensor, scaling: str, **options: float) -> torch.Tensor:
    """By every split's training part, [n_splits, n_images, d]."""
    return torch.stack([Scaler(X[rows], scaling, **options)(X) for rows in train])


def matrix(n: int, d: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gram_matrix(X: torch.Tensor, *, columns: int = 4096) -> torch.Tensor:
    return gram_of_blocks(X[:, block] for block in column_blocks(X.shape[1], columns))


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
    found = scaled(X, TRAIN, "unit")
    for split, rows in zip(found, TRAIN, strict=True):
        part = X[rows].numpy()
        np.testing.assert_allclose(split, (X.numpy() - part.mean(axis=0)) / part.std(axis=0))
    changed = X.clone()
    changed[7] += 100  # an image that is in no training part
    keep = [i for i in range(10) if i != 7]
    assert torch.equal(scaled(changed, TRAIN, "unit")[:, keep], found[:, keep])


def test_a_layer_is_scaled_by_one_number_of_the_training_part() -> None:
    X = matrix(10, 4) * torch.tensor([1.0, 10, 0.1, 3]) + 5
    for split, rows in zip(scaled(X, TRAIN, "layer"), TRAIN, strict=True):
        part = X[rows].numpy()
        centered = part - part.mean(axis=0)
        np.testing.assert_allclose(split, (X.numpy() - part.mean(axis=0)) / np.sqrt((centered**2).mean()))


def test_scaling_in_coordinates_is_scaling_of_the_features() -> None:
    X = matrix(10, 300) + 2
    whole = scaled(X, TRAIN, "layer")
    small = scaled(coordinates(gram_matrix(X)), TRAIN, "layer", n_features=300)
    np.testing.assert_allclose(small @ small.mT, whole @ whole.mT, atol=1e-8)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_constants_become_zero(value: float) -> None:
    X = torch.full((10, 3), value, dtype=torch.float64)
    assert scaled(X, TRAIN, "unit").abs().max() < 1e-6
    assert scaled(coordinates(gram_matrix(X)), TRAIN, "layer", n_features=3).abs().max() < 1e-6


@pytest.mark.parametrize("scaling", ["unit", "layer"])
def test_a_small_spread_around_a_large_mean_is_no_rounding(scaling: str) -> None:
    noise = matrix(200, 3)
    found = Scaler(1000 + 1e-5 * noise, scaling)(1000 + 1e-5 * noise)
    np.testing.assert_allclose(found, Scaler(noise, scaling)(noise), atol=1e-5)
    nearly = 1000 * (1 + 1e-16 * noise)  # and one of the last digit is nothing else
    assert Scaler(nearly, scaling)(nearly).abs().max() < 1e-9


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_features_whose_squares_float32_cannot_hold(size: float) -> None:
    X = torch.randn(12, 5000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gram_matrix(X * size) / size**2, gram_matrix(X), rtol=1e-4, atol=1e-2)


# --- one training part, and the way back


@pytest.mark.parametrize("scaling", ["unit", "layer"])
@pytest.mark.parametrize("d", [4, 30, 5000])
def test_one_training_part_is_scaled_like_those_of_a_batch(scaling: str, d: int) -> None:
    X = matrix(12, d) * torch.linspace(0.1, 10, d) + 5
    found = Coordinates(X.numpy(), scaling)
    (whole,) = scaled(X, torch.arange(12)[None], scaling)
    assert found.Z.shape[1] == min(d, 11)
    np.testing.assert_allclose(found.Z @ found.Z.T, whole @ whole.T, atol=1e-8 * d)
    np.testing.assert_allclose(found.scaler(X), whole, rtol=1e-9)


@pytest.mark.parametrize("scaling", ["unit", "layer"])
@pytest.mark.parametrize("d", [4, 30, 5000])
def test_weights_of_coordinates_are_weights_of_the_units(scaling: str, d: int) -> None:
    X = (matrix(12, d) * torch.linspace(0.1, 10, d) + 5).numpy()
    found = Coordinates(X, scaling)
    weights, offsets = matrix(found.Z.shape[1], 2, seed=1), torch.tensor([0.5, -2.0], dtype=torch.float64)
    coef, intercept = found.in_units(weights, offsets)
    np.testing.assert_allclose(X @ coef.T + intercept, found.Z @ weights + offsets, atol=1e-8)
    assert found.across(found.in_scaled_units(weights)).abs().max() < 1e-9
    values = found.Z @ weights[:, 0] + offsets[0]
    again, constant = found.weights_of(values)
    np.testing.assert_allclose(again[0], coef[0], atol=1e-9)
    assert constant[0] == pytest.approx(intercept[0])


def test_a_part_without_any_variance_has_no_coordinates() -> None:
    found = Coordinates(np.full((6, 20), 0.1, dtype=np.float32), "unit")
    coef, intercept = found.in_units(torch.zeros(found.Z.shape[1], 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    assert found.Z.abs().sum() == 0
    assert (coef.shape, coef.any(), intercept.tolist()) == ((1, 20), False, [1])
