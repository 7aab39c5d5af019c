"""What a transform does to colors and size, measured; and pictures of what it made."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional
from torchvision.transforms._presets import ImageClassification

from neuroprobe.exceptions import InputError
from neuroprobe.models import picture_of, preprocessing
from neuroprobe.models.transforms import read_transform
from neuroprobe.world import target_transform, world_images

TO_TENSOR = transforms.ToTensor()


def test_a_presets_scaling_is_measured() -> None:
    size, mean, std = read_transform(ImageClassification(crop_size=96, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)))
    assert size == (96, 96)
    np.testing.assert_allclose(mean, (0.1, 0.2, 0.3), atol=1e-6)
    np.testing.assert_allclose(std, (0.4, 0.5, 0.6), atol=1e-6)
    assert read_transform(transforms.ToTensor())[0] is None
    with pytest.raises(InputError, match="Give `size`"):
        preprocessing(transforms.ToTensor())
    assert preprocessing(transforms.ToTensor(), size=(8, 9)).size == (8, 9)


def test_images_become_inputs_as_by_the_transform() -> None:
    (image,) = world_images(1, seed=4)
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)[None]
    torch.testing.assert_close(preprocessing(target_transform()).normalize(pixels)[0], target_transform()(image), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda image: functional.to_tensor(image)[:1], "from an RGB image"),
        (lambda image: np.asarray(image), "but it gives ndarray"),
        (lambda image: functional.pil_to_tensor(image), "uint8"),
        (lambda image: functional.to_tensor(image) ** 2.2, "something else with colors"),
        (lambda image: functional.to_tensor(image).flip(0), "something else with colors"),
        (lambda image: -functional.to_tensor(image), "something else with colors"),
        (lambda image: functional.to_tensor(functional.center_crop(image, [2000, 2000])), "of one color"),
    ],
)
def test_a_transform_that_cannot_be_undone_is_refused(transform, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_transform(transform)


# --- pictures


def test_a_normalization_is_taken_back() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    tensor = normalize(TO_TENSOR(pixels))
    compose = transforms.Compose([TO_TENSOR, normalize])
    nested = transforms.Compose([compose, transforms.RandomErasing(p=0)])
    for picture in (
        picture_of(tensor, transform=compose),
        picture_of(tensor, transform=nested),
        picture_of(tensor, mean=normalize.mean, std=normalize.std),
        picture_of(TO_TENSOR(pixels), transform=TO_TENSOR),  # all in [0, 1]: as they are
    ):
        np.testing.assert_array_equal(np.asarray(picture), pixels)


@pytest.mark.parametrize(
    "transform",
    [
        lambda image: (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() - 100) / 7,  # no object says so
        lambda image: 3 * TO_TENSOR(image.convert("L")) - 1,
        lambda image: TO_TENSOR(image).half(),
        lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1),
    ],
)
def test_a_transform_of_ones_own_is_taken_back_exactly(transform) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(60, 200, (6, 9, 3), dtype=np.uint8))
    picture = picture_of(transform(image), transform=transform)
    expected = image if len(transform(image)) == 3 else image.convert("L").convert("RGB")
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))


def test_other_values_are_stretched_and_gray_is_gray() -> None:
    tensor = torch.tensor([[[-1.0, 0.0], [1.0, 3.0]]])
    assert np.asarray(picture_of(tensor))[..., 0].tolist() == [[0, 64], [128, 255]]
    assert picture_of(tensor).mode == "RGB"
    assert np.asarray(picture_of(torch.full((3, 2, 2), 200, dtype=torch.uint8))).tolist() == np.full((2, 2, 3), 200).tolist()
    assert np.asarray(picture_of(torch.full((3, 2, 2), 7.0))).tolist() == np.zeros((2, 2, 3)).tolist()


def test_what_is_no_picture_is_refused() -> None:
    for tensor in (torch.zeros(2, 4, 4), torch.zeros(4, 4), torch.zeros(3, 0, 4), np.zeros((3, 4, 4))):
        with pytest.raises(InputError, match="Expected a model's input"):
            picture_of(tensor)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="both `mean` and `std`"):
        picture_of(torch.zeros(3, 4, 4), mean=[0, 0, 0])
    with pytest.raises(InputError, match="per channel"):
        picture_of(torch.zeros(3, 4, 4), mean=[0, 0], std=[1, 1])
    with pytest.raises(InputError, match="per channel"):
        picture_of(torch.zeros(3, 4, 4), mean="abc", std=[1, 1, 1])
