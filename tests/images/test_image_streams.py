"""Sources without indices: ids from the data, a fresh iteration each time, and what cannot be a stream."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DAMAGED, GOOD, noise
from images.test_collection import Keep
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset
from torchvision.transforms.functional import to_tensor

from neuroprobe import Images
from neuroprobe.exceptions import InputError, UnreadableImageError
from neuroprobe.images import collect

PICTURES = [noise(i) for i in range(5)]


class Stream(IterableDataset[Any]):
    """torch's kind of stream, over whatever it is given; the base class has a ``__getitem__`` that only raises."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


class Sized(Stream):
    def __len__(self) -> int:
        return len(self.items)


def ids(images: Images) -> list[str]:
    return [row.id for row in images.rows()]


class TestIds:
    @pytest.mark.parametrize(
        ("items", "expected"),
        [
            ([("b", PICTURES[0]), ("a", PICTURES[1])], ["b", "a"]),
            ([{"__key__": "x/1", "id": 7, "image": PICTURES[0]}, {"__key__": "x/0", "id": 8, "image": PICTURES[1]}], ["x/1", "x/0"]),
            ([{"id": 7, "image": PICTURES[0]}, {"id": 3, "image": PICTURES[1]}], ["7", "3"]),
            ([(PICTURES[0], 1), (PICTURES[1], 1)], ["0", "1"]),
            ([{"image": PICTURES[0]}, {"image": PICTURES[1]}], ["0", "1"]),
            ([PICTURES[0], PICTURES[1]], ["0", "1"]),
        ],
        ids=["pairs", "keys", "id column", "labeled", "dicts", "images"],
    )
    def test_come_from_the_data(self, items: list[Any], expected: list[str]) -> None:
        images = Images(Stream(items))
        assert ids(images) == expected
        for row, picture in zip(images.rows(), PICTURES, strict=False):
            np.testing.assert_array_equal(np.asarray(row.load()[0]), np.asarray(picture))

    def test_paths(self, damaged_folder: Path) -> None:
        images = Images(Stream([damaged_folder / name for name in GOOD]))
        assert ids(images) == [(damaged_folder / name).as_posix() for name in GOOD]
        assert images.fingerprint == Images([damaged_folder / name for name in GOOD]).fingerprint

    def test_twice(self) -> None:
        with pytest.raises(InputError, match=r"unique image ids, but the stream gives 'x' twice.*shard"):
            ids(Images(Stream([("x", PICTURES[0]), ("y", PICTURES[1]), ("x", PICTURES[2])])))


class TestLength:
    def test_unknown(self) -> None:
        images = Images(Stream(PICTURES))
        assert images.is_stream
        assert images.known_length is None
        assert repr(images) == "Images(a stream of an unknown number of images)"
        with pytest.raises(TypeError, match="does not say its length"):
            len(images)

    def test_known(self) -> None:
        images = Images(Sized(PICTURES))
        assert images.is_stream
        assert (len(images), images.known_length, repr(images)) == (5, 5, "Images(a stream of 5 images)")

    def test_a_list_is_no_stream(self) -> None:
        images = Images(PICTURES)
        assert (images.is_stream, images.known_length) == (False, 5)
        assert ids(images) == list(images.ids)


class TestFunctions:
    def test_are_called_for_each_pass(self) -> None:
        calls = itertools.count()

        def photographs() -> Iterator[Image.Image]:
            next(calls)
            yield from PICTURES

        images = Images(photographs)
        assert next(calls) == 0
        assert ids(images) == ids(images) == list("01234")
        assert next(calls) == 3
        assert len(list(images)) == 5

    def test_that_return_no_iterator(self) -> None:
        with pytest.raises(InputError, match="Expected the function to return an iterator over images, but it returned int"):
            ids(Images(lambda: 3))

    def test_that_return_the_same_used_iterator(self) -> None:
        once = iter(PICTURES)
        images = Images(lambda: once)
        assert len(ids(images)) == 5
        with pytest.raises(InputError, match=r"the stream gave none. If it gave some before, it can be read only once"):
            ids(images)


class TestRefused:
    @pytest.mark.parametrize(
        ("source", "options", "message"),
        [
            ((picture for picture in PICTURES), {}, r"more than once, but got a generator, which is used up by .*Images\(function\)"),
            ({"a.png", "b.png"}, {}, r"Expected images in an order, but got a set. Pass sorted\(...\)"),
            (Stream, {}, r"got the class Stream. Make one: Stream\(...\)"),
            (DataLoader(Sized(PICTURES)), {}, "but got a DataLoader, which gives batches. Pass its dataset"),
            ({"train": PICTURES, "test": PICTURES}, {}, "Expected one source of images, but got a dict of 'train', 'test'. Choose one"),
            (Stream(PICTURES), {"fingerprint": "fast"}, "Expected a folder or files for fingerprint='fast'"),
            (Stream(PICTURES), {"ids": list("abcde")}, "Expected no `ids` for a stream"),
        ],
    )
    def test_what_is_no_stream(self, source: Any, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            Images(source, **options)

    @pytest.mark.parametrize(
        ("use", "wanted"),
        [
            (lambda images: images.ids, "ids"),
            (lambda images: images[0], r"images\[index\]"),
            (lambda images: images.load(0), r"load\(index\)"),
            (lambda images: images.load_with_digest(0), r"load\(index\)"),
            (lambda images: images.digest(0), r"load\(index\)"),
            (lambda images: images.subset(["0"]), "subset"),
        ],
        ids=["ids", "item", "load", "load_with_digest", "digest", "subset"],
    )
    def test_what_needs_indices(self, use: Callable[[Images], Any], wanted: str) -> None:
        with pytest.raises(InputError, match=f"images with indices for `{wanted}`, but got a stream, .* Save its images to a folder"):
            use(Images(Sized(PICTURES)))

    def test_dividing_a_stream_among_workers(self) -> None:
        class Rows(IterableDataset[str]):
            def __iter__(self) -> Iterator[str]:
                try:
                    yield from ids(Images(Stream(PICTURES)))
                except InputError as error:
                    yield str(error)

        assert list(DataLoader(Rows(), batch_size=None, num_workers=1)) == list("01234")
        messages = list(DataLoader(Rows(), batch_size=None, num_workers=2))
        assert len(messages) == 2
        assert all("Expected Stream to be iterated in one process, but got 2 workers" in message for message in messages)


class TestRows:
    def test_are_decoded_only_when_loaded(self) -> None:
        images = Images(Stream([("good", PICTURES[0]), ("bad", b"damaged"), ("none", 3)]))
        good, bad, none = images.rows()
        assert good.load()[0].size == (48, 40)
        with pytest.raises(UnreadableImageError, match="image 'bad' of the stream cannot be read"):
            bad.load()
        with pytest.raises(UnreadableImageError, match=r"Expected image 'none' of the stream to be a PIL image, .* but got int"):
            none.load()
        assert repr(good) == "ImageRow(id='good')"

    def test_can_be_loaded_in_another_process(self, damaged_folder: Path) -> None:
        for images in (Images(Stream(PICTURES)), Images(damaged_folder / "..", on_error="skip").subset(["photos/a_good.png"])):
            for row in images.rows():
                other = pickle.loads(pickle.dumps(row))  # noqa: S301
                assert (other.id, other.load()[1]) == (row.id, row.load()[1])

    def test_a_stream_that_breaks_off_is_not_taken_for_its_end(self) -> None:
        def broken() -> Iterator[Any]:
            yield from PICTURES[:2]
            raise ConnectionError("the server is gone")

        images = Images(broken, on_error="skip")
        with pytest.raises(UnreadableImageError, match=r"broke off after 2 of them \(the server is gone\)"):
            ids(images)
        with pytest.raises(UnreadableImageError, match="broke off after 2"):
            collect(images, [Keep()])

    def test_of_images_with_indices(self) -> None:
        images = Images(PICTURES, ids=list("abcde"))
        assert ids(images) == list("abcde")
        assert [row.digest() for row in images.rows()] == [images.digest(i) for i in range(5)]

    def test_can_be_sent_whole(self) -> None:
        images = pickle.loads(pickle.dumps(Images(Sized(PICTURES))))  # noqa: S301
        assert ids(images) == list("01234")


class TestPasses:
    @pytest.mark.parametrize("batch_size", [1, 2, 64])
    def test_a_pass_over_a_stream_is_one_over_a_list(self, batch_size: int) -> None:
        ((rows, collected),) = collect(Images(lambda: iter(PICTURES)), [Keep()], batch_size=batch_size)
        torch.testing.assert_close(rows, torch.stack([to_tensor(p) for p in PICTURES]), rtol=0, atol=0)
        assert collected.ids == tuple("01234")
        assert collected.fingerprint == Images(PICTURES).fingerprint == Images(Stream(PICTURES)).fingerprint

    def test_damaged_images_are_skipped_and_ids_stay(self, damaged_folder: Path) -> None:
        names = sorted(GOOD + DAMAGED)

        def photographs() -> Iterator[tuple[str, bytes]]:
            return ((name, (damaged_folder / name).read_bytes()) for name in names)

        ((rows, collected),) = collect(Images(photographs, on_error="skip"), [Keep()], batch_size=2)
        assert collected.ids == GOOD
        assert tuple(collected.skipped) == DAMAGED
        for row, name in zip(rows, GOOD, strict=True):
            torch.testing.assert_close(row, to_tensor(Images([damaged_folder / name])[0]), rtol=0, atol=0)
        with pytest.raises(UnreadableImageError, match=r"b_empty.jpg"):
            collect(Images(photographs), [Keep()])
