"""One pass over the images for every consumer at once: each image is read and decoded once.

A consumer is whatever wants the images: a recorder, an image-text encoder, somebody's own. The images are cut into
one grid of whole batches, which does not depend on who works on it; a batch is the unit of resuming and of sharing
work between processes, because a batch's size changes the last bits of a forward pass.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from neuroprobe._core import check_count
from neuroprobe.exceptions import InputError, NeuroprobeError, StoreError, UnreadableImageError
from neuroprobe.images import distributed
from neuroprobe.images._images import Images, check_images, check_unique, fingerprint_images

Transform: TypeAlias = Callable[[Image.Image], torch.Tensor]


@dataclass(frozen=True)
class BatchRecord:
    """What was read of one batch of the grid.

    Attributes
    ----------
    number : int
        In the grid, from 0.
    rows : list of int
        Positions of the images that were read, in the probing set.
    ids, digests : list of str
        Of the images that were read.
    skipped : dict from id to reason
    """

    number: int
    rows: list[int]
    ids: list[str]
    digests: list[str]
    skipped: dict[str, str]


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
    rows : tuple of int
        The positions of `ids` in the probing set.
    distributed : bool
        Whether other processes hold a part of the rows.
    """

    ids: tuple[str, ...]
    skipped: Mapping[str, str]
    fingerprint: str
    rows: tuple[int, ...] = ()
    distributed: bool = False

    def joined(self, parts: Mapping[int, torch.Tensor], *, width: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Rows that a consumer kept by batch number, in the order of `ids`, from all processes."""
        return distributed.in_batch_order(parts, width=width, dtype=dtype, use=self.distributed)


class Consumer(Protocol):
    """Something that wants every image once.

    ``transform`` turns a PIL image into a tensor. ``consume`` gets them stacked, [n, ...], with the record of their
    batch; batches come in order. ``finish`` is called once after the last batch, and its result is what `collect`
    returns for this consumer. A consumer that has some batches already, from a run that was cut off, may also have
    ``recorded() -> Mapping[int, BatchRecord]``; it does not get those again.
    """

    @property
    def transform(self) -> Transform: ...

    def consume(self, batch: torch.Tensor, record: BatchRecord) -> None: ...

    def finish(self, collected: Collected) -> Any: ...


def collect(
    images: Images,
    consumers: Sequence[Consumer],
    *,
    batch_size: int = 64,
    workers: int = 0,
    distributed: bool = False,
    progress: bool | None = None,
    description: str = "images",
) -> list[Any]:
    """Take every image once to every consumer.

    Parameters
    ----------
    images : Images
    consumers : sequence of Consumer
    batch_size : int, default 64
        Images per batch of the grid.
    workers : int, default 0
        Processes that read and decode beside this one; 0 does it here, and so does a stream of images.
    distributed : bool, default False
        Share the batches with the other processes of torch.distributed's process group; every process gets the
        whole result, the same bits as one process alone.
    progress : bool, optional
        Show a progress bar with images per second and time left on standard error; by default only on a terminal,
        and never on ranks other than 0.
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
        No `Images`, no image could be read, or a transform gives tensors of several shapes.
    """
    check_images(images)
    check_count("batch_size", batch_size)
    check_count("workers", workers, low=0)
    done: list[Mapping[int, BatchRecord]] = [getattr(consumer, "recorded", dict)() for consumer in consumers]
    grid = _Grid(images, [consumer.transform for consumer in consumers], done, batch_size, distributed)
    records: dict[int, BatchRecord] = {}
    with _progress_bar(images, progress, description, rank=grid.rank) as bar:
        for batch in _batches(grid, workers):
            if batch.record.skipped and images.on_error == "raise":
                raise UnreadableImageError(next(iter(batch.record.skipped.values())))
            for consumer, stacked in zip(consumers, batch.stacked, strict=True):
                if stacked is not None:
                    consumer.consume(stacked, batch.record)
            records[batch.record.number] = batch.record
            bar.update(len(batch.record.ids) + len(batch.record.skipped))
    collected = _collected(records, distributed)
    return [consumer.finish(collected) for consumer in consumers]


@dataclass(frozen=True)
class _Batch:
    """A batch of the grid, stacked for every consumer that has not got it yet (None for the others)."""

    record: BatchRecord
    stacked: list[torch.Tensor | None]


@dataclass(frozen=True)
class _Item:
    """An image of the grid, not read yet."""

    row: int
    id: str
    load: Callable[[], tuple[Image.Image, str]]
    digest: Callable[[], str]


class _Grid(Dataset["_Batch | NeuroprobeError"]):
    """The batches that are this process's to do; one that every consumer has already is only looked up."""

    def __init__(
        self,
        images: Images,
        transforms: list[Transform],
        done: list[Mapping[int, BatchRecord]],
        batch_size: int,
        use_distributed: bool,
    ) -> None:
        self.images, self.transforms, self.done, self.batch_size = images, transforms, done, batch_size
        self.rank, self.world_size = distributed.rank_and_size(use_distributed)

    def is_ours(self, number: int) -> bool:
        return number % self.world_size == self.rank

    def __len__(self) -> int:
        n_batches = -(-len(self.images) // self.batch_size)
        return len(range(self.rank, n_batches, self.world_size))

    def __getitem__(self, index: int) -> _Batch | NeuroprobeError:
        try:
            return self._at(index)
        except NeuroprobeError as error:  # handed over, not raised: a loader would put the worker's traceback into its message
            return error

    def _at(self, index: int) -> _Batch:
        number = self.rank + index * self.world_size
        start = number * self.batch_size
        rows = range(start, min(start + self.batch_size, len(self.images)))
        return self.batch(number, [self._item(row) for row in rows])

    def _item(self, row: int) -> _Item:
        return _Item(row, self.images.ids[row], partial(self.images.load_with_digest, row), partial(self.images.digest, row))

    def stream(self) -> Iterator[_Batch]:
        """The batches of a stream, whose images have no positions to jump to."""
        waiting: list[_Item] = []
        number = 0
        for row, image in enumerate(self.images.rows()):
            waiting.append(_Item(row, image.id, image.load, image.digest))
            if len(waiting) == self.batch_size:
                if self.is_ours(number):
                    yield self.batch(number, waiting)
                waiting, number = [], number + 1
        if waiting and self.is_ours(number):
            yield self.batch(number, waiting)

    def batch(self, number: int, items: Sequence[_Item]) -> _Batch:
        """Read and transform a batch, or look it up."""
        wanted = [number not in done for done in self.done]
        if not any(wanted):
            record = self._as_now(items, self.done[0][number])
            self._check_done(record)
            return _Batch(self.done[0][number], [None] * len(wanted))
        record = BatchRecord(number, [], [], [], {})
        tensors: list[list[torch.Tensor]] = [[] for _ in wanted]
        for item in items:
            try:
                image, digest = item.load()
            except UnreadableImageError as error:
                record.skipped[item.id] = str(error)
                continue
            record.rows.append(item.row)
            record.ids.append(item.id)
            record.digests.append(digest)
            self._transform(image, wanted, tensors)
        self._check_done(record)
        return _Batch(record, [_stack(part) if part else None for part in tensors])

    def _as_now(self, items: Sequence[_Item], record: BatchRecord) -> BatchRecord:
        """The record of a batch as its images are now; they need not be decoded again, and what was skipped stays skipped."""
        read = [item for item in items if item.id not in record.skipped]
        skipped = {item.id: record.skipped[item.id] for item in items if item.id in record.skipped}
        return BatchRecord(
            record.number, [item.row for item in read], [item.id for item in read], [item.digest() for item in read], skipped
        )

    def _check_done(self, now: BatchRecord) -> None:
        """What consumers have of this batch from an earlier run must be of the images as they are now, row by row."""
        for record in (done[now.number] for done in self.done if now.number in done):
            then, found = _contents(record), _contents(now)
            changed = [id_ for id_ in [*found, *then] if found.get(id_) != then.get(id_)]
            if changed or list(then) != list(found):
                which = (changed or list(found))[0]
                raise StoreError(
                    f"Expected batch {now.number} to be of the images that were recorded, but {which!r} is another now, "
                    "or in another place. Record into another folder."
                )

    def _transform(self, image: Image.Image, wanted: Sequence[bool], tensors: list[list[torch.Tensor]]) -> None:
        made: dict[int, torch.Tensor] = {}  # consumers that share a transform share its result
        for transform, wants, part in zip(self.transforms, wanted, tensors, strict=True):
            if wants:
                if id(transform) not in made:
                    made[id(transform)] = _checked_tensor(transform(image))
                part.append(made[id(transform)])


def _contents(record: BatchRecord) -> dict[str, tuple[int, str] | None]:
    """Every image's row and digest, in order; None for one that was skipped."""
    read = {id_: (row, digest) for row, id_, digest in zip(record.rows, record.ids, record.digests, strict=True)}
    return {**read, **dict.fromkeys(sorted(record.skipped))}


def _batches(grid: _Grid, workers: int) -> Iterator[_Batch]:
    """Every batch of this process; the tensors of one consumer have one shape in all of them."""
    shapes: dict[int, torch.Size] = {}
    # the grid's items are whole batches, stacked in the worker: a tensor per image would need many open files; without a generator
    # of its own a loader draws from the global state
    options: Any = {"batch_size": None, "num_workers": workers, "generator": torch.Generator()}
    loader: Any = grid.stream() if grid.images.is_stream else DataLoader(grid, **options)
    for batch in loader:
        if isinstance(batch, NeuroprobeError):
            raise batch
        for i, stacked in enumerate(batch.stacked):
            if stacked is not None:
                _check_shape(stacked.shape[1:], shapes.setdefault(i, stacked.shape[1:]))
        yield batch


def _progress_bar(images: Images, progress: bool | None, description: str, *, rank: int) -> tqdm[Any]:
    silent = rank > 0 or not (sys.stderr.isatty() if progress is None else progress)
    return tqdm(total=images.known_length, unit="image", desc=description, disable=silent)


def _collected(records: Mapping[int, BatchRecord], use_distributed: bool) -> Collected:
    if use_distributed:
        sent = json.dumps([asdict(record) for record in records.values()]).encode()
        parts = [BatchRecord(**record) for part in distributed.gather_bytes(sent) for record in json.loads(part)]
        records = {record.number: record for record in parts}
    ordered = [records[number] for number in sorted(records)]
    skipped = {id_: reason for record in ordered for id_, reason in record.skipped.items()}
    ids = tuple(id_ for record in ordered for id_ in record.ids)
    if not ids:
        reason = next(iter(skipped.values()), "there are no images")
        raise InputError(f"Expected at least one readable image, but all {len(skipped)} were skipped. The first: {reason}")
    check_unique(ids)  # ranks may have gone through streams of their own
    return Collected(
        ids,
        skipped,
        fingerprint_images(digest for record in ordered for digest in record.digests),
        tuple(row for record in ordered for row in record.rows),
        use_distributed,
    )


def _checked_tensor(tensor: Any) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"Expected the transform to give a tensor, but got {type(tensor).__name__}. End it with ToTensor().")
    return tensor


def _stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    for tensor in tensors:
        _check_shape(tensor.shape, tensors[0].shape)
    return torch.stack(list(tensors))


def _check_shape(shape: torch.Size, expected: torch.Size) -> None:
    if shape != expected:
        raise InputError(
            f"Expected the transform to give tensors of one shape, but got {tuple(expected)} and {tuple(shape)}. "
            "Resize and crop in the transform."
        )
