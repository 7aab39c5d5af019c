"""A page's files: its folder, its data as scripts, and its small pictures.

The folder is made whole beside the old one and then put in its place; nothing of anybody else's is touched. A browser that
opens a page from disk runs scripts beside it and refuses to fetch anything else, so data are scripts. Pictures are written
once each and named by a number, never by the user's names.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from neuroprobe._core import Unit, check_writable, fingerprint_bytes, write_whole
from neuroprobe.exceptions import InputError, UnreadableImageError
from neuroprobe.images import Images

INDEX = "index.html"
MANIFEST = "data/manifest.json"
_KIND = "neuroprobe page 1"
_FOLDERS = ("data", "images")

#: What a page consists of. A manifest that names anything else is not believed.
_OURS = re.compile(r"index\.html|(data|images)/[A-Za-z0-9][A-Za-z0-9._-]*")


def check_folder(folder: Path) -> list[str]:
    """The files of an earlier page in this folder.

    Raises
    ------
    InputError
        The folder cannot be made or written to, or holds an ``index.html``, or files in ``data`` or ``images``, that are no page's.
    """
    check_writable(folder)
    there = [name for name in (INDEX, *_FOLDERS) if os.path.lexists(folder / name)]
    foreign = [name for name in there if (folder / name).is_symlink()]
    if foreign:
        raise InputError(f"Expected a folder for a page, but {str(folder / foreign[0])!r} is a link. Choose another folder.")
    files = _read_manifest(folder)
    known = set(files or ())
    foreign = [name for name in there if name not in known and not (folder / name).is_dir()]
    foreign += [f"{name}/{path.name}" for name in _FOLDERS for path in _visible(folder / name) if f"{name}/{path.name}" not in known]
    if foreign:
        raise InputError(
            f"Expected an empty folder, or one with an earlier page and nothing else in data and images, but {str(folder)!r} holds "
            f"{foreign[0]!r}. Choose another folder, or move it away."
        )
    return sorted(known)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A folder within `folder` to make a page in; it is gone afterward."""
    folder.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".page-", suffix=".part", dir=folder))
    try:
        for name in _FOLDERS:
            (stage / name).mkdir()
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def put_in_place(stage: Path, folder: Path, old: Sequence[str]) -> list[Path]:
    """Replace the old page by the one in `stage`: its ``index.html`` goes first, and the new one comes last."""
    new = sorted(path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file() and path.name != INDEX)
    (folder / INDEX).unlink(missing_ok=True)
    for name in _FOLDERS:
        (folder / name).mkdir(exist_ok=True)
    _write_manifest(folder, sorted({*old, *new, INDEX, MANIFEST}))  # whatever stops us, the next page knows what is ours
    for name in old:
        if name != MANIFEST:
            (folder / name).unlink(missing_ok=True)
    for name in new:
        os.replace(stage / name, folder / name)
    _write_manifest(folder, [*new, INDEX, MANIFEST])
    os.replace(stage / INDEX, folder / INDEX)
    return [folder / INDEX, *(folder / name for name in (*new, MANIFEST))]


def _read_manifest(folder: Path) -> list[str] | None:
    """The files of the page that is here; None if there is none."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = found["files"] if found["page"] == _KIND else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    good = isinstance(files, list) and all(isinstance(name, str) and _OURS.fullmatch(name) for name in files)
    return files if good else None


def _write_manifest(folder: Path, files: Sequence[str]) -> None:
    write_whole(folder / MANIFEST, (json.dumps({"page": _KIND, "files": list(files)}, indent=1) + "\n").encode())


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, if there is one; what begins with a dot is a part of a file that was never finished."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []


# --- data as scripts

#: JSON stands in a script, and a script may come to stand in a page: nothing in it can end either.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def as_json(value: Any) -> str:
    """JSON of ASCII alone (so U+2028, and halves of surrogate pairs, are escapes), which cannot end a script.

    Parameters
    ----------
    value : lists, dicts with keys of our own, texts, numbers that are finite, None

    Examples
    --------
    >>> as_json(["</script>", None, 1.5])
    '["\\\\u003c/script\\\\u003e",null,1.5]'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character, escape in _ESCAPES.items():  # outside texts, JSON has none of these
        text = text.replace(character, escape)
    return text


def as_script(name: str, fingerprint: str, payload: str) -> bytes:
    """A script that hands the JSON `payload` to the page, unless it belongs to another page."""
    return f"neuroprobe.take({as_json(name)},{as_json(fingerprint)},{payload});\n".encode("ascii")


def number(value: Any, digits: int = 4) -> float | int | None:
    """A number with so many significant digits; None for what is not finite.

    Examples
    --------
    >>> number(0.123456), number(3.0), number(float("nan"))
    (0.1235, 3, None)
    """
    value = float(value)
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


class Texts:
    """Texts that stand once in a script, and are named by their number elsewhere."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: Any) -> int:
        """The number of a text, new or not."""
        return self._numbers.setdefault(str(text), len(self._numbers))

    @property
    def all(self) -> list[str]:
        """The texts in the order of their numbers."""
        return list(self._numbers)


def column(values: Iterable[Any], form: Callable[[Any], Any] = number) -> list[Any]:
    """A column of a table as JSON takes it."""
    return [form(value) for value in values]


# --- pictures

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
