"""Near-duplicates: the hash, and groups by hash and by embedding against plain loops."""

from __future__ import annotations

import io

import numpy as np
import pytest
from conftest import noise
from helpers import noise_images
from PIL import Image, ImageOps

from neuroprobe.exceptions import InputError
from neuroprobe.images import Images, near_duplicate_vectors, near_duplicates
from neuroprobe.images.duplicates import average_hash


def recompressed(image: Image.Image, quality: int = 40) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(io.BytesIO(data.getvalue())).convert("RGB")


def plain_groups(n: int, near) -> list[int]:
    """Every image takes the group of the first it is linked to, again and again until nothing changes."""
    groups = list(range(n))
    pairs = [(i, j) for i in range(n) for j in range(i) if near(i, j)]
    for _ in range(n):
        for i, j in pairs:
            groups[i] = groups[j] = min(groups[i], groups[j])
    numbers = {group: k for k, group in enumerate(dict.fromkeys(groups))}
    return [numbers[group] for group in groups]


# --- the hash


def test_the_hash_worked_out_by_hand() -> None:
    fields = np.array([[0, 200], [100, 40]], dtype=np.uint8)  # mean 85
    image = Image.fromarray(np.repeat(np.repeat(fields, 5, axis=0), 7, axis=1)).convert("RGB")
    assert average_hash(image, side=2).tolist() == [-1, 1, 1, -1]


def test_a_field_is_the_mean_of_its_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40), dtype=np.uint8)
    means = pixels.reshape(4, 6, 4, 10).mean(axis=(1, 3))  # [4, 4] fields of 6 x 10 pixels
    expected = np.where(means > means.mean(), 1, -1).reshape(-1)
    assert average_hash(Image.fromarray(pixels), side=4).tolist() == expected.tolist()


# --- groups by hash


def test_copies_are_found_and_others_are_not() -> None:
    originals = [noise(seed, size=(120, 90)) for seed in range(20)]
    copies = [recompressed(i) for i in originals] + [i.resize((60, 45)) for i in originals] + [i.convert("L") for i in originals]
    groups = near_duplicates(Images([*originals, *copies]))
    assert list(groups.values()) == list(range(20)) * 4


def test_mirrored_images_are_not_found() -> None:
    originals = [noise(seed) for seed in range(10)]
    groups = near_duplicates(Images([*originals, *(ImageOps.mirror(i) for i in originals)]))
    assert len(set(groups.values())) == 20


@pytest.mark.parametrize("max_distance", [0, 9, 12, 31])
def test_groups_by_hash_are_the_plain_ones(max_distance: int) -> None:
    images = noise_images(40, seed=3, side=8)
    hashes = [average_hash(images[i], side=8) for i in range(40)]
    found = near_duplicates(images, side=8, max_distance=max_distance)
    assert list(found) == list(images.ids)
    assert list(found.values()) == plain_groups(40, lambda i, j: (hashes[i] != hashes[j]).sum() <= max_distance)


def test_images_that_cannot_be_read_have_no_group(damaged_folder) -> None:
    assert len(near_duplicates(Images(damaged_folder, on_error="skip"))) == 3


@pytest.mark.parametrize("wrong", [{"side": 1}, {"max_distance": -1}, {"max_distance": 128}, {"side": 4, "max_distance": 8}])
def test_a_distance_at_which_anything_is_near_is_refused(wrong) -> None:
    with pytest.raises(InputError, match=r"`(side|max_distance)` to be"):
        near_duplicates(noise_images(3), **wrong)


# --- groups by embedding


@pytest.mark.parametrize("min_cosine", [0.8, 0.9, 0.95])
def test_groups_by_embedding_are_the_plain_ones(min_cosine: float) -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 4))

    def near(i: int, j: int) -> bool:
        return vectors[i] @ vectors[j] / np.linalg.norm(vectors[i]) / np.linalg.norm(vectors[j]) >= min_cosine

    ids = [f"i{n}" for n in range(50)]
    found = near_duplicate_vectors(ids, vectors, min_cosine=min_cosine)
    assert list(found) == ids
    assert list(found.values()) == plain_groups(50, near)
    assert 1 < len(set(found.values())) < 50


def test_a_chain_is_one_group() -> None:
    angles = np.radians([0, 10, 20, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert list(near_duplicate_vectors("abcd", vectors, min_cosine=np.cos(np.radians(11))).values()) == [0, 0, 0, 1]


def test_blocks_change_nothing(monkeypatch) -> None:
    vectors = np.random.default_rng(1).normal(size=(60, 3))
    ids = [str(i) for i in range(60)]
    whole = near_duplicate_vectors(ids, vectors, min_cosine=0.9)
    monkeypatch.setattr("neuroprobe.images.duplicates._BLOCK", 7)
    assert near_duplicate_vectors(ids, vectors, min_cosine=0.9) == whole


def test_many_equal_images_cost_no_more_than_one() -> None:
    vectors = np.repeat(np.eye(2), 50_000, axis=0)  # all pairs would be 5e9
    groups = near_duplicate_vectors([str(i) for i in range(100_000)], vectors, min_cosine=0.9)
    assert list(groups.values()) == [0] * 50_000 + [1] * 50_000


@pytest.mark.parametrize(
    ("vectors", "min_cosine", "message"),
    [
        (np.eye(3), 1.0, "`min_cosine` to be a number, above 0 and below 1, but got 1"),
        (np.eye(3), 0, "`min_cosine` to be a number, above 0 and below 1, but got 0"),
        (np.eye(2), 0.9, r"vectors \[3, d\], one per id, but got \[2, 2\]"),
        (np.zeros((3, 2)), 0.9, "finite length above 0"),
        (np.full((3, 2), np.nan), 0.9, "finite length above 0"),
    ],
)
def test_bad_vectors_are_refused(vectors, min_cosine: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        near_duplicate_vectors("abc", vectors, min_cosine=min_cosine)


def test_images_at_just_the_distance_are_near_and_one_further_is_not() -> None:
    """Fields of 2 x 2, each black or white: hashes that differ in one bit of four."""
    pictures = [np.array(cells, np.uint8).repeat(4, 0).repeat(4, 1) for cells in ([[255, 0], [0, 0]], [[255, 255], [0, 0]])]
    images = Images([Image.fromarray(picture).convert("RGB") for picture in pictures])
    assert list(near_duplicates(images, side=2, max_distance=1).values()) == [0, 0]
    assert list(near_duplicates(images, side=2, max_distance=0).values()) == [0, 1]
