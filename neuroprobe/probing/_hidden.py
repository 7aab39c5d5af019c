"""One hidden ReLU layer for every problem of a batch, fitted by L-BFGS.

As in `_linear.py`, tensors are [n_problems, n_images, r] on any device, a problem never feels the others, and in rotated
coordinates the same steps are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from neuroprobe.probing._lbfgs import minimize
from neuroprobe.probing._linear import log_losses


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

    def values(self, Z: torch.Tensor) -> torch.Tensor:
        """[n_problems, n_images, r] -> [n_problems, n_images, n_outputs]; coordinates beyond those of Z are 0."""
        hidden = torch.baddbmm(self.bias[:, None], Z, self.first[:, : Z.shape[2]]).relu_()
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

    Targets [n_problems, n_images] are 0 or 1 for one output, and numbers of classes for several. Coordinates of the start beyond those of
    Z are 0; see `minimize` for the rest. Also returns the losses and the numbers of steps, [n_problems].
    """
    Z = F.pad(Z, (0, start.first.shape[1] - Z.shape[2]))
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
        losses, error = log_losses(logits, self.targets)
        back = torch.ops.aten.threshold_backward(torch.bmm(error, layer.second.mT), active, 0)
        squares = layer.first.square().sum(dim=(1, 2)) + layer.second.square().sum(dim=(1, 2))
        gradient = [
            torch.baddbmm(layer.first, self.Z.mT, back, beta=self.alpha),
            back.sum(dim=1),
            torch.baddbmm(layer.second, active.mT, error, beta=self.alpha),
            error.sum(dim=1),
        ]
        return losses + self.alpha / 2 * squares, torch.cat([part.flatten(1) for part in gradient], dim=1)


def first_weights(Z: torch.Tensor, hidden: int, seeds: Sequence[int], *, n_features: float, n_outputs: int = 1) -> HiddenLayer:
    """First weights of a hidden layer on the r coordinates of Z, with the variance that the layer would have on all n_features.

    With more features than coordinates there is one coordinate more, for what is left: no image varies along it, but L-BFGS
    feels the weights there through their penalty, as it would on the features. What is drawn depends on a problem's seed alone.
    """
    r = Z.shape[2]
    firsts, seconds = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        first = torch.randn(r, hidden, generator=generator)
        if n_features > r:  # the length of as many normal numbers as there are directions left
            left = np.sqrt(np.random.default_rng(seed).chisquare(n_features - r, size=(1, hidden)))
            first = torch.cat([first, torch.from_numpy(left).float()])
        firsts.append(first / n_features**0.5)
        seconds.append(torch.randn(hidden, n_outputs, generator=generator) / hidden**0.5)
    first, second = torch.stack(firsts).to(Z), torch.stack(seconds).to(Z)
    return HiddenLayer(first, first.new_zeros(len(seeds), hidden), second, first.new_zeros(len(seeds), n_outputs))
