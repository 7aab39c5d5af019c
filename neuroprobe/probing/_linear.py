"""Linear functions fitted in batches: logistic regression, an L1 path, class means, ridge regression, and the strength of each.

Tensors are [n_problems, n_images, r] on any device. A problem never feels which others are in its batch: what has converged stays as
it is while others go on. All but the L1 path follow rotations: in rotated coordinates they take the same steps.

References
----------
Beck and Teboulle, A fast iterative shrinkage-thresholding algorithm, 2009. O'Donoghue and Candes, Adaptive restart, 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch.nn import functional as F

from neuroprobe.probing._lbfgs import minimize

#: Numbers of Z that a processor keeps at hand: so large a part of a batch takes its steps together.
_CACHED = 2**17


@dataclass(frozen=True, eq=False)
class Weights:
    """A linear function for every problem: weights [n_problems, r, n_outputs] and offsets [n_problems, n_outputs]."""

    weights: torch.Tensor
    offsets: torch.Tensor

    def values(self, Z: torch.Tensor) -> torch.Tensor:
        """[n_problems, n_images, r] -> [n_problems, n_images, n_outputs]"""
        return Z @ self.weights + self.offsets[:, None]


#: From Z, targets and C [n_problems] to the weights, and how many steps each problem took, [n_problems].
Solver: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[Weights, torch.Tensor]]


# --- logistic regression


def solve_logistic(
    Z: torch.Tensor, targets: torch.Tensor, C: torch.Tensor, *, n_classes: int = 2, max_iter: int = 100, tol: float = 1e-10
) -> tuple[Weights, torch.Tensor]:
    """L2-regularized logistic regression: minimize ``|w|^2 / 2`` + C * the sum of the log-losses, the offset left out of the first.

    Two classes have one output and are solved by Newton steps; more have one output each, and are solved by L-BFGS.

    Parameters
    ----------
    Z : Tensor, [n_problems, n_images, r], float64
    targets : LongTensor, [n_problems, n_images]
        Numbers of the classes.
    C : Tensor, [n_problems]
    n_classes : int, default 2
    max_iter : int, default 100
        Newton steps.
    tol : float, default 1e-10
        A problem of two classes is solved when its gradient is this small beside the one at zero.

    Returns
    -------
    Weights
        The offsets of several classes add up to 0.
    n_iter : LongTensor, [n_problems]
    """
    if n_classes > 2:
        return _solve_softmax(Z, targets, C, n_classes)
    problem, theta = _Logistic(F.pad(Z, (0, 1), value=1.0), targets.to(Z.dtype), C), Z.new_zeros(len(Z), Z.shape[2] + 1)
    n_iter, active = torch.zeros(len(Z), dtype=torch.long, device=Z.device), torch.arange(len(Z), device=Z.device)
    there = problem.at(theta)
    limit = there.gradient.norm(dim=1) * tol
    for _ in range(max_iter):
        theta[active], there = problem.step(theta[active], there)
        n_iter[active] += 1
        going = there.gradient.norm(dim=1) > limit[active]
        if not going.all():
            active, problem, there = active[going], _Logistic(*(part[going] for part in problem)), _Point(*(part[going] for part in there))
        if not len(active):
            break
    return Weights(theta[:, :-1, None], theta[:, -1:]), n_iter


class _Point(NamedTuple):
    """Of the loss: its value [n_problems], gradient [n_problems, r + 1], and curvature by logits [n_problems, n_images]."""

    loss: torch.Tensor
    gradient: torch.Tensor
    curvature: torch.Tensor


class _Logistic(NamedTuple):
    """Problems of logistic regression with one output. The last column of Z is 1, and the last parameter, the offset, not penalized."""

    Z: torch.Tensor
    targets: torch.Tensor
    C: torch.Tensor

    def at(self, theta: torch.Tensor) -> _Point:
        logits, strength = torch.bmm(self.Z, theta[..., None])[..., 0], self.C[:, None]
        probability, penalized = logits.sigmoid(), F.pad(theta[:, :-1], (0, 1))
        loss = penalized.square().sum(dim=1) / 2 + self.C * (F.softplus(logits) - self.targets * logits).sum(dim=1)
        error = strength * (probability - self.targets)
        return _Point(loss, torch.bmm(error[:, None], self.Z)[:, 0] + penalized, strength * probability * (1 - probability))

    def hessian(self, there: _Point) -> torch.Tensor:
        """[n_problems, r + 1, r + 1]"""
        found = torch.bmm(self.Z.mT, self.Z * there.curvature[..., None])
        found[:, -1, -1].clamp_(min=1e-12)
        found[:, :-1, :-1].diagonal(dim1=1, dim2=2).add_(1)
        return found

    def step(self, theta: torch.Tensor, there: _Point) -> tuple[torch.Tensor, _Point]:
        """One Newton step, halved until the loss falls."""
        direction = -torch.linalg.solve(self.hessian(there), there.gradient)
        size = torch.ones_like(self.C)
        for _ in range(30):
            found = theta + size[:, None] * direction
            reached = self.at(found)
            worse = reached.loss > there.loss + 1e-12 * there.loss.abs()
            if not worse.any():
                break
            size = torch.where(worse, size / 2, size)
        return found, reached


def _solve_softmax(Z: torch.Tensor, targets: torch.Tensor, C: torch.Tensor, n_classes: int) -> tuple[Weights, torch.Tensor]:
    problem = _Softmax(Z, targets, C, n_classes)
    start = Z.new_zeros(len(Z), (Z.shape[2] + 1) * n_classes)
    theta, _, n_iter = minimize(problem, start, max_iter=2000, tol=1e-15, gradient_tol=1e-9, history=20)
    weights, offsets = problem.parts(theta)
    return Weights(weights, offsets - offsets.mean(dim=1, keepdim=True)), n_iter


class _Softmax(NamedTuple):
    """Problems of logistic regression with several classes, as `minimize` wants them; losses are per image and C."""

    Z: torch.Tensor
    targets: torch.Tensor
    C: torch.Tensor
    n_classes: int

    def subset(self, rows: torch.Tensor) -> _Softmax:
        return _Softmax(self.Z[rows], self.targets[rows], self.C[rows], self.n_classes)

    def parts(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, offsets = theta[:, : -self.n_classes], theta[:, -self.n_classes :]
        return weights.reshape(len(theta), -1, self.n_classes), offsets

    def loss_and_gradient(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, offsets = self.parts(theta)
        losses, error = log_losses(torch.baddbmm(offsets[:, None], self.Z, weights), self.targets)
        ridge = 1 / (self.C * self.Z.shape[1])
        gradient = torch.cat([(torch.bmm(self.Z.mT, error) + ridge[:, None, None] * weights).flatten(1), error.sum(dim=1)], dim=1)
        return losses + ridge / 2 * weights.square().sum(dim=(1, 2)), gradient


def log_losses(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean log-loss [n_problems] of logits [n_problems, n_images, n_outputs], and its gradient by them."""
    n = logits.shape[1]
    if logits.shape[2] == 1:
        wanted = targets[..., None].to(logits.dtype)
        return (F.softplus(logits) - wanted * logits).mean(dim=(1, 2)), (logits.sigmoid() - wanted) / n
    wanted = F.one_hot(targets.long(), logits.shape[2]).to(logits.dtype)
    return -(logits.log_softmax(dim=2) * wanted).sum(dim=2).mean(dim=1), (logits.softmax(dim=2) - wanted) / n


# --- an L1 path


def solve_sparse(
    Z: torch.Tensor, targets: torch.Tensor, C: torch.Tensor, *, n_classes: int = 2, max_iter: int = 3000, tol: float = 1e-6
) -> tuple[Weights, torch.Tensor]:
    """L1-regularized logistic regression: minimize the sum of ``|w|`` + C * the sum of the log-losses, by FISTA with restarts.

    Parameters and results as in `solve_logistic`; `tol` is the largest change of a weight at which a problem is done.
    """
    at_a_time = max(1, _CACHED // max(Z[0].numel(), 1)) if Z.device.type == "cpu" else len(Z)
    parts = [
        _solve_sparse(Z[i : i + at_a_time], targets[i : i + at_a_time], C[i : i + at_a_time], n_classes, max_iter, tol)
        for i in range(0, len(Z), at_a_time)
    ]
    W, n_iter = (torch.cat(found) for found in zip(*parts, strict=True))
    return Weights(W[:, :-1], W[:, -1]), n_iter


def _solve_sparse(
    Z: torch.Tensor, targets: torch.Tensor, C: torch.Tensor, n_classes: int, max_iter: int, tol: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights with the offset last, [n_problems, r + 1, n_outputs], of problems that take their steps together till the last is done."""
    n_problems, _, r = Z.shape
    n_outputs = 1 if n_classes == 2 else n_classes
    W, extended = Z.new_zeros(n_problems, r + 1, n_outputs), F.pad(Z, (0, 1), value=1.0)
    wanted = targets[..., None].to(Z.dtype) if n_outputs == 1 else F.one_hot(targets.long(), n_classes).to(Z.dtype)
    largest = torch.linalg.matrix_norm(extended, ord=2).square() * (0.25 if n_outputs == 1 else 0.5)
    step = 1 / largest.clamp(min=1e-12)[:, None, None]
    threshold = step / C[:, None, None] * torch.cat([Z.new_ones(r), Z.new_zeros(1)])[:, None]
    ahead, momentum = W, Z.new_ones(n_problems, 1, 1)
    going, n_iter = torch.ones_like(momentum, dtype=torch.bool), torch.zeros_like(targets[:, 0], dtype=torch.long)
    for _ in range(max_iter):
        n_iter += going[:, 0, 0]
        logits = extended @ ahead
        error = (logits.sigmoid() if n_outputs == 1 else logits.softmax(dim=2)) - wanted
        moved = ahead - step * (extended.mT @ error)
        found = torch.where(going, moved.sign() * (moved.abs() - threshold).clamp(min=0), W)
        turned = ((ahead - found) * (found - W)).sum(dim=(1, 2), keepdim=True) > 0
        following = torch.where(turned, 1.0, (1 + (1 + 4 * momentum.square()).sqrt()) / 2)
        ahead = found + torch.where(turned, 0.0, (momentum - 1) / following) * (found - W)
        going &= (found - W).abs().amax(dim=(1, 2), keepdim=True) > tol
        W, momentum = found, following
        if not going.any():
            break
    return W, n_iter


def least_C(Z: torch.Tensor, targets: torch.Tensor, n_classes: int) -> torch.Tensor:
    """The C, [n_problems], below which every weight of L1-regularized logistic regression is 0."""
    member = F.one_hot(targets, n_classes).to(Z.dtype)
    pull = Z.mT @ (member - member.mean(dim=1, keepdim=True))
    return 1 / pull.abs().amax(dim=(1, 2)).clamp(min=1e-12)


# --- in closed form


def class_means(Z: torch.Tensor, targets: torch.Tensor, *, n_classes: int = 2) -> Weights:
    """The nearest class mean as a linear function: weights are differences of means, the offset puts zero in their middle.

    Parameters as in `solve_logistic`.
    """
    member = F.one_hot(targets.long(), n_classes).to(Z.dtype)  # [n_problems, n_images, n_classes]
    means = (Z.mT @ member) / member.sum(dim=1, keepdim=True).clamp(min=1)  # [n_problems, r, n_classes]
    offsets = -means.square().sum(dim=1) / 2
    if n_classes > 2:
        return Weights(means, offsets)
    return Weights(means[..., 1:] - means[..., :1], offsets[:, 1:] - offsets[:, :1])


def solve_ridge(Z: torch.Tensor, values: torch.Tensor, alphas: Sequence[float]) -> tuple[Weights, torch.Tensor]:
    """Ridge regression; of several strengths, the one with the least squared error of leaving each image out, in closed form.

    From Z [n_problems, n_images, r] and values [n_problems, n_images] to the weights and the chosen strength, [n_problems].
    """
    center, mean = Z.mean(dim=1, keepdim=True), values.mean(dim=1, keepdim=True)
    left, sizes, right = torch.linalg.svd(Z - center, full_matrices=False)
    along = (left.mT @ (values - mean)[..., None])[..., 0]  # [n_problems, rank]
    strengths = torch.as_tensor(list(alphas), dtype=Z.dtype, device=Z.device)
    shrunk = sizes.square()[:, None] / (sizes.square()[:, None] + strengths[:, None])  # [n_problems, n_alphas, rank]
    residuals = (values - mean)[:, None] - (shrunk * along[:, None]) @ left.mT
    leverage = shrunk @ left.square().mT + 1 / Z.shape[1]
    errors = (residuals / (1 - leverage).clamp(min=1e-12)).square().mean(dim=2)
    chosen = strengths[errors.argmin(dim=1)]
    kept = sizes > 1e-12 * sizes[:, :1]
    scaled = torch.where(kept, along * sizes / (sizes.square() + chosen[:, None]), 0)
    weights = right.mT @ scaled[..., None]  # [n_problems, r, 1]
    return Weights(weights, mean - (center @ weights)[:, 0]), chosen


# --- the strength by cross-validation


def choose_C(Z: torch.Tensor, targets: torch.Tensor, candidates: torch.Tensor, solve: Solver, *, n_folds: int, seed: int) -> torch.Tensor:
    """For every problem the strength with the least log-loss on images left out, fold by fold, of these images alone, [n_problems].

    Z and targets are the training part, candidates [n_problems, n_candidates]; every class is dealt out over all folds, as the seed says.
    """
    if candidates.shape[1] == 1:
        return candidates[:, 0]
    losses = torch.zeros_like(candidates)
    for i in range(len(Z)):  # folds of several problems may have several sizes
        folds = _dealt(targets[i].cpu(), n_folds, seed).to(Z.device)
        for fold in range(n_folds):
            out = folds == fold
            if out.any() and not out.all():
                losses[i] += _left_out_losses(Z[i], targets[i], out, candidates[i], solve)
    return candidates.gather(1, losses.argmin(dim=1, keepdim=True))[:, 0]


def _dealt(targets: torch.Tensor, n_folds: int, seed: int) -> torch.Tensor:
    """The fold of every image."""
    generator, fold = np.random.default_rng(seed), torch.empty(len(targets), dtype=torch.long)
    start = 0
    for target in np.unique(targets.numpy()):
        rows = (targets == target).nonzero()[:, 0]
        fold[rows[torch.from_numpy(generator.permutation(len(rows)))]] = (start + torch.arange(len(rows))) % n_folds
        start += len(rows)
    return fold


def _left_out_losses(Z: torch.Tensor, targets: torch.Tensor, out: torch.Tensor, strengths: torch.Tensor, solve: Solver) -> torch.Tensor:
    inside = Z[~out].expand(len(strengths), -1, -1)
    found, _ = solve(inside, targets[~out].expand(len(strengths), -1), strengths)
    logits = found.values(Z[out])  # [n_candidates, n_out, n_outputs]
    if logits.shape[2] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=2)
    wanted = targets[out].long().expand(len(strengths), -1)[..., None]
    return -logits.log_softmax(dim=2).take_along_dim(wanted, dim=2).sum(dim=(1, 2))
