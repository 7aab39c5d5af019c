"""Bases of images, their statistics, their jitter, and what a transform does to colors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import noise_images
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from neuroprobe import Images
from neuroprobe.exceptions import InputError
from neuroprobe.visualization import Jitter, image_spectrum
from neuroprobe.visualization._ascent import rotate
from neuroprobe.visualization._objectives import likeness
from neuroprobe.visualization._spectrum import FourierImages, ImageSpectrum, PhaseImages, imagenet_colors, natural_scale
from neuroprobe.world import target_transform, world_images


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planes_of(images: torch.Tensor, mean: np.ndarray, colors: np.ndarray) -> torch.Tensor:
    """What pixels were made of: the sigmoid and the colors undone, in float64."""
    pixels = torch.logit(images.double()) / 4 + 0.5 - torch.from_numpy(mean).double()[:, None, None]
    return torch.einsum("rc,nchw->nrhw", torch.linalg.inv(torch.from_numpy(colors).double()), pixels)


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (6, 11)])
def test_natural_scale_falls_as_one_over_f_and_gives_variance_one(size: tuple[int, int]) -> None:
    height, width = size
    scale = natural_scale(size, 1.0).double()
    np.testing.assert_allclose(scale[0, 1] / scale[0, 2], 2, rtol=1e-5)
    np.testing.assert_allclose(scale[1, 0] / scale[2, 0], 2, rtol=1e-5)
    # every coefficient of a real plane with these magnitudes, the mirrored ones too
    total = 0.0
    for row in range(height):
        for column in range(width):
            mirrored = column > width // 2
            total += float(scale[(height - row) % height if mirrored else row, width - column if mirrored else column]) ** 2
    np.testing.assert_allclose(total / (height * width), 1, rtol=1e-5)


def test_fourier_images_by_hand() -> None:
    """Nothing but the mean of the first component, so that every pixel is sigmoid(4 (mean + color - 1/2))."""
    mean, colors = np.array([0.5, 0.4, 0.6], dtype=np.float32), np.array([[0.1, 0, 0], [0.2, 1, 0], [0.3, 0, 1]], dtype=np.float32)
    basis = FourierImages((4, 6), mean=mean, colors=colors, contrast=10)
    parameters = torch.zeros(1, 3, 4, 4, 2)
    parameters[0, 0, 0, 0, 0] = 1
    height = float(natural_scale((4, 6), 1.0)[0, 0]) / math.sqrt(24)  # of the orthonormal transform
    expected = 1 / (1 + np.exp(-4 * (mean + height * colors[:, 0] - 0.5)))
    np.testing.assert_allclose(basis.images(parameters)[0].numpy(), np.broadcast_to(expected[:, None, None], (3, 4, 6)), rtol=1e-5)


def test_contrast_has_a_limit_and_nothing_else_changes() -> None:
    mean, colors = imagenet_colors()
    basis = FourierImages((16, 12), mean=mean, colors=colors, contrast=0.5)
    parameters = torch.stack([basis.start(generator(i), attempt=9) for i in range(2)]) * torch.tensor([4.0, 0.01]).reshape(2, 1, 1, 1, 1)
    allowed = basis.allowed(parameters)
    contrast = planes_of(basis.images(allowed), mean, colors).square().mean((1, 2, 3)).sqrt()
    np.testing.assert_allclose(contrast[0], 0.5, rtol=1e-3)
    assert torch.equal(allowed[1], parameters[1])
    np.testing.assert_allclose(allowed[0] / parameters[0], float((allowed[0] / parameters[0]).mean()), rtol=1e-5)


def test_starts_have_more_contrast_from_attempt_to_attempt() -> None:
    mean, colors = imagenet_colors()
    basis = FourierImages((8, 8), mean=mean, colors=colors)
    spreads = [float(basis.start(generator(), attempt=attempt).std()) for attempt in range(3)]
    np.testing.assert_allclose(np.divide(spreads[1:], spreads[:-1]), 2, rtol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (6, 11), (7, 10)])
def test_phase_images_have_exactly_the_given_magnitudes(size: tuple[int, int]) -> None:
    mean, colors = imagenet_colors()
    magnitudes = np.random.default_rng(0).uniform(0.1, 0.6, (3, size[0], size[1] // 2 + 1)).astype(np.float32)
    for column in (0, -1)[: 2 if size[1] % 2 == 0 else 1]:  # of a real image these columns are symmetric
        magnitudes[:, size[0] // 2 + 1 :, column] = magnitudes[:, 1 : size[0] - size[0] // 2, column][:, ::-1]
    basis = PhaseImages(ImageSpectrum(mean, colors, magnitudes, size))
    parameters = torch.stack([basis.start(generator(i)) for i in range(2)])
    found = torch.fft.rfft2(planes_of(basis.images(parameters.double()), mean, colors), norm="ortho").abs().numpy()
    rows, columns = ([0, n // 2] if n % 2 == 0 else [0] for n in size)
    real = np.zeros(found.shape[2:], dtype=bool)
    real[np.ix_(rows, columns)] = True  # without a phase
    np.testing.assert_allclose(found[:, :, ~real], np.broadcast_to(magnitudes[:, ~real], (2, *magnitudes[:, ~real].shape)), rtol=1e-4)
    assert (found[:, :, real] <= magnitudes[:, real] * 1.0001).all()


def test_a_spectrum_against_a_plain_loop() -> None:
    images = noise_images(7, side=6)
    found = image_spectrum(images, size=6, batch_size=3, progress=False)
    pixels = np.stack([np.asarray(images[i], dtype=np.float64) / 255 for i in range(7)])  # [n, h, w, 3]
    flat = pixels.reshape(-1, 3)
    np.testing.assert_allclose(found.mean, flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.colors @ found.colors.T, np.cov(flat.T, bias=True), rtol=1e-4, atol=1e-7)
    total = np.zeros((3, 6, 4))
    for image in pixels:
        z = (image - flat.mean(0)) @ np.linalg.inv(found.colors.astype(np.float64)).T
        total += np.abs(np.fft.rfft2(z.transpose(2, 0, 1), norm="ortho"))
    np.testing.assert_allclose(found.magnitudes, total / 7, rtol=1e-4)


def test_a_spectrum_is_of_what_the_model_sees() -> None:
    images = world_images(5, seed=2)
    by_transform = image_spectrum(images, transform=target_transform(), progress=False)
    by_size = image_spectrum(images, size=64, progress=False)
    assert by_transform.size == (64, 64)
    assert by_transform.images == by_size.images != ""
    np.testing.assert_allclose(by_transform.mean, by_size.mean, atol=1e-5)
    np.testing.assert_allclose(by_transform.magnitudes, by_size.magnitudes, rtol=1e-2, atol=1e-3)


def test_spectra_of_gray_and_of_constant_images() -> None:
    gray = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)).convert("RGB") for i in range(3)]
    found = image_spectrum(Images(gray), size=8, progress=False)
    assert np.isfinite(found.magnitudes).all()
    image = PhaseImages(found).images(PhaseImages(found).start(generator())[None])[0]
    assert float((image.amax(0) - image.amin(0)).max()) < 0.05  # gray too
    with pytest.raises(InputError, match="images that vary"):
        image_spectrum(Images([Image.new("RGB", (8, 8), (9, 9, 9))]), size=8, progress=False)
    with pytest.raises(InputError, match="`transform` or `size`"):
        image_spectrum(Images(gray), size=8, transform=target_transform())
    with pytest.raises(InputError, match="`magnitudes` as finite numbers"):
        ImageSpectrum(found.mean, found.colors, found.magnitudes, (8, 10))


def test_whole_pixels_are_shifted_exactly_and_around_the_edge() -> None:
    images = torch.rand(2, 3, 8, 10, generator=generator())
    moved = Jitter(0.25, 0, 0, 0).moved(images, torch.tensor([[1.0, 0, 0, 0], [-0.5, 0.8, 0, 0]]))  # 2 rows; -1 row and 2 columns
    torch.testing.assert_close(moved[0], images[0].roll(2, dims=1))
    torch.testing.assert_close(moved[1], images[1].roll((-1, 2), dims=(1, 2)), atol=1e-5, rtol=0)


def test_rotation_against_the_formula_and_scale_against_torchvision() -> None:
    y, x = torch.meshgrid(torch.arange(33.0), torch.arange(33.0), indexing="ij")
    blob = torch.exp(-((x - 12) ** 2 + (y - 19) ** 2) / 18)[None, None].repeat(1, 3, 1, 1)  # smooth, and 0 at the edges
    turned = rotate(blob, torch.tensor([math.radians(20)]))
    c, s = math.cos(math.radians(20)), math.sin(math.radians(20))
    center_x, center_y = 16 + c * -4 - s * 3, 16 + s * -4 + c * 3  # clockwise, as y points down
    exact = torch.exp(-((x - center_x) ** 2 + (y - center_y) ** 2) / 18)
    assert float((turned - exact).abs().max()) < 1e-3
    larger = Jitter(0, 0.25, 0, 0).moved(blob, torch.tensor([[0, 0, 0, 1.0]]))
    expected = functional.affine(blob, 0, [0, 0], 1.25, [0, 0], interpolation=transforms.InterpolationMode.BILINEAR)
    assert float((larger - expected).abs().max()) < 0.01
    assert float((larger - blob).abs().max()) > 0.1


def test_every_image_is_moved_by_its_own_draws() -> None:
    images, jitter = torch.rand(3, 3, 8, 8, generator=generator()), Jitter()
    draws = jitter.draws(generator(1), 3)
    together = jitter.moved(images, draws)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], jitter.moved(images[i : i + 1], draws[i : i + 1]))
    assert torch.equal(Jitter(0, 0, 0, 0).moved(images, draws), images)


@pytest.mark.parametrize("changes", [{"shift": -0.1}, {"scale": 0.6}, {"rotation": float("nan")}, {"noise": "much"}])
def test_a_jitter_without_sense_is_refused(changes: dict) -> None:
    with pytest.raises(InputError, match=f"`jitter.{next(iter(changes))}`"):
        Jitter(**changes)


def test_likeness_by_hand() -> None:
    """Two units at two positions: the first image has both units everywhere, the second only unit 0, the third one unit at each place."""
    maps = torch.tensor([[[[1.0, 1]], [[1, 1]]], [[[1, 1]], [[0, 0]]], [[[1, 0]], [[0, 1]]]])  # [n, units, 1, 2]
    # Gram matrices: all 2; 2 and zeros; the identity. Cosines: 4 / (4 * 2), 4 / (4 sqrt 2), 2 / (2 sqrt 2)
    pairs = {(0, 1): 0.5, (0, 2): 1 / math.sqrt(2), (1, 2): 1 / math.sqrt(2)}
    expected = [(pairs[0, 1] + pairs[0, 2]) / 2, (pairs[0, 1] + pairs[1, 2]) / 2, (pairs[0, 2] + pairs[1, 2]) / 2]
    np.testing.assert_allclose(likeness(maps, [slice(0, 3)]), expected, rtol=1e-6)
    apart = likeness(maps, [slice(0, 2), slice(2, 3)])
    np.testing.assert_allclose(apart, [0.5, 0.5, 0], rtol=1e-6)
    # more units than positions: the other way of computing the same
    wide = torch.cat([maps, torch.zeros(3, 5, 1, 2)], dim=1)
    np.testing.assert_allclose(likeness(wide, [slice(0, 3)]), expected, rtol=1e-6)
    np.testing.assert_allclose(likeness(wide.flatten(2), [slice(0, 3)]), expected, rtol=1e-6)
