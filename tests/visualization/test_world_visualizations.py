"""Images made for the world's head, whose units' truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuroprobe import ActivationRecorder, Images, LinearProbe
from neuroprobe.models import Direction
from neuroprobe.visualization import Visualization, image_spectrum, visualize
from neuroprobe.visualization._spectrum import ImageSpectrum
from neuroprobe.world import ATTRIBUTES, COLORS, WorldDataset, color_votes, load_target, target_transform, world_images
from neuroprobe.world._rendering import lab

pytestmark = pytest.mark.slow

FIRST = ATTRIBUTES.index(COLORS[0])


@pytest.fixture(scope="module")
def spectrum() -> ImageSpectrum:
    return image_spectrum(world_images(300, seed=5), transform=target_transform(), progress=False)


@pytest.fixture(scope="module")
def head(spectrum: ImageSpectrum) -> Visualization:
    return visualize(load_target(), "classifier", range(len(ATTRIBUTES)), transform=target_transform(), spectrum=spectrum)


def test_units_reach_more_than_on_99_percent_of_real_images(head: Visualization) -> None:
    recorder = ActivationRecorder(load_target(), ["classifier"])
    real = recorder.record(world_images(1000, seed=1), transform=target_transform(), progress=False)["classifier"]
    # the images as saved, in 8 bits and through the model's own transform
    made = recorder.record(Images(head.to_pil()), transform=target_transform(), progress=False)["classifier"].diagonal()
    assert (made > np.quantile(real, 0.99, axis=0)).mean() >= 0.9


def test_color_units_images_show_their_color_most(head: Visualization) -> None:
    shown = color_votes(head.images[FIRST : FIRST + len(COLORS)]).argmax(axis=1)
    assert (shown == np.arange(len(COLORS))).mean() >= 0.8


def test_small_images_are_smooth(head: Visualization) -> None:
    """Neither noise nor a checkerboard: little of the contrast is in the upper half of the frequencies."""
    planes = torch.from_numpy(head.images - head.images.mean((2, 3), keepdims=True))
    power = torch.fft.fft2(planes).abs().square().sum((0, 1))
    fast = torch.fft.fftfreq(64).abs() >= 0.25
    share = float(power[fast[:, None] | fast[None]].sum() / power.sum())
    noise = float((fast[:, None] | fast[None]).float().mean())  # of white noise
    assert share < 0.05 * noise


def test_a_probes_direction_shows_its_concept(spectrum: ImageSpectrum) -> None:
    """Directions of colors in a hidden layer: the head sees just that color in their images, and they exceed real images."""
    layer, model, dataset = "features.16", load_target(), WorldDataset(500, seed=2)
    recorded = ActivationRecorder(model, [layer]).record(Images(dataset), transform=target_transform(), progress=False)[layer]
    directions = []
    for i, name in enumerate(COLORS):
        probe = LinearProbe().fit(recorded, dataset.truth()[:, FIRST + i])
        weights, bias = np.asarray(probe.coef_, dtype=np.float32).ravel(), float(np.ravel(probe.intercept_)[0])
        directions.append(Direction(name, "", layer, "pooled", "linear", 0, weights, bias))
    found = visualize(model, layer, directions, transform=target_transform(), spectrum=spectrum, steps=64)
    real = np.quantile(np.stack([one.decision(recorded) for one in directions], axis=1), 0.99, axis=0)
    assert (found.values > real).all()
    head = ActivationRecorder(model, ["classifier"]).record(Images(found.to_pil()), transform=target_transform(), progress=False)
    seen = head["classifier"][:, FIRST : FIRST + len(COLORS)].argmax(axis=1)
    assert (seen == np.arange(len(COLORS))).sum() >= 7


def test_lab_by_published_values() -> None:
    """sRGB red, green and blue in CIELAB under D65."""
    expected = [(53.24, 80.09, 67.20), (87.73, -86.18, 83.18), (32.30, 79.19, -107.86), (100, 0, 0), (0, 0, 0)]
    found = lab(np.array([(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0, 0, 0)]))
    np.testing.assert_allclose(found, expected, atol=0.02)
