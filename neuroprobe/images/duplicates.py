"""Near-duplicates: groups of images that are nearly one picture, by average hash or by embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from neuroprobe._core import check_count, check_share
from neuroprobe.exceptions import InputError
from neuroprobe.images._images import Images
from neuroprobe.images.passes import BatchRecord, Collected, collect

_BLOCK = 1024


def near_duplicates(
    images: Images,
    *,
    max_distance: int = 8,
    side: int = 16,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool | None = None,
) -> dict[str, int]:
    """Groups of images whose average hashes hardly differ; one pass over the images.

    The hash of an image has one bit per field of a grid: whether its mean gray is above the mean of all fields. Two images
    are near-duplicates if few bits differ; a group is what a chain of them links. Copies that were scaled, compressed anew or
    turned gray are found (all of 600 photographs, and none of their 179,700 pairs taken for one), most of those made
    brighter, few of those cropped, and no mirrored ones. Drawings on an even ground can have equal hashes without being
    alike, and all pictures of one even gray have: look at what was found, or use `near_duplicate_vectors` on embeddings.

    Parameters
    ----------
    images : Images
    max_distance : int, default 8
        Bits that may differ, of ``side * side``.
    side : int, default 16
        Of the grid, in fields.
    batch_size, workers, progress
        As in `neuroprobe.images.collect`.

    Returns
    -------
    dict from id to int
        The image's group, numbered in the order of the images; an image without a near-duplicate has a group of its own.

    Raises
    ------
    InputError

    References
    ----------
    N. Krawetz, "Looks Like It", The Hacker Factor Blog, 2011 (average hash; there of 8 x 8 fields, which at a
    distance of 2 take 7 of those pairs for one).
    """
    check_count("side", side, low=2)
    check_count("max_distance", max_distance, low=0)
    if max_distance >= side * side // 2:
        raise InputError(f"Expected `max_distance` to be below half the {side * side} bits, but got {max_distance}.")
    hashes = _HashPass(side)
    (found,) = collect(images, [hashes], batch_size=batch_size, workers=workers, progress=progress, description="hash")
    ids, bits = found
    signs = bits.numpy().astype(np.float32)  # +1 and -1: the product of two hashes is n_bits - 2 * distance
    return dict(zip(ids, _linked(signs, side * side - 2 * max_distance - 0.5), strict=True))


def near_duplicate_vectors(ids: Sequence[str], vectors: npt.ArrayLike | torch.Tensor, *, min_cosine: float) -> dict[str, int]:
    """Groups of images whose embeddings point nearly the same way.

    Parameters
    ----------
    ids : sequence of str
    vectors : array-like, [n_images, d]
        Not zero.
    min_cosine : float, in (0, 1)
        From this cosine similarity on, two images are near-duplicates. What is near depends on the encoder: look at what was found.

    Returns
    -------
    dict from id to int
        As in `near_duplicates`.

    Raises
    ------
    InputError
    """
    array = np.asarray(vectors, dtype=np.float32)
    check_share("min_cosine", min_cosine)
    if array.ndim != 2 or len(array) != len(ids):
        raise InputError(f"Expected vectors [{len(ids)}, d], one per id, but got {list(array.shape)}.")
    lengths = np.linalg.norm(array, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise InputError("Expected vectors of finite length above 0, but got others.")
    return dict(zip(ids, _linked(array / lengths, min_cosine), strict=True))


def average_hash(image: Image.Image, *, side: int = 16) -> npt.NDArray[np.int8]:
    """+1 where a field of the grid is brighter than the mean of all, else -1; int8 [side * side]."""
    gray = np.asarray(image.convert("F").resize((side, side), Image.Resampling.BOX))
    return np.where(gray > gray.mean(), 1, -1).astype(np.int8).reshape(-1)


class _HashPass:
    """A consumer of `neuroprobe.images.collect` that keeps hashes."""

    def __init__(self, side: int) -> None:
        self._side = side
        self._parts: dict[int, torch.Tensor] = {}

    def transform(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(average_hash(image, side=self._side))

    def consume(self, batch: torch.Tensor, record: BatchRecord) -> None:
        self._parts[record.number] = batch

    def finish(self, collected: Collected) -> Any:
        return collected.ids, collected.joined(self._parts, width=(self._side**2,), dtype=torch.int8)


def _linked(vectors: npt.NDArray[np.float32], least: float) -> list[int]:
    """Connected components of the pairs whose product is at least `least`, numbered in the order of the rows."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    distinct, where = np.unique(vectors, axis=0, return_inverse=True)  # many equal images cost no more than one
    rows, columns = [], []
    for start in range(0, len(distinct), _BLOCK):
        near = distinct[start : start + _BLOCK] @ distinct[start:].T >= least
        left, right = np.nonzero(near)
        rows.append(left + start)
        columns.append(right + start)
    pairs = (np.concatenate(rows), np.concatenate(columns))
    graph = coo_array((np.ones(len(pairs[0]), dtype=bool), pairs), shape=(len(distinct), len(distinct)))
    labels = connected_components(graph, directed=False)[1][where.reshape(-1)]
    numbers = {label: i for i, label in enumerate(dict.fromkeys(labels.tolist()))}
    return [numbers[label] for label in labels.tolist()]
