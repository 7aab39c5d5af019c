from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from bases import direction
from helpers import noise_images
from PIL import Image
from torch import nn

from neuroprobe import ActivationRecorder, Images
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.models import Axes, Reading
from neuroprobe.visualization import Jitter, Target, Visualization, image_spectrum, visualize
from neuroprobe.visualization._ascent import Ascent, Settings, batches
from neuroprobe.visualization._objectives import UnitTarget
from neuroprobe.world import target_transform

QUICK = {"size": 16, "steps": 4, "batch_size": 3}


class Net(nn.Module):
    """A convolution whose output is changed in place, a unit that is always dead, batch norm, dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.relu(self.norm(self.conv(x)))).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Net()
    with torch.no_grad():
        model.norm.bias[2] = -1e3  # below 0 for any image
    return model.eval()


def test_a_linear_models_best_image_is_known() -> None:
    """The unit is red minus blue: every pixel wants to be as red, and as little blue, as the contrast allows."""
    model = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 0.0, -1.0]).reshape(1, 3, 1, 1))
    found = visualize(model, "0", 0, size=16, mean=(0, 0, 0), std=(1, 1, 1), steps=64, batch_size=1, jitter=Jitter(0, 0, 0, 0))
    image = found.images[0]
    assert image[0].min() > image[2].max()
    assert found.values[0] > 0.3
    np.testing.assert_allclose(found.values[0], image[0].mean() - image[2].mean(), rtol=1e-5)
    assert image.min() >= 0
    assert image.max() <= 1


def test_values_are_what_the_recorder_finds_for_the_finished_images(target) -> None:
    layers = {"classifier": [10, 3], "features.3": [5], "features.0": [2]}
    for layer, units in layers.items():
        found = visualize(target, layer, units, transform=target_transform(), steps=6, batch_size=2)
        recorder = ActivationRecorder(target, [layer])
        recorded = recorder.record(Images(found.to_pil()), transform=target_transform(), progress=False)[layer]
        for i, unit in enumerate(units):
            np.testing.assert_allclose(found.values[i], recorded[i, unit], rtol=0.02, atol=0.02)  # PIL images have 8 bits


def test_a_unit_gets_the_same_bits_alone_and_among_others(target) -> None:
    chosen = {"transform": target_transform(), "steps": 8, "batch_size": 3}
    several = visualize(target, "classifier", [10, 2, 17, 30], n_images=2, **chosen)
    alone = visualize(target, "classifier", 17, **chosen)
    assert several.units == (10, 10, 2, 2, 17, 17, 30, 30)
    np.testing.assert_array_equal(several.images[4], alone.images[0])
    assert several.values[4] == alone.values[0]
    np.testing.assert_array_equal(several.importance[4], alone.importance[0])
    assert not np.array_equal(several.images[4], several.images[5])


@pytest.mark.parametrize("jitter", [Jitter(), Jitter(0, 0, 0, 0)], ids=["moved", "still"])
def test_the_seed_and_the_number_decide_every_image(net: Net, jitter: Jitter) -> None:
    chosen = {**QUICK, "n_images": 3, "jitter": jitter}
    first, again, other = (visualize(net, "head", 1, seed=seed, **chosen).images for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len({image.tobytes() for image in (*first, *other)}) == 6


class _Pixels:
    """Images that are their parameters, and that begin alike whatever the seed."""

    def start(self, generator: torch.Generator, *, attempt: int = 0) -> torch.Tensor:
        return torch.linspace(-1, 1, 3 * 8 * 8).reshape(3, 8, 8)

    def images(self, parameters: torch.Tensor) -> torch.Tensor:
        return 1 * parameters

    def allowed(self, parameters: torch.Tensor) -> torch.Tensor:
        return parameters


def climbed(settings: Settings, forward: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Images of one batch, for the sum of what `forward` gives of each."""
    (items,) = batches([UnitTarget(0)], settings)
    options = {"settings": settings, "device": torch.device("cpu"), "value": lambda reading, targets: reading.values.sum(1)}
    return Ascent(items, made_of=_Pixels(), forward=lambda images: Reading(forward(images), Axes(1)), **options).run(lambda: None).images


@pytest.mark.parametrize("jitter", [Jitter(noise=0), Jitter(0, 0, 0, noise=0.1)], ids=["moves", "noise"])
def test_the_seed_decides_the_jitter_too(jitter: Jitter) -> None:
    first, again, other = (
        climbed(Settings(3, 0.5, jitter, 0.0, 2, seed, 2), lambda images: images.square().flatten(1)[:, :9]) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert len({image.numpy().tobytes() for image in (*first, *other)}) == 4


def test_steps_have_momentum_and_fall_to_nothing() -> None:
    """Up a slope that is the same everywhere, against a plain loop."""
    slope = torch.linspace(0.5, 2, 3 * 8 * 8).reshape(3, 8, 8)
    found = climbed(Settings(5, 0.3, Jitter(0, 0, 0, 0), 0.0, 1, 0, 1), lambda images: (images * slope).flatten(1))
    expected, velocity = _Pixels().start(torch.Generator()), torch.zeros(3, 8, 8)
    for step in range(5):
        velocity = 0.9 * velocity + 0.1 * slope / slope.square().mean().sqrt()
        expected = expected + 0.3 * (1 + np.cos(np.pi * step / 5)) / 2 * velocity
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize("state", ["no_grad", "inference_mode", "frozen", "training"])
def test_the_model_is_left_as_it_was(net: Net, same_random_states, state: str) -> None:
    expected = visualize(net, "head", 1, **QUICK)
    net.train(state == "training").requires_grad_(state != "frozen")
    net.conv.weight.grad = torch.ones_like(net.conv.weight)
    before = copy.deepcopy(net.state_dict())
    with same_random_states(), torch.no_grad(), torch.inference_mode(state == "inference_mode"):
        found = visualize(net, "head", 1, **QUICK)
    np.testing.assert_array_equal(found.images, expected.images)
    assert net.training == (state == "training")
    assert net.drop.training == (state == "training")
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(net.conv.weight.grad, torch.ones_like(net.conv.weight))
    assert net.head.weight.grad is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_hooks_go_when_something_fails(net: Net) -> None:
    class Interrupted(Exception):
        pass

    def fails(images: torch.Tensor) -> torch.Tensor:
        fails.calls += 1
        if fails.calls == 3:
            raise Interrupted
        return images

    fails.calls = 0
    net.train()
    with pytest.raises(Interrupted):
        visualize(net, "head", 0, normalize=fails, **QUICK)
    assert net.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_dead_unit_is_told_and_harms_no_other(net: Net) -> None:
    found = visualize(net, "relu", [1, 2], **QUICK)
    assert found.status == ("found", "no gradient")
    assert found.values[1] == 0
    np.testing.assert_array_equal(found.images[0], visualize(net, "relu", 1, **QUICK).images[0])
    assert list(found.by_unit()) == [("relu", 1)]


def test_a_unit_that_is_dead_in_gray_noise_is_found_with_more_contrast() -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 0.0, -1.0]).reshape(1, 3, 1, 1))
        model[0].bias.fill_(-0.3)  # red must exceed blue by 0.3
    found = visualize(model, "1", 0, size=16, mean=(0, 0, 0), std=(1, 1, 1), steps=48, batch_size=1)
    assert found.status == ("found",)
    assert found.values[0] > 0.02


def test_the_scale_of_a_unit_does_not_matter(net: Net) -> None:
    expected = visualize(net, "head", 1, **QUICK)
    with torch.no_grad():
        net.head.weight *= 2.0**-40
    np.testing.assert_array_equal(visualize(net, "head", 1, **QUICK).images, expected.images)


def test_directions_are_climbed_by_their_log_odds(net: Net) -> None:
    one = direction("head", [0, 2, 0], bias=-5)
    found, unit = visualize(net, "head", one, **QUICK), visualize(net, "head", 1, **QUICK)
    with torch.no_grad():
        outputs = net(_inputs(found)).numpy()
    np.testing.assert_allclose(found.values, one.decision(outputs), rtol=1e-4)
    assert found.units == (one,)
    assert found.by_unit() == {}
    assert unit.units == (1,)


class _Difference(Target):
    """A target of one's own: a unit as far as it exceeds another."""

    def __init__(self, unit: int, other: int) -> None:
        self.name, self.unit, self.other = f"{unit} - {other}", unit, other

    def fits(self, layer: str, n_pooled: int, n_spatial: int) -> None:
        if max(self.unit, self.other) >= n_pooled:
            raise InputError(f"Expected two of the {n_pooled} units of {layer!r}, but got {self.name}.")

    def values(self, pooled: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        return pooled[:, self.unit] - pooled[:, self.other]


def test_a_target_of_ones_own_is_climbed_beside_others(net: Net, tmp_path: Path) -> None:
    own, other = _Difference(0, 2), direction("head", [0, 1, 0])
    found = visualize(net, "head", [own, 1, other], **QUICK)
    with torch.no_grad():
        outputs = net(_inputs(found)).numpy()
    np.testing.assert_allclose(found.values, [outputs[0, 0] - outputs[0, 2], outputs[1, 1], outputs[2, 1]], rtol=1e-4, atol=1e-6)
    for i, one in enumerate((own, 1, other)):
        np.testing.assert_array_equal(visualize(net, "head", one, **QUICK).images[0], found.images[i])
    assert found.units == (own, 1, other)
    assert found.table["concept"].tolist() == ["0 - 2", "", "<b>red</b>"]
    assert [path.name for path in found.save(tmp_path)[:3]] == ["head-target0-0.png", "head-1-0.png", "head-direction2-0.png"]
    with pytest.raises(InputError, match="two of the 3 units of 'head', but got 0 - 7"):
        visualize(net, "head", _Difference(0, 7), **QUICK)
    with pytest.raises(InputError, match="each unit or direction once"):
        visualize(net, "head", [own, _Difference(0, 2)], **QUICK)


def _inputs(found: Visualization) -> torch.Tensor:
    mean, std = (torch.tensor(found.metadata[key])[:, None, None] for key in ("mean", "std"))
    return (torch.from_numpy(found.images) - mean) / std


def test_a_spatial_direction_weighs_every_position(net: Net) -> None:
    n = 4 * 14 * 14
    weights = np.random.default_rng(0).normal(size=n)
    one = direction("conv", list(weights), features="spatial")
    found = visualize(net, "conv", one, **QUICK)
    with torch.no_grad():
        outputs = net.conv(_inputs(found)).flatten(1).numpy()
    np.testing.assert_allclose(found.values, one.decision(outputs), rtol=1e-3)
    with pytest.raises(InputError, match=f"{n} spatial features, but '<b>red</b>' has 7"):
        visualize(net, "conv", direction("conv", [1.0] * 7, features="spatial"), **QUICK)


def test_the_center_is_one_position(net: Net) -> None:
    found = visualize(net, "conv", 0, pooling="center", **QUICK)
    with torch.no_grad():
        maps = net.conv(_inputs(found))
    np.testing.assert_allclose(found.values[0], maps[0, 0, 7, 7], rtol=1e-4)
    # with shifts, scales and turns of a twentieth, what matters stays near the 3 x 3 pixels it sees
    assert found.importance[0][4:13, 4:13].sum() > 0.95 * found.importance[0].sum()


def test_diversity_makes_a_units_images_unlike(net: Net) -> None:
    def alike(diversity: float) -> float:
        found = visualize(net, "conv", 1, n_images=3, diversity=diversity, size=16, steps=40, batch_size=4)
        with torch.no_grad():
            maps = net.conv(_inputs(found)).flatten(2)
        grams = (maps @ maps.transpose(1, 2)).flatten(1)
        grams = grams / grams.norm(dim=1, keepdim=True)
        return float((grams @ grams.T)[~torch.eye(3, dtype=torch.bool)].mean())

    assert alike(1.0) < alike(0.0) - 0.02


def test_diverse_images_do_not_depend_on_other_units(net: Net) -> None:
    chosen = {"n_images": 2, "diversity": 0.5, "size": 16, "steps": 6, "batch_size": 5}
    several, alone = visualize(net, "head", [0, 1, 2], **chosen), visualize(net, "head", 2, **chosen)
    np.testing.assert_array_equal(several.images[4:], alone.images)


def test_phase_images_keep_the_images_magnitudes(net: Net) -> None:
    spectrum = image_spectrum(noise_images(20, side=16), size=16, progress=False)
    found = visualize(net, "head", 1, parametrization="phase", spectrum=spectrum, **QUICK)
    pixels = torch.logit(torch.from_numpy(found.images).double()) / 4 + 0.5 - torch.from_numpy(spectrum.mean)[:, None, None]
    planes = torch.einsum("rc,nchw->nrhw", torch.linalg.inv(torch.from_numpy(spectrum.colors).double()), pixels)
    magnitudes = torch.fft.rfft2(planes, norm="ortho").abs()[0].numpy()
    real = np.zeros((16, 9), dtype=bool)
    real[np.ix_([0, 8], [0, 8])] = True
    np.testing.assert_allclose(magnitudes[:, ~real], spectrum.magnitudes[:, ~real], rtol=1e-3, atol=1e-4)
    assert (magnitudes[:, real] <= spectrum.magnitudes[:, real] * 1.001).all()


def test_it_is_saved_and_can_be_read(net: Net, tmp_path: Path) -> None:
    found = visualize(net, "head", [2, 0], n_images=2, **QUICK)
    paths = found.save(tmp_path / "a" / "b")
    assert [path.name for path in paths[:4]] == ["head-2-0.png", "head-2-1.png", "head-0-0.png", "head-0-1.png"]
    for path, image in zip(paths, found.images, strict=False):
        pixels = np.asarray(Image.open(path), dtype=np.float32) / 255
        np.testing.assert_allclose(pixels.transpose(2, 0, 1), image, atol=0.5 / 255 + 1e-6)
    table = pd.read_csv(paths[4])
    assert table["unit"].tolist() == [2, 2, 0, 0]
    assert table["number"].tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(table["value"], found.values, rtol=1e-6)
    assert json.loads(paths[5].read_text())["jitter"] == {"shift": 0.05, "scale": 0.05, "rotation": 5.0, "noise": 0.05}


def test_what_did_not_matter_can_be_transparent(net: Net) -> None:
    (image,) = visualize(net, "head", 1, **QUICK).to_pil(masked=True)
    alpha = np.asarray(image)[..., 3]
    assert image.mode == "RGBA"
    assert alpha.max() == 255
    assert 0.05 < (alpha == 255).mean() < 0.2


def test_other_sizes_and_double_precision(net: Net) -> None:
    found = visualize(net.double(), "head", 1, size=(9, 13), steps=2, batch_size=1)
    assert found.images.shape == (1, 3, 9, 13)
    assert found.images.dtype == np.float32


@pytest.mark.parametrize(
    ("unit", "changes", "message"),
    [
        ([], {}, "Expected a unit or units"),
        ([1, 1], {}, "each unit or direction once"),
        (-1, {}, "Expected a unit from 0 on of 'head', but got"),
        (3, {}, "Expected a unit from 0 to 2 of 'head', but got 3"),
        (direction("conv", [1.0]), {}, "directions of 'head'"),
        (direction("head", [0.0, 0, 0]), {}, "not 0"),
        (direction("head", [1.0, 0]), {}, "3 pooled features, but '<b>red</b>' has 2"),
        (0, {"step_size": float("nan")}, "`step_size`"),
        (0, {"diversity": 1.0}, "`n_images` from 2 to `batch_size`"),
        (0, {"pooling": "none"}, "one value per unit"),
        (0, {"parametrization": "phase"}, "Expected a `spectrum`"),
        (0, {"size": 2}, "`size`"),
        (0, {"mean": (0, 0, 0)}, "`mean` and `std` together"),
        (0, {"mean": (0, 0, 0), "std": (1, 0, 1)}, "`std` above 0"),
        (0, {"normalize": lambda x: x.detach()}, "has no gradient"),
        (0, {"normalize": lambda x: x * float("nan")}, "finite gradients"),
        (0, {"spectrum": 3}, "Expected `spectrum`"),
        (0, {"jitter": 3}, "Expected `jitter`"),
        (0, {"mean": "abc", "std": "abc"}, "Expected `mean` and `std`"),
        (0, {"mean": 3, "std": 3}, "Expected `mean` and `std`"),
        (0, {"mean": [0, 0], "std": [1, 1, 1]}, "Expected `mean` and `std`"),
        (0, {"transform": 3}, "Expected `transform` to be a function"),
        (0, {"normalize": 3}, "Expected `normalize` to be a function"),
        (0, {"normalize": lambda images: None}, "Expected `normalize` to give"),
    ],
)
def test_what_does_not_fit_is_refused(net: Net, unit: object, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        visualize(net, "head", unit, **{**QUICK, **changes})
    assert not any(module._forward_hooks for module in net.modules())


def test_unknown_names_are_told(net: Net) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'head'"):
        visualize(net, "heat", 0, **QUICK)
    with pytest.raises(InputError, match="Expected `parametrization` to be 'fourier' or 'phase', but got 'maximum'"):
        visualize(net, "head", 0, parametrization="maximum", **QUICK)
    with pytest.raises(InputError, match="maps for pooling='center'"):
        visualize(_Tokens(), "linear", 0, pooling="center", **QUICK)


class _Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(2).transpose(1, 2))


def test_tokens_are_pooled_as_recorded() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _Tokens().eval()
    found = visualize(model, "linear", 2, pooling=("token", 5), **QUICK)
    with torch.no_grad():
        np.testing.assert_allclose(found.values[0], model(_inputs(found))[0, 5, 2], rtol=1e-4)


def test_numbers_of_numpy_are_numbers(net: Net, tmp_path: Path) -> None:
    plain = visualize(net, "head", 1, **QUICK)
    same = visualize(net, "head", np.array(1), size=np.int64(16), steps=np.int32(4), batch_size=np.int64(3), seed=np.int64(0))
    np.testing.assert_array_equal(same.images, plain.images)
    same.save(tmp_path)
    assert json.loads((tmp_path / "visualizations.json").read_text()) == json.loads(json.dumps(dict(plain.metadata)))


def test_colors_as_arrays(net: Net, tmp_path: Path) -> None:
    plain = visualize(net, "head", 1, **QUICK, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    for mean, std in ((np.full(3, 0.5), np.full(3, 0.25, np.float32)), (torch.full((3,), 0.5), torch.full((3,), 0.25))):
        same = visualize(net, "head", 1, **QUICK, mean=mean, std=std)
        np.testing.assert_array_equal(same.images, plain.images)
        same.save(tmp_path)
    with pytest.raises(InputError, match="Expected `mean` and `std`"):
        visualize(net, "head", 1, **QUICK, mean=[], std=[])


def test_values_that_are_not_finite_are_refused(net: Net) -> None:
    with torch.no_grad():
        net.head.bias.fill_(float("nan"))  # the gradients stay finite
    with pytest.raises(InputError, match="Expected finite values"):
        visualize(net, "head", 0, **QUICK)


def test_a_spectrum_is_of_images() -> None:
    for images in (None, [1], "folder"):
        with pytest.raises(InputError, match=r"Expected the probing set as neuroprobe\.Images"):
            image_spectrum(images)  # type: ignore[arg-type]
