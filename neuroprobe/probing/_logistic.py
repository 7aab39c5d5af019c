"""Many probes at once: logistic regression by Newton steps, one hidden ReLU layer by L-BFGS, each a batch of problems.

Everything here takes tensors [n_problems, n_images, r] on any device. A problem never feels which others are in its batch: what
has converged stays as it is while others go on. Both methods follow rotations: in rotated coordinates they take the same steps.

References
----------
Nocedal and Wright, Numerical Optimization, 2006, algorithms 7.4 and 7.5. Chen et al., Large-scale L-BFGS using MapReduce, 2014
(the two loops on inner products).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from neuroprobe.probing._lbfgs import minimize

#: A Newton step of a single unit is cut to this, so that one from far away does not jump over the minimum.
_LONGEST = 4.0


def solve_logistic(
    Z: torch.Tensor, targets: torch.Tensor, *, C: torch.Tensor | float = 1.0, max_iter: int = 100, tol: float = 1e-10
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """L2-regularized logistic regression: minimize ``|w|^2 / 2`` + C * the sum of the log-losses, the offset left out of the first.

    Parameters
    ----------
    Z : Tensor, [n_problems, n_images, r], float64
    targets : Tensor, [n_problems, n_images]
        0 or 1.
    C : Tensor, [n_problems], or float
    max_iter : int, default 100
        Newton steps.
    tol : float, default 1e-10
        A problem is solved when its gradient is this small beside the one at zero.

    Returns
    -------
    weights : Tensor, [n_problems, r]
    offsets : Tensor, [n_problems]
    n_iter : LongTensor, [n_problems]
    """
    n_problems, _, r = Z.shape
    strength = torch.as_tensor(C, dtype=Z.dtype, device=Z.device).expand(n_problems)
    problem = _Logistic(Z, targets.to(Z.dtype), strength)
    theta = torch.zeros(n_problems, r + 1, dtype=Z.dtype, device=Z.device)
    n_iter = torch.zeros(n_problems, dtype=torch.long, device=Z.device)
    active = torch.arange(n_problems, device=Z.device)
    limit = problem.gradient(theta).norm(dim=1) * tol
    for _ in range(max_iter):
        found, gradient = problem.step(theta[active])
        theta[active] = found
        n_iter[active] += 1
        going = gradient.norm(dim=1) > limit[active]
        if not going.all():
            active, problem = active[going], problem.subset(going)
        if not len(active):
            break
    return theta[:, :-1], theta[:, -1], n_iter


@dataclass(frozen=True)
class _Logistic:
    """Problems of logistic regression; the last parameter is the offset."""

    Z: torch.Tensor
    targets: torch.Tensor
    C: torch.Tensor

    def subset(self, rows: torch.Tensor) -> _Logistic:
        return _Logistic(self.Z[rows], self.targets[rows], self.C[rows])

    def logits(self, theta: torch.Tensor) -> torch.Tensor:
        return torch.bmm(self.Z, theta[:, :-1, None])[..., 0] + theta[:, -1:]

    def loss(self, theta: torch.Tensor) -> torch.Tensor:
        logits = self.logits(theta)
        return theta[:, :-1].square().sum(dim=1) / 2 + self.C * (F.softplus(logits) - self.targets * logits).sum(dim=1)

    def gradient(self, theta: torch.Tensor) -> torch.Tensor:
        error = self.C[:, None] * (self.logits(theta).sigmoid() - self.targets)
        return torch.cat([torch.bmm(error[:, None], self.Z)[:, 0] + theta[:, :-1], error.sum(dim=1, keepdim=True)], dim=1)

    def step(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One Newton step, halved until the loss falls, and the gradient there."""
        probability = self.logits(theta).sigmoid()
        curvature = self.C[:, None] * probability * (1 - probability)
        hessian = _bordered(self.Z, curvature)
        direction = -torch.linalg.solve(hessian, self.gradient(theta))
        size = torch.ones_like(self.C)
        before = self.loss(theta)
        for _ in range(30):
            found = theta + size[:, None] * direction
            worse = self.loss(found) > before + 1e-12 * before.abs()
            if not worse.any():
                break
            size = torch.where(worse, size / 2, size)
        return found, self.gradient(found)


def _bordered(Z: torch.Tensor, curvature: torch.Tensor) -> torch.Tensor:
    """The Hessian [n_problems, r + 1, r + 1] of weights and offset."""
    weighted = Z * curvature[..., None]
    r = Z.shape[2]
    hessian = Z.new_empty(len(Z), r + 1, r + 1)
    hessian[:, :r, :r] = torch.bmm(Z.mT, weighted)
    hessian[:, :r, :r].diagonal(dim1=1, dim2=2).add_(1)
    hessian[:, r, :r] = hessian[:, :r, r] = weighted.sum(dim=1)
    hessian[:, r, r] = curvature.sum(dim=1).clamp(min=1e-12)
    return hessian


@dataclass(frozen=True)
class HiddenLayer:
    """One hidden ReLU layer for every problem.

    Attributes
    ----------
    first : Tensor, [n_problems, r, n_hidden]
    bias : Tensor, [n_problems, n_hidden]
    second : Tensor, [n_problems, n_hidden, n_outputs]
    offset : Tensor, [n_problems, n_outputs]
    """

    first: torch.Tensor
    bias: torch.Tensor
    second: torch.Tensor
    offset: torch.Tensor

    def logits(self, Z: torch.Tensor) -> torch.Tensor:
        """[n_problems, n_images, r] -> [n_problems, n_images, n_outputs]"""
        hidden = torch.baddbmm(self.bias[:, None], Z, self.first).relu_()
        return torch.baddbmm(self.offset[:, None], hidden, self.second)

    @property
    def flat(self) -> torch.Tensor:
        """[n_problems, n_parameters]"""
        return torch.cat([part.flatten(1) for part in (self.first, self.bias, self.second, self.offset)], dim=1)

    @classmethod
    def unflattened(cls, theta: torch.Tensor, r: int, n_hidden: int, n_outputs: int) -> HiddenLayer:
        sizes = (r * n_hidden, n_hidden, n_hidden * n_outputs, n_outputs)
        ends = np.cumsum(sizes)
        first, bias, second, offset = (theta[:, end - size : end] for size, end in zip(sizes, ends, strict=True))
        return cls(first.reshape(-1, r, n_hidden), bias, second.reshape(-1, n_hidden, n_outputs), offset)


def fit_hidden_layer(
    Z: torch.Tensor, targets: torch.Tensor, start: HiddenLayer, *, alpha: float, max_iter: int = 100, tol: float = 1e-5, history: int = 10
) -> tuple[HiddenLayer, torch.Tensor, torch.Tensor]:
    """Train a hidden layer by full-batch L-BFGS on the mean log-loss plus alpha / 2 times the squares of both layers' weights.

    Parameters
    ----------
    Z : Tensor, [n_problems, n_images, r]
    targets : Tensor, [n_problems, n_images]
        0 or 1 for one output, the number of the class for several.
    start : HiddenLayer
    alpha : float
    max_iter : int, default 100
    tol : float, default 1e-5
        A problem is solved when a step lowers its loss by less than this share of it.
    history : int, default 10
        Pairs of steps and changes of the gradient that L-BFGS remembers.

    Returns
    -------
    HiddenLayer
    loss : Tensor, [n_problems]
    n_iter : LongTensor, [n_problems]
    """
    problem = _Hidden(Z, targets, (Z.shape[2], start.bias.shape[1], start.offset.shape[1]), alpha)
    theta, loss, n_iter = minimize(problem, start.flat, max_iter=max_iter, tol=tol, history=history)
    return problem.layer(theta), loss, n_iter


@dataclass(frozen=True)
class _Hidden:
    """Problems of a hidden layer, as `minimize` wants them."""

    Z: torch.Tensor
    targets: torch.Tensor
    shape: tuple[int, int, int]
    alpha: float

    def subset(self, rows: torch.Tensor) -> _Hidden:
        return _Hidden(self.Z[rows], self.targets[rows], self.shape, self.alpha)

    def layer(self, theta: torch.Tensor) -> HiddenLayer:
        return HiddenLayer.unflattened(theta, *self.shape)

    def loss_and_gradient(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        layer = self.layer(theta)
        active = torch.baddbmm(layer.bias[:, None], self.Z, layer.first).relu_()  # [n_problems, n_images, n_hidden]
        logits = torch.baddbmm(layer.offset[:, None], active, layer.second)
        losses, error = _log_losses(logits, self.targets)
        back = torch.ops.aten.threshold_backward(torch.bmm(error, layer.second.mT), active, 0)
        squares = layer.first.square().sum(dim=(1, 2)) + layer.second.square().sum(dim=(1, 2))
        gradient = [
            torch.baddbmm(layer.first, self.Z.mT, back, beta=self.alpha),
            back.sum(dim=1),
            torch.baddbmm(layer.second, active.mT, error, beta=self.alpha),
            error.sum(dim=1),
        ]
        return losses + self.alpha / 2 * squares, torch.cat([part.flatten(1) for part in gradient], dim=1)


def _log_losses(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean log-loss [n_problems] of logits [n_problems, n_images, n_outputs], and its gradient by them."""
    n = logits.shape[1]
    if logits.shape[2] == 1:
        wanted = targets[..., None].to(logits.dtype)
        return (F.softplus(logits) - wanted * logits).mean(dim=(1, 2)), (logits.sigmoid() - wanted) / n
    wanted = F.one_hot(targets.long(), logits.shape[2]).to(logits.dtype)
    return -(logits.log_softmax(dim=2) * wanted).sum(dim=2).mean(dim=1), (logits.softmax(dim=2) - wanted) / n


def solve_softmax(
    Z: torch.Tensor, targets: torch.Tensor, *, n_classes: int, C: torch.Tensor | float = 1.0, max_iter: int = 2000
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logistic regression with several classes: minimize ``|W|^2 / 2`` + C * the sum of the log-losses, by L-BFGS.

    Parameters
    ----------
    Z : Tensor, [n_problems, n_images, r], float64
    targets : LongTensor, [n_problems, n_images]
        Numbers of the classes.
    n_classes : int
    C : Tensor, [n_problems], or float
    max_iter : int, default 2000

    Returns
    -------
    weights : Tensor, [n_problems, r, n_classes]
    offsets : Tensor, [n_problems, n_classes]
        Adding up to 0.
    n_iter : LongTensor, [n_problems]
    """
    strength = torch.as_tensor(C, dtype=Z.dtype, device=Z.device).expand(len(Z))
    problem = _Softmax(Z, targets, strength, n_classes)
    start = Z.new_zeros(len(Z), (Z.shape[2] + 1) * n_classes)
    theta, _, n_iter = minimize(problem, start, max_iter=max_iter, tol=1e-15, gradient_tol=1e-9, history=20)
    weights, offsets = problem.parts(theta)
    return weights, offsets - offsets.mean(dim=1, keepdim=True), n_iter


@dataclass(frozen=True)
class _Softmax:
    """Problems of logistic regression with several classes, as `minimize` wants them; losses are per image and C."""

    Z: torch.Tensor
    targets: torch.Tensor
    C: torch.Tensor
    n_classes: int

    def subset(self, rows: torch.Tensor) -> _Softmax:
        return _Softmax(self.Z[rows], self.targets[rows], self.C[rows], self.n_classes)

    def parts(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        r = self.Z.shape[2]
        weights, offsets = theta[:, : r * self.n_classes], theta[:, r * self.n_classes :]
        return weights.reshape(-1, r, self.n_classes), offsets

    def loss_and_gradient(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, offsets = self.parts(theta)
        losses, error = _log_losses(torch.baddbmm(offsets[:, None], self.Z, weights), self.targets)
        ridge = 1 / (self.C * self.Z.shape[1])
        gradient = torch.cat([(torch.bmm(self.Z.mT, error) + ridge[:, None, None] * weights).flatten(1), error.sum(dim=1)], dim=1)
        return losses + ridge / 2 * weights.square().sum(dim=(1, 2)), gradient


def solve_units(
    values: torch.Tensor, targets: torch.Tensor, *, C: float = 1.0, max_iter: int = 30, tol: float = 1e-8
) -> tuple[torch.Tensor, torch.Tensor]:
    """L2-regularized logistic regression on every unit by itself: Newton steps in two numbers.

    Parameters
    ----------
    values : Tensor, [n_units, n_images]
        Standardized, so that a Newton step is never far too long.
    targets : Tensor, [n_images] or [n_units, n_images]
        0 or 1.
    C : float, default 1
    max_iter : int, default 30
    tol : float, default 1e-8
        Until no unit's gradient, per image, is larger than this.

    Returns
    -------
    weights, offsets : Tensor, [n_units]
    """
    targets = targets.to(values.dtype)
    share = targets.mean(dim=-1).clamp(1e-6, 1 - 1e-6).expand(len(values))
    weights, offsets = torch.zeros_like(share), share.logit()
    for _ in range(max_iter):
        probability = torch.addcmul(offsets[:, None], values, weights[:, None]).sigmoid_()
        error = probability - targets
        curvature = probability.mul_(1 - probability)
        moment = curvature * values
        by_weight = (error * values).sum(dim=1) + weights / C
        by_offset = error.sum(dim=1)
        going = torch.maximum(by_weight.abs(), by_offset.abs()) > tol * values.shape[1]
        if not going.any():
            break
        a, b, c = (moment * values).sum(dim=1) + 1 / C, moment.sum(dim=1), curvature.sum(dim=1).clamp(min=1e-9)
        size = going / (a * c - b * b).clamp(min=1e-12)
        weights = weights - (size * (c * by_weight - b * by_offset)).clamp(-_LONGEST, _LONGEST)
        offsets = offsets - (size * (a * by_offset - b * by_weight)).clamp(-_LONGEST, _LONGEST)
    return weights, offsets
