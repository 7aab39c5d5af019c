"""Hugging Face datasets and WebDataset as they really come, fast fingerprints, and several sources in one."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import noise
from images.test_collection import Keep
from PIL import Image
from torchvision.transforms.functional import to_tensor

from neuroprobe import Images
from neuroprobe.exceptions import InputError, UnreadableImageError
from neuroprobe.images import collect, fingerprint_images

PICTURES = [noise(i) for i in range(5)]
PIXELS = Images(PICTURES).fingerprint


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def ids(images: Images) -> list[str]:
    return [row.id for row in images.rows()]


def assert_passed_over(images: Images, ids: tuple[str, ...], *, workers: int = 0) -> None:
    ((rows, collected),) = collect(images, [Keep()], batch_size=2, workers=workers)
    assert collected.ids == ids
    assert collected.fingerprint == images.fingerprint
    torch.testing.assert_close(rows, torch.stack([to_tensor(picture) for picture in PICTURES]), rtol=0, atol=0)


def assert_pictures(images: Images) -> None:
    rows = list(images.rows())
    assert len(rows) == len(PICTURES)
    for row, picture in zip(rows, PICTURES, strict=True):
        np.testing.assert_array_equal(np.asarray(row.load()[0]), np.asarray(picture))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The pictures as PNG files."""
    root = tmp_path / "pictures"
    root.mkdir()
    for i, picture in enumerate(PICTURES):
        (root / f"{i}.png").write_bytes(png(picture))
    return root


class TestHuggingFace:
    @pytest.fixture
    def datasets(self) -> Any:
        return pytest.importorskip("datasets", reason="the package datasets is not installed")

    @pytest.fixture
    def dataset(self, datasets: Any) -> Any:
        columns = {"label": [0, 1, 0, 1, 0], "image": [png(picture) for picture in PICTURES]}
        features = datasets.Features({"label": datasets.Value("int64"), "image": datasets.Image()})
        return datasets.Dataset.from_dict({**columns, "image": [{"bytes": b, "path": None} for b in columns["image"]]}, features=features)

    def test_with_indices(self, dataset: Any, folder: Path) -> None:
        images = Images(dataset)
        assert (images.is_stream, images.ids) == (False, tuple("01234"))
        assert_pictures(images)
        assert images.fingerprint == Images(folder).fingerprint  # the files' bytes, not the pixels
        assert pickle.loads(pickle.dumps(images)).fingerprint == images.fingerprint  # noqa: S301

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_pass(self, dataset: Any, workers: int) -> None:
        assert_passed_over(Images(dataset), tuple("01234"), workers=workers)
        assert_passed_over(Images(dataset.to_iterable_dataset()), tuple("01234"), workers=workers)

    def test_stream(self, dataset: Any) -> None:
        images = Images(dataset.to_iterable_dataset())
        assert (images.is_stream, images.known_length, ids(images)) == (True, None, list("01234"))
        assert_pictures(images)
        assert images.fingerprint == Images(dataset).fingerprint

    @pytest.mark.parametrize("key", ["id", "__key__"])
    def test_ids_from_a_column(self, dataset: Any, key: str) -> None:
        named = dataset.add_column(key, [f"photo {i}" for i in range(5)])
        assert ids(Images(named)) == ids(Images(named.to_iterable_dataset())) == [f"photo {i}" for i in range(5)]
        assert Images(named, ids=list("abcde")).ids == tuple("abcde")

    def test_ids_twice(self, dataset: Any) -> None:
        with pytest.raises(InputError, match="unique image ids, but '7' occurs twice"):
            Images(dataset.add_column("id", [7] * 5))

    def test_a_column_of_another_name_and_format(self, dataset: Any) -> None:
        other = dataset.rename_column("image", "photograph").with_format("torch")
        assert_pictures(Images(other))
        assert_pictures(Images(other.to_iterable_dataset()))

    def test_several_columns_of_images(self, dataset: Any) -> None:
        both = dataset.map(lambda row: {"depth": row["image"]}).cast_column("depth", dataset.features["image"])
        assert_pictures(Images(both))  # the one called image
        with pytest.raises(InputError, match=r"Expected one column of images, but got .*'depth'.* Choose with select_columns"):
            Images(both.rename_column("image", "color"))

    def test_images_that_are_files(self, datasets: Any, folder: Path) -> None:
        paths = [str(folder / f"{i}.png") for i in range(5)]
        dataset = datasets.Dataset.from_dict({"img": paths}).cast_column("img", datasets.Image())
        assert_pictures(Images(dataset))
        assert_pictures(Images(dataset.to_iterable_dataset()))
        assert Images(dataset).fingerprint == Images(folder).fingerprint

    def test_a_folder_loaded_by_it(self, datasets: Any, folder: Path, tmp_path: Path) -> None:
        whole = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))
        assert_pictures(Images(whole["train"]))
        with pytest.raises(InputError, match=r"Expected one source of images, but got a DatasetDict of 'train'. Choose one"):
            Images(whole)
        stream = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", streaming=True)
        assert_pictures(Images(stream))

    def test_its_own_transform_is_kept(self, dataset: Any) -> None:
        flipped = dataset.with_transform(lambda rows: {"image": [image.transpose(Image.Transpose.ROTATE_180) for image in rows["image"]]})
        np.testing.assert_array_equal(np.asarray(Images(flipped)[2]), np.asarray(PICTURES[2])[::-1, ::-1])

    def test_a_stream_that_does_not_know_its_columns(self, datasets: Any) -> None:
        def rows() -> Iterator[dict[str, Any]]:
            return ({"id": f"n{i}", "image": picture} for i, picture in enumerate(PICTURES))

        images = Images(datasets.IterableDataset.from_generator(rows))
        assert ids(images) == ["n0", "n1", "n2", "n3", "n4"]
        assert images.fingerprint == PIXELS

    def test_damage_stops_no_stream(self, datasets: Any) -> None:
        rows = [{"bytes": b, "path": None} for b in (png(PICTURES[0]), b"damaged", png(PICTURES[2])[:200], png(PICTURES[3]))]
        dataset = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
        for images in (Images(dataset), Images(dataset.to_iterable_dataset())):
            first, *damaged, last = images.rows()
            for row, picture in ((first, PICTURES[0]), (last, PICTURES[3])):
                np.testing.assert_array_equal(np.asarray(row.load()[0]), np.asarray(picture))
            for row in damaged:
                with pytest.raises(UnreadableImageError, match="cannot be read"):
                    row.load()

    def test_empty(self, dataset: Any) -> None:
        with pytest.raises(InputError, match="an empty Dataset"):
            Images(dataset.select([]))

    def test_the_users_dataset_is_left_alone(self, dataset: Any) -> None:
        Images(dataset), Images(stream := dataset.to_iterable_dataset())
        assert dataset.features["image"].decode
        assert stream.features["image"].decode


class TestWebDataset:
    @pytest.fixture
    def webdataset(self) -> Any:
        return pytest.importorskip("webdataset", reason="the package webdataset is not installed")

    @pytest.fixture
    def shards(self, webdataset: Any, tmp_path: Path) -> str:
        with webdataset.ShardWriter(str(tmp_path / "shard-%d.tar"), maxcount=3, verbose=0) as writer:
            for i, picture in enumerate(PICTURES):
                writer.write({"__key__": f"photo{i}", "png": png(picture), "cls": i})
        return str(tmp_path / "shard-{0..1}.tar")

    def opened(self, webdataset: Any, shards: str | list[str]) -> Any:
        return webdataset.WebDataset(shards, shardshuffle=False)

    def test_encoded(self, webdataset: Any, shards: str, folder: Path) -> None:
        images = Images(self.opened(webdataset, shards))
        assert (images.is_stream, images.known_length) == (True, None)
        assert ids(images) == ids(images) == [f"photo{i}" for i in range(5)]
        assert_pictures(images)
        assert images.fingerprint == Images(folder).fingerprint

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_pass(self, webdataset: Any, shards: str, workers: int) -> None:
        assert_passed_over(Images(self.opened(webdataset, shards)), tuple(f"photo{i}" for i in range(5)), workers=workers)

    @pytest.mark.parametrize("how", ["pil", "pilrgb", "rgb8", "rgb", "torchrgb8", "torchrgb"])
    def test_decoded(self, webdataset: Any, shards: str, how: str) -> None:
        images = Images(self.opened(webdataset, shards).decode(how))
        assert ids(images) == [f"photo{i}" for i in range(5)]
        assert images.fingerprint == PIXELS

    def test_tuples(self, webdataset: Any, shards: str) -> None:
        assert ids(Images(self.opened(webdataset, shards).to_tuple("__key__", "png"))) == [f"photo{i}" for i in range(5)]
        assert ids(Images(self.opened(webdataset, shards).to_tuple("png", "cls"))) == list("01234")

    def test_with_a_length(self, webdataset: Any, shards: str) -> None:
        images = Images(self.opened(webdataset, shards).with_length(5, silent=True))
        assert (images.is_stream, len(images)) == (True, 5)
        assert_pictures(images)

    def test_keys_that_repeat_in_another_shard(self, webdataset: Any, shards: str) -> None:
        twice = self.opened(webdataset, [shards.replace("{0..1}", "0")] * 2)
        with pytest.raises(InputError, match=r"the stream gives 'photo0' twice.*need the shard's name"):
            ids(Images(twice))


class TestFastFingerprints:
    def test_need_no_reading(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        images = Images(folder, fingerprint="fast", on_error="skip")
        monkeypatch.setattr(Path, "read_bytes", None)
        assert images.fingerprint.startswith("fast:")
        assert images.digest(0).startswith("fast:0.png ")

    def test_equal_no_other_kind(self, folder: Path) -> None:
        fast, content = Images(folder, fingerprint="fast"), Images(folder)
        assert fast.fingerprint == Images(folder, fingerprint="fast").fingerprint != content.fingerprint
        assert not content.fingerprint.startswith("fast:")
        assert fast.load_with_digest(0)[1] == fast.digest(0) != content.digest(0)
        assert content.load_with_digest(0)[1] == content.digest(0)
        assert fingerprint_images([fast.digest(0), content.digest(1)]).startswith("fast:")

    def test_size_time_and_id_count(self, folder: Path) -> None:
        def fingerprint(**options: Any) -> str:
            return Images(folder, fingerprint="fast", **options).fingerprint

        seen = [fingerprint(), fingerprint(ids=list("abcde"))]
        time = (folder / "0.png").stat().st_mtime_ns
        os.utime(folder / "0.png", ns=(time, time + 1000))
        seen.append(fingerprint())
        (folder / "0.png").write_bytes(png(PICTURES[0]) + b" ")
        os.utime(folder / "0.png", ns=(time, time))
        seen.append(fingerprint())
        assert len(set(seen)) == 4

    def test_do_not_name_the_place(self, folder: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "copy")  # with the times
        assert Images(tmp_path / "copy", fingerprint="fast").fingerprint == Images(folder, fingerprint="fast").fingerprint

    def test_of_a_part(self, folder: Path) -> None:
        images = Images(folder, fingerprint="fast")
        part = images.subset(["3.png", "1.png"])
        assert part.digest(0) == images.digest(3)
        assert part.fingerprint == fingerprint_images([images.digest(3), images.digest(1)])

    def test_of_a_file_that_is_gone(self, folder: Path) -> None:
        images = Images(folder, fingerprint="fast")
        (folder / "1.png").unlink()
        with pytest.raises(UnreadableImageError, match=r"1.png' cannot be read"):
            images.digest(1)

    def test_another_kind(self, folder: Path) -> None:
        with pytest.raises(InputError, match="Expected `fingerprint` to be 'content' or 'fast', but got 'quick'"):
            Images(folder, fingerprint="quick")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="Expected a folder or files for fingerprint='fast'"):
            Images(PICTURES, fingerprint="fast")


class TestConcat:
    def test_ids_have_their_parts_name_always(self, folder: Path) -> None:
        whole = Images.concat(Images(folder), Images(PICTURES[:2], ids=["x", "y"]))
        assert whole.ids == ("0/0.png", "0/1.png", "0/2.png", "0/3.png", "0/4.png", "1/x", "1/y")
        for i, picture in enumerate([*PICTURES, *PICTURES[:2]]):
            np.testing.assert_array_equal(np.asarray(whole[i]), np.asarray(picture))
        assert Images.concat(Images(folder), names=["broden"]).ids[0] == "broden/0.png"

    def test_fingerprint_is_of_the_content(self, folder: Path) -> None:
        parts = Images(folder).subset(["0.png", "1.png"]), Images(folder).subset(["2.png", "3.png", "4.png"])
        assert Images.concat(*parts).fingerprint == Images(folder).fingerprint
        assert Images.concat(*parts[::-1]).fingerprint != Images(folder).fingerprint
        assert Images.concat(Images(folder, fingerprint="fast"), parts[0]).fingerprint.startswith("fast:")

    def test_of_concats_and_parts_of_it(self) -> None:
        inner = Images.concat(Images(PICTURES[:2]), Images(PICTURES[2:4]))
        whole = Images.concat(inner, Images(PICTURES[4:]), names=["inner", "last"])
        assert_pictures(whole)
        part = whole.subset(["last/0", "inner/1/0"])
        np.testing.assert_array_equal(np.asarray(part[0]), np.asarray(PICTURES[4]))
        np.testing.assert_array_equal(np.asarray(part[1]), np.asarray(PICTURES[2]))

    def test_with_a_stream_is_a_stream(self) -> None:
        whole = Images.concat(Images(PICTURES[:2], ids=["x", "y"]), Images(lambda: iter(PICTURES[2:])), names=["list", "stream"])
        assert (whole.is_stream, whole.known_length) == (True, None)
        assert ids(whole) == ids(whole) == ["list/x", "list/y", "stream/0", "stream/1", "stream/2"]
        assert whole.fingerprint == PIXELS
        assert_pictures(whole)

    def test_pickled(self, folder: Path) -> None:
        whole = Images.concat(Images(folder), Images(folder))
        assert pickle.loads(pickle.dumps(whole)).fingerprint == whole.fingerprint  # noqa: S301

    def test_refused(self, folder: Path) -> None:
        images = Images(folder)
        with pytest.raises(InputError, match="Expected at least one part, all with one `on_error`, but got none"):
            Images.concat()
        with pytest.raises(InputError, match=r"but got \['raise', 'skip'\]"):
            Images.concat(images, Images(folder, on_error="skip"))
        with pytest.raises(InputError, match=r"Expected one name per part \(2\), but got 1"):
            Images.concat(images, images, names=["a"])
        with pytest.raises(InputError, match="Expected unique names, but 'a' occurs twice"):
            Images.concat(images, images, names=["a", "a"])


class TestIndices:
    @pytest.mark.parametrize("index", [-1, 5])
    def test_out_of_range_is_never_another_image(self, folder: Path, index: int) -> None:
        for images in (Images(folder), Images(PICTURES), Images.concat(Images(folder)), Images(PICTURES).subset(list("01234"))):
            for use in (images.load, images.digest, images.load_with_digest):
                with pytest.raises(InputError, match=f"Expected an image's index from 0 to 4, but got {index}"):
                    use(index)

    def test_numpys_are_indices_too(self) -> None:
        images = Images(PICTURES)
        np.testing.assert_array_equal(np.asarray(images.load(np.int64(3))), np.asarray(PICTURES[3]))
        with pytest.raises(TypeError):
            images.load("3")  # type: ignore[arg-type]

    def test_a_digest_decodes_no_file(self, folder: Path) -> None:
        (folder / "0.png").write_bytes(b"damaged")
        images = Images(folder, on_error="skip")
        assert images.fingerprint == Images(folder, on_error="skip").fingerprint
        with pytest.raises(UnreadableImageError):
            images.load(0)
