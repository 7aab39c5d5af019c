"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

from neuroprobe.exceptions import InputError


def write_whole(path: Path, data: bytes | Callable[[IO[bytes]], object]) -> None:
    """Write a file, or have it written, so that it is there whole or not at all: after a crash of the machine too."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(part, "xb") as file:
            if isinstance(data, bytes):
                file.write(data)
            else:
                data(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_writable(folder: str | Path) -> None:
    """Raise `InputError` if a report could not be saved in this folder, there already or not; nothing is made."""
    there = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise InputError(f"Expected a folder for the report, but {str(there)!r} is a file. Choose another.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"Expected a folder that can be written to, but {str(there)!r} cannot. Choose another.")
