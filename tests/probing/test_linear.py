from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from neuroprobe.probing import _linear as linear
from neuroprobe.probing._linear import choose_C, least_C, solve_logistic, solve_sparse

ONE = torch.ones(1, dtype=torch.float64)


def problems(b: int, n: int, r: int, *, seed: int = 0, n_classes: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    Z = torch.randn(b, n, r, generator=generator, dtype=torch.float64)
    score = Z[:, :, :n_classes] + torch.randn(b, n, n_classes, generator=generator, dtype=torch.float64)
    return Z, score.argmax(dim=2)


# --- logistic regression


def test_its_gradient_is_zero() -> None:
    Z, targets = problems(5, 50, 80)
    C = torch.logspace(-3, 3, 5, dtype=torch.float64)
    found, n_iter = solve_logistic(Z, targets, C)
    error = found.values(Z)[..., 0].sigmoid() - targets
    assert (((Z.mT @ error[..., None]) * C[:, None, None] + found.weights) / C[:, None, None]).abs().max() < 1e-8
    assert error.sum(dim=1).abs().max() < 1e-8
    assert n_iter.max() < 30


def test_by_hand() -> None:
    """Two images at 1 and -1: w solves w = 2 C / (1 + exp(w)), and there is no offset."""
    found, _ = solve_logistic(torch.tensor([[[1.0], [-1]]], dtype=torch.float64), torch.tensor([[1, 0]]), ONE)
    assert float(found.weights) == pytest.approx(2 / (1 + np.exp(float(found.weights))))
    assert float(found.offsets) == pytest.approx(0, abs=1e-12)


def test_a_problem_does_not_feel_the_others() -> None:
    Z, targets = problems(6, 40, 50)
    C = torch.tensor([1e-4, 1, 1e6, 1, 1e-2, 10], dtype=torch.float64)
    together, n_iter = solve_logistic(Z, targets, C)
    for i in range(6):
        alone, n_alone = solve_logistic(Z[i : i + 1], targets[i : i + 1], C[i : i + 1])
        np.testing.assert_allclose(together.weights[i], alone.weights[0], rtol=1e-9, atol=1e-12)
        assert torch.equal(n_iter[i], n_alone[0])


def test_it_follows_rotations() -> None:
    Z, targets = problems(1, 30, 50)
    rotation = torch.linalg.qr(torch.randn(50, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    weights, rotated = (solve_logistic(turned, targets, ONE)[0].weights for turned in (Z, Z @ rotation))
    np.testing.assert_allclose(rotation.T @ weights[0], rotated[0], atol=1e-9)


@pytest.mark.parametrize("targets", [torch.zeros(1, 20), torch.ones(1, 20)])
def test_a_single_class_stays_finite(targets: torch.Tensor) -> None:
    found, _ = solve_logistic(problems(1, 20, 5)[0], targets, ONE)
    assert torch.isfinite(found.weights).all()
    assert torch.isfinite(found.offsets).all()
    assert (found.offsets > 0).all() == bool(targets[0, 0])


@pytest.mark.parametrize("C", [0.01, 1.0, 1e4])
def test_single_units_too(C: float) -> None:
    Z, targets = problems(1, 60, 20)
    values, targets = (Z[0] / Z[0].std(dim=0)).T[..., None].clone(), targets.expand(20, -1)
    values[3, :, 0] = targets[0] * 2.0 - 1  # a unit that separates the classes
    values[4] = 0  # and one that never varies
    found, _ = solve_logistic(values, targets, torch.full((20,), C, dtype=Z.dtype))
    for i in (0, 1, 3, 4, 19):
        reference = LogisticRegression(C=C, tol=1e-12, max_iter=10_000).fit(values[i], targets[0])
        wanted = [reference.coef_[0, 0], reference.intercept_[0]]
        np.testing.assert_allclose([found.weights[i, 0, 0], found.offsets[i, 0]], wanted, rtol=1e-3, atol=1e-5)


# --- an L1 path


@pytest.mark.parametrize("r", [20, 1000])
def test_a_path_of_strengths_is_each_of_them_alone(r: int) -> None:
    Z, targets = problems(1, 150, r)
    path = least_C(Z, targets, 2) * torch.tensor([1.5, 4.0, 20.0], dtype=Z.dtype)
    found, n_iter = solve_sparse(Z.expand(3, -1, -1), targets.expand(3, -1), path)
    for i in range(3):
        alone, n_alone = solve_sparse(Z, targets, path[i : i + 1])
        torch.testing.assert_close(found.weights[i], alone.weights[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.offsets[i], alone.offsets[0], rtol=1e-9, atol=1e-9)
        assert n_iter[i] == n_alone[0] > 1


def test_large_problems_of_a_sparse_batch_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    whole = linear._solve_sparse

    def counted(Z: torch.Tensor, *rest):
        sizes.append(len(Z))
        return whole(Z, *rest)

    monkeypatch.setattr(linear, "_solve_sparse", counted)
    for n, r in ((20, 5), (200, 1000)):
        Z, targets = problems(4, n, r)
        solve_sparse(Z, targets, torch.full((4,), 0.01, dtype=Z.dtype), max_iter=2)
    assert sizes == [4, 1, 1, 1, 1]


# --- the strength by cross-validation


@pytest.mark.parametrize("sizes", [(7, 9), (5, 12, 4), (3, 3)])
def test_every_class_is_dealt_out_over_all_folds_evenly(sizes: tuple[int, ...]) -> None:
    targets = torch.cat([torch.full((size,), i) for i, size in enumerate(sizes)])[torch.randperm(sum(sizes))]
    for seed in range(5):
        folds = linear._dealt(targets, 5, seed)
        counts = torch.stack([torch.bincount(folds[targets == i], minlength=5) for i in range(len(sizes))])
        for row in (*counts, counts.sum(dim=0)):
            assert row.max() - row.min() <= 1


def test_folds_follow_the_seed() -> None:
    targets = torch.arange(40) % 2
    assert torch.equal(linear._dealt(targets, 5, 1), linear._dealt(targets, 5, 1))
    assert not torch.equal(linear._dealt(targets, 5, 1), linear._dealt(targets, 5, 2))


def test_every_problem_chooses_its_own_strength() -> None:
    Z, targets = problems(3, 60, 30)
    targets[0] = Z[0, :, 0] > 0
    targets[1] = targets[1][torch.randperm(60, generator=torch.Generator().manual_seed(0))]  # labels that mean nothing
    candidates = torch.tensor([1e-3, 1.0, 100.0], dtype=Z.dtype).expand(3, -1)
    together = choose_C(Z, targets, candidates, solve_logistic, n_folds=4, seed=0)
    for i in range(3):
        rows = slice(i, i + 1)
        assert choose_C(Z[rows], targets[rows], candidates[rows], solve_logistic, n_folds=4, seed=0) == together[i]
    assert together[1] < together[0]
