"""Sources that can only be gone through: Hugging Face streams, WebDataset, torch's IterableDataset, functions that make an iterator.

An image's id comes from the data: the first of a pair (id, image); what a dict holds under "__key__" or "id"; a path;
and where the data has none, its position, which names the same image only as long as the order stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from neuroprobe.exceptions import InputError, NeuroprobeError, UnreadableImageError
from neuroprobe.images._decoding import Item, Readable

#: Where a dict holds the id of its image; the first of these that is there.
ID_KEYS = ("__key__", "id")


@dataclass(frozen=True)
class ImageRow:
    """One image of a stream, not decoded yet.

    Attributes
    ----------
    id : str
        Unique among the images of its stream.
    """

    id: str
    readable: Readable = field(repr=False)

    def load(self) -> tuple[Image.Image, str]:
        """RGB image and the fingerprint of its content.

        Raises
        ------
        UnreadableImageError
            The image is damaged, or none.
        """
        return self.readable.load()

    def digest(self) -> str:
        """The fingerprint alone; encoded images are not decoded for it."""
        return self.readable.digest()


@runtime_checkable
class ImageStream(Protocol):
    """What `Images` needs of a source without indices: its rows afresh each time, and its length if it has one."""

    @property
    def known_length(self) -> int | None: ...

    def rows(self) -> Iterator[ImageRow]: ...


class Iterated:
    """The items of an iterable, or of what a function returns, as rows."""

    def __init__(self, source: Iterable[Any] | Callable[[], Iterable[Any]]) -> None:
        self.source = source

    @property
    def known_length(self) -> int | None:
        try:
            return len(self.source)  # type: ignore[arg-type]  # that is the question
        except (TypeError, NotImplementedError):
            return None

    def rows(self) -> Iterator[ImageRow]:
        """Begin again."""
        self._refuse_to_be_split()
        for position, item in enumerate(self._items()):
            id_, content = _identified(item, position)
            yield ImageRow(id_, Item(content, f"image {id_!r} of the stream"))

    def _items(self) -> Iterator[Any]:
        items, n = iter(self._fresh()), 0
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except NeuroprobeError:
                raise
            except Exception as error:  # no later item can be had
                raise UnreadableImageError(_broken(n, error)) from error
            yield item
            n += 1

    def _fresh(self) -> Iterable[Any]:
        if isinstance(self.source, Iterable):
            return self.source
        made = self.source()
        if not isinstance(made, Iterable):
            raise InputError(f"Expected the function to return an iterator over images, but it returned {type(made).__name__}.")
        return made

    def _refuse_to_be_split(self) -> None:
        worker = get_worker_info()
        if isinstance(self.source, IterableDataset) and worker is not None and worker.num_workers > 1:
            raise InputError(
                f"Expected {type(self.source).__name__} to be iterated in one process, but got {worker.num_workers} workers, "
                "among which it may divide its images. Iterate it in the main process and load its rows in the workers."
            )


def _identified(item: Any, position: int) -> tuple[str, Any]:
    """An item's id, and the item without it."""
    if isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[0], str):
        return item[0], item[1]
    if isinstance(item, Mapping):
        return next((str(item[key]) for key in ID_KEYS if key in item), str(position)), item
    return Path(item).as_posix() if isinstance(item, (str, Path)) else str(position), item


def _broken(n: int, error: Exception) -> str:
    return (
        f"Expected a stream of images, but it broke off after {n} of them ({str(error) or type(error).__name__}). A stream cannot go on "
        "after an error of its own; let it hand out encoded bytes or paths, and a damaged image is one that can be skipped."
    )


def checked_stream(source: Any) -> Iterated:
    """A stream over the source.

    Raises
    ------
    InputError
        What can be read only once, or has no order.
    """
    if isinstance(source, Iterator):
        raise InputError(
            f"Expected images that can be read more than once, but got {_article(source)}, which is used up by the first pass. "
            "Pass the function that makes it (Images(function), not Images(function())), or list(...) of it."
        )
    if isinstance(source, Set):
        raise InputError(f"Expected images in an order, but got {_article(source)}. Pass sorted(...) of it.")
    if isinstance(source, type):
        raise InputError(f"Expected a source of images, but got the class {source.__name__}. Make one: {source.__name__}(...).")
    return Iterated(source)


def _article(source: Any) -> str:
    return f"a {type(source).__name__}"


def without_repeats(rows: Iterable[ImageRow]) -> Iterator[ImageRow]:
    """The same rows, as long as there is one at all and every id is new."""
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise InputError(
                f"Expected unique image ids, but the stream gives {row.id!r} twice. Make them unique where the stream is made, "
                "for example with pairs (id, image); WebDataset keys that repeat from shard to shard need the shard's name."
            )
        seen.add(row.id)
        yield row
    if not seen:
        raise InputError(
            "Expected at least one image, but the stream gave none. If it gave some before, it can be read only once: "
            "pass a function that makes a new iterator."
        )
