"""2,000 damaged images between good ones: none stops the pass, and no good image loses its id or a pixel."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import noise
from PIL import Image

from neuroprobe import Images
from neuroprobe.exceptions import UnreadableImageError
from neuroprobe.images import collect

pytestmark = pytest.mark.filterwarnings("ignore")  # decoders warn of much

SEED = 20231107
N_DAMAGED = 2000
FORMATS: dict[str, dict[str, Any]] = {
    "jpg": {"format": "JPEG", "quality": 90},
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "lossless": True},
    "gif": {"format": "GIF"},
    "tif": {"format": "TIFF", "compression": "tiff_lzw"},
}
Damage: TypeAlias = Callable[[bytes, np.random.Generator], bytes]


@cache
def encoded(seed: int, suffix: str) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 1 + seed % 8  # damage may hit what turns the picture, too
    noise(seed, size=(24, 20)).save(file, **FORMATS[suffix], **({} if suffix == "gif" else {"exif": exif}))
    return file.getvalue()


def flipped(data: bytes, generator: np.random.Generator) -> bytes:
    """Some bytes anywhere are others."""
    changed = bytearray(data)
    for _ in range(generator.integers(1, 20)):
        changed[generator.integers(len(data))] ^= int(generator.integers(1, 256))
    return bytes(changed)


def flipped_early(data: bytes, generator: np.random.Generator) -> bytes:
    """Bytes of the header are others: sizes, counts and offsets that lie."""
    n = min(64, len(data))
    return flipped(data[:n], generator) + data[n:]


def cut(data: bytes, generator: np.random.Generator) -> bytes:
    """The end is missing, or everything."""
    return data[: generator.integers(len(data))]


def holed(data: bytes, generator: np.random.Generator) -> bytes:
    """A part in the middle is missing."""
    start, stop = sorted(generator.integers(len(data), size=2))
    return data[:start] + data[stop:]


def wrong_header(data: bytes, generator: np.random.Generator) -> bytes:
    """Another format's beginning before this one's data."""
    other = encoded(int(generator.integers(5)), list(FORMATS)[generator.integers(5)])
    n = int(generator.integers(2, 40))
    return other[:n] + data[n:]


def zeroed(data: bytes, generator: np.random.Generator) -> bytes:
    """A block that the disk lost."""
    start = int(generator.integers(len(data)))
    n = int(generator.integers(1, 200))
    return data[:start] + bytes(len(data[start : start + n])) + data[start + n :]


DAMAGES: tuple[Damage, ...] = (flipped, flipped_early, cut, holed, wrong_header, zeroed)


def probing_set(n_damaged: int) -> Iterator[tuple[str, bytes]]:
    """Names, in order, and bytes: after every three damaged images a good one, whose name ends with its seed."""
    generator = np.random.default_rng(SEED)
    for i in range(n_damaged):
        suffix = list(FORMATS)[i % 5]
        yield f"{i:04}-bad.{suffix}", DAMAGES[i // 5 % 6](encoded(i % 40, suffix), generator)
        if i % 3 == 2:
            yield f"{i:04}-good-{i % 40}.{suffix}", encoded(i % 40, suffix)


class Pixels:
    """A consumer that keeps what it gets."""

    def __init__(self) -> None:
        self.rows: list[torch.Tensor] = []

    @staticmethod
    def transform(image: Image.Image) -> torch.Tensor:
        """The corner at the top left, [24, 24, 3], uint8, whatever size a damaged image has."""
        assert image.mode == "RGB"
        return torch.from_numpy(np.asarray(image.crop((0, 0, 24, 24))).copy())

    def consume(self, batch: torch.Tensor, record: Any) -> None:
        self.rows += list(batch)

    def finish(self, collected: Any) -> tuple[list[torch.Tensor], Any]:
        return self.rows, collected


@cache
def expected(seed: int, suffix: str) -> npt.NDArray[np.uint8]:
    """Pixels of a good image, read in the plainest way."""
    image = Image.open(io.BytesIO(encoded(seed, suffix)))
    image.load()
    orientation = 1 if suffix in ("gif", "tif") else 1 + seed % 8  # PIL has turned a TIFF already
    turned = np.asarray(image.convert("RGB"))
    if orientation in (5, 6, 7, 8):
        turned = turned.transpose(1, 0, 2)  # [h, w, 3] -> [w, h, 3]
    upside_down, mirrored = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return turned[:: -1 if upside_down else 1, :: -1 if mirrored else 1]


def good(names: Iterable[str]) -> list[str]:
    return [name for name in names if "good" in name]


def check(images: Images, names: Sequence[str], *, workers: int = 0) -> Mapping[str, str]:
    """A pass: every name is a row or skipped, in order, and the rows of good names are their pixels. What was skipped."""
    ((rows, collected),) = collect(images, [Pixels()], batch_size=32, workers=workers)
    assert list(collected.ids) == [name for name in names if name not in collected.skipped]
    assert good(collected.ids) == good(names)
    for name, row in zip(collected.ids, rows, strict=True):
        if "good" in name:
            seed, suffix = name.rpartition("-")[2].split(".")
            pixels = expected(int(seed), suffix)
            np.testing.assert_array_equal(row.numpy()[: pixels.shape[0], : pixels.shape[1]], pixels)
    for name, reason in collected.skipped.items():
        assert name in reason
        assert "cannot be read" in reason
    return collected.skipped


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("damaged")
    for name, data in probing_set(N_DAMAGED):
        (root / name).write_bytes(data)
    return root


@pytest.mark.filterwarnings("error")  # which image is read does not hang on what is done about warnings
def test_two_thousand_in_a_folder(folder: Path) -> None:
    names = [name for name, _ in probing_set(N_DAMAGED)]
    assert len(names) - len(good(names)) == N_DAMAGED
    assert len(good(names)) == N_DAMAGED // 3
    began = time.perf_counter()
    skipped = check(Images(folder, on_error="skip"), names)
    assert time.perf_counter() - began < 20
    assert N_DAMAGED * 0.4 < len(skipped) < N_DAMAGED  # some damage no decoder can know of
    assert {name.rpartition(".")[2] for name in skipped} == set(FORMATS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert check(Images(folder, on_error="skip"), names).keys() == skipped.keys()


def test_a_part_in_a_stream(folder: Path) -> None:
    part = list(probing_set(300))
    names = [name for name, _ in part]
    in_folder = check(Images(folder, on_error="skip").subset(names), names)
    assert check(Images(lambda: iter(part), on_error="skip"), names).keys() == in_folder.keys()


def test_a_part_in_another_process(folder: Path) -> None:
    """A decoder that crashed would take the worker with it."""
    names = [name for name, _ in probing_set(300)]
    images = Images(folder, on_error="skip").subset(names)
    assert check(images, names, workers=1) == check(images, names)  # with the same reasons


def test_the_first_damaged_image_stops_a_pass_that_is_to_stop(folder: Path) -> None:
    images = Images(folder, on_error="skip")
    skipped = next(iter(check(images.subset(images.ids[:40]), images.ids[:40])))
    with pytest.raises(UnreadableImageError, match=skipped):
        list(Images([folder / id_ for id_ in images.ids[:40]]))
