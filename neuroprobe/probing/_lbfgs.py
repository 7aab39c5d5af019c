"""L-BFGS for a batch of problems of one size; each goes its own way, as if it were alone.

References
----------
Nocedal and Wright, Numerical Optimization, 2006, section 7.2: the compact representation, equation (7.24).
"""

from __future__ import annotations

from typing import Protocol, Self

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
    theta, state = start.clone(), _State.begin(problem, start, history)
    losses, n_iter = state.loss.clone(), torch.zeros(len(start), dtype=torch.long, device=start.device)
    rows = torch.arange(len(start), device=start.device)
    for _ in range(max_iter):
        going = state.gradient.abs().amax(dim=1) > gradient_tol
        going &= state.improvement > tol * state.loss.abs().clamp(max=1)
        if not going.all():
            rows, state = rows[going], state.subset(going)
        if not len(rows):
            break
        state.step()
        theta[rows], losses[rows] = state.theta, state.loss
        n_iter[rows] += 1
    return theta, losses, n_iter


class _State:
    """Where every problem is, and its last steps and changes of the gradient."""

    def __init__(
        self, problem: Problem, theta: torch.Tensor, loss: torch.Tensor, gradient: torch.Tensor, improvement: torch.Tensor, memory: _Memory
    ) -> None:
        self.problem, self.theta, self.loss, self.gradient = problem, theta, loss, gradient
        self.improvement, self.memory = improvement, memory

    @classmethod
    def begin(cls, problem: Problem, theta: torch.Tensor, history: int) -> _State:
        loss, gradient = problem.loss_and_gradient(theta)
        return cls(problem, theta, loss, gradient, torch.full_like(loss, torch.inf), _Memory.empty(theta, history))

    def subset(self, going: torch.Tensor) -> _State:
        rows = going.nonzero()[:, 0]
        return _State(
            self.problem.subset(rows), self.theta[rows], self.loss[rows], self.gradient[rows], self.improvement[rows],
            self.memory.subset(rows),
        )  # fmt: skip

    def step(self) -> None:
        direction = self.memory.direction(self.gradient)
        slope = (self.gradient * direction).sum(dim=1)
        theta, loss, gradient = self._searched(direction, slope)
        self.memory.remember(theta - self.theta, gradient - self.gradient)
        self.improvement = self.loss - loss
        self.theta, self.loss, self.gradient = theta, loss, gradient

    def _searched(self, direction: torch.Tensor, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The first point along the direction, going back from its end, where the loss falls enough; else the point itself."""
        theta = self.theta + direction
        loss, gradient = self.problem.loss_and_gradient(theta)
        size = torch.ones_like(slope)
        for _ in range(_MOST_HALVINGS):
            failed = ~(loss <= self.loss + _SUFFICIENT_DECREASE * size * slope)  # also where it is not a number
            if not failed.any():
                return theta, loss, gradient
            rows = failed.nonzero()[:, 0]
            size[rows] *= _shrunk(size[rows] * slope[rows], loss[rows] - self.loss[rows])
            theta[rows] = self.theta[rows] + size[rows, None] * direction[rows]
            loss[rows], gradient[rows] = self.problem.subset(rows).loss_and_gradient(theta[rows])
        rows = (~(loss <= self.loss)).nonzero()[:, 0]
        theta[rows], loss[rows], gradient[rows] = self.theta[rows], self.loss[rows], self.gradient[rows]
        return theta, loss, gradient


def _shrunk(slope: torch.Tensor, rise: torch.Tensor) -> torch.Tensor:
    """By how much to shorten a step: to the minimum of the parabola through what is known, from a tenth to a half."""
    return (-slope / (2 * (rise - slope))).nan_to_num(0.1).clamp(0.1, 0.5)


class _Memory:
    """The last steps S and changes of the gradient Y, [n_problems, 2 * history, n_parameters], and their inner products."""

    def __init__(self, vectors: torch.Tensor, products: torch.Tensor, scale: torch.Tensor, n_seen: int) -> None:
        self.vectors, self.products, self.scale, self.n_seen = vectors, products, scale, n_seen

    @classmethod
    def empty(cls, theta: torch.Tensor, history: int) -> _Memory:
        n, d = theta.shape
        products = torch.zeros(n, 2 * history, 2 * history, dtype=torch.float64, device=theta.device)
        return cls(theta.new_zeros(n, 2 * history, d), products, theta.new_zeros(n, dtype=torch.float64), 0)

    def subset(self, rows: torch.Tensor) -> _Memory:
        return _Memory(self.vectors[rows], self.products[rows], self.scale[rows], self.n_seen)

    def remember(self, steps: torch.Tensor, changes: torch.Tensor) -> None:
        """Put a pair in the place of the oldest; one without positive curvature becomes zeros, which say nothing."""
        history = self.vectors.shape[1] // 2
        slot = self.n_seen % history
        curvature, length = (steps * changes).sum(dim=1).double(), changes.square().sum(dim=1).double()
        usable = curvature > 1e-10 * length
        self.scale = torch.where(usable, curvature / length.clamp(min=1e-300), self.scale)
        self.vectors[:, slot] = torch.where(usable[:, None], steps, 0)
        self.vectors[:, history + slot] = torch.where(usable[:, None], changes, 0)
        self.n_seen += 1
        places = [slot, history + slot]
        products = torch.bmm(self.vectors[:, places], self.vectors.mT).double()  # [n_problems, 2, 2 * history]
        self.products[:, places] = products
        self.products[:, :, places] = products.mT

    def direction(self, gradient: torch.Tensor) -> torch.Tensor:
        """Minus the approximate inverse Hessian times the gradient; at first a step of at most length 1 downhill."""
        downhill = -gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1)
        if not self.n_seen:
            return torch.as_tensor(downhill)
        along = torch.bmm(gradient[:, None], self.vectors.mT)[:, 0].double()
        coefficients = self._coefficients(along).to(gradient.dtype)
        found = -self.scale[:, None].to(gradient.dtype) * gradient - torch.bmm(coefficients[:, None], self.vectors)[:, 0]
        trusted = ((found * gradient).sum(dim=1) < 0) & (self.scale > 0)
        return torch.where(trusted[:, None], found, downhill)

    def _coefficients(self, along: torch.Tensor) -> torch.Tensor:
        """Equation (7.24): of every remembered vector in H g, without the part scale * g; `along` holds their products with g."""
        history = self.vectors.shape[1] // 2
        order = [(self.n_seen + i) % history for i in range(history)]  # oldest first
        changes = [history + i for i in order]
        curvatures = self.products[:, order][:, :, changes]  # s_i . y_j
        diagonal = curvatures.diagonal(dim1=1, dim2=2)
        upper = curvatures.triu() + torch.diag_embed((diagonal == 0).double())
        scale = self.scale[:, None, None]
        u = torch.linalg.solve_triangular(upper, along[:, order, None], upper=True)
        inner = torch.diag_embed(diagonal) + scale * self.products[:, changes][:, :, changes]
        v = torch.linalg.solve_triangular(upper.mT, inner @ u - scale * along[:, changes, None], upper=False)
        found = torch.zeros_like(along)
        found[:, order], found[:, changes] = v[..., 0], -scale[..., 0] * u[..., 0]
        return found
