"""Gram matrices: all that a rotation-invariant probe can use of n images with d features, in [n, n].

With G = X X' = U L U', the rows of Z = U L^(1/2) have the same inner products as those of X: Z is X in rotated
coordinates, n of them instead of d. Shifting, scaling and splitting Z is shifting, scaling and splitting X, so that one
Gram matrix of all a concept's images serves every split. It has to be of training and test images together: a hidden
layer's first weights reach into directions that the training images do not span, and test images lie there too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

#: Columns that are multiplied at a time: the products of a block are added up in the features' type, the blocks in float64.
COLUMNS = 4096

#: Rows of a block of the matrix; blocks below the diagonal are copied, not computed.
_ROWS = 64


def gram_matrix(
    X: torch.Tensor, *, rows: torch.Tensor | None = None, device: torch.device | None = None, columns: int = COLUMNS
) -> torch.Tensor:
    """Inner products of the rows of X, from which their mean was subtracted first (of float32 rows, to its last digits but one).

    Centering only afterward would lose the digits that rows with a large common part need for it.

    Parameters
    ----------
    X : Tensor, [n, n_features], float32 or float64
    rows : LongTensor, [n_images], optional
        Which rows of X are meant; by default all. They are taken some columns at a time, so that no copy of them all is made.
    device : torch.device, optional
        Where the products are made; by default where X is.
    columns : int, default 4096

    Returns
    -------
    Tensor, [n_images, n_images], float64
    """
    n = len(X) if rows is None else len(rows)
    total = torch.zeros(n, n, dtype=torch.float64, device=device or X.device)
    for start in range(0, X.shape[1], columns):
        part = X[:, start : start + columns]
        part = (part if rows is None else part[rows]).to(total.device)
        if part.is_cuda:
            part = part.double()  # a float32 product may be one of TF32 there
        part = part - part.mean(dim=0)  # its last digits do not matter: whatever is common to all goes with the training part's mean
        low, high = part.aminmax()
        largest = max(-float(low), float(high))
        if 0 < largest < 1e-15 or largest > 1e15:  # whose squares float32 may not hold
            _add_products(total, part / largest, factor=largest**2)
        else:
            _add_products(total, part)
    return total.triu() + total.triu(1).T


def _add_products(total: torch.Tensor, part: torch.Tensor, *, factor: float = 1.0) -> None:
    """Add factor part part' to the blocks on and above the diagonal."""
    for first in range(0, len(part), _ROWS):
        products = (part[first : first + _ROWS] @ part[first:].T).double()
        total[first : first + _ROWS, first:] += products if factor == 1 else products * factor


def coordinates(gram: torch.Tensor) -> torch.Tensor:
    """Rows with the inner products of a Gram matrix: [..., n, n] -> [..., n, n], float64; the least of them come first."""
    values, vectors = torch.linalg.eigh(gram)
    roots: torch.Tensor = values.clamp(min=0).sqrt()
    return torch.mul(vectors, roots[..., None, :])


def layer_scaled(Z: torch.Tensor, train: torch.Tensor, *, n_features: float) -> torch.Tensor:
    """Subtract the training part's mean and divide by one number, so that its features have a mean square of 1.

    Parameters
    ----------
    Z : Tensor, [n_images, r]
    train : LongTensor, [n_splits, n_train]
        Rows of the training part of every split.
    n_features : float
        How many features Z stands for.

    Returns
    -------
    Tensor, [n_splits, n_images, r]
    """
    centered = Z - Z[train].mean(dim=1, keepdim=True)  # [n_splits, n_images, r]
    squares = _rows(centered, train).square().sum(dim=2).mean(dim=1) / n_features
    return centered / _divisors(squares, Z.square().sum() / n_features)[:, None, None]


def unit_scaled(X: torch.Tensor, train: torch.Tensor) -> torch.Tensor:
    """Subtract every unit's mean over the training part, and divide by its standard deviation there.

    Parameters
    ----------
    X : Tensor, [n_images, n_units]
    train : LongTensor, [n_splits, n_train]

    Returns
    -------
    Tensor, [n_splits, n_images, n_units], float64
    """
    X = X.double()
    means = X[train].mean(dim=1, keepdim=True)  # [n_splits, 1, n_units]
    centered = X - means
    squares = _rows(centered, train).square().mean(dim=1, keepdim=True)
    return centered / _divisors(squares, means.square())


def _rows(Z: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[n_splits, n_images, r], [n_splits, n] -> [n_splits, n, r]"""
    return torch.take_along_dim(Z, rows[:, :, None], dim=1)


def _divisors(squares: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Square roots; 1 where what is left of a constant is rounding (squares of float64 numbers of about that size)."""
    return torch.where(squares > 1e-26 * sizes, squares, torch.ones_like(squares)).sqrt()


def reduced(X: torch.Tensor, *, n: int | None = None) -> torch.Tensor:
    """[..., n_images, d] in at most n_images dimensions, rotated; as it is if d is no more than that."""
    if X.shape[-1] <= X.shape[-2]:
        return X
    return coordinates(X @ X.mT)


def in_blocks(n: int, block: int) -> Sequence[slice]:
    """Slices of `block` that cover n."""
    return [slice(start, min(start + block, n)) for start in range(0, n, block)]
