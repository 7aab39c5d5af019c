"""One item of any source as an RGB image with the fingerprint of its content.

What items are, `neuroprobe.Images` says; of a WebDataset sample ("left.webp") and an undecoded Hugging Face image ({"bytes", "path"}) too.
Photographs come as they are: turned as their EXIF orientation says, the first frame of an animation, alpha left out.
"""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, ImageChops, ImageOps, UnidentifiedImageError

from neuroprobe._core import fingerprint_bytes
from neuroprobe.exceptions import UnreadableImageError

#: What a folder is searched for, and what names an image in a WebDataset sample.
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))

Result = TypeVar("Result")


class Readable(Protocol):
    """One image that is not read yet.

    ``load`` gives it as RGB, with the fingerprint of its content; ``digest`` gives the fingerprint alone, without
    decoding where the content is a file. Both raise `UnreadableImageError`.
    """

    def load(self) -> tuple[Image.Image, str]: ...

    def digest(self) -> str: ...


@dataclass(frozen=True)
class Item:
    """An item in memory, or the path of a file; `what` is how messages call it."""

    item: Any = field(repr=False)
    what: str

    def load(self) -> tuple[Image.Image, str]:
        """RGB image, and the fingerprint of the encoded bytes if there are any, else of the pixels."""
        with decoding(self.what):
            return whatever_the_warnings(self._load)

    def _load(self) -> tuple[Image.Image, str]:
        content = _content(self.item, self.what)
        if isinstance(content, bytes):
            return as_rgb(Image.open(io.BytesIO(content)), self.what), fingerprint_bytes(content)
        image = as_rgb(_to_image(content, self.what), self.what)
        return image, fingerprint_bytes(f"{image.size} ".encode() + image.tobytes())

    def digest(self) -> str:
        """The same fingerprint; encoded bytes are not decoded for it."""
        with decoding(self.what):
            content = _content(self.item, self.what)
        return fingerprint_bytes(content) if isinstance(content, bytes) else self.load()[1]


@contextmanager
def decoding(what: str) -> Iterator[None]:
    """Whatever goes wrong inside means that `what` cannot be read."""
    try:
        yield
    except UnreadableImageError:
        raise
    except Exception as error:  # a damaged file can make a decoder raise nearly anything
        raise UnreadableImageError(unreadable(what, error)) from error


def whatever_the_warnings(read: Callable[[], Result]) -> Result:
    """What `read` returns, also where a filter makes errors of warnings: PIL warns of many files that it reads."""
    try:
        return read()
    except Warning:
        with warnings.catch_warnings():  # not each time: it makes every warning of the process be shown again
            warnings.simplefilter("ignore")
            return read()


def unreadable(what: str, error: Exception) -> str:
    """What to say of an image that cannot be read."""
    # PIL's own words for an unknown format hold a memory address, and reasons must be the same in every run
    unknown = isinstance(error, UnidentifiedImageError)
    reason = "it begins like no image format that PIL knows" if unknown else str(error) or type(error).__name__
    bomb = isinstance(error, Image.DecompressionBombError)
    trusted = " If you trust it, raise PIL.Image.MAX_IMAGE_PIXELS." if bomb else ""
    return (
        f"Expected an image, but {what} cannot be read ({reason}). "
        f"Remove it, or pass on_error='skip' (--on-error skip) to leave such files out.{trusted}"
    )


def as_rgb(image: Image.Image, what: str = "the image") -> Image.Image:
    """An RGB image, turned as its EXIF orientation says; alpha is left out, 16-bit grays keep their range."""
    image.load()
    orientation = _orientation(image)
    if image.mode.startswith("I"):  # 16-bit gray, which PIL's own conversion would clip at 255
        image = Image.fromarray(np.clip(np.asarray(image, dtype=np.int64) // 257, 0, 255).astype(np.uint8))
    elif image.mode == "F":
        image = _array_to_image(np.asarray(image)[..., None], what)
    elif image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # PIL takes all of them for Adobe's, which hold the inverse
    elif image.mode in ("La", "RGBa"):  # colors multiplied by alpha, which only their own kind undoes
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    rgb = image.convert("RGB")
    if orientation in range(2, 9):
        only = Image.Exif()  # the other tags may be damaged
        only[ExifTags.Base.Orientation] = orientation
        rgb.info["exif"] = only.tobytes()
        ImageOps.exif_transpose(rgb, in_place=True)
    return rgb


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Warning:
        raise
    except Exception:  # damaged EXIF data around a good picture
        return None


def _content(item: Any, what: str) -> Any:
    """The item without what is around it; encoded bytes if it is encoded."""
    found = _unwrapped(item, what)
    if isinstance(found, str) and "://" in found:  # a Hugging Face stream names files so
        return _downloaded(found)
    if isinstance(found, (str, Path)):
        return Path(found).read_bytes()
    return bytes(found) if isinstance(found, (bytes, bytearray, memoryview)) else found


def _downloaded(url: str) -> bytes:
    with importlib.import_module("fsspec").open(url, "rb") as file:  # fsspec comes with torch
        return bytes(file.read())


def _unwrapped(item: Any, what: str) -> Any:
    if isinstance(item, (tuple, list)) and item:
        return _unwrapped(item[0], what)
    if not isinstance(item, Mapping):
        return item
    if item.keys() <= {"bytes", "path"} and item:
        return item.get("path") if item.get("bytes") is None else item["bytes"]
    names = [name for name in ("image", "img") if name in item][:1] or [name for name in item if _names_an_image(name)]
    if len(names) > 1:
        raise UnreadableImageError(
            f"Expected {what} to hold one image, but got {', '.join(map(repr, names))}. Name the one you mean 'image', or drop the others."
        )
    return _unwrapped(item[names[0]], what) if names else item


def _names_an_image(name: Any) -> bool:
    return isinstance(name, str) and "." + name.rpartition(".")[2].lower() in IMAGE_SUFFIXES


def _to_image(item: Any, what: str) -> Image.Image:
    if isinstance(item, Image.Image):
        return item
    if isinstance(item, torch.Tensor) and item.ndim == 3 and item.shape[0] in (1, 3):
        return _array_to_image(item.detach().cpu().permute(1, 2, 0).numpy(), what)  # [3, h, w] -> [h, w, 3]
    if isinstance(item, np.ndarray) and item.ndim == 3 and item.shape[2] in (1, 3):
        return _array_to_image(item, what)
    kind = f"{type(item).__name__}" + (f" of shape {tuple(item.shape)}" if hasattr(item, "shape") else "")
    raise UnreadableImageError(
        f"Expected {what} to be a PIL image, an image file's path or bytes, a tensor [3, h, w] or an array [h, w, 3] "
        f"(alone, first in a tuple, or under 'image' in a dict), but got {kind}."
    )


def _array_to_image(array: npt.NDArray[Any], what: str) -> Image.Image:
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise UnreadableImageError(
                f"Expected {what} to hold values in [0, 1], but got {low:.3g} to {high:.3g}. "
                "Give images without a normalizing transform: each model brings its own."
            )
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise UnreadableImageError(f"Expected {what} to be uint8 or floating, but got {array.dtype}.")
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
