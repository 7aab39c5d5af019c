"""Interventions: what a layer gives is changed as told, and only as long as told."""

from __future__ import annotations

import copy
from collections import OrderedDict, namedtuple
from collections.abc import Callable

import numpy as np
import pytest
import torch
from bases import direction
from helpers import noise_images
from helpers import to_tensor as transform
from torch import nn
from torch.nn import functional
from torchvision.models import vision_transformer

from neuroprobe.effects import ablate, directional_derivatives, steer
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.models import Site
from neuroprobe.recording import ActivationRecorder, Activations
from neuroprobe.world import target_transform

Pair = namedtuple("Pair", ["first", "second"])


class Net(nn.Module):
    """A convolution whose output is changed in place and added again later, a layer that runs twice, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)
        self.twice, self.drop, self.head, self.unused = nn.Conv2d(4, 4, 1), nn.Dropout(0.5), nn.Linear(4, 3), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.conv(x))
        return self.head(self.drop(self.twice(self.twice(x)) + x).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Net().eval()


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.stack([transform(image) for image in noise_images(5)])


def recorded(model: nn.Module, *layers: str | Site, **settings) -> Activations:
    return ActivationRecorder(model, layers, **settings).record(noise_images(9, seed=2), transform=transform)


def by_hand(net: Net, batch: torch.Tensor, *, conv: Callable = lambda x: x, twice: Callable = lambda x: x) -> torch.Tensor:
    """The forward pass written out, with what is done to the two layers, and without any hook."""
    x = torch.relu(conv(functional.conv2d(batch, net.conv.weight, net.conv.bias)))
    y = x
    for _ in range(2):
        y = twice(functional.conv2d(y, net.twice.weight, net.twice.bias))
    return functional.linear((y + x).mean((2, 3)), net.head.weight, net.head.bias)


def setting(units: list[int], value) -> Callable[[torch.Tensor], torch.Tensor]:
    def changed(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        for i, unit in enumerate(units):
            x[:, unit] = value if np.ndim(value) == 0 else torch.as_tensor(np.asarray(value)[i], dtype=x.dtype)
        return x

    return changed


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# --- ablate


@pytest.mark.parametrize("value", ["zero", 0.7, [0.5, -2.0], np.arange(2 * 6 * 6.0).reshape(2, 6, 6)])
def test_units_are_set_as_if_the_forward_pass_were_written_out(net: Net, batch: torch.Tensor, value) -> None:
    with torch.no_grad():
        expected = by_hand(net, batch, conv=setting([3, 1], 0.0 if isinstance(value, str) else value))
        with ablate(net, "conv", [3, 1], value):
            found = net(batch)
        assert not torch.allclose(found, net(batch))
    same(found, expected)


def test_means_are_over_images_and_positions(net: Net, batch: torch.Tensor) -> None:
    activations = recorded(net, "conv")
    with torch.no_grad():
        maps = net.conv(torch.stack([transform(image) for image in noise_images(9, seed=2)]))
        expected = by_hand(net, batch, conv=setting([0, 2], [float(maps[:, 0].mean()), float(maps[:, 2].mean())]))
        with ablate(net, "conv", [0, 2], activations=activations):
            same(net(batch), expected)
        summary = ActivationRecorder(net, ["conv"]).summarize(noise_images(9, seed=2), transform=transform, k=3)
        with ablate(net, "conv", [0, 2], "mean", activations=summary):
            same(net(batch), expected)


def test_a_rectified_units_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        model[2].weight.copy_(torch.tensor([[10.0, 1.0]]))
        x = torch.tensor([[2.0, 3.0], [-1.0, 4.0]])
        assert model(x).flatten().tolist() == [23, 4]
        with ablate(model, "1", 0, "zero"):
            assert model(x).flatten().tolist() == [3, 4]
        with ablate(model, "0", 0, -5):  # before the rectification
            assert model(x).flatten().tolist() == [3, 4]
        with ablate(model, "1", 0, -5):
            assert model(x).flatten().tolist() == [-47, -46]
        with steer(model, "1", [3.0, 4.0], 10):
            assert model(x).flatten().tolist() == [23 + 68, 4 + 68]


def test_every_call_of_a_layer_is_changed(net: Net, batch: torch.Tensor) -> None:
    with torch.no_grad(), ablate(net, "twice", 1, 0.4):
        same(net(batch), by_hand(net, batch, twice=setting([1], 0.4)))


def test_interventions_on_one_layer_act_in_the_order_entered(net: Net, batch: torch.Tensor) -> None:
    def moved(x: torch.Tensor) -> torch.Tensor:
        return x + torch.tensor([0.0, 3.0, 0.0, 4.0])[None, :, None, None] / 5 * 2

    set_ = setting([1], 0.4)
    with torch.no_grad():
        with ablate(net, "conv", 1, 0.4), steer(net, "conv", [0, 3, 0, 4], 2.0):
            same(net(batch), by_hand(net, batch, conv=lambda x: moved(set_(x))))
        with steer(net, "conv", [0, 3, 0, 4], 2.0), ablate(net, "conv", 1, 0.4):
            same(net(batch), by_hand(net, batch, conv=lambda x: set_(moved(x))))
        with ablate(net, "conv", 1, 0.4), ablate(net, "conv", [1, 2], 0.9), ablate(net, "twice", 0, "zero"):
            same(net(batch), by_hand(net, batch, conv=setting([1, 2], 0.9), twice=setting([0], 0.0)))
            with ablate(net, "conv", 1, 5.0):
                net(batch)
            same(net(batch), by_hand(net, batch, conv=setting([1, 2], 0.9), twice=setting([0], 0.0)))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_everything_is_undone_whatever_happens(net: Net, batch: torch.Tensor, same_random_states) -> None:
    net.train()
    before, state = hooks(net), copy.deepcopy(net.state_dict())
    with same_random_states():
        with pytest.raises(KeyboardInterrupt), ablate(net, "conv", 0, "zero"), steer(net, "twice", [1, 0, 0, 0], 1):
            raise KeyboardInterrupt
        with pytest.raises(InputError, match="from 0 to 3 of 'conv', but got 9"), ablate(net, "conv", 9, "zero"):
            net(batch)
        with pytest.raises(RuntimeError), ablate(net, "conv", 0, "zero"):
            net(batch[:, :1])
    assert hooks(net) == before
    assert all(module.training for module in net.modules())
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    with torch.no_grad():
        same(net.eval()(batch), by_hand(net, batch))


def test_a_recorder_and_gradients_meet_the_change(net: Net, batch: torch.Tensor) -> None:
    with ablate(net, "conv", [0, 2], 0.25):
        found = recorded(net, "conv", "relu")
        net(batch).sum().backward()
    np.testing.assert_allclose(found["conv"][:, [0, 2]], 0.25)
    assert (np.ptp(found["conv"][:, [1, 3]], axis=0) > 0).all()
    assert net.conv.weight.grad[[0, 2]].abs().max() == 0
    assert net.conv.weight.grad[[1, 3]].abs().max() > 0
    np.testing.assert_array_less(0, np.ptp(recorded(net, "conv")["conv"], axis=0))


def test_units_of_tokens_are_those_on_the_last_axis() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = vision_transformer.VisionTransformer(8, 4, 2, 2, 8, 16, num_classes=3).eval()
    layer, seen = "encoder.layers.encoder_layer_0", []
    x = torch.rand(5, 3, 8, 8)  # as many images as tokens
    with torch.no_grad():
        with ablate(model, layer, [7, 0], [1.5, -1.0]):
            handle = model.get_submodule(layer).register_forward_hook(lambda m, a, o: seen.append(o))
            model(x)
            handle.remove()
        model.get_submodule(layer).register_forward_hook(lambda m, a, o: seen.append(o))
        model(x)
    expected = seen[1].clone()
    expected[:, :, 7], expected[:, :, 0] = 1.5, -1.0
    assert torch.equal(seen[0], expected)


def test_the_layout_can_be_said() -> None:
    class Tokens(nn.Module):  # [tokens, n, d], which no module tells
        def __init__(self) -> None:
            super().__init__()
            self.turn = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.turn(x.flatten(2).permute(2, 0, 1)).permute(1, 2, 0)  # [n, d, tokens]

    model, x = Tokens(), torch.rand(4, 3, 2, 2)
    with pytest.raises(InputError, match="layout='nchw'"), ablate(model, "turn", 0, "zero"):
        model(x)
    expected = x.flatten(2).clone()
    expected[:, 0] = torch.tensor([1.0, 2, 3, 4])
    with ablate(model, Site("turn", layout="lnc"), [0], [[1.0, 2, 3, 4]]):
        assert torch.equal(model(x), expected)
    with pytest.raises(UnknownNameError, match="Expected a layout"), ablate(model, Site("turn", layout="chw"), 0, "zero"):
        pass


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "named"])
def test_a_part_of_an_output_is_put_back_in_its_place(kind: str) -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor):
            y = self.linear(x)
            made = {"tuple": (x, y), "list": [x, y], "dict": OrderedDict(first=x, second=y), "named": Pair(x, y)}
            return made[kind]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = Parts()

        def forward(self, x: torch.Tensor):
            return self.parts(x)

    model, x = Whole(), torch.rand(4, 3)
    key = "second" if kind in ("dict", "named") else 1
    with torch.no_grad():
        plain = model(x)
        with ablate(model, Site("parts", select=key), 1, 9.0):
            found = model(x)
        assert type(found) is type(plain)
        first, second = found.values() if kind == "dict" else found
        assert torch.equal(first, x)
        assert torch.equal(second[:, 1], torch.full((4,), 9.0))
        assert torch.equal(second[:, 0], model.parts.linear(x)[:, 0])
        if kind == "named":
            with ablate(model, Site("parts", select=1), 1, 9.0):
                assert torch.equal(model(x).second, second)
        with pytest.raises(InputError, match="Say which part: Site"), ablate(model, "parts", 0, "zero"):
            model(x)
        with pytest.raises(InputError, match="position or key"):
            entered(ablate(model, Site("parts", select=len), 0, "zero"))


def test_lstm_cells_and_other_precisions(net: Net, batch: torch.Tensor) -> None:
    lstm = nn.Sequential(nn.LSTM(3, 4, batch_first=True))
    with torch.no_grad(), ablate(lstm, Site("0", select=0, layout="nlc"), 2, 0.5):
        assert torch.equal(lstm(torch.rand(2, 5, 3))[0][:, :, 2], torch.full((2, 5), 0.5))
    half = copy.deepcopy(net).bfloat16()
    with torch.no_grad(), ablate(half, "conv", 0, 0.5), steer(half, "twice", [1, 0, 0, 0], 1.0):
        assert half(batch.bfloat16()).dtype == torch.bfloat16
    with torch.inference_mode(), ablate(net, "conv", 0, 0.5):
        same(net(batch), by_hand(net, batch, conv=setting([0], 0.5)))


# --- steer


def test_a_directions_strength_is_in_the_layers_units_or_in_standard_deviations(net: Net, batch: torch.Tensor) -> None:
    vector = np.array([2.0, -1, 0, 2])
    activations = recorded(net, "conv")
    spread = np.std([row @ (vector / 3) for row in activations["conv"].astype(float)])
    with torch.no_grad():
        for given in (vector, torch.from_numpy(vector), vector.tolist(), direction("conv", vector)):
            for settings, length in (({}, 1.0), ({"activations": activations}, spread)):
                added = torch.from_numpy(-1.5 * length * vector / 3).float()[None, :, None, None]
                with steer(net, "conv", given, -1.5, **settings):
                    same(net(batch), by_hand(net, batch, conv=lambda x, added=added: x + added))


def test_a_spatial_direction_moves_each_position_by_its_own_part(net: Net, batch: torch.Tensor) -> None:
    weights = np.random.default_rng(0).normal(size=4 * 6 * 6)
    one = direction("conv", weights, "spatial")
    added = torch.from_numpy(one.unit_vector).reshape(1, 4, 6, 6)
    with torch.no_grad():
        with steer(net, "conv", one, 3):
            same(net(batch), by_hand(net, batch, conv=lambda x: x + 3 * added))
        activations = recorded(net, "conv", pooling="none")
        spread = float(np.std(activations["conv"] @ one.unit_vector))
        with steer(net, "conv", one, 3, activations=activations):
            same(net(batch), by_hand(net, batch, conv=lambda x: x + 3 * spread * added))


def test_a_small_step_is_the_derivative(net: Net) -> None:
    images = noise_images(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 2)).eval()
    one = direction("1", [1.0, 2, 3, 4])
    found = directional_derivatives(model, images, [one], outputs={"0": 0}, transform=transform)[0, 0]
    x = torch.stack([transform(image) for image in images])
    ends = []
    for step in (1e-2, -1e-2):
        with torch.no_grad(), steer(model, "1", one, step):
            ends.append(model(x)[:, 0].numpy())
    np.testing.assert_allclose((ends[0] - ends[1]) / 2e-2, found, rtol=1e-3)


# --- what cannot be


def entered(manager) -> None:
    with manager:
        pass


def test_units_that_are_none_are_refused(net: Net) -> None:
    for units in ([], [0, 0], np.array([True, False]), "0", -1):
        with pytest.raises(InputError, match=r"units? .*of 'conv'"):
            entered(ablate(net, "conv", units, "zero"))


def test_values_that_do_not_fit_are_refused(net: Net, batch: torch.Tensor) -> None:
    for value, message in (
        ([1.0, 2], "for each of 1 units"),
        (np.nan, "not all finite"),
        (object(), "Expected `value` to be numbers"),
        ([True], "`value` to be numbers"),
    ):
        with pytest.raises(InputError, match=message):
            entered(ablate(net, "conv", 0, value))
    with pytest.raises(UnknownNameError, match="Did you mean 'mean'"):
        entered(ablate(net, "conv", 0, "meen"))
    with pytest.raises(InputError, match=r"a map \(6, 6\) for each unit"), ablate(net, "conv", 0, np.zeros((1, 5, 6))):
        net(batch)
    with pytest.raises(InputError, match="from 0 to 2 of 'head', but got 3"), ablate(net, "head", [0, 3], "zero"):
        net(batch)


def test_means_of_something_else_are_refused(net: Net) -> None:
    for layer, unit, activations, message in (
        ("conv", 0, None, r"to take the means from.*Record them: ActivationRecorder\(model, \['conv'\]\)"),
        ("conv", 0, recorded(net, "relu"), "Expected a recorded layer, but got 'conv'"),
        ("conv", 0, recorded(net, "conv", pooling="max"), r"recorded with pooling='mean', but got some with 'max'"),
        ("twice", 0, recorded(net, Site("twice", call=1)), r"these activations are of 'twice' call 1\. Hand in the same Site"),
        ("conv", 4, recorded(net, "conv"), "from 0 to 3 of 'conv', but got 4"),
    ):
        with pytest.raises((InputError, UnknownNameError), match=message):
            entered(ablate(net, layer, unit, activations=activations))
    activations = recorded(net, "conv")
    with torch.no_grad():
        net.head.bias += 1
    with pytest.raises(InputError, match="of this model"):
        entered(ablate(net, "conv", 0, activations=activations))


def test_models_and_layers_that_cannot_be_changed_are_refused(net: Net, batch: torch.Tensor) -> None:
    for layer, message in (("conf", "Did you mean 'conv'"), (["conv"], "module names of Net")):
        with pytest.raises(UnknownNameError, match=message):
            entered(ablate(net, layer, 0, "zero"))
    with pytest.raises(InputError, match=r"model\.module"):
        entered(ablate(nn.DataParallel(net), "module.conv", 0, "zero"))
    with pytest.raises(InputError, match=r"model\._orig_mod"):
        entered(steer(torch.compile(net), "_orig_mod.conv", [1, 0, 0, 0], 1))
    with pytest.raises(InputError, match="'unused' to run in a forward pass"), ablate(net, "unused", 0, "zero"):
        net(batch)
    with pytest.raises(InputError, match="modules that run"):  # a container without a forward
        entered(ablate(nn.ModuleDict({"a": nn.ModuleList([nn.Linear(1, 1)])}), "a", 0, "zero"))
    entered(ablate(net, "unused", 0, "zero"))  # nothing was run


def test_directions_that_do_not_fit_are_refused(net: Net, batch: torch.Tensor) -> None:
    for given, message in (
        ([0, 0, 0, 0], "not all zero"),
        ([np.inf, 0], "finite numbers"),
        (np.ones((2, 2)), r"\[n_units\]"),
        ("red", "Expected `direction` to be numbers"),
        (direction("head", [1, 2, 3]), "a direction of 'conv', but got one of 'head'"),
    ):
        with pytest.raises(InputError, match=message):
            entered(steer(net, "conv", given, 1))
    for strength in (float("nan"), True):
        with pytest.raises(InputError, match="Expected `strength` to be a number"):
            entered(steer(net, "conv", [1, 0, 0, 0], strength))
    with pytest.raises(InputError, match="with 4 pooled features, but got one with 3"), steer(net, "conv", [1, 0, 0], 1):
        net(batch)
    spatial = direction("conv", [1, 2, 3, 4], "spatial")
    with pytest.raises(InputError, match="with 144 spatial features, but got one with 4"), steer(net, "conv", spatial, 1):
        net(batch)
    with pytest.raises(InputError, match="with 4 pooled features, but got one with 3"):
        entered(steer(net, "conv", [1, 0, 0], 1, activations=recorded(net, "conv")))
    with pytest.raises(InputError, match="pooling='none', but got some with 'mean'"):
        entered(steer(net, "conv", direction("conv", np.ones(144), "spatial"), 1, activations=recorded(net, "conv")))
    summary = ActivationRecorder(net, ["conv"]).summarize(noise_images(9, seed=2), transform=transform, k=3)
    with pytest.raises(InputError, match="how units vary together"):
        entered(steer(net, "conv", [1, 0, 0, 0], 1, activations=summary))


def test_every_module_of_the_worlds_target_can_be_ablated(target: nn.Module, world) -> None:
    x = torch.stack([target_transform()(world[i]) for i in range(2)])
    with torch.no_grad():
        before = target(x)
        for layer in (*(f"features.{i}" for i in range(19)), "features.5.conv.0.1", "classifier.1"):
            with ablate(target, layer, [0, 5], 3.0):
                assert not torch.equal(target(x), before), layer
        assert torch.equal(target(x), before)


def test_values_are_numbers_of_any_kind(net: Net, batch: torch.Tensor) -> None:
    with torch.no_grad(), ablate(net, "conv", [0, 1], [0.5, 2]):
        expected = net(batch)
    for kind in (torch.bfloat16, torch.float16, torch.float64):
        with torch.no_grad(), ablate(net, "conv", [0, 1], torch.tensor([0.5, 2], dtype=kind)):
            assert torch.equal(net(batch), expected)


@pytest.mark.parametrize("weights", [[0.3, 0.7, 0.123, -0.9], [1, 0, 0, 0], [1, -1, 1, -1]])
def test_rounding_is_no_variation_along_a_direction(net: Net, weights: list[float]) -> None:
    constant = Activations({"conv": np.full((1001, 4), 0.1, np.float32)}, tuple(map(str, range(1001))), {})
    with pytest.raises(InputError, match="that vary along the direction"):
        entered(steer(net, "conv", weights, 1, activations=constant))


@pytest.mark.parametrize("scale", [1e300, 1e-300])
def test_a_directions_length_does_not_matter(net: Net, batch: torch.Tensor, scale: float) -> None:
    with torch.no_grad():
        with steer(net, "conv", np.ones(4), 2.0):
            expected = net(batch)
        with steer(net, "conv", scale * np.ones(4), 2.0):
            assert torch.equal(net(batch), expected)


def test_a_tape_entered_before_sees_the_layer_as_it_was(net: Net, batch: torch.Tensor) -> None:
    recorder = ActivationRecorder(net, ["conv", "head"])
    with torch.no_grad():
        with recorder.recording() as plain:
            net(batch)
        with recorder.recording() as before, ablate(net, "conv", 0, "zero"):
            net(batch)
        with ablate(net, "conv", 0, "zero"), recorder.recording() as within:
            net(batch)
    assert torch.equal(before["conv"], plain["conv"])
    assert not within["conv"][:, 0].any()
    assert torch.equal(before["head"], within["head"])
    assert not torch.equal(before["head"], plain["head"])
