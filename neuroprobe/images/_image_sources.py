"""What a probing set is made from: folders, files, datasets with indices; and how a source is told from another."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from neuroprobe.exceptions import InputError
from neuroprobe.images._decoding import IMAGE_SUFFIXES, Item, Readable, decoding, whatever_the_warnings
from neuroprobe.images._image_streams import ID_KEYS, ImageStream, checked_stream

OnError: TypeAlias = Literal["raise", "skip"]


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


def opened(source: Any, on_error: OnError) -> ImageSource | ImageStream:
    """The adapter for a source.

    Raises
    ------
    InputError
        No folder, no image in it, or something that is no source of images.
    UnreadableImageError
        A file that does not begin like an image, unless ``on_error="skip"``.
    """
    if isinstance(source, (str, Path)):
        return _folder(Path(source), on_error)
    if isinstance(source, Sequence) and len(source) == 0:
        raise InputError("Expected at least one image, but got an empty list.")
    if isinstance(source, Sequence) and all(isinstance(p, (str, Path)) for p in source):
        paths = [Path(p) for p in source]
        return Files(paths, [p.as_posix() for p in paths], on_error)
    _refuse_what_holds_no_images(source)
    return _hugging_face(source) or _indexed_or_stream(source)


def _refuse_what_holds_no_images(source: Any) -> None:
    if isinstance(source, Mapping):
        raise InputError(
            f"Expected one source of images, but got a {type(source).__name__} of {', '.join(map(repr, source))}. Choose one by its name."
        )
    if isinstance(source, DataLoader):
        raise InputError("Expected images one at a time, but got a DataLoader, which gives batches. Pass its dataset.")


def _indexed_or_stream(source: Any) -> ImageSource | ImageStream:
    indexed = hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, IterableDataset)
    if indexed and len(source) == 0:
        raise InputError("Expected at least one image, but the dataset is empty.")
    if indexed:
        return DatasetItems(source)
    if isinstance(source, Iterable) or callable(source):
        return checked_stream(source)
    raise InputError(
        "Expected a folder, a list of paths, a dataset with a length and items, an iterable that can be read again, "
        f"or a function that returns an iterator, but got {type(source).__name__}."
    )


def _folder(folder: Path, on_error: OnError) -> Files:
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


def _hugging_face(source: Any) -> ImageSource | ImageStream | None:
    """A Hugging Face dataset or stream with its images left undecoded, so that damage is met by us and not in the midst of a pass."""
    datasets: Any = sys.modules.get("datasets")  # whoever has such a dataset has imported it
    if not hasattr(datasets, "DatasetDict"):  # or it is somebody's own module of that name
        return None
    if isinstance(source, datasets.IterableDataset):
        return checked_stream(_undecoded(source, datasets))
    if not isinstance(source, datasets.Dataset):
        return None
    if len(source) == 0:
        raise InputError("Expected at least one image, but the dataset is empty.")
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


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder; unlike `Path.rglob`, which leaves out what it may not list, this raises OSError."""

    def stop(error: OSError) -> None:
        raise error

    for parent, _, names in os.walk(folder, onerror=stop):
        yield from (Path(parent, name) for name in names)
