"""Texts to unit vectors: each text once, in batches, and kept on disk if a folder is given.

What is kept is known by content: by the encoder's fingerprint and the text itself, never by the name of a word list. So a
vocabulary that shares words with an earlier one embeds only what is new, and another encoder never gets these vectors.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import sys
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from neuroprobe._core import Floats, fingerprint_bytes, fingerprint_texts, unit_length, write_whole
from neuroprobe.concepts.encoders._base import ImageTextEncoder
from neuroprobe.exceptions import InputError, StoreError

#: Texts per call of the encoder and per file of the cache; what was embedded before an interruption is kept.
_BATCH = 2048
_FORMAT = "text vectors 1"


class TextCache:
    """Text vectors of one encoder in a folder, which many processes may use at once; `StoreError` if it cannot be written.

    A file holds the digests of up to 2,048 texts and their vectors (npz, float32, read without pickle). It is named by its
    content and comes into place whole, so that writers need no lock. A damaged file, which its checksums show, counts as absent:
    its texts are embedded again.
    """

    def __init__(self, folder: str | Path, encoder: ImageTextEncoder) -> None:
        self.folder = Path(folder) / fingerprint_texts([_FORMAT, str(encoder.fingerprint)])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise StoreError(f"Expected a folder for text vectors, but {str(folder)!r} cannot be written: {error.strerror}.") from error

    def read(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """The vectors that are there, by text."""
        wanted = {_digest(text).tobytes(): text for text in texts}
        found: dict[str, torch.Tensor] = {}
        for path in sorted(self.folder.glob("*.npz")):
            if not wanted:
                break
            digests, vectors = _read_file(path, wanted)
            found.update({wanted.pop(key): vector for key, vector in zip(digests, vectors, strict=True) if key in wanted})
        return found

    def write(self, texts: Sequence[str], vectors: torch.Tensor) -> None:
        """Keep the vectors [n, d] of texts; `StoreError` if they cannot be written, for example because the disk is full."""
        buffer = io.BytesIO()
        np.savez(buffer, digests=np.stack([_digest(text) for text in texts]), vectors=vectors.numpy().astype("<f4"))
        data = buffer.getvalue()
        path = self.folder / f"{fingerprint_bytes(data)}.npz"
        try:
            write_whole(path, data)
        except OSError as error:
            if path.exists():  # another writer with the same content was faster
                return
            raise StoreError(f"Expected to write text vectors, but {str(path)!r} cannot be written: {error.strerror}.") from error


def _digest(text: str) -> npt.NDArray[np.uint8]:
    return np.frombuffer(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest(), dtype=np.uint8)


def _read_file(path: Path, wanted: Any) -> tuple[list[bytes], list[torch.Tensor]]:
    """Digests and vectors of a file, or none: if nothing in it is wanted, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:  # which checks a sum for each of the two
            digests = [digest.tobytes() for digest in file["digests"]]
            rows = [row for row, digest in enumerate(digests) if digest in wanted]
            if not rows:
                return [], []
            vectors = torch.from_numpy(file["vectors"].astype(np.float32))
        if vectors.ndim != 2 or len(vectors) != len(digests):
            return [], []
        return [digests[row] for row in rows], list(vectors[rows])
    except (OSError, ValueError, TypeError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return [], []


def embed_texts(
    encoder: ImageTextEncoder, texts: Sequence[str], *, cache: str | Path | None = None, progress: bool | None = None
) -> torch.Tensor:
    """Unit vectors of texts, float32 [n_texts, d]; a text that occurs several times is embedded once.

    `cache` is a folder that keeps the vectors. A progress bar stands on standard error if `progress` is True; if it is None, only
    on a terminal, and only for more than 2,048 texts. Raises what the encoder, `checked_vectors` and `TextCache` raise.
    """
    store = None if cache is None else TextCache(cache, encoder)
    unique = list(dict.fromkeys(texts))
    found = {} if store is None else store.read(unique)
    missing = [text for text in unique if text not in found]
    shown = len(missing) > _BATCH and sys.stderr.isatty() if progress is None else progress
    with tqdm(total=len(missing), unit="text", desc="texts", disable=not shown) as bar:
        for start in range(0, len(missing), _BATCH):
            part = missing[start : start + _BATCH]
            vectors = checked_vectors(encoder.encode_texts(part), len(part), "encode_texts")
            if store is not None:
                store.write(part, vectors)
            found.update(zip(part, vectors, strict=True))
            bar.update(len(part))
    return torch.stack([found[text] for text in texts])


def checked_vectors(vectors: Any, n: int, method: str) -> torch.Tensor:
    """What an encoder's method returned, float32 [n, d] on the CPU; `InputError` for another shape or length than one."""
    rows = _rows(vectors, n, method).float()
    lengths = rows.norm(dim=1)
    if not torch.allclose(lengths, torch.ones(n), atol=1e-3):
        worst = lengths[(lengths - 1).abs().argmax()]
        raise InputError(f"Expected `{method}` to return unit vectors, but one has length {float(worst):.3g}.")
    return rows


def _rows(vectors: Any, n: int, method: str) -> torch.Tensor:
    rows = torch.as_tensor(vectors).detach().cpu()
    if rows.ndim != 2 or len(rows) != n:
        raise InputError(f"Expected `{method}` to return [{n}, d], but got {tuple(rows.shape)}.")
    return rows


@runtime_checkable
class TextEncoder(Protocol):
    """Texts as vectors [n, d], of any length; every `neuroprobe.ImageTextEncoder` is one."""

    def encode_texts(self, texts: list[str]) -> Any: ...


def text_vectors(encoder: TextEncoder, texts: Iterable[str]) -> dict[str, Floats]:
    """A unit vector for every text that occurs, each embedded once; "" has none.

    Raises
    ------
    InputError
        No encoder of texts, or vectors that are not one per text, not finite, or zero.
    """
    if not isinstance(encoder, TextEncoder):
        raise InputError(f"Expected an encoder with encode_texts(texts), but got {encoder!r:.80}.")
    names = [text for text in dict.fromkeys(texts) if text]
    if not names:
        return {}
    vectors = _rows(encoder.encode_texts(names), len(names), "encode_texts").double().numpy()
    lengths = np.linalg.norm(vectors, axis=1)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise InputError("Expected `encode_texts` to return finite vectors that are not zero, but one is not.")
    return dict(zip(names, unit_length(vectors), strict=True))
