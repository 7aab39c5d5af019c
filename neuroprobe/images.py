"""Images: a probing set, from a folder, a list of files or a torch Dataset.

Every image is handed out as an RGB PIL image, the right way up (EXIF orientation applied).
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps

from neuroprobe.exceptions import InputError, UnknownNameError, UnreadableImageError, suggest
from neuroprobe.fingerprints import fingerprint_bytes, fingerprint_texts

OnError: TypeAlias = Literal["raise", "skip"]

#: What a folder is searched for; other files in it are no images and are left alone.
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))


class ImageSource(Protocol):
    """What `Images` needs of an adapter: ids, one for each image, and image `i` with a fingerprint of its content."""

    @property
    def ids(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def load(self, index: int) -> tuple[Image.Image, str]: ...


class Images:
    """A probing set: RGB images with stable ids.

    Parameters
    ----------
    source : str, Path, sequence of paths, or torch Dataset
        A folder (searched recursively for image files; ids are relative paths), image files (ids are the paths
        as given), or a dataset whose items are PIL images, uint8 arrays [h, w, 3], tensors [3, h, w] (uint8, or
        float in [0, 1]), or tuples or dicts (key "image" or "img") that begin with one. A dataset is given
        *without* a normalising transform: each model brings its own.
    ids : sequence of str, optional
        One unique id per image; by default the paths, the dataset's own ``ids`` or its indices.
    on_error : {"raise", "skip"}, default "raise"
        What a pass over the images does with one that cannot be read: stop and name it, or leave it out and
        list it, with the reason, in the result. Ids stay aligned either way.

    Raises
    ------
    InputError
        No folder, no image in it, or ids that do not fit.
    UnreadableImageError
        A file that does not begin like an image (unless ``on_error="skip"``); damage further in shows when
        the image is read.

    Examples
    --------
    >>> from neuroprobe.world import world_images
    >>> images = world_images(10)
    >>> len(images), images[0].size, images.ids[:2]
    (10, (64, 64), ('world-0-0', 'world-0-1'))
    """

    def __init__(self, source: Any, *, ids: Sequence[str] | None = None, on_error: OnError = "raise") -> None:
        if on_error not in ("raise", "skip"):
            raise InputError(f"Expected `on_error` to be 'raise' or 'skip', but got {on_error!r}.")
        self._source = _adapter(source, on_error)
        self.on_error = on_error
        self.ids = _checked_ids(self._source.ids if ids is None else ids, len(self._source))
        self._rows = range(len(self.ids))
        self._digests: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Image.Image:
        """Image `index` as RGB; from the end if negative, as in any sequence."""
        return self.load(range(len(self))[index])

    def load(self, index: int) -> Image.Image:
        """Read and decode image `index` (0 to n - 1).

        Raises
        ------
        UnreadableImageError
            Whatever ``on_error`` says: skipping is up to the pass.
        """
        image, self._digests[index] = self._source.load(self._rows[index])
        return image

    def digest(self, index: int) -> str:
        """Fingerprint of image `index` alone; reads it if that has not happened yet."""
        if index not in self._digests:
            self.load(index)
        return self._digests[index]

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the content, in order; unreadable images count by their id."""
        return fingerprint_texts(map(self._digest_or_id, range(len(self))))

    def _digest_or_id(self, index: int) -> str:
        try:
            return self.digest(index)
        except UnreadableImageError:
            return f"unreadable {self.ids[index]}"

    def subset(self, ids: Iterable[str]) -> Images:
        """The images with these ids, in the order given.

        Raises
        ------
        UnknownNameError
            An id that is not among the images.
        InputError
            No ids, or one twice.
        """
        if isinstance(ids, str):
            raise InputError(f"Expected a list of ids, but got the single id {ids!r}. Write [{ids!r}].")
        position = {id_: i for i, id_ in enumerate(self.ids)}
        chosen = list(ids)
        for id_ in chosen:
            if id_ not in position:
                raise UnknownNameError(f"Expected ids of this probing set, but got {id_!r}. {suggest(str(id_), self.ids)}")
        if not chosen:
            raise InputError("Expected at least one id of this probing set, but got none.")
        part = object.__new__(Images)
        part._source, part.on_error = self._source, self.on_error
        part.ids = _checked_ids(chosen, len(chosen))
        part._rows = [self._rows[position[id_]] for id_ in chosen]  # type: ignore[assignment]
        part._digests = {}
        return part

    def __repr__(self) -> str:
        return f"Images({len(self)} images, {self.ids[0]!r} ... {self.ids[-1]!r})"


def as_rgb(image: Image.Image) -> Image.Image:
    """An RGB image, turned as its EXIF orientation says; 16-bit greys keep their range."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which PIL's own conversion would clip at 255
        grey = np.asarray(image, dtype=np.int64)
        image = Image.fromarray(np.clip(grey // 257, 0, 255).astype(np.uint8))
    return image.convert("RGB")


class _Files:
    def __init__(self, paths: Sequence[Path], ids: Sequence[str], on_error: OnError) -> None:
        self.paths, self.ids = paths, ids
        for path in paths:
            if on_error == "raise":
                _check_header(path)

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> tuple[Image.Image, str]:
        path = self.paths[index]
        try:
            data = path.read_bytes()
            return as_rgb(Image.open(io.BytesIO(data))), fingerprint_bytes(data)
        except Exception as error:  # a damaged file can make a decoder raise nearly anything
            raise UnreadableImageError(_unreadable(repr(str(path)), error)) from error


def _check_header(path: Path) -> None:
    try:
        with Image.open(path):
            pass
    except Exception as error:
        raise UnreadableImageError(_unreadable(repr(str(path)), error)) from error


def _unreadable(what: str, error: Exception) -> str:
    reason = str(error) or type(error).__name__
    return (
        f"Expected an image, but {what} cannot be read ({reason}). "
        "Remove it, or pass on_error='skip' (--on-error skip) to leave such files out."
    )


class _DatasetItems:
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        own: Callable[[], Sequence[str]] | Sequence[str] | None = getattr(dataset, "ids", None)
        self.ids = own if isinstance(own, Sequence) else [str(i) for i in range(len(dataset))]

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, index: int) -> tuple[Image.Image, str]:
        try:
            image = as_rgb(_item_to_image(self.dataset[index], index))
        except UnreadableImageError:
            raise
        except Exception as error:  # the dataset may read a damaged file, now or when the pixels are needed
            raise UnreadableImageError(_unreadable(f"item {index} of the dataset", error)) from error
        return image, fingerprint_bytes(f"{image.size} ".encode() + image.tobytes())


def _item_to_image(item: Any, index: int) -> Image.Image:
    if isinstance(item, dict):
        item = next((item[key] for key in ("image", "img") if key in item), item)
    elif isinstance(item, (tuple, list)) and item:
        item = item[0]
    if isinstance(item, Image.Image):
        return item
    if isinstance(item, torch.Tensor) and item.ndim == 3 and item.shape[0] in (1, 3):
        return _array_to_image(item.detach().cpu().permute(1, 2, 0).numpy(), index)  # [3, h, w] -> [h, w, 3]
    if isinstance(item, np.ndarray) and item.ndim == 3 and item.shape[2] in (1, 3):
        return _array_to_image(item, index)
    what = f"{type(item).__name__}" + (f" of shape {tuple(item.shape)}" if hasattr(item, "shape") else "")
    raise UnreadableImageError(
        f"Expected item {index} of the dataset to be a PIL image, a tensor [3, h, w] or an array [h, w, 3] "
        f"(alone, first in a tuple, or under 'image' in a dict), but got {what}."
    )


def _array_to_image(array: np.ndarray, index: int) -> Image.Image:
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise UnreadableImageError(
                f"Expected item {index} of the dataset to hold values in [0, 1], but got {low:.3g} to {high:.3g}. "
                "Give the dataset without its normalising transform: each model brings its own."
            )
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise UnreadableImageError(f"Expected item {index} of the dataset to be uint8 or floating, but got {array.dtype}.")
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def _adapter(source: Any, on_error: OnError) -> ImageSource:
    if isinstance(source, (str, Path)):
        return _folder(Path(source), on_error)
    if isinstance(source, Sequence) and len(source) == 0:
        raise InputError("Expected at least one image, but got an empty list.")
    if isinstance(source, Sequence) and all(isinstance(p, (str, Path)) for p in source):
        paths = [Path(p) for p in source]
        return _Files(paths, [p.as_posix() for p in paths], on_error)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        if len(source) == 0:
            raise InputError("Expected at least one image, but the dataset is empty.")
        return _DatasetItems(source)
    raise InputError(f"Expected a folder, a list of paths, or a dataset with a length and items, but got {type(source).__name__}.")


def _folder(folder: Path, on_error: OnError) -> _Files:
    if not folder.is_dir():
        what = "a file" if folder.exists() else "nothing"
        raise InputError(f"Expected a folder of images, but there is {what} at {str(folder)!r}.")
    try:
        paths = sorted(p for p in _walk(folder) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    except OSError as error:
        where = str(error.filename or folder)
        raise InputError(f"Expected a readable folder, but {where!r} cannot be listed: {error.strerror}. Change its rights.") from error
    if not paths:
        raise InputError(
            f"Expected images in {str(folder)!r}, but found none. Looked for files ending in {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return _Files(paths, [p.relative_to(folder).as_posix() for p in paths], on_error)


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder; unlike `Path.rglob`, which leaves out what it may not list, this raises OSError."""

    def stop(error: OSError) -> None:
        raise error

    for parent, _, names in os.walk(folder, onerror=stop):
        yield from (Path(parent, name) for name in names)


def _checked_ids(ids: Sequence[str], n: int) -> tuple[str, ...]:
    ids = tuple(str(id_) for id_ in ids)  # a dataset may number its images
    if len(ids) != n:
        raise InputError(f"Expected one id per image ({n}), but got {len(ids)}.")
    seen: set[str] = set()
    for id_ in ids:
        if id_ in seen:
            raise InputError(f"Expected unique image ids, but {id_!r} occurs twice.")
        seen.add(id_)
    return ids
