"""Regions: maps before pooling, where a unit fired, what its strongest position sees, and pictures of a model's input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import noise_images
from PIL import Image
from torch import nn
from torchvision import transforms

from neuroprobe import ActivationRecorder, Images
from neuroprobe._core import fingerprint_model
from neuroprobe.exceptions import InputError, UnknownNameError, UnreadableImageError
from neuroprobe.visualization import quantile_examples, regions, top_images
from neuroprobe.visualization.maps import Region, firing_threshold, unit_maps
from neuroprobe.world import target_transform

LAYER, UNIT = "features.3", 2


def spot(row: int, column: int, *, side: int = 16) -> Image.Image:
    """A white field of 4 x 4 pixels on black."""
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 255
    return Image.fromarray(pixels)


def brightness_model() -> nn.Sequential:
    """One unit, the mean of fields of 4 x 4 pixels."""
    model = nn.Sequential(nn.Conv2d(3, 1, 4, stride=4, bias=False), nn.ReLU())
    nn.init.constant_(model[0].weight, 1 / 48)
    return model


SPOTS = Images([spot(0, 3), spot(2, 1), Image.new("RGB", (16, 16))], ids=["right above", "left below", "black"])
TO_TENSOR = transforms.ToTensor()


def spot_regions(**options: object) -> list[Region]:
    model = brightness_model()
    activations = ActivationRecorder(model, ["1"]).record(SPOTS, transform=TO_TENSOR)
    return regions(model, SPOTS, top_images(activations, "1", 0, k=3), transform=TO_TENSOR, **options)  # type: ignore[arg-type]


def test_where_a_unit_fired_by_hand() -> None:
    above, below, black = spot_regions()
    assert (above.position, below.position) == ((0, 3), (2, 1))
    assert above.threshold == pytest.approx(0.5)
    assert above.field is not None
    assert above.field.box == (12, 0, 16, 4)
    assert np.asarray(above.crop).min() == np.asarray(below.crop).min() == 255  # the white field and nothing else
    assert above.crop.size == (4, 4)
    assert repr(above.field) == "ReceptiveField(1, unit 0, position (0, 3): box (12, 0, 16, 4) of 16 x 16)"
    assert repr(black) == "Region('black', position (0, 0) of (4, 4), fired on 0.0%)"
    assert not black.fired.any()
    for region, (row, column) in ((above, (0, 3)), (below, (2, 1))):
        fired = np.argwhere(region.fired)
        center = (4 * row + 1.5, 4 * column + 1.5)
        # the map falls linearly between centers of fields: from one half on within two pixels; at the border it stays
        assert np.abs(fired - center).max() <= 2.5
        assert region.fired[4 * row + 1 : 4 * row + 3, 4 * column + 1 : 4 * column + 3].all()


def test_the_stretched_map_is_bilinear_between_the_centers_of_fields() -> None:
    region = spot_regions()[1]
    centers = (np.arange(16) + 0.5) / 4 - 0.5  # of the pixels, in places of the map
    expected = np.array([[max(0, 1 - abs(y - 2)) * max(0, 1 - abs(x - 1)) for x in centers] for y in centers])
    np.testing.assert_allclose(region.heat, expected, atol=1e-6)


def test_the_threshold_and_the_fields_can_be_left() -> None:
    region = spot_regions(threshold=2.0, receptive_fields=False)[0]
    assert region.threshold == 2
    assert not region.fired.any()
    with pytest.raises(InputError, match="receptive_fields=False"):
        _ = region.crop
    highest = dataclasses.replace(region, threshold=float(region.map.max()))
    assert np.argwhere(highest.fired).tolist() == [[i, j] for i in (0, 1) for j in (14, 15)]  # from the threshold on
    nothing = regions(brightness_model(), SPOTS, [spot_regions()[2].example], transform=TO_TENSOR)[0]
    assert nothing.threshold == np.inf  # no position is above zero
    assert not nothing.fired.any()


def test_maps_are_what_the_pooling_pools(world: Images, target: nn.Module) -> None:
    layers = [LAYER, "features.18"]
    mean = ActivationRecorder(target, layers).record(world, transform=target_transform())
    highest = ActivationRecorder(target, layers, pooling="max").record(world, transform=target_transform())
    for layer in layers:
        maps = unit_maps(target, world, layer, UNIT, transform=target_transform(), batch_size=5)
        assert maps.dtype == np.float32
        np.testing.assert_allclose(maps.mean(axis=(1, 2)), mean[layer][:, UNIT], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(maps.max(axis=(1, 2)), highest[layer][:, UNIT], rtol=1e-5)
    few = unit_maps(target, [world[0], world[1]], LAYER, UNIT, transform=target_transform())
    np.testing.assert_allclose(few, unit_maps(target, world, LAYER, UNIT, transform=target_transform())[:2], rtol=1e-4, atol=1e-5)


def test_regions_of_the_worlds_target(
    world: Images, target: nn.Module, same_random_states: Callable[[], AbstractContextManager[None]]
) -> None:
    activations = ActivationRecorder(target, [LAYER], pooling="max").record(world, transform=target_transform())
    examples = quantile_examples(activations, LAYER, UNIT, k=2)
    target.train()
    before = fingerprint_model(target)
    with same_random_states():
        found = regions(target, world, examples, transform=target_transform())
    assert fingerprint_model(target) == before
    assert all(module.training and not module._forward_hooks for module in target.modules())
    assert [region.example for region in found] == [example for part in examples.values() for example in part]
    for region in found:
        assert region.map.max() == pytest.approx(region.example.value, rel=1e-5)
        assert region.map[region.position] == region.map.max()
        assert region.field is not None
        assert region.field.position == region.position
        index = world.ids.index(region.example.image_id)
        np.testing.assert_allclose(np.asarray(region.picture), np.asarray(world[index]), atol=1)  # nothing was resized or cropped


def test_only_what_a_position_sees_decides_its_value(world: Images, target: nn.Module) -> None:
    """The crop is all that counts: with everything else painted over, the strongest position keeps its value."""
    activations = ActivationRecorder(target, [LAYER]).record(world, transform=target_transform())
    target.eval()
    for region in regions(target, world, top_images(activations, LAYER, UNIT, k=3), transform=target_transform()):
        assert region.field is not None
        batch = target_transform()(world[world.ids.index(region.example.image_id)])[None]
        painted = torch.where(
            torch.from_numpy(region.field.mask), batch, torch.randn(batch.shape, generator=torch.Generator().manual_seed(0))
        )
        assert not torch.equal(painted, batch)
        found: list[torch.Tensor] = []
        handle = target.get_submodule(LAYER).register_forward_hook(lambda module, args, output, found=found: found.append(output))
        with torch.no_grad():
            target(painted)
        handle.remove()
        assert float(found[0][0, UNIT][region.position]) == pytest.approx(float(region.map.max()), rel=1e-5)


def test_the_threshold_of_network_dissection(world: Images, target: nn.Module) -> None:
    maps = unit_maps(target, world, LAYER, UNIT, transform=target_transform())
    for share in (0.005, 0.2):
        threshold = firing_threshold(target, world, LAYER, UNIT, transform=target_transform(), share=share)
        assert np.mean(maps > threshold) == pytest.approx(share, abs=2 / maps.size)
    with pytest.raises(InputError, match="share"):
        firing_threshold(target, world, LAYER, UNIT, transform=target_transform(), share=0)


def test_layers_without_a_map_are_refused(world: Images, target: nn.Module) -> None:
    options = {"transform": target_transform()}
    for wrong, message in (
        ({"layer": "classifier"}, r"'classifier' to give a map.*gives \(12, 31\).*no place in the image"),
        ({"unit": 8}, r"Expected a unit from 0 to 7 of 'features\.3', but got 8"),
        ({"model": "model"}, "got str"),
        ({"model": nn.DataParallel(target)}, r"model\.module"),
        *(({"images": images}, "Expected the probing set as neuroprobe") for images in (3, "folder", None)),
        ({"layer": "feature.3"}, r"features\.3"),
    ):
        with pytest.raises((InputError, UnknownNameError), match=message):
            unit_maps(**{"model": target, "images": world, "layer": LAYER, "unit": 0, **options, **wrong})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Expected the probing set as neuroprobe"):
        firing_threshold(target, [world[0]], LAYER, 0, **options)  # type: ignore[arg-type]
    assert not any(module._forward_hooks for module in target.modules())


def test_activations_that_are_not_finite_are_refused(world: Images, target: nn.Module) -> None:
    """A threshold or a strongest position of them would be anything."""
    activations = ActivationRecorder(target, [LAYER]).record(world, transform=target_transform())
    with torch.no_grad():
        target.get_submodule(LAYER).conv[0][0].weight.fill_(float("nan"))
    message = r"Expected finite activations, but unit 2 of 'features\.3' is not on one of"
    with pytest.raises(InputError, match=message):
        unit_maps(target, world, LAYER, UNIT, transform=target_transform())
    with pytest.raises(InputError, match=message):
        regions(target, world, top_images(activations, LAYER, UNIT, k=2), transform=target_transform())


def test_a_layer_that_runs_again_is_refused() -> None:
    shared = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 2, 3), shared, nn.Conv2d(2, 2, 3), shared)
    with pytest.raises(InputError, match="'1' to run once"):
        unit_maps(model, noise_images(2), "1", 0, transform=TO_TENSOR)


def test_units_on_the_last_axis() -> None:
    class Last(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.permute(0, 2, 3, 1)

    model = nn.Sequential(nn.Conv2d(3, 5, 3), Last(), nn.LayerNorm(5))
    maps = unit_maps(model, noise_images(2), "2", 4, transform=TO_TENSOR)
    with torch.no_grad():
        expected = model(torch.stack([TO_TENSOR(image) for image in noise_images(2)]))[..., 4]
    np.testing.assert_allclose(maps, expected.numpy(), atol=1e-5)


def test_examples_that_do_not_fit_are_refused(world: Images, target: nn.Module, tmp_path: Path) -> None:
    activations = ActivationRecorder(target, [LAYER]).record(world, transform=target_transform())
    one, other = top_images(activations, LAYER, 0, k=1), top_images(activations, LAYER, 1, k=1)
    with pytest.raises(InputError, match="Expected examples of one unit"):
        regions(target, world, one + other, transform=target_transform())
    for nothing in ([], {}, [1], "abc", 3, None, one[0]):
        with pytest.raises(InputError, match="Expected examples as top_images"):
            regions(target, world, nothing, transform=target_transform())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Expected the probing set as neuroprobe"):
        regions(target, [world[0]], one, transform=target_transform())  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match=one[0].image_id):
        regions(target, noise_images(3), one, transform=target_transform())
    for i in range(3):
        world[i].save(tmp_path / f"{i}.png")
    folder = Images(tmp_path, on_error="skip")
    recorded = ActivationRecorder(target, [LAYER]).record(folder, transform=target_transform())
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    with pytest.raises(UnreadableImageError, match=r"'1\.png' cannot be read"):
        regions(target, folder, top_images(recorded, LAYER, 0, k=3), transform=target_transform())
