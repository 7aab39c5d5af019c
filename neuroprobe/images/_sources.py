"""What a probing set is made from, one opener for each kind: folders, files, datasets with indices, and streams.

A stream can only be gone through: Hugging Face's, WebDataset's, torch's IterableDataset, a function that makes an iterator.
An image's id comes from the data: the first of a pair (id, image); what a dict holds under "__key__" or "id"; a path;
and where the data has none, its position, which names the same image only as long as the order stays.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from neuroprobe.exceptions import InputError, NeuroprobeError, UnreadableImageError
from neuroprobe.images._decoding import IMAGE_SUFFIXES, Item, Readable, decoding, whatever_the_warnings

OnError: TypeAlias = Literal["raise", "skip"]

#: Where a dict holds the id of its image; the first of these that is there.
ID_KEYS = ("__key__", "id")


class ImageSource(Protocol):
    """What `Images` needs of a source with indices: ids, one for each image, and image `i`, not read yet."""

    @property
    def ids(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def item(self, index: int) -> Readable: ...


class Files:
    """Image files; each header is looked at when the set is made, if damage is to stop it."""

    def __init__(self, paths: Sequence[Path], ids: Sequence[str], on_error: OnError) -> None:
        self.paths, self.ids = paths, ids
        for path in paths:
            if on_error == "raise":
                _check_header(path)

    def __len__(self) -> int:
        return len(self.paths)

    def item(self, index: int) -> Item:
        """The file, not read yet."""
        return Item(self.paths[index], repr(str(self.paths[index])))


def _check_header(path: Path) -> None:
    with decoding(repr(str(path))):
        whatever_the_warnings(lambda: Image.open(path).close())


class DatasetItems:
    """The items of a dataset with a length and indices."""

    def __init__(self, dataset: Any, ids: Sequence[Any] | None = None) -> None:
        self.dataset = dataset
        own = getattr(dataset, "ids", None) if ids is None else ids
        self.ids = own if isinstance(own, Sequence) else [str(i) for i in range(len(dataset))]

    def __len__(self) -> int:
        return len(self.dataset)

    def item(self, index: int) -> Readable:
        """Item `index`, not asked for yet."""
        return _DatasetItem(self.dataset, index)


@dataclass(frozen=True)
class _DatasetItem:
    dataset: Any = field(repr=False)
    index: int

    def load(self) -> tuple[Image.Image, str]:
        return self._item().load()

    def digest(self) -> str:
        return self._item().digest()

    def _item(self) -> Item:
        what = f"item {self.index} of the dataset"
        with decoding(what):  # the dataset may read a damaged file, now or when the pixels are needed
            return Item(self.dataset[self.index], what)


class Selected:
    """Some rows of another source, in an order of their own."""

    def __init__(self, source: ImageSource, chosen: Sequence[int], ids: Sequence[str]) -> None:
        self.source, self.chosen, self.ids = source, chosen, ids

    def __len__(self) -> int:
        return len(self.chosen)

    def item(self, index: int) -> Readable:
        """Image `index` of the selection, not read yet."""
        return self.source.item(self.chosen[index])


#: What a fast fingerprint begins with; one of the content is hexadecimal digits alone.
FAST = "fast:"


@dataclass(frozen=True)
class FastItem:
    """A file that is known by its id, size and time of change (nanoseconds), so that its fingerprint needs no reading."""

    file: Item
    id: str

    def load(self) -> tuple[Image.Image, str]:
        """RGB image and the fast fingerprint."""
        digest = self.digest()  # before the reading, so that a change in between shows
        return self.file.load()[0], digest

    def digest(self) -> str:
        """The fast fingerprint."""
        with decoding(self.file.what):
            status = Path(self.file.item).stat()
        return f"{FAST}{self.id} {status.st_size} {status.st_mtime_ns}"


@dataclass(frozen=True)
class ImageRow:
    """One image of a stream, not decoded yet; its id is unique among them."""

    id: str
    readable: Readable = field(repr=False)

    def load(self) -> tuple[Image.Image, str]:
        """RGB image and the fingerprint of its content; `UnreadableImageError` for one that is damaged, or none."""
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


# --- openers: the source as something with images, or None if it is of another kind


def _folder(source: Any, on_error: OnError) -> Files | None:
    if not isinstance(source, (str, Path)):
        return None
    folder = Path(source)
    if not folder.is_dir():
        what = "a file" if folder.exists() else "nothing"
        raise InputError(
            f"Expected a folder of images, but there is {what} at {str(folder)!r}. "
            "Give a folder's path (a relative one starts in the current folder), or a list of files."
        )
    try:
        paths = sorted(p for p in _walk(folder) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    except OSError as error:
        where = str(error.filename or folder)
        raise InputError(f"Expected a readable folder, but {where!r} cannot be listed: {error.strerror}. Change its rights.") from error
    if not paths:
        raise InputError(
            f"Expected images in {str(folder)!r}, but found none. Looked for files ending in {', '.join(sorted(IMAGE_SUFFIXES))}, "
            "and not behind links to other folders."
        )
    return Files(paths, [p.relative_to(folder).as_posix() for p in paths], on_error)


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder; unlike `Path.rglob`, which leaves out what it may not list, this raises OSError."""

    def stop(error: OSError) -> None:
        raise error

    for parent, _, names in os.walk(folder, onerror=stop):
        yield from (Path(parent, name) for name in names)


def _files(source: Any, on_error: OnError) -> Files | None:
    if not isinstance(source, Sequence) or not all(isinstance(path, (str, Path)) for path in source):
        return None
    paths = [Path(path) for path in source]
    return Files(paths, [path.as_posix() for path in paths], on_error)


def _refused(source: Any, on_error: OnError) -> None:
    """What looks like images and holds none, or cannot be read again."""
    if isinstance(source, Mapping):
        raise InputError(
            f"Expected one source of images, but got a {type(source).__name__} of {', '.join(map(repr, source))}. Choose one by its name."
        )
    if isinstance(source, DataLoader):
        raise InputError("Expected images one at a time, but got a DataLoader, which gives batches. Pass its dataset.")
    if isinstance(source, Iterator):
        raise InputError(
            f"Expected images that can be read more than once, but got a {type(source).__name__}, which is used up by the first pass. "
            "Pass the function that makes it (Images(function), not Images(function())), or list(...) of it."
        )
    if isinstance(source, Set):
        raise InputError(f"Expected images in an order, but got a {type(source).__name__}. Pass sorted(...) of it.")
    if isinstance(source, type):
        raise InputError(f"Expected a source of images, but got the class {source.__name__}. Make one: {source.__name__}(...).")


def _hugging_face(source: Any, on_error: OnError) -> ImageSource | ImageStream | None:
    """A Hugging Face dataset or stream with its images left undecoded, so that damage is met by us and not in the midst of a pass."""
    datasets: Any = sys.modules.get("datasets")  # whoever has such a dataset has imported it
    if not hasattr(datasets, "DatasetDict"):  # or it is somebody's own module of that name
        return None
    if isinstance(source, datasets.IterableDataset):
        return Iterated(_undecoded(source, datasets))
    if not isinstance(source, datasets.Dataset):
        return None
    key = next((key for key in ID_KEYS if key in source.column_names), None)
    ids = None if key is None else [str(id_) for id_ in source.with_format(None)[key]]
    return DatasetItems(_undecoded(source, datasets), ids)


def _undecoded(dataset: Any, datasets: Any) -> Any:
    features = dataset.features or {}
    names = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    chosen = [name for name in names if name in ("image", "img")] or names
    if len(chosen) > 1:
        raise InputError(f"Expected one column of images, but got {', '.join(map(repr, chosen))}. Choose with select_columns().")
    if not chosen or _has_own_transform(dataset):
        return dataset
    kept = [*chosen, *(key for key in ID_KEYS if key in features)]
    plain = dataset.select_columns(kept).with_format(None).cast_column(chosen[0], datasets.Image(decode=False))
    return plain if chosen[0] in ("image", "img") else plain.rename_column(chosen[0], "image")


def _has_own_transform(dataset: Any) -> bool:
    return (getattr(dataset, "format", None) or {}).get("type") == "custom"


def _indexed(source: Any, on_error: OnError) -> DatasetItems | None:
    indexed = hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, IterableDataset)
    return DatasetItems(source) if indexed else None


def _iterated(source: Any, on_error: OnError) -> Iterated | None:
    return Iterated(source) if isinstance(source, Iterable) or callable(source) else None


Opener: TypeAlias = Callable[[Any, OnError], "ImageSource | ImageStream | None"]

#: The first that knows the source opens it; a new kind of source is one more function here.
OPENERS: tuple[Opener, ...] = (_folder, _files, _refused, _hugging_face, _indexed, _iterated)


def opened(source: Any, on_error: OnError) -> ImageSource | ImageStream:
    """The images of a source, by the first opener that knows it; raises as `neuroprobe.Images`."""
    tried = (opener(source, on_error) for opener in OPENERS)
    found = next((images for images in tried if images is not None), None)
    if found is None:
        raise InputError(
            "Expected a folder, a list of paths, a dataset with a length and items, an iterable that can be read again, "
            f"or a function that returns an iterator, but got {type(source).__name__}."
        )
    if not isinstance(found, ImageStream) and len(found) == 0:
        raise InputError(f"Expected at least one image, but got an empty {type(source).__name__}.")
    return found
