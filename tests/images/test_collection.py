"""One pass over the images: order, skipping, workers, several consumers, and what stops it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DAMAGED, GOOD, noise
from PIL import Image
from torchvision import transforms
from torchvision.transforms.functional import to_tensor

from neuroprobe import Images
from neuroprobe.exceptions import InputError, UnreadableImageError
from neuroprobe.images import BatchRecord, Collected, collect


class Keep:
    """A consumer that keeps what it gets."""

    def __init__(self, transform: Callable[[Image.Image], Any] = to_tensor) -> None:
        self.transform = transform
        self.batches: list[torch.Tensor] = []

    def consume(self, batch: torch.Tensor, record: BatchRecord) -> None:
        self.batches.append(batch.clone())

    def finish(self, collected: Collected) -> tuple[torch.Tensor, Collected]:
        return torch.cat(self.batches), collected


class Counting:
    """A dataset that counts how often it is asked for an image."""

    def __init__(self, n: int) -> None:
        self.asked = [0] * n

    def __len__(self) -> int:
        return len(self.asked)

    def __getitem__(self, index: int) -> Image.Image:
        if index >= len(self):
            raise IndexError(index)
        self.asked[index] += 1
        return noise(index)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (5, 0), (64, 0), (5, 2)])
def test_every_image_in_order(world: Images, batch_size: int, workers: int) -> None:
    consumer = Keep()
    ((rows, collected),) = collect(world, [consumer], batch_size=batch_size, workers=workers)
    torch.testing.assert_close(rows, torch.stack([to_tensor(image) for image in world]), rtol=0, atol=0)
    assert [len(b) for b in consumer.batches] == [min(batch_size, 12 - i) for i in range(0, 12, batch_size)]
    assert collected.ids == world.ids
    assert collected.skipped == {}
    assert collected.fingerprint == world.fingerprint


def test_several_consumers_share_one_decode() -> None:
    dataset = Counting(7)
    shrink = transforms.Compose([transforms.Resize((4, 6)), transforms.ToTensor()])
    (rows, _), (small, collected) = collect(Images(dataset), [Keep(), Keep(shrink)], batch_size=3)
    assert dataset.asked == [1] * 7
    assert rows.shape == (7, 3, 40, 48)
    torch.testing.assert_close(small, torch.stack([shrink(noise(i)) for i in range(7)]))
    assert len(collected.ids) == 7


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_skipped_images_leave_the_others_aligned(damaged_folder: Path, batch_size: int, workers: int) -> None:
    images = Images(damaged_folder, on_error="skip")
    ((rows, collected),) = collect(images, [Keep()], batch_size=batch_size, workers=workers)
    assert collected.ids == GOOD
    assert tuple(collected.skipped) == DAMAGED
    for id_, reason in collected.skipped.items():
        assert id_ in reason
    for id_, row in zip(GOOD, rows, strict=True):
        torch.testing.assert_close(row, to_tensor(Image.open(damaged_folder / id_)))
    assert collected.fingerprint == images.subset(GOOD).fingerprint


@pytest.mark.parametrize("workers", [0, 2])
def test_raising_names_the_file(damaged_folder: Path, workers: int) -> None:
    images = Images([damaged_folder / name for name in ("a_good.png", "c_truncated.jpg", "g_good.jpg")])
    with pytest.raises(UnreadableImageError, match=r"Expected an image, but '.*c_truncated.jpg' cannot be read"):
        collect(images, [Keep()], workers=workers)


def test_nothing_left(damaged_folder: Path) -> None:
    images = Images([damaged_folder / name for name in DAMAGED], on_error="skip")
    with pytest.raises(InputError, match=r"at least one readable image, but all 4 were skipped. The first: .*b_empty.jpg"):
        collect(images, [Keep()])


class TestTransforms:
    images = Images([noise(1), noise(2, size=(40, 48)), noise(3)])

    @pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (3, 0), (3, 2)])
    def test_several_shapes_are_refused_whatever_the_batch_size(self, batch_size: int, workers: int) -> None:
        with pytest.raises(InputError, match=r"tensors of one shape, but got \(3, 40, 48\) and \(3, 48, 40\). Resize and crop"):
            collect(self.images, [Keep()], batch_size=batch_size, workers=workers)

    def test_shapes_may_differ_between_consumers(self) -> None:
        crop = transforms.Compose([transforms.CenterCrop(8), transforms.ToTensor()])
        crop_more = transforms.Compose([transforms.CenterCrop(4), transforms.ToTensor()])
        (first, _), (second, _) = collect(self.images, [Keep(crop), Keep(crop_more)], batch_size=2)
        assert first.shape == (3, 3, 8, 8)
        assert second.shape == (3, 3, 4, 4)

    @pytest.mark.parametrize(("transform", "kind"), [(transforms.CenterCrop(8), "Image"), (np.asarray, "ndarray")])
    def test_no_tensor(self, transform: Callable[[Image.Image], Any], kind: str) -> None:
        with pytest.raises(InputError, match=f"Expected the transform to give a tensor, but got {kind}"):
            collect(self.images, [Keep(transform)])

    def test_its_own_error_is_not_taken_for_a_damaged_image(self) -> None:
        def broken(image: Image.Image) -> torch.Tensor:
            raise ZeroDivisionError("mine")

        with pytest.raises(ZeroDivisionError, match="mine"):
            collect(Images([noise(1)], on_error="skip"), [Keep(broken)])


@pytest.mark.parametrize("workers", [0, 2])
def test_random_states_are_left_alone(world: Images, workers: int, same_random_states: Callable[[], AbstractContextManager[None]]) -> None:
    with same_random_states():
        collect(world, [Keep()], workers=workers, batch_size=5)


def test_progress_goes_to_standard_error_only_if_asked(world: Images, capsys: pytest.CaptureFixture[str]) -> None:
    collect(world, [Keep()], progress=True, description="looking")
    shown = capsys.readouterr()
    assert "looking: 100%" in shown.err
    assert "12/12" in shown.err
    assert shown.out == ""
    collect(world, [Keep()])
    assert capsys.readouterr().err == ""


def test_workers_need_few_open_files() -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        ((rows, _), *_others) = collect(Images(Counting(600)), [Keep() for _ in range(2)], batch_size=300, workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(rows) == 600


def test_an_error_in_a_worker_is_told_without_its_traceback(world: Images) -> None:
    with pytest.raises(InputError) as raised:
        collect(world, [Keep(transforms.CenterCrop(8))], workers=1)
    assert str(raised.value) == "Expected the transform to give a tensor, but got Image. End it with ToTensor()."
