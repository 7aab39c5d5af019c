"""Features as probes see them: centered, scaled by the training part, and rotated into few dimensions where there are fewer images.

A Gram matrix is all that a rotation-invariant probe can use of n images with d features, in [n, n]. With G = X X' = U L U', the
rows of Z = U L^(1/2) have the same inner products as those of X: Z is X in rotated coordinates, n of them instead of d. Shifting,
scaling and splitting Z is shifting, scaling and splitting X, so that one Gram matrix of all a concept's images serves every split
of a study. It has to be of training and test images together: a hidden layer's first weights reach into directions that the
training images do not span, and test images lie there too.

Spatial features are large, so what is done with all of them is done some columns at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

Scaling: TypeAlias = Literal["unit", "layer"]

_Array: TypeAlias = npt.NDArray[Any]

#: Columns that are worked on at a time: products of a block are added up in the features' type, the blocks in float64.
COLUMNS = 4096

#: Rows of a block of a Gram matrix; blocks below the diagonal are copied, not computed.
_ROWS = 64

#: Eigenvalues (squared singular values) below this share of the greatest are rounding.
_RELATIVE_RANK = 1e-10


# --- scaling


class Scaler:
    """Centers features by their means over a training part, and divides each by its standard deviation there, or all by one number.

    What is left of a constant is rounding, and divided by 1.

    Parameters
    ----------
    X : Tensor, [n_images, d]
        The training part. Everything is computed in float64.
    scaling : {"unit", "layer"}
        With "layer" the training part has a mean square of 1.
    n_features : float, optional
        How many features the columns stand for; by default d.
    """

    def __init__(self, X: torch.Tensor, scaling: Scaling, *, n_features: float | None = None) -> None:
        blocks = column_blocks(X.shape[1])
        self.mean = torch.cat([X[:, columns].double().mean(dim=0) for columns in blocks])
        self.divisor = torch.ones_like(self.mean)
        squares, sizes = torch.cat([self(X, columns).square().mean(dim=0) for columns in blocks]), self.mean.square()
        if scaling == "layer":
            squares, sizes = (values.sum() / (n_features or len(values)) for values in (squares, sizes))
        rounding = max(1e-13, len(X) * np.finfo(float).eps)
        self.divisor = self.divisor * torch.where(squares > rounding**2 * sizes, squares, 1).sqrt()

    def __call__(self, X: torch.Tensor, columns: slice = slice(None)) -> torch.Tensor:
        """Some columns of X, centered and scaled, float64."""
        return (X[:, columns].double() - self.mean[columns]) / self.divisor[columns]


# --- rotation


def column_blocks(n: int, size: int = COLUMNS) -> list[slice]:
    """Slices that cover n columns."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def feature_blocks(X: torch.Tensor, rows: torch.Tensor, device: torch.device) -> Iterator[torch.Tensor]:
    """Some rows of X, some columns at a time, so that no copy of them all is made."""
    return (X[:, columns][rows].to(device) for columns in column_blocks(X.shape[1]))


def gram_matrix(blocks: Iterable[torch.Tensor]) -> torch.Tensor:
    """Inner products [n_images, n_images], float64, of rows from which their mean was subtracted first, given some columns at a time.

    Of float32 rows the mean is right to its last digits but one. Centering only afterward would lose the digits that rows with a large
    common part need for it.
    """
    total = torch.zeros(())
    for number, block in enumerate(blocks):
        if number == 0:
            total = torch.zeros(len(block), len(block), dtype=torch.float64, device=block.device)
        part = block.double() if block.is_cuda else block  # a float32 product may be one of TF32 there
        part = part - part.mean(dim=0)  # its last digits do not matter: whatever is common to all goes with the training part's mean
        low, high = part.aminmax()
        largest = max(-float(low), float(high))
        unsafe = 0 < largest < 1e-15 or largest > 1e15  # float32 may not hold its squares
        factor = largest if unsafe else 1.0
        part = part / factor if unsafe else part
        for first in range(0, len(part), _ROWS):
            products = (part[first : first + _ROWS] @ part[first:].T).double()
            total[first : first + _ROWS, first:] += products * factor**2 if unsafe else products
    return total.triu() + total.triu(1).T


def coordinates(gram: torch.Tensor) -> torch.Tensor:
    """Rows with the inner products of a Gram matrix: [..., n, n] -> [..., n, n], float64; the least of them come first."""
    values, vectors = torch.linalg.eigh(gram)
    roots: torch.Tensor = values.clamp(min=0).sqrt()
    return torch.mul(vectors, roots[..., None, :])


def reduced(X: torch.Tensor) -> torch.Tensor:
    """[..., n_images, d] in at most n_images dimensions, rotated; as it is if d is no more than that."""
    return X if X.shape[-1] <= X.shape[-2] else coordinates(X @ X.mT)


# --- one training part, and the way back to its units


def as_tensor(X: _Array) -> torch.Tensor:
    """An array as a tensor, without a copy where torch can."""
    return torch.from_numpy(np.require(X, requirements=["C", "W"]))


class Coordinates:
    """The scaled units of a training part, rotated into the span of its images if there are fewer images than units.

    Attributes
    ----------
    Z : Tensor, [n_images, rank], float64
    scaler : Scaler
    """

    def __init__(self, X: _Array, scaling: Scaling, *, rotate: bool = True) -> None:
        self._X = as_tensor(X)
        self.scaler, self._blocks = Scaler(self._X, scaling), column_blocks(X.shape[1])
        self._combined: torch.Tensor | None = None  # [n_images, rank]: what of the images is of length 1 along each coordinate
        if not rotate or X.shape[1] <= X.shape[0]:
            self.Z = self.scaler(self._X)
            return
        values, vectors = torch.linalg.eigh(gram_matrix(self.scaler(self._X, columns) for columns in self._blocks))
        kept = values > values[-1] * _RELATIVE_RANK
        roots, vectors = values[kept].sqrt(), vectors[:, kept]
        self.Z, self._combined = vectors * roots, vectors / roots

    def in_scaled_units(self, weights: torch.Tensor) -> torch.Tensor:
        """[rank, k] of the coordinates -> [n_units, k] of the scaled units."""
        if self._combined is None:
            return weights
        of_images = self._combined @ weights  # [n_images, k]
        return torch.cat([self.scaler(self._X, columns).T @ of_images for columns in self._blocks])

    def across(self, weights: torch.Tensor) -> torch.Tensor:
        """What of weights [n_units, k] of the scaled units lies across the span of the images, where no training image sees it."""
        if self._combined is None:
            return torch.zeros_like(weights)
        seen = torch.stack([self.scaler(self._X, columns) @ weights[columns] for columns in self._blocks]).sum(dim=0)
        return weights - self.in_scaled_units(self._combined.T @ seen)

    def in_units(self, weights: torch.Tensor, offsets: torch.Tensor) -> tuple[_Array, _Array]:
        """Weights [rank, k] and offsets [k] of the coordinates -> [k, n_units] and [k] of the units as they came."""
        coef = (self.in_scaled_units(weights) / self.scaler.divisor[:, None]).T
        return coef.numpy(), (offsets - coef @ self.scaler.mean).numpy()

    def weights_of(self, values: torch.Tensor) -> tuple[_Array, _Array]:
        """The shortest weights (of scaled units) with these decision values [n_images]: [1, n_units] of the units as they came, and [1]."""
        center = values.mean()
        weights = torch.linalg.pinv(self.Z, rtol=_RELATIVE_RANK**0.5) @ (values - center)
        return self.in_units(weights[:, None], center[None])
