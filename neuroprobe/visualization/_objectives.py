"""What images are made for: targets, each of which values what a site gives for its images; and how alike a target's images are.

A new kind of target is a subclass of `Target`, handed to `neuroprobe.visualize` in place of a unit's number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from neuroprobe._core import check_unit, fingerprint_bytes, fingerprint_texts
from neuroprobe.exceptions import InputError
from neuroprobe.models import Direction, Pooling, Reading, Site, check_pooling, describe_pooling, pool

#: How what a layer gives becomes one row of units; "center" is the position in the middle of a map.
Place: TypeAlias = "Pooling | Literal['center']"


class Target(ABC):
    """What images are made for.

    Attributes
    ----------
    name : str
        What tells it from other targets, and with the seed decides the noise that its images begin with.
    """

    name: str

    @abstractmethod
    def fits(self, layer: str, n_pooled: int, n_spatial: int) -> None:
        """Raise `InputError` if it is of no layer with so many units, and so many with every position counted by itself."""

    @abstractmethod
    def values(self, pooled: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        """What is climbed, [n], from pooled units [n, n_units] and all that the layer gives [n, n_units, ...], differentiably."""

    @property
    def made_for(self) -> Any:
        """What stands in `Visualization.units`."""
        return self

    @property
    def entropy(self) -> list[int]:
        """Numbers that seed what is random in its images."""
        return [2, int(fingerprint_texts([self.name]), 16)]


class UnitTarget(Target):
    """A unit, by its pooled activation."""

    def __init__(self, unit: int) -> None:
        self.unit, self.name = unit, str(unit)

    def fits(self, layer: str, n_pooled: int, n_spatial: int) -> None:
        check_unit(layer, self.unit, n_pooled)

    def values(self, pooled: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        return pooled[:, self.unit]

    @property
    def made_for(self) -> int:
        return self.unit

    @property
    def entropy(self) -> list[int]:
        return [0, self.unit]


class DirectionTarget(Target):
    """A direction, such as a probe's, by its log-odds."""

    def __init__(self, direction: Direction) -> None:
        self.direction, self.name = direction, direction.concept
        if not direction.weights.any():
            raise InputError(f"Expected directions that are not 0, but {self.name!r} is none.")

    def fits(self, layer: str, n_pooled: int, n_spatial: int) -> None:
        n = n_spatial if self.direction.features == "spatial" else n_pooled
        if len(self.direction.weights) != n:
            raise InputError(
                f"Expected directions of {layer!r} with {n} {self.direction.features} features, but {self.name!r} has "
                f"{len(self.direction.weights)}: it is of another model or another size of image."
            )

    def values(self, pooled: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        features = whole.flatten(1).float() if self.direction.features == "spatial" else pooled
        return (features * torch.from_numpy(self.direction.weights).to(features)).sum(1) + self.direction.bias

    @property
    def made_for(self) -> Direction:
        return self.direction

    @property
    def entropy(self) -> list[int]:
        return [1, int(fingerprint_bytes(self.direction.features.encode() + self.direction.weights.tobytes()), 16)]


def check_targets(site: Site, unit: Any) -> list[Target]:
    """The targets that a unit, a direction or a target stands for, or several of them.

    Raises
    ------
    InputError
        None, some twice, units that are no whole numbers from 0 up, or directions of another site.
    """
    several = isinstance(unit, (Sequence, range, set, frozenset)) or (isinstance(unit, np.ndarray) and unit.ndim > 0)
    targets = [_target(site, one) for one in (unit if several else [unit])]
    if not targets:
        raise InputError(f"Expected a unit or units, or a direction or directions, of {site.key!r}, but got {unit!r:.80}.")
    if len({tuple(target.entropy) for target in targets}) < len(targets):
        raise InputError("Expected each unit or direction once, but one is there twice. Take `n_images` for several images of one.")
    return targets


def _target(site: Site, one: Any) -> Target:
    if isinstance(one, Target):
        return one
    if isinstance(one, Direction):
        if one.layer != site.key:
            raise InputError(f"Expected directions of {site.key!r}, but {one.concept!r} is one of {one.layer!r}.")
        return DirectionTarget(one)
    number = one[()] if isinstance(one, np.ndarray) else one
    check_unit(site.key, number)
    return UnitTarget(int(number))


def check_place(pooling: Place) -> None:
    """Raise for what is no pooling to one value per unit."""
    if pooling == "none":
        raise InputError("Expected a pooling to one value per unit such as 'mean', 'max' or 'center', but got 'none'.")
    if pooling != "center":
        check_pooling(pooling)


def describe_place(pooling: Place) -> str:
    """The name under which a result remembers it."""
    return "center" if pooling == "center" else describe_pooling(pooling)


def target_values(reading: Reading, targets: Sequence[Target], *, pooling: Place, layer: str) -> torch.Tensor:
    """The value of each target for its own image, [n].

    Raises
    ------
    InputError
        A target that does not fit what the layer gives.
    """
    pooled, whole = _pooled(reading, pooling, layer), reading.by_unit
    found = []
    for i, target in enumerate(targets):
        target.fits(layer, pooled.shape[1], whole[0].numel())
        found.append(target.values(pooled[i : i + 1], whole[i : i + 1]))
    return torch.cat(found)


def _pooled(reading: Reading, pooling: Place, layer: str) -> torch.Tensor:
    if pooling != "center" or reading.values.ndim == 2:
        axes = reading.axes
        return pool(reading.values, "mean" if pooling == "center" else pooling, unit_axis=axes.units, image_axis=axes.images, layer=layer)
    maps = reading.by_unit  # [n, units, h, w]
    if maps.ndim != 4:
        shape = tuple(reading.values.shape)
        raise InputError(f"Expected maps for pooling='center', but {layer!r} gives {shape}. Take 'mean' or a token: ('token', 3).")
    return maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2].float()


def likeness(whole: torch.Tensor, groups: Sequence[slice]) -> torch.Tensor:
    """How alike each image is to the others of its group, [n]: the mean cosine of their Gram matrices of units, from 0 to 1.

    The Gram matrix of an image holds the products of every two units of `whole` [n, n_units, *positions], summed over positions: what is
    seen together, wherever it is.

    References
    ----------
    Olah, Mordvintsev and Schubert, Feature visualization, Distill 2017 (diversity).
    """
    features = whole.flatten(2) if whole.ndim > 2 else whole[:, :, None]
    product = _gram_products if features.shape[1] <= features.shape[2] else _position_products
    return torch.cat([_mean_cosine(product(features[group].float())) for group in groups])


def _gram_products(features: torch.Tensor) -> torch.Tensor:
    """Inner products [n, n] of the Gram matrices of features [n, units, positions]."""
    grams = (features @ features.transpose(1, 2)).flatten(1)
    return grams @ grams.T


def _position_products(features: torch.Tensor) -> torch.Tensor:
    """The same, quicker for many units and few positions."""
    n, _, positions = features.shape
    flat = features.transpose(1, 2).flatten(0, 1)  # [n * positions, units]
    return (flat @ flat.T).square().reshape(n, positions, n, positions).sum((1, 3))


def _mean_cosine(products: torch.Tensor) -> torch.Tensor:
    n, lengths = len(products), products.diagonal().clamp(min=1e-30).sqrt()
    cosines = products / (lengths[:, None] * lengths)
    return (cosines.sum(1) - cosines.diagonal()) / max(n - 1, 1)
