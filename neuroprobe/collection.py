"""One pass over the images for every consumer at once: each image is read and decoded once.

A consumer is whatever wants the images: a recorder, an image-text encoder, somebody's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from typing_extensions import TypeAlias

from neuroprobe.exceptions import InputError, UnreadableImageError
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
    ids: list[str] = []
    digests: list[str] = []
    skipped: dict[str, str] = {}
    for rows in _batches(images, consumers, batch_size, workers, progress, description):
        read = []
        for row in rows:
            if row.error is None:
                read.append(row)
            elif images.on_error == "skip":
                skipped[images.ids[row.index]] = row.error
            else:
                raise UnreadableImageError(row.error)
        ids += [images.ids[row.index] for row in read]
        digests += [row.digest for row in read]
        if read:
            for i, consumer in enumerate(consumers):
                consumer.consume(_stack([row.tensors[i] for row in read]))
    if not ids:
        raise InputError(f"Expected at least one readable image, but all {len(skipped)} were skipped.")
    collected = Collected(tuple(ids), skipped, fingerprint_texts(digests))
    return [consumer.finish(collected) for consumer in consumers]


@dataclass(frozen=True)
class _Row:
    index: int
    tensors: list[torch.Tensor]
    digest: str = ""
    error: str | None = None


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
) -> Iterator[list[_Row]]:
    loader = DataLoader(
        _Decoded(images, [consumer.transform for consumer in consumers]),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_as_list,
        generator=torch.Generator(),  # a loader without one draws from the global state
    )
    silent = not (sys.stderr.isatty() if progress is None else progress)
    with tqdm(total=len(images), unit="image", desc=description, disable=silent) as bar:
        for rows in loader:
            yield rows
            bar.update(len(rows))


def _as_list(rows: list[_Row]) -> list[_Row]:
    return rows


def _stack(tensors: list[torch.Tensor]) -> torch.Tensor:
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise InputError(
            f"Expected the transform to give tensors of one shape, but got {sorted(shapes)[:3]}. Resize and crop in the transform."
        )
    return torch.stack(tensors)
