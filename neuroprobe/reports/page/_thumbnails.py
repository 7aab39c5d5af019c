"""Small pictures, each written once and named by a number, never by the user's names."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from neuroprobe._core import Unit, fingerprint_bytes
from neuroprobe.exceptions import UnreadableImageError
from neuroprobe.images import Images

#: The longer side of a visualization, at most.
VISUALIZATION_SIDE = 256
_QUALITY = 82


class Pictures:
    """Writes pictures into a folder and counts them.

    Attributes
    ----------
    count, size : int
        How many were written, and their bytes.
    digests : list of str
        Fingerprints of what was written, in order.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.count, self.size = 0, 0
        self.digests: list[str] = []

    def write(self, name: str, image: Image.Image, *, side: int, quality: int = _QUALITY) -> None:
        """Write ``name.jpg``, reduced to at most `side` pixels; nothing is enlarged."""
        data = jpeg(image, side=side, quality=quality)
        (self._folder / f"{name}.jpg").write_bytes(data)
        self.count, self.size = self.count + 1, self.size + len(data)
        self.digests.append(fingerprint_bytes(data))


def write_thumbnails(pictures: Pictures, images: Images, ids: Iterable[str], *, side: int) -> dict[str, int]:
    """Write every image once, and return its number by its id; one that cannot be read has none where `images` skips such."""
    position, numbers = {id_: i for i, id_ in enumerate(images.ids)}, dict[str, int]()
    for id_ in ids:
        try:
            image = images.load(position[id_])
        except UnreadableImageError:
            if images.on_error == "raise":
                raise
            continue
        pictures.write(str(len(numbers)), image, side=side)
        numbers[id_] = len(numbers)
    return numbers


def write_visualizations(pictures: Pictures, visualizations: Mapping[Unit, Image.Image]) -> dict[Unit, int]:
    """Write every visualization as ``v0.jpg``, ``v1.jpg``, ..., and return its number by its unit."""
    for number, image in enumerate(visualizations.values()):
        pictures.write(f"v{number}", image, side=VISUALIZATION_SIDE, quality=92)
    return {unit: number for number, unit in enumerate(visualizations)}


def jpeg(image: Image.Image, *, side: int, quality: int = _QUALITY) -> bytes:
    """A picture as JPEG, its longer side at most `side` pixels."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # without 4:2:0, which smears the edges of pictures as small as these; nothing of the file's own metadata is kept
    options: dict[str, Any] = {"quality": quality, "subsampling": 0, "optimize": True}
    Image.frombytes("RGB", small.size, small.tobytes()).save(buffer, format="JPEG", **options)
    return buffer.getvalue()
