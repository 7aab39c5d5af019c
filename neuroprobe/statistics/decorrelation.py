"""Embeddings without their shared directions."""

from __future__ import annotations

import torch

#: Share of the mean variance that is added to every variance before its root is taken.
SHRINKAGE = 0.1

_ROWS = 65_536  # that are in float64 at a time


def inner_products(vectors: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Inner products of the columns, about `mean`, [d, d], float64; some rows at a time, so that no copy of all is made."""
    total = torch.zeros(vectors.shape[1], vectors.shape[1], dtype=torch.float64, device=vectors.device)
    for rows in torch.split(vectors, _ROWS):
        centered = rows.double() - mean
        total += centered.T @ centered
    return total


def _shrunk(variances: torch.Tensor, shrinkage: float, d: int) -> torch.Tensor:
    """(variance + shrinkage * the mean of the d variances)^-1/2 along every axis, those left out having none."""
    variances = variances.clamp_min(0)
    return (variances + shrinkage * variances.sum() / d + torch.finfo(torch.float64).tiny).rsqrt()


def decorrelated(vectors: torch.Tensor, *, shrinkage: float = SHRINKAGE) -> torch.Tensor:
    """Vectors about their mean, with their covariance C taken half away: times (C + shrinkage * mean variance)^-1/2.

    Parameters
    ----------
    vectors : Tensor, [n, d]
    shrinkage : float, default 0.1
        Share of the mean variance that is added to every variance. With a large one only the mean is taken away.

    Returns
    -------
    Tensor, [n, d], float32
    """
    n, d = vectors.shape
    mean = vectors.mean(dim=0, dtype=torch.float64)
    if d > n:  # the same from the n x n products: the span of the vectors is all that counts
        centered = vectors.double() - mean
        values, left = torch.linalg.eigh(centered @ centered.T / n)
        turned: torch.Tensor = (left * _shrunk(values, shrinkage, d)) @ (left.T @ centered)
        return turned.to(torch.float32)
    values, axes = torch.linalg.eigh(inner_products(vectors, mean) / n)
    turn = (axes * _shrunk(values, shrinkage, d)) @ axes.T
    turned = torch.empty(n, d, device=vectors.device)
    for part, rows in zip(torch.split(turned, _ROWS), torch.split(vectors, _ROWS), strict=True):
        part.copy_((rows.double() - mean) @ turn)
    return turned
