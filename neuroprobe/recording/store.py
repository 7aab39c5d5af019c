"""Recordings on disk: one memory-mapped array per layer, a manifest that says what they are of, and a journal.

A store is a folder:

    manifest.json        what it is of (identity), and once complete the layers and their shapes
    images.json          once complete: the images' ids and fingerprints, and what was skipped
    layer-000.bin ...    values, [n_images, n_units], rows after each other
    journal-0-0.jsonl    while it is written: a line per batch that is whole, with a checksum of its values

A batch counts only once its line is in the journal, and its values fit the checksum. So whatever stops a recording,
it goes on from there, and nothing half-written is ever read as whole.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout

from neuroprobe._core import write_whole
from neuroprobe.exceptions import StoreError
from neuroprobe.images import BatchRecord, Collected
from neuroprobe.recording.activations import _FORMAT, Activations, ValueType, _layer_file, converted, read_manifest

#: What may be in a folder before its manifest is: the lock, and a manifest that was not written to its end.
_BEFOREHAND = ("lock", ".manifest.json.*.part")


class StoreKeeper:
    """Writes rows into a store; the result is `Activations` that are read from it.

    Parameters
    ----------
    folder : Path
    identity : mapping
        What the recording is of. A store of anything else is refused.
    layers : tuple of str
    dtype : {"float32", "float16"}, default "float32"
    rank : int, default 0
        Each process writes its own rows and its own journal.

    Raises
    ------
    StoreError
        The folder holds something else, or a recording of something else; the message says what differs.
    """

    def __init__(
        self, folder: Path, *, identity: Mapping[str, Any], layers: tuple[str, ...], dtype: ValueType = "float32", rank: int = 0
    ) -> None:
        self.folder, self.layers, self.rank = folder, layers, rank
        self._identity = _as_json({**identity, "layers": list(layers), "dtype": dtype})
        self._type: ValueType = dtype
        self._dtype = np.dtype(dtype)
        self._files: dict[str, io.FileIO] = {}
        self._widths: dict[str, int] = {}
        self._open()
        self._records = self._whole_batches()

    def _open(self) -> None:
        self.is_complete = False
        manifest = self.folder / "manifest.json"
        if manifest.is_file():
            found = read_manifest(self.folder)
            check_identity(self.folder, found["identity"], self._identity)
            self.is_complete = bool(found["complete"])
        elif self.folder.is_dir() and not all(any(p.match(ours) for ours in _BEFOREHAND) for p in self.folder.iterdir()):
            raise StoreError(f"Expected an empty folder or a store, but {str(self.folder)!r} holds other files. Choose another folder.")
        elif self.rank > 0:
            raise StoreError(
                f"Expected every process to see the store that the first one made, but for process {self.rank} {str(self.folder)!r} "
                "is none. Choose a folder that all machines share."
            )
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(manifest, json.dumps({"format": _FORMAT, "identity": self._identity, "complete": False}, indent=2).encode())

    def _whole_batches(self) -> dict[int, BatchRecord]:
        """The batches of all journals whose values are as they were written."""
        records = {}
        for path in sorted(self.folder.glob("journal-*.jsonl")):
            for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last line end was not written whole
                try:
                    entry = json.loads(line)
                except ValueError:  # damaged: its batch is recorded again
                    continue
                record = BatchRecord(**entry["record"])
                if self._checksum_on_disk(record, entry["widths"]) == entry["checksum"]:
                    records[record.number] = record
                    self._widths = entry["widths"]
        return records

    def _checksum_on_disk(self, record: BatchRecord, widths: Mapping[str, int]) -> int | None:
        checksum = 0
        for layer in self.layers:
            try:
                values = self._read_rows(layer, record.rows, widths[layer])
            except (OSError, KeyError):
                return None
            checksum = zlib.crc32(values, checksum)
        return checksum

    def _read_rows(self, layer: str, rows: Sequence[int], width: int) -> bytes:
        size, file, data = width * self._dtype.itemsize, self._file(layer), b""
        for start, n in _runs(rows):
            file.seek(start * size)
            data += file.read(n * size)
        return data

    def recorded(self) -> Mapping[int, BatchRecord]:
        return self._records

    def keep(self, record: BatchRecord, rows: Mapping[str, torch.Tensor]) -> None:
        checksum = 0
        try:
            for layer in self.layers:
                values = np.ascontiguousarray(converted(rows[layer], self._type, layer=layer).numpy())
                self._widths[layer] = values.shape[1]
                checksum = zlib.crc32(values.tobytes(), checksum)
                self._write_rows(layer, record.rows, values)
            line = json.dumps({"record": asdict(record), "widths": self._widths, "checksum": checksum})
            self._write(self._journal(), line.encode() + b"\n")
        except OSError as error:
            raise StoreError(_cut_off(f"write batch {record.number}", self.folder, error)) from error

    def _write_rows(self, layer: str, rows: Sequence[int], values: npt.NDArray[Any]) -> None:
        size, done = values.shape[1] * self._dtype.itemsize, 0
        for start, n in _runs(rows):
            self._file(layer).seek(start * size)
            self._write(self._file(layer), values[done : done + n].tobytes())
            done += n

    def _write(self, file: io.FileIO, data: bytes) -> None:
        while data:
            data = data[file.write(data) :]

    def _file(self, layer: str) -> io.FileIO:
        if layer not in self._files:
            path = self.folder / _layer_file(self.layers.index(layer))
            path.touch()
            self._files[layer] = io.FileIO(path, "r+")  # unbuffered: what is written is with the system, whatever happens here
        return self._files[layer]

    def _journal(self) -> io.FileIO:
        """A journal of this run's own, so that no line follows one that was cut off."""
        if "journal" not in self._files:
            run = len(list(self.folder.glob(f"journal-{self.rank}-*.jsonl")))
            self._files["journal"] = io.FileIO(self.folder / f"journal-{self.rank}-{run}.jsonl", "x")
        return self._files["journal"]

    def finish(self, collected: Collected, metadata: Mapping[str, Any]) -> Activations:
        """Close the gaps that skipped images left, and declare the store complete."""
        self.close()
        if self.rank == 0:
            if collected.distributed:
                self._check_whole(collected)
            try:
                self._complete(collected, metadata)
            except OSError as error:
                raise StoreError(_cut_off("complete the recording", self.folder, error)) from error
        if collected.distributed:
            torch.distributed.barrier()
        return Activations.open(self.folder)

    def _check_whole(self, collected: Collected) -> None:
        """Other processes' rows must be here, too: on another machine, the same path may be another folder."""
        here = {row for record in self._whole_batches().values() for row in record.rows}
        self.close()
        missing = len(set(collected.rows) - here)
        if missing:
            raise StoreError(
                f"Expected the rows of all {len(collected.rows)} images in {str(self.folder)!r}, but {missing} are not there. "
                "Choose a folder that all machines share."
            )

    def _complete(self, collected: Collected, metadata: Mapping[str, Any]) -> None:
        widths = self._widths
        for i, layer in enumerate(self.layers):
            _close_gaps(self.folder / _layer_file(i), collected.rows, widths[layer] * self._dtype.itemsize)
        images = {"ids": collected.ids, "skipped": dict(collected.skipped), "fingerprint": collected.fingerprint}
        write_whole(self.folder / "images.json", json.dumps(images).encode())
        shapes = {layer: [len(collected.ids), widths[layer]] for layer in self.layers}
        manifest = {"format": _FORMAT, "identity": self._identity, "complete": True, "shapes": shapes, "metadata": _as_json(metadata)}
        write_whole(self.folder / "manifest.json", json.dumps(manifest, indent=2).encode())
        for journal in self.folder.glob("journal-*.jsonl"):
            journal.unlink()

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files = {}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The store for one recording at a time; the lock goes with the process that holds it.

    `StoreError` where another process is recording into it, or it is no folder that can be written.
    """
    lock = FileLock(folder / "lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise StoreError(
            f"Expected a store that nobody else writes, but another process is recording into {str(folder)!r}. "
            "Wait for it, or choose another folder."
        ) from error
    except OSError as error:
        raise StoreError(
            f"Expected a folder to write a store into, but {str(folder)!r} is none ({error.strerror or error}). Choose another folder; "
            "a complete store is read with Activations.open."
        ) from error
    with lock:
        yield


def check_identity(folder: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise `StoreError` with what differs, unless a store is of what is expected."""
    differ = [key for key in {**found, **expected} if found.get(key) != expected.get(key)]
    if differ:
        what = "; ".join(f"{key} is {_shown(found.get(key))}, not {_shown(expected.get(key))}" for key in sorted(differ))
        raise StoreError(
            f"Expected a store of the same recording, but in {str(folder)!r} {what}. Choose another folder, or delete that one."
        )


def _cut_off(what: str, folder: Path, error: OSError) -> str:
    return (
        f"Expected to {what} into {str(folder)!r}, but that failed ({error.strerror}). What is written stays: make room, and record "
        "into the same store again to go on from there."
    )


def _close_gaps(path: Path, rows: tuple[int, ...], row_size: int) -> None:
    """Keep only these rows of a file, in a new file that takes its place whole."""
    if rows == tuple(range(len(rows))):
        os.truncate(path, len(rows) * row_size)
        return
    part = path.with_suffix(".part")
    with open(path, "rb") as source, open(part, "wb") as target:
        for start, n in _runs(rows):
            source.seek(start * row_size)
            for _ in range(n):
                target.write(source.read(row_size))
    os.replace(part, path)


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Increasing row numbers as runs of neighbors: (first, how many)."""
    start, n = None, 0
    for row in rows:
        if start is not None and row == start + n:
            n += 1
            continue
        if start is not None:
            yield start, n
        start, n = row, 1
    if start is not None:
        yield start, n


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(dict(values))))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
