"""Units of a site: in the identity as basis the raw layer's results, in a basis that permutes channels what the permuted channel gives."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from bases import Reordered, direction
from helpers import scores_of
from torch import nn

from neuroprobe import ActivationRecorder, Activations, Images, Site
from neuroprobe.exceptions import InputError
from neuroprobe.visualization import (
    Example,
    facets,
    firing_threshold,
    layer_facets,
    plot_examples,
    quantile_examples,
    receptive_field,
    regions,
    top_images,
    unit_maps,
    visualize,
)
from neuroprobe.world import target_transform

LAYER, N_UNITS = "features.3", 8
ORDER = (3, 0, 6, 1, 7, 2, 5, 4)  # unit i is channel ORDER[i]
GIVEN = {"transform": target_transform()}
QUICK = {**GIVEN, "steps": 4, "batch_size": 2}


class TopK(nn.Module):
    """Latents of which few are not zero at any position."""

    def __init__(self, n_channels: int, *, k: int = 2) -> None:
        super().__init__()
        self.k, self.encoder = k, nn.Linear(n_channels, 3 * n_channels)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        found, latents = self.encoder(values).topk(self.k, dim=-1)
        return torch.zeros((*values.shape[:-1], self.encoder.out_features)).scatter(-1, latents, found.relu())


def same(values: torch.Tensor) -> torch.Tensor:
    return values


IDENTITIES = {"function": Site(LAYER, basis=same), "copy": Site(LAYER, basis=Reordered(tuple(range(N_UNITS))))}
PERMUTED = Site(LAYER, basis=Reordered(ORDER))


def recorded(model: nn.Module, images: Images, site: str | Site, **options: object) -> Activations:
    return ActivationRecorder(model, [site], **options).record(images, transform=target_transform(), progress=False)  # type: ignore[arg-type]


def plainly(example: Example) -> Example:
    return dataclasses.replace(example, layer=LAYER, site=LAYER)


@pytest.mark.parametrize("site", IDENTITIES.values(), ids=IDENTITIES)
def test_in_the_identity_as_basis_all_is_as_of_the_raw_layer(world: Images, target: nn.Module, site: Site) -> None:
    unit = 5
    np.testing.assert_array_equal(unit_maps(target, world, site, unit, **GIVEN), unit_maps(target, world, LAYER, unit, **GIVEN))
    assert firing_threshold(target, world, site, unit, **GIVEN) == firing_threshold(target, world, LAYER, unit, **GIVEN)
    fields = [receptive_field(target, one, (2, 7), input_shape=(3, 64, 64), unit=unit) for one in (site, LAYER)]
    np.testing.assert_array_equal(fields[0].mask, fields[1].mask)
    for pooling in ("mean", "max", "center"):
        found, raw = (visualize(target, one, unit, pooling=pooling, **QUICK) for one in (site, LAYER))
        np.testing.assert_array_equal(found.images, raw.images)
        np.testing.assert_array_equal(found.values, raw.values)
        np.testing.assert_array_equal(found.importance, raw.importance)
    of_site, raw = recorded(target, world, site, pooling="max"), recorded(target, world, LAYER, pooling="max")
    for unit in range(N_UNITS):
        assert [plainly(example) for example in top_images(of_site, site, unit, 4)] == top_images(raw, LAYER, unit, 4)
        pairs = zip(quantile_examples(of_site, site, unit).items(), quantile_examples(raw, LAYER, unit).items(), strict=True)
        for (q, examples), (raw_q, expected) in pairs:
            assert (q, [plainly(example) for example in examples]) == (raw_q, expected)
    shown = regions(target, world, top_images(of_site, site, 2, 3), layer=site, **GIVEN)
    expected = regions(target, world, top_images(raw, LAYER, 2, 3), **GIVEN)
    for one, other in zip(shown, expected, strict=True):
        np.testing.assert_array_equal(one.map, other.map)
        assert (one.threshold, one.field.box, one.picture.tobytes()) == (other.threshold, other.field.box, other.picture.tobytes())


def test_in_a_basis_that_permutes_channels_a_unit_is_the_permuted_channel(world: Images, target: nn.Module) -> None:
    of_site, raw = recorded(target, world, PERMUTED, pooling="max"), recorded(target, world, LAYER, pooling="max")
    for unit in (0, 2, 4):
        channel = ORDER[unit]
        np.testing.assert_array_equal(unit_maps(target, world, PERMUTED, unit, **GIVEN), unit_maps(target, world, LAYER, channel, **GIVEN))
        examples, expected = top_images(of_site, PERMUTED, unit, 3), top_images(raw, LAYER, channel, 3)
        assert [dataclasses.replace(plainly(example), unit=channel) for example in examples] == expected
        for one, other in zip(
            regions(target, world, examples, layer=PERMUTED, **GIVEN), regions(target, world, expected, **GIVEN), strict=True
        ):
            np.testing.assert_array_equal(one.map, other.map)
            np.testing.assert_array_equal(one.field.mask, other.field.mask)
        found, raw_image = visualize(target, PERMUTED, unit, **QUICK), visualize(target, LAYER, channel, **QUICK)
        # the noise that an image begins with is of the unit's number
        assert not np.array_equal(found.images, raw_image.images)
        recorder = ActivationRecorder(target, [LAYER])
        values = recorder.record(Images(found.to_pil()), transform=target_transform(), progress=False)[LAYER]
        assert found.values[0] == pytest.approx(values[0, channel], rel=0.05, abs=0.02)  # PIL images have 8 bits


def test_a_permuted_units_receptive_field_is_that_of_its_channel() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.five, self.joined = nn.Conv2d(2, 1, 1), nn.Conv2d(2, 1, 5, padding=2), nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.joined(torch.cat([self.one(x), self.five(x)], dim=1))

    model, swapped = Branches(), Site("joined", basis=Reordered((1, 0)))
    for unit, side in ((0, 5), (1, 1)):
        assert receptive_field(model, swapped, (9, 9), input_shape=(2, 20, 20), unit=unit).size == (side, side)
    assert receptive_field(model, swapped, (9, 9), input_shape=(2, 20, 20)).size == (5, 5)


def test_facets_of_a_site_are_those_of_its_channels(world: Images, target: nn.Module) -> None:
    of_site, raw = recorded(target, world, PERMUTED), recorded(target, world, LAYER)
    scores = dataclasses.replace(scores_of(len(world), ["a", "b", "c"]), ids=world.ids, metadata={"images": raw.metadata["images"]})
    found = layer_facets(of_site, scores, PERMUTED, [2, 4], n_facets=2)
    for one, unit in zip(found, (2, 4), strict=True):
        assert (one.layer, one.site) == (PERMUTED.key, PERMUTED.identity)
        expected = facets(raw, scores, LAYER, ORDER[unit], n_facets=2)
        assert [[e.row for e in facet.examples] for facet in one] == [[e.row for e in facet.examples] for facet in expected]
    with pytest.raises(InputError, match="but these activations are of"):
        layer_facets(of_site, scores, IDENTITIES["copy"], [2])


def test_units_of_another_site_are_refused(world: Images, target: nn.Module) -> None:
    of_site, raw = recorded(target, world, PERMUTED), recorded(target, world, LAYER)
    for activations, site in ((raw, PERMUTED), (of_site, Site(LAYER)), (of_site, IDENTITIES["copy"])):
        for function in (top_images, quantile_examples):
            with pytest.raises(InputError, match=r"units of 'features\.3' .*, but these activations are of 'features\.3' .*the same Site"):
                function(activations, site, 0, k=1)
    latents, channels = top_images(of_site, PERMUTED, 0, 1), top_images(raw, LAYER, 0, 1)
    with pytest.raises(
        InputError, match=r"'features\.3' as its module gives them, but these examples are of 'features\.3' in the basis Reordered"
    ):
        regions(target, world, latents, **GIVEN)
    with pytest.raises(InputError, match=r"but these examples are of 'features\.3' as its module gives them"):
        regions(target, world, channels, layer=PERMUTED, **GIVEN)
    with pytest.raises(InputError, match="Expected examples of one unit"):
        plot_examples([*latents, *channels], world)
    with pytest.raises(InputError, match=r"Expected directions of 'features\.3 .in the basis"):
        visualize(target, PERMUTED, direction(LAYER, np.ones(N_UNITS)), **QUICK)


def test_latents_of_a_topk_encoder_are_seen_as_latents(world: Images, target: nn.Module) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        site = Site(LAYER, basis=TopK(N_UNITS), name="latents")
    activations = recorded(target, world, site, pooling="max")
    unit = int(np.asarray(activations[site.key]).max(0).argmax())
    examples = top_images(activations, site, unit, 3)
    assert {example.layer for example in examples} == {"latents"}
    found = regions(target, world, examples, layer=site, **GIVEN)
    for region in found:
        assert region.map.max() == pytest.approx(region.example.value, rel=1e-5)
        assert (region.map == 0).mean() > 0.2  # few latents fire at a position
        plain = receptive_field(target, LAYER, region.position, input_shape=(3, 64, 64))
        np.testing.assert_array_equal(region.field.mask, plain.mask)  # any channel could decide what is chosen
    made = visualize(target, site, unit, pooling="max", transform=target_transform(), steps=48, batch_size=1)
    assert (made.layer, made.metadata["site"], made.table["layer"][0]) == ("latents", site.identity, "latents")
    assert made.values[0] > max(example.value for example in examples)


def test_an_input_a_call_and_a_part_of_a_tuple_can_be_seen(world: Images) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pair = nn.Conv2d(3, 3, 3, padding=1), Pair()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.pair(self.conv(self.conv(x)))[1]

    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, 2 * x

    model = Twice().eval()
    batch = torch.stack([target_transform()(world[i]) for i in range(2)])
    images = Images([world[0], world[1]])
    with torch.no_grad():
        once, twice = model.conv(batch), model.conv(model.conv(batch))
    for site, expected in (
        (Site("conv", call=0), once),
        (Site("conv", call=1), twice),
        (Site("conv", side="input", call=1, layout="nchw"), once),
        (Site("pair", select=1, layout="nchw"), 2 * twice),
    ):
        np.testing.assert_allclose(unit_maps(model, images, site, 1, **GIVEN), expected[:, 1].numpy(), rtol=1e-4, atol=1e-5)
        side = 5 if expected is not once else 3
        assert receptive_field(model, site, (9, 9), input_shape=(3, 20, 20)).size == (side, side)
    with pytest.raises(InputError, match="runs 2 times"):
        unit_maps(model, images, "conv", 1, **GIVEN)
