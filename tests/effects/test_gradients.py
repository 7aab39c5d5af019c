from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import noise_images
from torch import nn
from torchvision.models import vision_transformer

from neuroprobe import Images
from neuroprobe.effects._gradients import directional_derivatives
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.models import Direction
from neuroprobe.world import target_transform


def transform(image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)


class Net(nn.Module):
    """A convolution whose output is changed in place, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5)
        self.conv2, self.head = nn.Conv2d(4, 5, 3), nn.Linear(5, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.relu(self.norm(self.conv(x))))
        x = torch.tanh(self.conv2(x))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Net().double().eval()


def double(image) -> torch.Tensor:
    return transform(image).double()


def direction(layer: str, n: int, *, features: str = "pooled", seed: int = 0) -> Direction:
    weights = np.random.default_rng(seed).normal(size=n)
    return Direction("red", "model", layer, features, "linear", seed, weights, 0.0)


def slow(model: nn.Module, images: Images, one: Direction, output: int, *, shape: Callable[[torch.Tensor], torch.Tensor]) -> list[float]:
    """Move the layer's output by a little, image by image, and look at what becomes of the output."""
    found, step = [], 1e-6
    vector = shape(torch.from_numpy(one.unit_vector).double())
    for i in range(len(images)):
        values = []
        for sign in (1, -1):
            handle = dict(model.named_modules())[one.layer].register_forward_hook(lambda m, a, o, s=sign: o + s * step * vector)
            with torch.no_grad():
                values.append(float(model(double(images[i])[None])[0, output]))
            handle.remove()
        found.append((values[0] - values[1]) / (2 * step))
    return found


def test_derivatives_are_what_a_small_step_changes(net: Net) -> None:
    images = noise_images(5)
    given = [
        direction("conv", 4),
        direction("conv2", 5, seed=1),
        direction("conv2", 5 * 4 * 4, features="spatial"),
        direction("conv", 4 * 6 * 6, features="spatial"),
        direction("head", 3),
    ]
    shapes = [
        lambda v: v[None, :, None, None],
        lambda v: v[None, :, None, None],
        lambda v: v.reshape(1, 5, 4, 4),
        lambda v: v.reshape(1, 4, 6, 6),
        lambda v: v[None],
    ]
    found = directional_derivatives(net, images, given, outputs={"first": 0, "third": 2}, transform=double, batch_size=2)
    assert found.shape == (5, 2, 5)
    for i, (one, shape) in enumerate(zip(given, shapes, strict=True)):
        for o, output in enumerate((0, 2)):
            np.testing.assert_allclose(found[i, o], slow(net, images, one, output, shape=shape), rtol=1e-4, atol=1e-7)


def test_a_linear_heads_derivative_by_hand(net: Net) -> None:
    # before a linear head, the derivative of an output is its weights times the direction, at every image
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Linear(6, 2)).eval()
    one = direction("1", 6)
    found = directional_derivatives(model, noise_images(4), [one], outputs={"1": 1}, transform=transform)
    np.testing.assert_allclose(found[0, 0], float(model[2].weight[1].detach().numpy() @ one.unit_vector), rtol=1e-5)


def test_tokens_are_moved_alike() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = vision_transformer.VisionTransformer(8, 4, 2, 2, 8, 16, num_classes=3).eval()
        nn.init.normal_(model.heads.head.weight)
    layer, one = "encoder.layers.encoder_layer_0", direction("encoder.layers.encoder_layer_0", 8)
    found = directional_derivatives(model, noise_images(3), [one], outputs={"0": 0}, transform=transform)
    model = model.double()
    one = Direction("", "", layer, "pooled", "linear", 0, one.weights, 0.0)
    np.testing.assert_allclose(found[0, 0], slow(model, noise_images(3), one, 0, shape=lambda v: v[None, None]), rtol=1e-3)


def test_an_output_may_be_a_function(net: Net) -> None:
    outputs = {"difference": lambda y: y[:, 1] - y[:, 0], "0": 0, "1": 1}
    found = directional_derivatives(net, noise_images(3), [direction("conv2", 5)], outputs=outputs, transform=double)[0]
    np.testing.assert_allclose(found[0], found[2] - found[1], rtol=1e-6)


def test_the_model_is_left_as_it_was(net: Net, same_random_states) -> None:
    net.train()
    net.conv.weight.grad = torch.ones_like(net.conv.weight)
    before = copy.deepcopy(net.state_dict())
    with same_random_states(), torch.no_grad():
        directional_derivatives(net, noise_images(3), [direction("conv", 4)], outputs={"0": 0}, transform=double)
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(net.conv.weight.grad, torch.ones_like(net.conv.weight))
    assert net.conv2.weight.grad is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_batches_and_frozen_weights_change_nothing(net: Net) -> None:
    given, images = [direction("conv", 4), direction("conv2", 5)], noise_images(7)
    found = directional_derivatives(net, images, given, outputs={"0": 0}, transform=double)
    for frozen in (False, True):
        net.requires_grad_(not frozen)
        with torch.inference_mode():
            again = directional_derivatives(net, images, given, outputs={"0": 0}, transform=double, batch_size=3)
        np.testing.assert_allclose(found, again, rtol=1e-5)


def test_what_cannot_be_is_refused(net: Net) -> None:
    def derivatives(one: Direction, model: nn.Module = net, **changed) -> np.ndarray:
        return directional_derivatives(model, noise_images(2), [one], **{"outputs": {"0": 0}, "transform": double, **changed})

    with pytest.raises(UnknownNameError, match="conv3"):
        derivatives(direction("conv3", 4))
    with pytest.raises(InputError, match=r"Expected directions of 'conv' with 4 pooled features, but got one with 9"):
        derivatives(direction("conv", 9))
    with pytest.raises(InputError, match="with 144 spatial features, but got one with 4"):
        derivatives(direction("conv", 4, features="spatial"))
    with pytest.raises(InputError, match="Expected 'unused' to run"):
        derivatives(direction("unused", 2))
    with pytest.raises(InputError, match=r"0 = 3: the model returns \(2, 3\)"):
        derivatives(direction("conv", 4), outputs={"0": 3})
    with pytest.raises(InputError, match="one number for each of 2 images"):
        derivatives(direction("conv", 4), outputs={"all": lambda y: y})
    with pytest.raises(InputError, match="depends on 'conv'"):
        derivatives(direction("conv", 4), outputs={"nothing": lambda y: y[:, 0].detach() * 0})
    with pytest.raises(InputError, match="at least one direction and one output"):
        derivatives(direction("conv", 4), outputs={})
    assert not any(module._forward_hooks for module in net.modules())


def test_a_layer_that_runs_twice_or_gives_no_tensor_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.pair = nn.Linear(192, 192), nn.LSTM(192, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layer(self.layer(x.flatten(1)))
            return self.pair(x[:, None])[0][:, 0]

    for layer, message in (("layer", "runs again"), ("pair", "gives a tuple")):
        with pytest.raises(InputError, match=message):
            directional_derivatives(Twice(), noise_images(2), [direction(layer, 192)], outputs={"0": 0}, transform=transform)


def test_directions_of_one_layer_have_one_size(net: Net) -> None:
    with pytest.raises(InputError, match=r"equally many pooled features, but got \[4, 5\]"):
        directional_derivatives(net, noise_images(2), [direction("conv", 4), direction("conv", 5)], outputs={"0": 0}, transform=double)


def test_the_worlds_target_has_them_in_every_module(target: nn.Module, world: Images) -> None:
    widths = {f"features.{i}": None for i in (0, 7, 18)}
    images = world.subset(world.ids[:2])
    shapes: dict[str, int] = {}
    handles = [
        dict(target.named_modules())[layer].register_forward_hook(lambda m, a, o, name=layer: shapes.__setitem__(name, o.shape[1]))
        for layer in widths
    ]
    target(target_transform()(images[0])[None])
    for handle in handles:
        handle.remove()
    given = [direction(layer, n) for layer, n in shapes.items()]
    found = directional_derivatives(target, images, given, outputs={"10": 10}, transform=target_transform())
    assert found.shape == (3, 1, 2)
    assert np.isfinite(found).all()
    assert (found != 0).any(axis=2).all()
