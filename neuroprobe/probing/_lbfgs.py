"""L-BFGS for a batch of problems of one size; each goes its own way, as if it were alone.

References
----------
Nocedal and Wright, Numerical Optimization, 2006, algorithms 7.4 (two loops) and 7.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self

import torch

_SUFFICIENT_DECREASE = 1e-4
_MOST_HALVINGS = 20


class Problem(Protocol):
    """What is minimized: losses of n_problems independent problems."""

    def subset(self, rows: torch.Tensor) -> Self:
        """Some of the problems, by their numbers."""
        ...

    def loss_and_gradient(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[n_problems, n_parameters] -> losses [n_problems] and gradients [n_problems, n_parameters]"""
        ...


def minimize(
    problem: Problem, start: torch.Tensor, *, max_iter: int = 100, tol: float = 1e-5, gradient_tol: float = 0.0, history: int = 10
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Minimize every problem from its own start.

    Parameters
    ----------
    problem : Problem
    start : Tensor, [n_problems, n_parameters]
    max_iter : int, default 100
    tol : float, default 1e-5
        A problem is done when a step lowers its loss by less than this share of it (or of 1, if that is more).
    gradient_tol : float, default 0
        Or when no part of its gradient is larger than this.
    history : int, default 10

    Returns
    -------
    theta : Tensor, [n_problems, n_parameters]
    loss : Tensor, [n_problems]
    n_iter : LongTensor, [n_problems]
    """
    theta = start.clone()
    loss, gradient = problem.loss_and_gradient(theta)
    losses, n_iter = loss.clone(), torch.zeros(len(start), dtype=torch.long, device=start.device)
    rows, pairs = torch.arange(len(start), device=start.device), list[_Pair]()
    improvement = torch.full_like(loss, torch.inf)
    for _ in range(max_iter):
        going = (gradient.abs().amax(dim=1) > gradient_tol) & (improvement > tol * loss.abs().clamp(max=1))
        if not going.all():
            kept = going.nonzero()[:, 0]
            rows, loss, gradient, problem = rows[kept], loss[kept], gradient[kept], problem.subset(kept)
            pairs = [_Pair(*(part[kept] for part in pair)) for pair in pairs]
        if not len(rows):
            break
        before = theta[rows]
        found, reached, new_gradient = _searched(problem, before, loss, gradient, _direction(gradient, pairs))
        pairs = [*pairs[len(pairs) == history :], _pair(found - before, new_gradient - gradient)]
        improvement, loss, gradient = loss - reached, reached, new_gradient
        theta[rows], losses[rows] = found, loss
        n_iter[rows] += 1
    return theta, losses, n_iter


def _searched(
    problem: Problem, theta: torch.Tensor, loss: torch.Tensor, gradient: torch.Tensor, direction: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first point along the direction, going back from its end, where the loss falls enough; else the point itself."""
    slope = (gradient * direction).sum(dim=1)
    found, size = theta + direction, torch.ones_like(slope)
    reached, new_gradient = problem.loss_and_gradient(found)
    for _ in range(_MOST_HALVINGS):
        failed = ~(reached <= loss + _SUFFICIENT_DECREASE * size * slope)  # also where it is not a number
        if not failed.any():
            return found, reached, new_gradient
        rows = failed.nonzero()[:, 0]
        size[rows] *= _shrunk(size[rows] * slope[rows], reached[rows] - loss[rows])
        found[rows] = theta[rows] + size[rows, None] * direction[rows]
        reached[rows], new_gradient[rows] = problem.subset(rows).loss_and_gradient(found[rows])
    rows = (~(reached <= loss)).nonzero()[:, 0]
    found[rows], reached[rows], new_gradient[rows] = theta[rows], loss[rows], gradient[rows]
    return found, reached, new_gradient


def _shrunk(slope: torch.Tensor, rise: torch.Tensor) -> torch.Tensor:
    """By how much to shorten a step: to the minimum of the parabola through what is known, from a tenth to a half."""
    return (-slope / (2 * (rise - slope))).nan_to_num(0.1).clamp(0.1, 0.5)


class _Pair(NamedTuple):
    """A step [n_problems, n_parameters], the change of the gradient along it, and 1 / their product and that over the change's square."""

    step: torch.Tensor
    change: torch.Tensor
    weight: torch.Tensor
    scale: torch.Tensor


def _pair(step: torch.Tensor, change: torch.Tensor) -> _Pair:
    """A pair without positive curvature has weight and scale 0: it says nothing."""
    curvature, length = (step * change).sum(dim=1), change.square().sum(dim=1)
    usable = curvature > 1e-10 * length
    weight, scale = 1 / curvature, curvature / length
    return _Pair(step, change, torch.where(usable, weight, 0), torch.where(usable, scale, 0))


def _direction(gradient: torch.Tensor, pairs: Sequence[_Pair]) -> torch.Tensor:
    """Minus the approximate inverse Hessian times the gradient; at first a step of at most length 1 downhill."""
    found, alphas, scale = gradient, list[torch.Tensor](), gradient.new_zeros(len(gradient))
    for pair in pairs[::-1]:
        alphas.append((pair.weight * (pair.step * found).sum(dim=1))[:, None])
        found = found - alphas[-1] * pair.change
        scale = torch.where(scale > 0, scale, pair.scale)  # of the last pair that says something
    found = scale[:, None] * found
    for pair, alpha in zip(pairs, alphas[::-1], strict=True):
        found = found + (alpha - (pair.weight * (pair.change * found).sum(dim=1))[:, None]) * pair.step
    trusted = (scale > 0) & ((found * gradient).sum(dim=1) > 0)
    downhill = gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1)
    return -torch.where(trusted[:, None], found, downhill)
