"""Directions: concept activation vectors, in a layer's own coordinates.

A linear probe's weights are a direction in the space of a layer's units: along it, the layer says more of the concept.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from neuroprobe._core import check_seed, fingerprint_bytes
from neuroprobe.exceptions import InputError, UnknownNameError, shown
from neuroprobe.models.pooling import FEATURES

_FACTS = ("concept", "checkpoint", "layer", "features", "kind", "seed", "bias")


@dataclass(frozen=True, eq=False)
class Direction:
    """A linear probe as a direction: the log-odds of its concept are ``weights @ x + bias``.

    `x` are a layer's activations as they are recorded, not scaled, so that directions of one layer can be compared
    with each other, and added to what the layer gives.

    Attributes
    ----------
    concept, checkpoint, layer : str
    features : {"pooled", "spatial"}
        Whether `x` is the mean over positions, or all positions of all units (units vary slowest).
    kind : str
        Of the probe, such as "linear".
    seed : int or None
        Of the split; None for a mean over several.
    weights : ndarray, [n_features], float32
    bias : float

    Raises
    ------
    InputError
        Weights that are no vector of finite numbers.
    UnknownNameError
        Other features.
    """

    concept: str
    checkpoint: str
    layer: str
    features: str
    kind: str
    seed: int | None
    weights: npt.NDArray[np.float32]
    bias: float

    def __post_init__(self) -> None:
        if not isinstance(self.layer, str):
            raise InputError(f"Expected `layer` to be a module's name, but got {self.layer!r:.60}.")
        if self.features not in FEATURES:
            raise UnknownNameError(f"Expected features 'pooled' or 'spatial', but got {self.features!r}.")
        if self.seed is not None:
            check_seed(self.seed)
        weights = np.asarray(self.weights, dtype=np.float32)
        if weights.ndim != 1 or not np.isfinite(weights).all():
            raise InputError(f"Expected the weights of {self.concept!r} in {self.layer!r} as finite numbers [n_features], but got others.")
        object.__setattr__(self, "weights", weights)

    @property
    def unit_vector(self) -> npt.NDArray[np.float32]:
        """The weights at length 1, [n_features]; zeros where the probe learned nothing."""
        norm = float(np.linalg.norm(self.weights.astype(np.float64)))
        return np.asarray(self.weights / norm if norm else self.weights, dtype=np.float32)

    def decision(self, activations: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Log-odds of the concept.

        Parameters
        ----------
        activations : array-like, [n_images, n_features]
            Of the layer, recorded as for the probe.

        Returns
        -------
        ndarray, [n_images]
        """
        return np.asarray(np.asarray(activations) @ self.weights.astype(np.float64) + self.bias)


def mean_direction(directions: Sequence[Direction]) -> Direction:
    """The mean of directions that differ in nothing but the seed: its log-odds are the mean of theirs.

    Raises
    ------
    InputError
        None at all, or directions of different things.
    """
    if len({(d.concept, d.checkpoint, d.layer, d.features, d.kind) for d in directions}) != 1:
        raise InputError(f"Expected directions of one concept, layer and kind of probe, but got {len(directions)} of several or none.")
    if len(directions) == 1:
        return directions[0]
    weights = np.mean([d.weights.astype(np.float64) for d in directions], axis=0).astype(np.float32)
    return dataclasses.replace(directions[0], seed=None, weights=weights, bias=float(np.mean([d.bias for d in directions])))


class Directions:
    """Directions of a layer as a basis: a unit is how far a position's values lie along a row of the matrix.

    Parameters
    ----------
    directions : array-like, [k, d], or sequence of Direction
        Rows as they are: units are ``values @ rows.T``. Of Directions, which are of pooled features of one layer, units are the
        log-odds: their biases are added.

    Attributes
    ----------
    weights : Tensor, [k, d], float32
    bias : Tensor, [k], float32

    Raises
    ------
    InputError
        Anything but finite numbers [k, d], or directions of several layers or of spatial features.

    Examples
    --------
    >>> Directions([[0.0, 1.0], [1.0, 0.0]]).encode(torch.tensor([5.0, 7.0]))
    tensor([7., 5.])
    """

    def __init__(self, directions: npt.ArrayLike | torch.Tensor | Sequence[Direction]) -> None:
        given = list(directions) if isinstance(directions, (list, tuple)) else []
        if given and all(isinstance(one, Direction) for one in given):
            if len({(one.layer, len(one.weights)) for one in given}) > 1 or any(one.features != "pooled" for one in given):
                raise InputError(
                    "Expected directions of pooled features of one layer, but got some of several layers or kinds of features."
                )
            self.layer = given[0].layer
            rows: Any = np.stack([one.weights for one in given])
            bias = torch.tensor([one.bias for one in given], dtype=torch.float32)
        else:
            rows, bias = directions.detach().cpu() if isinstance(directions, torch.Tensor) else directions, None
        try:
            self.weights = torch.as_tensor(np.asarray(rows), dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):
            self.weights = torch.zeros(0)
        if self.weights.ndim != 2 or not self.weights.numel() or not self.weights.isfinite().all():
            raise InputError(f"Expected directions as finite numbers [k, d], or Directions, but got {shown(directions)}.")
        self.bias = torch.zeros(len(self.weights)) if bias is None else bias

    @property
    def fingerprint(self) -> str:
        return fingerprint_bytes(repr(tuple(self.weights.shape)).encode() + self.weights.numpy().tobytes() + self.bias.numpy().tobytes())

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """Units [..., k] of values [..., d].

        Raises
        ------
        InputError
            Values of another number of units.
        """
        if values.shape[-1] != self.weights.shape[1]:
            raise InputError(f"Expected values of {self.weights.shape[1]} units for these directions, but got {values.shape[-1]}.")
        return values @ self.weights.T.to(values) + self.bias.to(values)

    @property
    def decode(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """From units [..., k] to the values [..., d] in the directions' span that have them; None where rows depend on each other."""
        inverse = self._inverse
        return None if inverse is None else lambda units: (units - self.bias.to(units)) @ inverse.to(units)

    @cached_property
    def _inverse(self) -> torch.Tensor | None:
        """[k, d]"""
        rows = self.weights.double()
        if torch.equal(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64)):
            return self.weights  # exact where the directions are
        return torch.linalg.pinv(rows).T.float() if int(torch.linalg.matrix_rank(rows)) == len(rows) else None


def directions_to_npz(directions: Sequence[Direction]) -> bytes:
    """Directions as the content of an npz file, the same bytes for the same directions."""
    facts = [{name: getattr(direction, name) for name in _FACTS} for direction in directions]
    arrays: dict[str, Any] = {f"weights_{i}": direction.weights for i, direction in enumerate(directions)}
    buffer = io.BytesIO()
    np.savez(buffer, facts=np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8), **arrays)
    return buffer.getvalue()


def directions_from_npz(data: bytes) -> list[Direction]:
    """Read what `directions_to_npz` made.

    Raises
    ------
    InputError
        It is damaged, or something else.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            facts = json.loads(file["facts"].tobytes())
            return [Direction(**{name: one[name] for name in _FACTS}, weights=file[f"weights_{i}"]) for i, one in enumerate(facts)]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"Expected the directions of a report, but they cannot be read: {error}.") from error
