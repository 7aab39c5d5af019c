from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad
from scipy.optimize import minimize as scipy_minimize

from neuroprobe.probing._coordinates import Scaler, coordinates, gram_matrix
from neuroprobe.probing._hidden import HiddenLayer, _Hidden, first_weights, fit_hidden_layer
from neuroprobe.probing._lbfgs import minimize


def scaled(X: torch.Tensor, train: torch.Tensor, scaling: str, **options: float) -> torch.Tensor:
    """By every split's training part, [n_splits, n_images, d]."""
    return torch.stack([Scaler(X[rows], scaling, **options)(X) for rows in train])


def problems(b: int, n: int, r: int, *, seed: int = 0, n_classes: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    Z = torch.randn(b, n, r, generator=generator, dtype=torch.float64)
    score = Z[:, :, :n_classes] + torch.randn(b, n, n_classes, generator=generator, dtype=torch.float64)
    return Z, score.argmax(dim=2)


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


def test_a_large_loss_is_no_reason_to_stop() -> None:
    class Raised(Quadratic):
        def subset(self, rows: torch.Tensor) -> Raised:
            return Raised(self.A[rows], self.b[rows])

        def loss_and_gradient(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            loss, gradient = super().loss_and_gradient(theta)
            return loss + 1e6, gradient

    problem, start = quadratic(1), torch.zeros(1, 12, dtype=torch.float64)
    found, raised = (minimize(one, start, max_iter=500, tol=1e-4)[0] for one in (problem, Raised(problem.A, problem.b)))
    assert float(problem.loss_and_gradient(raised)[0]) == pytest.approx(float(problem.loss_and_gradient(found)[0]), rel=1e-2)


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
    whole = scaled(X, train, "layer")
    small = scaled(coordinates(gram_matrix([X])), train, "layer", n_features=d)
    first = torch.randn(d, hidden, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / d**0.5
    second = start(1, 1, hidden).second
    zeros = torch.zeros(1, hidden, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    projected = torch.linalg.lstsq(small[0], whole[0] @ first, driver="gelsd").solution  # the same outputs for all 50 images
    unseen = (first.square().sum(dim=0) - projected.square().sum(dim=0)).sqrt()
    projected = torch.cat([projected, unseen[None]])
    for max_iter in (1, 5, 15):
        settings = {"alpha": 0.01, "max_iter": max_iter, "tol": 0.0}
        in_X, _, n_X = fit_hidden_layer(whole[:, :35], targets[:, :35], HiddenLayer(first[None], zeros[0], second, zeros[1]), **settings)
        in_Z, _, n_Z = fit_hidden_layer(
            small[:, :35], targets[:, :35], HiddenLayer(projected[None], zeros[0], second, zeros[1]), **settings
        )
        assert n_X == n_Z == max_iter
        np.testing.assert_allclose(in_Z.values(small), in_X.values(whole), atol=1e-4, rtol=1e-4)
    assert in_X.values(whole)[0, test].std() > 0.1


def test_first_weights_have_the_variance_of_the_layer_in_all_dimensions() -> None:
    """Outputs of the hidden layer at the start, over many seeds: as spread at test images as with d weights, and not as with n."""
    n, d, seeds = 30, 2000, tuple(range(400))
    X = torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    Z = scaled(coordinates(gram_matrix([X])), torch.arange(20)[None], "layer", n_features=d)[0]
    whole = scaled(X, torch.arange(20)[None], "layer")[0]
    small = torch.einsum("nr,srh->nsh", Z, first_weights(Z[None], 4, seeds, n_features=d).first[:, :n]).std(dim=(1, 2))
    large = torch.stack([whole @ torch.randn(d, 4, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in range(400)])
    np.testing.assert_allclose(small, large.std(dim=(0, 2)) / d**0.5, rtol=0.1)
    training_alone = (Z - Z @ torch.linalg.pinv(Z[:20]) @ Z[:20]).square().sum(dim=1)
    assert (training_alone[20:] > 0.4 * d).all()  # what would be lost at test images


def test_what_no_image_sees_has_the_length_of_the_directions_left() -> None:
    found = first_weights(torch.zeros(400, 2, 30, dtype=torch.float64), 8, range(400), n_features=40).first
    assert found.shape == (400, 31, 8)
    assert found[:, :30].square().sum(dim=1).mean() == pytest.approx(30 / 40, rel=0.02)
    assert found[:, 30].square().mean() == pytest.approx(10 / 40, rel=0.05)


def test_first_weights_follow_the_seed_alone() -> None:
    Z = torch.zeros(2, 3, 10, dtype=torch.float64)
    together, alone = first_weights(Z, 5, (3, 4), n_features=10), first_weights(Z[:1], 5, (4,), n_features=10)
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
