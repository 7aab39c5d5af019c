"""The page's folder: made whole beside the old one, then put in its place; nothing of anybody else's is touched."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from neuroprobe._core import check_writable, write_whole
from neuroprobe.exceptions import InputError

INDEX = "index.html"
MANIFEST = "data/manifest.json"
_KIND = "neuroprobe.reports.page._write 1"
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
