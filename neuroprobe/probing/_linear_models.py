"""What else is fitted in batches: an L1 path, ridge regression, class means, and the regularization by cross-validation.

As in `neuroprobe.probing._logistic`, tensors are [n_problems, n_images, r] on any device, and a problem never feels the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from neuroprobe.probing._logistic import solve_logistic, solve_softmax

#: Numbers of Z that a processor keeps at hand: so large a part of a batch takes its steps together.
_CACHED = 2**17

#: From Z, targets and C [n_problems] to weights [n_problems, r, n_outputs] and offsets [n_problems, n_outputs].
Solver = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def solve_linear(Z: torch.Tensor, targets: torch.Tensor, C: torch.Tensor, *, n_classes: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Logistic regression with one output for two classes, and one per class for more.

    Parameters
    ----------
    Z : Tensor, [n_problems, n_images, r], float64
    targets : Tensor, [n_problems, n_images]
        Numbers of the classes.
    C : Tensor, [n_problems]
    n_classes : int, default 2

    Returns
    -------
    weights : Tensor, [n_problems, r, n_outputs]
    offsets : Tensor, [n_problems, n_outputs]
    """
    if n_classes > 2:
        return solve_softmax(Z, targets, n_classes=n_classes, C=C)[:2]
    weights, offsets, _ = solve_logistic(Z, targets, C=C)
    return weights[..., None], offsets[:, None]


def solve_sparse(
    Z: torch.Tensor, targets: torch.Tensor, C: torch.Tensor, *, n_classes: int = 2, max_iter: int = 3000, tol: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor]:
    """L1-regularized logistic regression: minimize the sum of ``|w|`` + C * the sum of the log-losses, by FISTA with restarts.

    Parameters and results as in `solve_linear`; `tol` is the largest change of a weight at which a problem is done.

    References
    ----------
    Beck and Teboulle, A fast iterative shrinkage-thresholding algorithm, 2009. O'Donoghue and Candes, Adaptive restart, 2015.
    """
    at_a_time = max(1, _CACHED // max(Z[0].numel(), 1)) if Z.device.type == "cpu" else len(Z)
    parts = [
        _solve_sparse(Z[i : i + at_a_time], targets[i : i + at_a_time], C[i : i + at_a_time], n_classes, max_iter, tol)
        for i in range(0, len(Z), at_a_time)
    ]
    return torch.cat([weights for weights, _ in parts]), torch.cat([offsets for _, offsets in parts])


def _solve_sparse(
    Z: torch.Tensor, targets: torch.Tensor, C: torch.Tensor, n_classes: int, max_iter: int, tol: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Problems that take their steps together, until the last of them is done."""
    n_problems, _, r = Z.shape
    n_outputs = 1 if n_classes == 2 else n_classes
    W, extended = Z.new_zeros(n_problems, r + 1, n_outputs), F.pad(Z, (0, 1), value=1.0)
    wanted = targets[..., None].to(Z.dtype) if n_outputs == 1 else F.one_hot(targets.long(), n_classes).to(Z.dtype)
    largest = torch.linalg.matrix_norm(extended, ord=2).square() * (0.25 if n_outputs == 1 else 0.5)
    step = 1 / largest.clamp(min=1e-12)[:, None, None]
    threshold = step / C[:, None, None] * torch.cat([Z.new_ones(r), Z.new_zeros(1)])[:, None]
    ahead, momentum = W, Z.new_ones(n_problems, 1, 1)
    going = torch.ones_like(momentum, dtype=torch.bool)
    for _ in range(max_iter):
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
    return W[:, :-1], W[:, -1]


def roughly_sparse(n_classes: int) -> Solver:
    """`solve_sparse` as well as it takes to compare strengths with each other."""

    def solve(Z: torch.Tensor, targets: torch.Tensor, C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return solve_sparse(Z, targets, C, n_classes=n_classes, max_iter=300, tol=1e-3)

    return solve


def class_means(Z: torch.Tensor, targets: torch.Tensor, *, n_classes: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest class mean as a linear function: weights are differences of means, the offset puts zero in their middle.

    Parameters and results as in `solve_linear`.
    """
    member = F.one_hot(targets.long(), n_classes).to(Z.dtype)  # [n_problems, n_images, n_classes]
    means = (Z.mT @ member) / member.sum(dim=1, keepdim=True).clamp(min=1)  # [n_problems, r, n_classes]
    offsets = -means.square().sum(dim=1) / 2
    if n_classes > 2:
        return means, offsets
    return means[..., 1:] - means[..., :1], offsets[:, 1:] - offsets[:, :1]


def solve_ridge(Z: torch.Tensor, values: torch.Tensor, alphas: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ridge regression; of several strengths, the one with the least squared error of leaving each image out, in closed form.

    Parameters
    ----------
    Z : Tensor, [n_problems, n_images, r], float64
    values : Tensor, [n_problems, n_images]
    alphas : sequence of float

    Returns
    -------
    weights : Tensor, [n_problems, r]
    offsets : Tensor, [n_problems]
    alpha : Tensor, [n_problems]
        The chosen strength.
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
    weights = (right.mT @ scaled[..., None])[..., 0]
    return weights, mean[:, 0] - (center @ weights[..., None])[:, 0, 0], chosen


def choose_C(
    Z: torch.Tensor, targets: torch.Tensor, candidates: Sequence[float], solve: Solver, *, n_folds: int = 5, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """For every problem the strength with the least log-loss on images left out, fold by fold, of these images alone.

    Parameters
    ----------
    Z, targets
        As in `solve_linear`: the training part.
    candidates : sequence of float
    solve : callable
        From Z, targets and C to weights and offsets.
    n_folds : int, default 5
        Every class is dealt out over all folds.
    seed : int, default 0
        Of the dealing.

    Returns
    -------
    C : Tensor, [n_problems]
    losses : Tensor, [n_problems, n_candidates]
    """
    strengths = torch.as_tensor(list(candidates), dtype=Z.dtype, device=Z.device)
    if len(strengths) == 1:
        return strengths.expand(len(Z)), Z.new_zeros(len(Z), 1)
    folds = torch.stack([_dealt(row, n_folds, seed) for row in targets.cpu()]).to(Z.device)
    losses = Z.new_zeros(len(Z), len(strengths))
    for fold in range(n_folds):
        for i in range(len(Z)):  # folds of several problems may have several sizes
            out = folds[i] == fold
            if out.any() and not out.all():
                losses[i] += _left_out_losses(Z[i], targets[i], out, strengths, solve)
    return strengths[losses.argmin(dim=1)], losses / Z.shape[1]


def _dealt(targets: torch.Tensor, n_folds: int, seed: int) -> torch.Tensor:
    """The fold of every image."""
    generator, fold = np.random.default_rng(seed), torch.empty(len(targets), dtype=torch.long)
    start = 0
    for class_ in np.unique(targets.numpy()):
        rows = (targets == class_).nonzero()[:, 0]
        fold[rows[torch.from_numpy(generator.permutation(len(rows)))]] = (start + torch.arange(len(rows))) % n_folds
        start += len(rows)
    return fold


def _left_out_losses(Z: torch.Tensor, targets: torch.Tensor, out: torch.Tensor, strengths: torch.Tensor, solve: Solver) -> torch.Tensor:
    inside = Z[~out].expand(len(strengths), -1, -1)
    weights, offsets = solve(inside, targets[~out].expand(len(strengths), -1), strengths)
    logits = Z[out] @ weights + offsets[:, None]  # [n_candidates, n_out, n_outputs]
    if logits.shape[2] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=2)
    wanted = targets[out].long().expand(len(strengths), -1)[..., None]
    return -logits.log_softmax(dim=2).take_along_dim(wanted, dim=2).sum(dim=(1, 2))


def least_C(Z: torch.Tensor, targets: torch.Tensor, n_classes: int) -> float:
    """The C [of Z, [1, n_images, r]] below which every weight of L1-regularized logistic regression is 0."""
    member = F.one_hot(targets, n_classes).to(Z.dtype)
    pull = Z.mT @ (member - member.mean(dim=1, keepdim=True))
    return 1 / max(float(pull.abs().max()), 1e-12)
