from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch

from neuroprobe.labeling.similarity import _kernels as kernels
from neuroprobe.labeling.similarity._kernels import sum_of_logs

PATHS = [False, pytest.param(True, marks=pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed"))]


def random_case(k: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(seed)
    probabilities = generator.random((40, 9)).astype(np.float32) ** 8
    rows = np.stack([generator.permutation(40)[:k] for _ in range(5)])
    return torch.from_numpy(probabilities), torch.from_numpy(rows)


def slow(probabilities: torch.Tensor, rows: torch.Tensor, slopes: torch.Tensor, floors: torch.Tensor) -> np.ndarray:
    result = np.zeros((len(rows), probabilities.shape[1]))
    for unit, images in enumerate(rows.tolist()):
        for image, slope, floor in zip(images, slopes.tolist(), floors.tolist(), strict=True):
            result[unit] += [math.log(floor + slope * float(p)) for p in probabilities[image]]
    return result


@pytest.mark.parametrize("numba", PATHS)
@pytest.mark.parametrize(
    ("start", "end", "floor"),
    [(0.998, 0.97, 1e-7), (1.0, 1.0, 1e-7), (1.0, 0.0, 1e-30), (0.0, 0.0, 0.0), (0.5, 0.5, 1.0), (1.0, 1.0, 1e-37)],
)
@pytest.mark.parametrize("k", [1, 13, 40])
def test_it_is_the_sum_of_the_logarithms(numba, start, end, floor, k) -> None:
    probabilities, rows = random_case(k)
    slopes = torch.linspace(start, end, k, dtype=torch.float64)
    floors = 1 - slopes + floor
    found = sum_of_logs(probabilities, rows, slopes=slopes, floors=floors, numba=numba)
    np.testing.assert_allclose(found, slow(probabilities, rows, slopes, floors), rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("numba", PATHS)
def test_products_far_below_what_float32_can_hold(numba) -> None:
    probabilities = torch.full((1, 3), 1e-7)
    rows = torch.zeros(2, 1000, dtype=torch.long)
    found = sum_of_logs(probabilities, rows, slopes=torch.ones(1000).double(), floors=torch.full((1000,), 1e-7).double(), numba=numba)
    np.testing.assert_allclose(found, 1000 * math.log(2e-7), rtol=2e-6)


@pytest.mark.parametrize("numba", PATHS)
def test_products_far_above_what_float32_can_hold(numba) -> None:
    rows = torch.zeros(2, 1000, dtype=torch.long)
    ones = torch.ones(1000).double()
    np.testing.assert_allclose(sum_of_logs(torch.ones(1, 3), rows, slopes=ones, floors=ones, numba=numba), 1000 * math.log(2), rtol=2e-6)


@pytest.mark.parametrize("numba", PATHS)
def test_any_number_of_threads_and_units(numba, monkeypatch) -> None:
    probabilities, rows = random_case(13)
    factors = {"slopes": torch.full((13,), 0.9).double(), "floors": torch.full((13,), 0.1).double()}
    whole = sum_of_logs(probabilities, rows, **factors, numba=numba)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for n in (0, 1, 2, 5):
            torch.testing.assert_close(sum_of_logs(probabilities, rows[:n], **factors, numba=numba), whole[:n])
        monkeypatch.setattr(kernels, "_UNITS", 2)
        torch.testing.assert_close(sum_of_logs(probabilities, rows, **factors, numba=numba), whole)
    finally:
        torch.set_num_threads(before)
