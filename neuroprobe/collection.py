"""One pass over the images for every consumer at once: each image is read and decoded once.

A consumer is whatever wants the images: a recorder, an image-text encoder, somebody's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from neuroprobe.exceptions import InputError, NeuroprobeError, UnreadableImageError
from neuroprobe.fingerprints import fingerprint_texts
from neuroprobe.images import Images

Transform: TypeAlias = Callable[[Image.Image], torch.Tensor]


@dataclass(frozen=True)
class Collected:
    """What a pass went over.

    Attributes
    ----------
    ids : tuple of str
        The images that were read, in order: the rows of every consumer's result.
    skipped : mapping from id to reason
        The images that could not be read.
    fingerprint : str
        Of the content of the images that were read.
    """

    ids: tuple[str, ...]
    skipped: Mapping[str, str]
    fingerprint: str


class Consumer(Protocol):
    """Something that wants every image once.

    ``transform`` turns a PIL image into a tensor; ``consume`` gets them stacked, [n, ...], in order; ``finish``
    is called once after the last batch, and its result is what `collect` returns for this consumer.
    """

    @property
    def transform(self) -> Transform: ...

    def consume(self, batch: torch.Tensor) -> None: ...

    def finish(self, collected: Collected) -> Any: ...


def collect(
    images: Images,
    consumers: Sequence[Consumer],
    *,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool | None = None,
    description: str = "images",
) -> list[Any]:
    """Take every image once to every consumer.

    Parameters
    ----------
    images : Images
    consumers : sequence of Consumer
    batch_size : int, default 64
        Images per batch.
    workers : int, default 0
        Processes that read and decode beside this one; 0 does it here.
    progress : bool, optional
        Show a progress bar on standard error; by default only on a terminal.
    description : str, default "images"
        What the progress bar is called.

    Returns
    -------
    list
        What each consumer's ``finish`` returned.

    Raises
    ------
    UnreadableImageError
        An image cannot be read and ``images.on_error`` is "raise".
    InputError
        No image could be read, or a transform gives tensors of several shapes.
    """
    if batch_size < 1:
        raise InputError(f"Expected `batch_size` to be at least 1, but got {batch_size}.")
    if workers < 0:
        raise InputError(f"Expected `workers` to be 0 or more, but got {workers}.")
    ids: list[str] = []
    digests: list[str] = []
    skipped: dict[str, str] = {}
    shapes: list[torch.Size] = []
    for batch in _batches(images, consumers, batch_size, workers, progress, description):
        if batch.errors and images.on_error == "raise":
            raise UnreadableImageError(next(iter(batch.errors.values())))
        skipped.update({images.ids[index]: reason for index, reason in batch.errors.items()})
        ids += [images.ids[index] for index in batch.indices]
        digests += batch.digests
        shapes = _checked_shapes(batch.stacked, shapes)
        for consumer, stacked in zip(consumers, batch.stacked, strict=False):  # nothing is stacked where nothing was read
            consumer.consume(stacked)
    if not ids:
        reason = next(iter(skipped.values()))
        raise InputError(f"Expected at least one readable image, but all {len(skipped)} were skipped. The first: {reason}")
    collected = Collected(tuple(ids), skipped, fingerprint_texts(digests))
    return [consumer.finish(collected) for consumer in consumers]


@dataclass(frozen=True)
class _Row:
    index: int
    tensors: list[torch.Tensor]
    digest: str = ""
    error: str | None = None


@dataclass(frozen=True)
class _Batch:
    """The rows that were read, stacked once for every consumer, and the reasons of the others by their index."""

    indices: list[int]
    digests: list[str]
    stacked: list[torch.Tensor]
    errors: dict[int, str]


class _Decoded(Dataset[_Row]):
    """Reads, decodes and transforms; an unreadable image becomes a row with its reason."""

    def __init__(self, images: Images, transforms: list[Transform]) -> None:
        self.images, self.transforms = images, transforms

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> _Row:
        try:
            image = self.images.load(index)
        except UnreadableImageError as error:
            return _Row(index, [], error=str(error))
        return _Row(index, [transform(image) for transform in self.transforms], self.images.digest(index))


def _batches(
    images: Images, consumers: Sequence[Consumer], batch_size: int, workers: int, progress: bool | None, description: str
) -> Iterator[_Batch]:
    loader = DataLoader(
        _Decoded(images, [consumer.transform for consumer in consumers]),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_as_batch_or_error,  # in the worker: a tensor of its own for every image would need as many open files
        generator=torch.Generator(),  # a loader without one draws from the global state
    )
    silent = not (sys.stderr.isatty() if progress is None else progress)
    with tqdm(total=len(images), unit="image", desc=description, disable=silent) as bar:
        for batch in loader:
            if isinstance(batch, NeuroprobeError):
                raise batch
            yield batch
            bar.update(len(batch.indices) + len(batch.errors))


def _as_batch_or_error(rows: list[_Row]) -> _Batch | NeuroprobeError:
    """An error of ours is handed over, not raised: a loader would put the worker's traceback into its message."""
    try:
        return _as_batch(rows)
    except NeuroprobeError as error:
        return error


def _as_batch(rows: list[_Row]) -> _Batch:
    read = [row for row in rows if row.error is None]
    stacked = [_stack(tensors) for tensors in zip(*(row.tensors for row in read), strict=True)]
    errors = {row.index: row.error for row in rows if row.error is not None}
    return _Batch([row.index for row in read], [row.digest for row in read], stacked, errors)


def _stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"Expected the transform to give a tensor, but got {type(tensor).__name__}. End it with ToTensor().")
        _check_shape(tensor.shape, tensors[0].shape)
    return torch.stack(list(tensors))


def _checked_shapes(stacked: Sequence[torch.Tensor], before: list[torch.Size]) -> list[torch.Size]:
    """The shapes of one image for every consumer, if they are as in the batches before."""
    shapes = [tensor.shape[1:] for tensor in stacked]
    for shape, expected in zip(shapes, before, strict=False):
        _check_shape(shape, expected)
    return shapes or before


def _check_shape(shape: torch.Size, expected: torch.Size) -> None:
    if shape != expected:
        raise InputError(
            f"Expected the transform to give tensors of one shape, but got {tuple(expected)} and {tuple(shape)}. "
            "Resize and crop in the transform."
        )
