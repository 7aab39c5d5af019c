"""Images: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DAMAGED, GOOD, noise
from PIL import Image
from torchvision.transforms.functional import normalize, to_tensor

from neuroprobe import Images
from neuroprobe.exceptions import InputError, UnknownNameError, UnreadableImageError


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


class Numbered(list[Image.Image]):
    """Has ids of its own, as torchvision's CocoDetection."""

    ids = (139, 285)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    (root / "deep" / "er").mkdir(parents=True)
    noise(1).save(root / "b.png")
    noise(2).save(root / "deep" / "a.PNG")
    noise(3).save(root / "deep" / "er" / "c.bmp")
    (root / "notes.txt").write_text("no image, and not called one")
    return root


class TestFolder:
    def test_ids_are_relative_paths_in_order(self, folder: Path) -> None:
        images = Images(folder)
        assert images.ids == ("b.png", "deep/a.PNG", "deep/er/c.bmp")
        for i, seed in enumerate((1, 2, 3)):
            np.testing.assert_array_equal(pixels(images[i]), pixels(noise(seed)))

    def test_a_string_is_a_folder_too(self, folder: Path) -> None:
        assert Images(str(folder)).fingerprint == Images(folder).fingerprint

    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("text")
        with pytest.raises(InputError, match=r"found none. Looked for files ending in .bmp, .gif, .jpeg"):
            Images(tmp_path)

    @pytest.mark.parametrize("closed", ["images", "deep"])
    def test_a_folder_that_cannot_be_listed_is_named(self, folder: Path, monkeypatch: pytest.MonkeyPatch, closed: str) -> None:
        real = os.scandir

        def refuse(path: str) -> object:  # root may list everything, so rights alone show nothing here
            if Path(path).name == closed:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(InputError, match=rf"Expected a readable folder, but '.*{closed}' cannot be listed: Permission denied"):
            Images(folder)

    def test_a_folder_called_like_an_image_is_searched_and_is_none(self, folder: Path) -> None:
        (folder / "z.png").mkdir()
        noise(4).save(folder / "z.png" / "inside.png")
        assert Images(folder).ids[-1] == "z.png/inside.png"


class TestPaths:
    def test_ids_are_the_paths_as_given(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        images = Images(["deep/a.PNG", Path("b.png")])
        assert images.ids == ("deep/a.PNG", "b.png")
        np.testing.assert_array_equal(pixels(images[0]), pixels(noise(2)))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nowhere", {}, "Expected a folder of images, but there is nothing at 'nowhere'"),
        ("b.png", {}, "Expected a folder of images, but there is a file at 'b.png'"),
        (["b.png", Path("b.png")], {}, "Expected unique image ids, but 'b.png' occurs twice"),
        ([], {}, "Expected at least one image, but got an empty list"),
        (np.zeros((0, 8, 8, 3), dtype=np.uint8), {}, "Expected at least one image, but got an empty"),
        (["b.png", "gone.png"], {}, r"'gone.png' cannot be read \(.*No such file"),
        (7, {}, "Expected a folder, a list of paths, a dataset .* but got int"),
        (".", {"on_error": "ignore"}, "Expected `on_error` to be 'raise' or 'skip', but got 'ignore'"),
        ([noise(1), noise(2)], {"ids": ["x"]}, r"Expected one id per image \(2\), but got 1"),
        ([noise(1), noise(2)], {"ids": ["x", "x"]}, "Expected unique image ids, but 'x' occurs twice"),
        (Numbered([noise(1)]), {}, r"Expected one id per image \(1\), but got 2"),
    ],
)
def test_what_is_no_probing_set(folder: Path, monkeypatch: pytest.MonkeyPatch, source: Any, options: dict[str, Any], message: str) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises((InputError, UnreadableImageError), match=message):
        Images(source, **options)


class TestDamagedFiles:
    @pytest.mark.parametrize("name", ["b_empty.jpg", "e_text.jpg", "f_wrong_header.png"])
    def test_a_wrong_beginning_shows_at_once(self, damaged_folder: Path, name: str) -> None:
        with pytest.raises(UnreadableImageError, match=f"Expected an image, but '.*{name}' cannot be read .*on_error='skip'"):
            Images([damaged_folder / "a_good.png", damaged_folder / name])

    def test_a_truncated_file_shows_when_it_is_read(self, damaged_folder: Path) -> None:
        images = Images([damaged_folder / "c_truncated.jpg"])
        with pytest.raises(UnreadableImageError, match=r"c_truncated.jpg' cannot be read \(.*truncated"):
            images[0]

    def test_a_folder_is_refused_by_the_first_damaged_file(self, damaged_folder: Path) -> None:
        with pytest.raises(UnreadableImageError, match=r"b_empty.jpg"):
            Images(damaged_folder)

    def test_skipping_keeps_the_ids_until_a_pass(self, damaged_folder: Path) -> None:
        images = Images(damaged_folder, on_error="skip")
        assert images.ids == tuple(sorted(GOOD + DAMAGED))
        for id_ in DAMAGED:
            with pytest.raises(UnreadableImageError, match=id_):
                images[images.ids.index(id_)]

    def test_a_png_called_jpg_is_read(self, damaged_folder: Path) -> None:
        np.testing.assert_array_equal(pixels(Images([damaged_folder / "d_misnamed.jpg"])[0]), pixels(noise(2)))

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
    def test_a_name_that_is_no_utf8_counts_in_the_fingerprint(self, damaged_folder: Path) -> None:
        before = Images(damaged_folder, on_error="skip").fingerprint
        (damaged_folder / os.fsdecode(b"\xff.png")).write_bytes(b"no image")
        assert Images(damaged_folder, on_error="skip").fingerprint != before

    def test_unreadable_images_count_in_the_fingerprint(self, damaged_folder: Path) -> None:
        whole = Images(damaged_folder, on_error="skip")
        assert whole.fingerprint != Images([damaged_folder / name for name in GOOD]).fingerprint
        assert whole.fingerprint == Images(damaged_folder, on_error="skip").fingerprint


class TestDatasets:
    PICTURE = noise(5, size=(10, 8))

    @pytest.mark.parametrize(
        "item",
        [
            PICTURE,
            pixels(PICTURE),
            torch.from_numpy(pixels(PICTURE).copy()).permute(2, 0, 1),
            to_tensor(PICTURE),
            to_tensor(PICTURE).double(),
            to_tensor(PICTURE).requires_grad_(),
            pixels(PICTURE) / 255,
            (PICTURE, 3),
            [to_tensor(PICTURE), {"label": 3}],
            {"label": 3, "image": PICTURE},
            {"img": pixels(PICTURE)},
        ],
        ids=["pil", "array", "uint8 tensor", "tensor", "double", "grad", "float array", "tuple", "list", "dict image", "dict img"],
    )
    def test_every_kind_of_item_gives_the_same_image(self, item: object) -> None:
        images = Images([item])
        assert images.ids == ("0",)
        np.testing.assert_array_equal(pixels(images[0]), pixels(self.PICTURE))
        assert images.fingerprint == Images([self.PICTURE]).fingerprint

    def test_one_channel(self) -> None:
        gray = np.arange(48, dtype=np.uint8).reshape(6, 8)
        for item in (gray[..., None], torch.from_numpy(gray)[None], torch.from_numpy(gray / np.float32(255))[None]):
            np.testing.assert_array_equal(pixels(Images([item])[0]), np.stack([gray] * 3, axis=2))

    def test_one_array_of_many_images(self) -> None:
        many = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
        np.testing.assert_array_equal(pixels(Images(many)[2]), many[2])

    def test_a_normalized_tensor_is_refused_with_a_hint(self) -> None:
        normalized = normalize(to_tensor(self.PICTURE), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        with pytest.raises(UnreadableImageError, match=r"item 0 .* values in \[0, 1\], but got -.* without a normalizing transform"):
            Images([normalized])[0]

    @pytest.mark.parametrize(
        ("item", "message"),
        [
            (torch.zeros(4, 8, 8), r"item 0 .* but got Tensor of shape \(4, 8, 8\)"),
            (torch.zeros(8, 8), r"but got Tensor of shape \(8, 8\)"),
            (np.zeros((3, 8, 8)), r"but got ndarray of shape \(3, 8, 8\)"),
            (np.zeros((8, 8, 3), dtype=np.int64), "to be uint8 or floating, but got int64"),
            (torch.full((3, 8, 8), float("nan")), r"values in \[0, 1\], but got nan"),
            ({"picture": PICTURE}, "under 'image' in a dict.*, but got dict"),
            (None, "but got NoneType"),
        ],
    )
    def test_items_that_are_no_images(self, item: object, message: str) -> None:
        with pytest.raises(UnreadableImageError, match=message):
            Images([item])[0]

    def test_its_own_ids(self) -> None:
        images = Images(Numbered([noise(1), noise(2)]))
        assert images.ids == ("139", "285")
        np.testing.assert_array_equal(pixels(images.subset(["285"])[0]), pixels(noise(2)))

    def test_a_damaged_file_behind_a_dataset_is_unreadable_too(self, damaged_folder: Path) -> None:
        class Lazy:
            paths = (damaged_folder / "c_truncated.jpg", damaged_folder / "e_text.jpg")

            def __len__(self) -> int:
                return 2

            def __getitem__(self, index: int) -> Image.Image:
                return Image.open(self.paths[index])  # the truncated one fails only when its pixels are needed

        for index in (0, 1):
            with pytest.raises(UnreadableImageError, match=f"item {index} of the dataset cannot be read"):
                Images(Lazy())[index]


class TestIds:
    def test_negative_index_and_end(self) -> None:
        images = Images([noise(1), noise(2)])
        np.testing.assert_array_equal(pixels(images[-1]), pixels(noise(2)))
        assert len(list(images)) == 2
        with pytest.raises(IndexError):
            images[2]


class TestFingerprint:
    def test_content_and_not_its_place(self, folder: Path, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere"
        shutil.copytree(folder, elsewhere)
        os.rename(elsewhere / "b.png", elsewhere / "another_name.png")
        os.utime(elsewhere / "another_name.png", (0, 0))
        assert Images(elsewhere).fingerprint == Images(folder).fingerprint
        assert Images(folder, ids=["1", "2", "3"]).fingerprint == Images(folder).fingerprint

    def test_one_changed_pixel_changes_it(self, folder: Path) -> None:
        before = Images(folder).fingerprint
        image = noise(3)
        image.putpixel((0, 0), (1, 2, 3))
        image.save(folder / "deep" / "er" / "c.bmp")
        assert Images(folder).fingerprint != before

    def test_order_counts(self) -> None:
        assert Images([noise(1), noise(2)]).fingerprint != Images([noise(2), noise(1)]).fingerprint

    def test_same_bytes_of_another_shape_differ(self) -> None:
        flat = np.arange(96, dtype=np.uint8)
        assert Images([flat.reshape(4, 8, 3)]).fingerprint != Images([flat.reshape(8, 4, 3)]).fingerprint


class TestSubset:
    images = Images([noise(i) for i in range(4)], ids=["cat", "dog", "owl", "fox"])

    def test_order_is_as_asked(self) -> None:
        part = self.images.subset(["fox", "cat"])
        assert part.ids == ("fox", "cat")
        np.testing.assert_array_equal(pixels(part[0]), pixels(noise(3)))
        np.testing.assert_array_equal(pixels(part[1]), pixels(noise(0)))
        assert part.digest(1) == self.images.digest(0)

    def test_subset_of_a_subset(self) -> None:
        part = self.images.subset(["fox", "owl", "cat"]).subset(["cat", "owl"])
        np.testing.assert_array_equal(pixels(part[0]), pixels(noise(0)))
        assert part.fingerprint == Images([noise(0), noise(2)]).fingerprint

    @pytest.mark.parametrize(
        ("ids", "message"),
        [
            (["dog", "cats"], "Expected ids of this probing set, but got 'cats'. Did you mean 'cat'"),
            ([0], "Expected ids of this probing set, but got 0"),
            ("cat", r"but got the single id 'cat'. Write \['cat'\]"),
            ([], "Expected at least one id of this probing set, but got none"),
            (["cat", "cat"], "'cat' occurs twice"),
        ],
    )
    def test_what_is_no_part(self, ids: Any, message: str) -> None:
        with pytest.raises((InputError, UnknownNameError), match=message):
            self.images.subset(ids)

    def test_keeps_what_happens_on_errors(self, damaged_folder: Path) -> None:
        assert Images(damaged_folder, on_error="skip").subset(GOOD).on_error == "skip"


def test_images_can_be_sent_to_another_process(folder: Path, world: Images) -> None:
    for images in (Images(folder), world):
        assert pickle.loads(pickle.dumps(images)).fingerprint == images.fingerprint  # noqa: S301
