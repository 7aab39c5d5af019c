"""Fixtures of several test files: the random states, a folder with damaged files, the world's images and target."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from neuroprobe import Images
from neuroprobe.world import load_target, world_images

#: Files of `damaged_folder` that are images, and that are not, in the folder's order.
GOOD = ("a_good.png", "d_misnamed.jpg", "g_good.jpg")
DAMAGED = ("b_empty.jpg", "c_truncated.jpg", "e_text.jpg", "f_wrong_header.png")


def noise(seed: int, *, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Smooth noise, so that JPEG keeps most of it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)


def pytest_configure() -> None:
    torch.set_num_threads(1)  # the models are small: threads would only wait for each other


@contextmanager
def _same_random_states() -> Iterator[None]:
    before = _random_states()
    yield
    assert _random_states() == before


def _random_states() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), kind, keys.tobytes(), rest, torch.get_rng_state().numpy().tobytes()


@pytest.fixture
def same_random_states() -> Callable[[], AbstractContextManager[None]]:
    """A context manager: python's, numpy's and torch's global random states are at its end what they were."""
    return _same_random_states


@pytest.fixture
def damaged_folder(tmp_path: Path) -> Path:
    """Three images (one with another format's suffix) between four files that are none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    noise(1).save(folder / "a_good.png")
    noise(2).save(folder / "d_misnamed.jpg", format="PNG")
    noise(3).save(folder / "g_good.jpg")
    noise(4, size=(200, 200)).save(folder / "c_truncated.jpg", quality=95)
    whole = (folder / "c_truncated.jpg").read_bytes()
    (folder / "c_truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "b_empty.jpg").write_bytes(b"")
    (folder / "e_text.jpg").write_text("not an image")
    (folder / "f_wrong_header.png").write_bytes(b"XXXX" + (folder / "a_good.png").read_bytes()[4:])
    return folder


@pytest.fixture(scope="session")
def world() -> Images:
    return world_images(12, seed=9)


@pytest.fixture
def target() -> nn.Module:
    """The world's trained target, a copy for every test."""
    return load_target()
