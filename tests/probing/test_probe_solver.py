from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad
from scipy.optimize import minimize as scipy_minimize
from sklearn.linear_model import LogisticRegression

from neuroprobe.probing import _linear_models as linear_models
from neuroprobe.probing._cells import first_weights
from neuroprobe.probing._gram import coordinates, gram_matrix, layer_scaled
from neuroprobe.probing._lbfgs import minimize
from neuroprobe.probing._linear_models import least_C, solve_sparse
from neuroprobe.probing._logistic import HiddenLayer, _Hidden, fit_hidden_layer, solve_logistic, solve_softmax, solve_units


def problems(b: int, n: int, r: int, *, seed: int = 0, n_classes: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    Z = torch.randn(b, n, r, generator=generator, dtype=torch.float64)
    score = Z[:, :, :n_classes] + torch.randn(b, n, n_classes, generator=generator, dtype=torch.float64)
    return Z, score.argmax(dim=2)


# --- logistic regression


@pytest.mark.parametrize("C", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize(("n", "r"), [(40, 3), (30, 60)])
def test_logistic_regression_is_scikit_learns(C: float, n: int, r: int) -> None:
    Z, targets = problems(3, n, r)
    weights, offsets, _ = solve_logistic(Z, targets, C=C)
    for i in range(3):
        reference = LogisticRegression(C=C, tol=1e-12, max_iter=100_000).fit(Z[i], targets[i])
        np.testing.assert_allclose(weights[i], reference.coef_[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(offsets[i], reference.intercept_[0], rtol=1e-4, atol=1e-5)


def test_its_gradient_is_zero() -> None:
    Z, targets = problems(5, 50, 80)
    C = torch.logspace(-3, 3, 5, dtype=torch.float64)
    weights, offsets, n_iter = solve_logistic(Z, targets, C=C)
    error = ((Z @ weights[..., None])[..., 0] + offsets[:, None]).sigmoid() - targets
    assert (((Z.mT @ error[..., None])[..., 0] * C[:, None] + weights) / C[:, None]).abs().max() < 1e-8
    assert error.sum(dim=1).abs().max() < 1e-8
    assert n_iter.max() < 30


def test_by_hand() -> None:
    """Two images at 1 and -1: w solves w = 2 C / (1 + exp(w)), and there is no offset."""
    weights, offsets, _ = solve_logistic(torch.tensor([[[1.0], [-1]]], dtype=torch.float64), torch.tensor([[1, 0]]), C=1.0)
    assert float(weights) == pytest.approx(2 / (1 + np.exp(float(weights))))
    assert float(offsets) == pytest.approx(0, abs=1e-12)


def test_a_problem_does_not_feel_the_others() -> None:
    Z, targets = problems(6, 40, 50)
    C = torch.tensor([1e-4, 1, 1e6, 1, 1e-2, 10], dtype=torch.float64)
    together = solve_logistic(Z, targets, C=C)
    for i in range(6):
        alone = solve_logistic(Z[i : i + 1], targets[i : i + 1], C=C[i : i + 1])
        np.testing.assert_allclose(together[0][i], alone[0][0], rtol=1e-9, atol=1e-12)
        assert torch.equal(together[2][i], alone[2][0])


def test_it_follows_rotations() -> None:
    Z, targets = problems(1, 30, 50)
    rotation = torch.linalg.qr(torch.randn(50, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    weights, rotated = solve_logistic(Z, targets)[0], solve_logistic(Z @ rotation, targets)[0]
    np.testing.assert_allclose(weights @ rotation, rotated, atol=1e-9)


@pytest.mark.parametrize("targets", [torch.zeros(1, 20), torch.ones(1, 20)])
def test_a_single_class_stays_finite(targets: torch.Tensor) -> None:
    weights, offsets, _ = solve_logistic(problems(1, 20, 5)[0], targets)
    assert torch.isfinite(weights).all()
    assert torch.isfinite(offsets).all()
    assert (offsets > 0).all() == bool(targets[0, 0])


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_several_classes_are_scikit_learns(C: float) -> None:
    Z, targets = problems(2, 60, 40, n_classes=4)
    weights, offsets, _ = solve_softmax(Z, targets, n_classes=4, C=C)
    for i in range(2):
        reference = LogisticRegression(C=C, tol=1e-11, max_iter=100_000).fit(Z[i], targets[i])
        np.testing.assert_allclose(Z[i] @ weights[i] + offsets[i], reference.decision_function(Z[i]), atol=1e-4)


# --- single units


@pytest.mark.parametrize("C", [0.01, 1.0, 1e4])
def test_units_are_logistic_regressions_of_one_number(C: float) -> None:
    Z, targets = problems(1, 60, 20)
    values = (Z[0] - Z[0].mean(dim=0)).T / Z[0].std(dim=0)[:, None]
    values[3] = targets[0] * 2.0 - 1  # a unit that separates the classes
    weights, offsets = solve_units(values, targets[0], C=C)
    for i in (0, 1, 3, 19):
        reference = LogisticRegression(C=C, tol=1e-12, max_iter=10_000).fit(values[i : i + 1].T, targets[0])
        np.testing.assert_allclose([weights[i], offsets[i]], [reference.coef_[0, 0], reference.intercept_[0]], rtol=1e-3, atol=1e-5)
    alone = solve_units(values[7:8], targets[0], C=C)
    assert float(alone[0]) == pytest.approx(float(weights[7]), rel=1e-9)


def test_a_constant_unit_says_what_the_shares_say() -> None:
    weights, offsets = solve_units(torch.zeros(1, 40, dtype=torch.float64), torch.tensor([1] * 10 + [0] * 30))
    assert float(weights) == 0
    assert float(offsets) == pytest.approx(np.log(1 / 3))


# --- L-BFGS


class Quadratic:
    """Losses |A theta - b|^2 / 2, one matrix per problem."""

    def __init__(self, A: torch.Tensor, b: torch.Tensor) -> None:
        self.A, self.b = A, b

    def subset(self, rows: torch.Tensor) -> Quadratic:
        return Quadratic(self.A[rows], self.b[rows])

    def loss_and_gradient(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        error = (self.A @ theta[..., None])[..., 0] - self.b
        return error.square().sum(dim=1) / 2, (self.A.mT @ error[..., None])[..., 0]


def quadratic(n: int = 4) -> Quadratic:
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, 2, 12, dtype=torch.float64)
    return Quadratic(
        torch.randn(n, 20, 12, generator=generator, dtype=torch.float64) * scales,
        torch.randn(n, 20, generator=generator, dtype=torch.float64),
    )


def test_the_minimum_of_a_quadratic_is_found() -> None:
    problem = quadratic()
    theta, _, n_iter = minimize(problem, torch.zeros(4, 12, dtype=torch.float64), max_iter=500, tol=0, gradient_tol=1e-9)
    np.testing.assert_allclose(theta, torch.linalg.lstsq(problem.A, problem.b[..., None]).solution[..., 0], atol=1e-6)
    assert n_iter.max() < 400


def test_its_direction_is_that_of_the_two_loops() -> None:
    """Against algorithm 7.4 of Nocedal and Wright, step by step, with more steps than are remembered."""
    problem, theta = quadratic(1), torch.zeros(1, 12, dtype=torch.float64)
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    for step in range(1, 9):
        before = minimize(problem, theta, max_iter=step - 1, tol=0, history=3)[0]
        after = minimize(problem, theta, max_iter=step, tol=0, history=3)[0]
        gradient = problem.loss_and_gradient(before)[1][0]
        q, alphas = gradient.clone(), []
        for s, y in reversed(pairs[-3:]):
            alphas.append((s @ q) / (s @ y))
            q = q - alphas[-1] * y
        if pairs:
            s, y = pairs[-1]
            q = q * (s @ y) / (y @ y)
            for (s, y), alpha in zip(pairs[-3:], reversed(alphas), strict=True):
                q = q + s * (alpha - (y @ q) / (s @ y))
        moved = (after - before)[0]
        assert float(moved @ -q / (moved.norm() * q.norm())) == pytest.approx(1, abs=1e-6)
        pairs.append((moved, problem.loss_and_gradient(after)[1][0] - gradient))


def test_batches_are_what_each_would_be_alone() -> None:
    problem, start = quadratic(), torch.ones(4, 12, dtype=torch.float64)
    problem.A[2] *= 1e-3  # one that takes other steps
    together = minimize(problem, start, max_iter=40)
    for i in range(4):
        rows = torch.tensor([i])
        alone = minimize(problem.subset(rows), start[rows], max_iter=40)
        for a, b in zip(together, alone, strict=True):
            assert torch.equal(a[i], b[0])


# --- the hidden layer


def slow_loss(layer: HiddenLayer, Z: np.ndarray, targets: np.ndarray, alpha: float) -> float:
    first, bias, second, offset = (part[0].numpy() for part in (layer.first, layer.bias, layer.second, layer.offset))
    total = 0.0
    for row, target in zip(Z, targets, strict=True):
        hidden = [max(sum(row[i] * first[i, j] for i in range(len(row))) + bias[j], 0) for j in range(len(bias))]
        logits = [offset[k] + sum(h * second[j, k] for j, h in enumerate(hidden)) for k in range(len(offset))]
        if len(logits) == 1:
            logits = [0.0, *logits]
        total += np.log(np.exp(logits).sum()) - logits[target]
    return total / len(Z) + alpha / 2 * (np.sum(first**2) + np.sum(second**2))


def start(b: int, r: int, hidden: int, n_outputs: int = 1, *, seed: int = 0) -> HiddenLayer:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((r, hidden), (hidden,), (hidden, n_outputs), (n_outputs,))
    return HiddenLayer(*(torch.randn(b, *shape, generator=generator, dtype=torch.float64) * 0.5 for shape in shapes))


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_the_loss_is_the_plain_formula_and_the_gradient_is_its(n_outputs: int, alpha: float) -> None:
    Z, targets = problems(1, 13, 4, n_classes=max(n_outputs, 2))
    layer = start(1, 4, 5, n_outputs)
    problem = _Hidden(Z, targets, (4, 5, n_outputs), alpha)
    assert float(problem.loss_and_gradient(layer.flat)[0]) == pytest.approx(slow_loss(layer, Z[0].numpy(), targets[0].numpy(), alpha))
    error = check_grad(
        lambda t: float(problem.loss_and_gradient(torch.from_numpy(t)[None])[0]),
        lambda t: problem.loss_and_gradient(torch.from_numpy(t)[None])[1][0].numpy(),
        layer.flat[0].numpy(),
    )
    assert error < 1e-5


def test_it_gets_as_low_as_scipys() -> None:
    Z, targets = problems(4, 60, 20)
    layer = start(4, 20, 8)
    _, loss, _ = fit_hidden_layer(Z, targets, layer, alpha=0.01, max_iter=300, tol=1e-9)
    for i in range(4):
        problem = _Hidden(Z[i : i + 1], targets[i : i + 1], (20, 8, 1), 0.01)

        def plain(theta: np.ndarray, problem: _Hidden = problem) -> tuple[float, np.ndarray]:
            value, gradient = problem.loss_and_gradient(torch.from_numpy(theta)[None])
            return float(value), gradient[0].numpy()

        reference = scipy_minimize(plain, layer.flat[i].numpy(), jac=True, method="L-BFGS-B", options={"maxiter": 300, "ftol": 1e-9})
        assert float(loss[i]) == pytest.approx(reference.fun, rel=0.1)  # not convex: another path, another minimum


def test_the_same_first_weights_take_the_same_steps_in_all_dimensions_and_in_few() -> None:
    """Test images too, because the coordinates are of training and test images together.

    What of the first weights no image sees shrinks with the others, and L-BFGS feels its length: one more coordinate holds it.
    """
    n, d, hidden = 50, 3000, 8
    X = torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.logspace(0, -1, d) + 1
    targets = (X[:, :40].mean(dim=1) > X[:, :40].mean()).long()[None]
    train, test = torch.arange(35)[None], torch.arange(35, 50)
    whole = layer_scaled(X, train, n_features=d)
    small = layer_scaled(coordinates(gram_matrix(X)), train, n_features=d)
    first = torch.randn(d, hidden, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / d**0.5
    second = start(1, 1, hidden).second
    zeros = torch.zeros(1, hidden, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    projected = torch.linalg.lstsq(small[0], whole[0] @ first, driver="gelsd").solution  # the same outputs for all 50 images
    unseen = (first.square().sum(dim=0) - projected.square().sum(dim=0)).sqrt()
    small, projected = torch.cat([small, torch.zeros_like(small[:, :, :1])], dim=2), torch.cat([projected, unseen[None]])
    for max_iter in (1, 5, 15):
        settings = {"alpha": 0.01, "max_iter": max_iter, "tol": 0.0}
        in_X, _, n_X = fit_hidden_layer(whole[:, :35], targets[:, :35], HiddenLayer(first[None], zeros[0], second, zeros[1]), **settings)
        in_Z, _, n_Z = fit_hidden_layer(
            small[:, :35], targets[:, :35], HiddenLayer(projected[None], zeros[0], second, zeros[1]), **settings
        )
        assert n_X == n_Z == max_iter
        np.testing.assert_allclose(in_Z.logits(small), in_X.logits(whole), atol=1e-4, rtol=1e-4)
    assert in_X.logits(whole)[0, test].std() > 0.1


def test_first_weights_have_the_variance_of_the_layer_in_all_dimensions() -> None:
    """Outputs of the hidden layer at the start, over many seeds: as spread at test images as with d weights, and not as with n."""
    n, d, seeds = 30, 2000, tuple(range(400))
    X = torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    Z = layer_scaled(coordinates(gram_matrix(X)), torch.arange(20)[None], n_features=d)[0]
    whole = layer_scaled(X, torch.arange(20)[None], n_features=d)[0]
    small = torch.einsum("nr,srh->nsh", Z, first_weights(seeds, n, 4, n_features=d).first[:, :n].double()).std(dim=(1, 2))
    large = torch.stack([whole @ torch.randn(d, 4, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in range(400)])
    np.testing.assert_allclose(small, large.std(dim=(0, 2)) / d**0.5, rtol=0.1)
    training_alone = (Z - Z @ torch.linalg.pinv(Z[:20]) @ Z[:20]).square().sum(dim=1)
    assert (training_alone[20:] > 0.4 * d).all()  # what would be lost at test images


def test_first_weights_follow_the_seed_alone() -> None:
    together, alone = first_weights((3, 4), 10, 5, n_features=10), first_weights((4,), 10, 5, n_features=10)
    assert torch.equal(together.first[1], alone.first[0])
    assert not torch.equal(together.first[0], together.first[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_of_hidden_layers_is_what_each_would_be_alone(dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    Z, targets = problems(5, 40, 30)
    layer = start(5, 30, 8)
    layer = HiddenLayer(*(part.to(dtype) for part in (layer.first, layer.bias, layer.second, layer.offset)))
    together, losses, _ = fit_hidden_layer(Z.to(dtype), targets, layer, alpha=0.001, max_iter=10)
    for i in range(5):
        own = HiddenLayer(*(part[i : i + 1] for part in (layer.first, layer.bias, layer.second, layer.offset)))
        alone, loss, _ = fit_hidden_layer(Z[i : i + 1].to(dtype), targets[i : i + 1], own, alpha=0.001, max_iter=10)
        near = 1e-4 if dtype == torch.float32 else 1e-9
        assert float(losses[i]) == pytest.approx(float(loss), rel=near)
        np.testing.assert_allclose(together.flat[i], alone.flat[0], atol=near)


# --- an L1 path


@pytest.mark.parametrize("r", [20, 1000])
def test_a_path_of_strengths_is_each_of_them_alone(r: int) -> None:
    Z, targets = problems(1, 150, r)
    path = torch.tensor([factor * least_C(Z, targets, 2) for factor in (1.5, 4.0, 20.0)], dtype=Z.dtype)
    weights, offsets = solve_sparse(Z.expand(3, -1, -1), targets.expand(3, -1), path)
    for i in range(3):
        alone, offset = solve_sparse(Z, targets, path[i : i + 1])
        torch.testing.assert_close(weights[i], alone[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(offsets[i], offset[0], rtol=1e-9, atol=1e-9)


def test_large_problems_of_a_sparse_batch_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    whole = linear_models._solve_sparse

    def counted(Z: torch.Tensor, *rest):
        sizes.append(len(Z))
        return whole(Z, *rest)

    monkeypatch.setattr(linear_models, "_solve_sparse", counted)
    for n, r in ((20, 5), (200, 1000)):
        Z, targets = problems(4, n, r)
        solve_sparse(Z, targets, torch.full((4,), 0.01, dtype=Z.dtype), max_iter=2)
    assert sizes == [4, 1, 1, 1, 1]
