"""Receptive fields: against those worked out by hand, published ones, and pixels that are really changed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from neuroprobe import Site
from neuroprobe._core import fingerprint_model
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.visualization import receptive_field
from neuroprobe.visualization._dependence import Dependence
from neuroprobe.visualization.fields import receptive_fields

OUT = Site("out", layout="nchw")  # where modules do not tell


def stack(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


def conv(k: int = 3, *, inputs: int = 2, outputs: int = 2, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, k, **options)


def box(model: nn.Module, layer: str | Site, position: tuple[int, int], side: int = 32, **options: Any) -> tuple[int, int, int, int]:
    return receptive_field(model, layer, position, input_shape=(2, side, side), **options).box


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        # rows 10 to 12 of the input, and then one more on each side with every layer
        ([conv()], (10, 10, 13, 13)),
        ([conv(), nn.ReLU(), conv()], (10, 10, 15, 15)),
        ([conv(), nn.ReLU(), conv(), nn.GELU(), conv()], (10, 10, 17, 17)),
        ([conv(padding=1)], (9, 9, 12, 12)),
        ([conv(stride=2)], (20, 20, 23, 23)),
        ([conv(stride=2, padding=1), conv(padding=1)], (17, 17, 24, 24)),  # 18 - 1 to 22 + 1
        ([conv(dilation=3)], (10, 10, 17, 17)),
        ([nn.MaxPool2d(2), conv()], (20, 20, 26, 26)),
        ([nn.MaxPool2d(3, stride=1, dilation=2)], (10, 10, 15, 15)),
        ([nn.AvgPool2d(2), nn.MaxPool2d(2, stride=1)], (20, 20, 24, 24)),
        ([conv(), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.LeakyReLU(0.0), conv(1)], (10, 10, 13, 13)),
    ],
)
def test_fields_worked_out_by_hand(layers: list[nn.Module], expected: tuple[int, ...]) -> None:
    assert box(stack(*layers), str(len(layers) - 1), (10, 10)) == expected


def test_rows_and_columns_are_not_exchanged() -> None:
    field = receptive_field(stack(nn.Conv2d(1, 1, (1, 5))), "0", (3, 7), input_shape=(1, 16, 20))
    assert (field.box, field.size, field.mask.shape) == ((7, 3, 12, 4), (1, 5), (16, 20))
    assert not field.is_whole_image


def test_the_border_cuts_a_field_off() -> None:
    model = stack(conv(padding=1), nn.ReLU(), conv(padding=1))
    assert box(model, "2", (0, 0), 8) == (0, 0, 3, 3)
    assert box(model, "2", (7, 4), 8) == (2, 5, 7, 8)


def test_dilation_leaves_holes() -> None:
    mask = receptive_field(stack(conv(dilation=2)), "0", (0, 0), input_shape=(2, 8, 8)).mask
    assert np.argwhere(mask).tolist() == [[i, j] for i in (0, 2, 4) for j in (0, 2, 4)]


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "padding": 1}, {"stride": 2, "dilation": 2}])
def test_a_max_pool_reaches_as_far_as_it_looks(options: dict[str, int], ceil_mode: bool) -> None:
    """Against pixels set to a large number, one at a time."""
    pool = nn.MaxPool2d(3, ceil_mode=ceil_mode, **options)
    size = pool(torch.zeros(1, 1, 9, 9)).shape[-1]
    for place in (0, size - 1):
        expected = np.zeros((9, 9), bool)
        for i in range(9):
            for j in range(9):
                x = torch.zeros(1, 1, 9, 9)
                x[..., i, j] = 1
                expected[i, j] = bool(pool(x)[0, 0, place, place])
        found = receptive_field(stack(pool), "0", (place, place), input_shape=(1, 9, 9)).mask
        np.testing.assert_array_equal(found, expected)


def changed_pixels(model: nn.Module, layer: nn.Module, unit: int | None, position: tuple[int, int], side: int) -> np.ndarray:
    """Pixels whose change, to a large positive or negative value in any of several images, changes the real model's value."""
    found: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda module, args, output: found.append(output.detach()))
    generator = torch.Generator().manual_seed(0)
    reached = np.zeros((side, side), bool)
    with torch.no_grad():
        for _ in range(2):
            base = torch.randn(1, 3, side, side, generator=generator, dtype=torch.float64)
            for size in (-30.0, 30.0):
                batch = base.repeat(side * side, 1, 1, 1)
                batch[torch.arange(side * side), :, torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)] += size
                for x in (base, batch):
                    model(x)
                before, after = (values[:, :, position[0], position[1]] for values in found)
                found.clear()
                before, after = (before, after) if unit is None else (before[:, [unit]], after[:, [unit]])
                reached |= (after != before).any(dim=1).numpy().reshape(side, side)
    handle.remove()
    return reached


def small(kind: str) -> nn.Module:
    torch.manual_seed(3)
    if kind == "residual":
        model: nn.Module = torchvision.models.resnet._resnet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], None, False, num_classes=2)
    else:
        model = torchvision.models.mobilenet_v2(width_mult=0.1, num_classes=2)
    return model.double().eval()


@pytest.mark.parametrize(
    ("kind", "layer", "position"), [pytest.param("residual", "layer1", (1, 2), marks=pytest.mark.slow), ("mobile", "features.3", (1, 1))]
)
def test_exactly_the_pixels_that_change_something(kind: str, layer: str, position: tuple[int, int]) -> None:
    model = small(kind)
    expected = changed_pixels(model, model.get_submodule(layer), None, position, 16)
    found = receptive_field(model, layer, position, input_shape=(3, 16, 16)).mask
    assert not (expected & ~found).any()  # nothing outside of the field has an influence
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("layer", "published"), [("conv1", 7), ("maxpool", 11), ("layer1", 43), ("layer2", 99)])
def test_published_sizes_of_resnet18(layer: str, published: int) -> None:
    model = torchvision.models.resnet18().eval()
    field = receptive_field(model, layer, (9, 9), input_shape=(3, 160, 160))
    assert field.size == (published, published)
    assert field.mask[field.box[1] : field.box[3], field.box[0] : field.box[2]].all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer", "side", "position", "published"),
    [
        # Araujo et al., 2019: AlexNet 195, VGG-16 212; the others by their arithmetic
        ("alexnet", "12", 256, (3, 3), 195),
        ("vgg16", "16", 96, (6, 6), 44),
        ("resnet18", "layer4", 480, (7, 7), 435),
        ("resnet50", "layer2", 160, (9, 9), 91),
        ("convnext_tiny", "1", 128, (16, 16), 76),
    ],
)
def test_published_sizes(name: str, layer: str, side: int, position: tuple[int, int], published: int) -> None:
    model = torchvision.models.get_model(name, weights=None)
    part = model if name.startswith("resnet") else model.features  # without large classifiers, which take longest
    assert receptive_field(part, layer, position, input_shape=(3, side, side)).size == (published, published)


def test_what_sees_the_whole_image_says_so() -> None:
    vit = torchvision.models.VisionTransformer(image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16)
    squeezing = torchvision.models.mobilenet_v3_small(weights=None)
    for model, layer, position in (
        (vit, "encoder.layers.encoder_layer_0", (0, 3)),
        (squeezing, "features.1", (2, 2)),  # squeeze and excitation
        (torchvision.models.mobilenet_v2(weights=None), "classifier", (0, 0)),
    ):
        field = receptive_field(model, layer, position, input_shape=(3, 32, 32))
        assert field.is_whole_image
        assert (field.box, field.size) == ((0, 0, 32, 32), (32, 32))


def test_windows_of_attention_are_separate() -> None:
    """Swin's windows of 7 x 7 patches of 4 x 4 pixels; shifted by 3 patches in the next block, where masks of -100 separate them."""
    model = torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=8, depths=[2], num_heads=[2], window_size=[7, 7], stochastic_depth_prob=0.0, num_classes=2
    )
    assert receptive_field(model, "features.1.0", (8, 8), input_shape=(3, 112, 112)).box == (28, 28, 56, 56)
    # the last shifted window holds patches 24 to 27 and, behind the mask, 0 to 2 of the other side
    assert receptive_field(model, "features.1.1.attn", (27, 27), input_shape=(3, 112, 112)).box == (84, 84, 112, 112)


def test_norms_over_positions_see_everything() -> None:
    for norm in (nn.GroupNorm(1, 2), nn.InstanceNorm2d(2), nn.BatchNorm2d(2, track_running_stats=False)):
        assert receptive_field(stack(conv(), norm), "1", (2, 2), input_shape=(2, 9, 9)).is_whole_image
    norm = nn.BatchNorm2d(2)
    assert receptive_field(stack(conv(), norm), "1", (2, 2), input_shape=(2, 9, 9)).size == (3, 3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.0, -1.0]))
    assert box(stack(conv(), norm), "1", (2, 2), 9, unit=1) == (2, 2, 5, 5)
    with pytest.raises(InputError, match="does not: its weights are zero"):
        box(stack(conv(), norm), "1", (2, 2), 9, unit=0)


def test_branches_have_their_own_fields() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.five, self.joined = conv(1), conv(5, padding=2), nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.joined(torch.cat([self.one(x), F.relu(self.five(x))], dim=1))

    model = Branches()
    assert box(model, "joined", (9, 9), unit=0) == (9, 9, 10, 10)
    assert box(model, "joined", (9, 9), unit=3) == (7, 7, 12, 12)
    assert box(model, "joined", (9, 9)) == (7, 7, 12, 12)


def test_dead_gates_and_weights_that_cancel_hide_nothing() -> None:
    model = stack(nn.Conv2d(1, 1, 3, bias=True), nn.ReLU(), nn.Conv2d(1, 1, 3))
    with torch.no_grad():
        model[0].bias.fill_(-1e6)  # no input of usual size gets past the ReLU
        model[0].weight.copy_(torch.tensor([[[[1.0, -1, 1], [0.5, -0.5, 2], [1, 1, 1]]]]))
        model[2].weight.copy_(torch.tensor([[[[1.0, 1, 1], [1, 1, 1], [1, 1, 1]]]]))
    assert receptive_field(model, "2", (0, 0), input_shape=(1, 8, 8)).mask[:5, :5].all()


def test_weights_of_zero_pass_nothing() -> None:
    model = stack(nn.Conv2d(1, 1, 3))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[0, 0, 0, 2] = 1e-30
    field = receptive_field(model, "0", (4, 4), input_shape=(1, 9, 9))
    assert np.argwhere(field.mask).tolist() == [[4, 6]]
    with torch.no_grad():
        model[0].weight.zero_()
    with pytest.raises(InputError, match="does not: its weights are zero"):
        receptive_field(model, "0", (4, 4), input_shape=(1, 9, 9))


def test_gates_of_own_making_are_felt_too() -> None:
    class Swish(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            context.save_for_backward(x)
            return x * torch.sigmoid(x)

        @staticmethod
        def backward(context, gradient):
            (x,) = context.saved_tensors
            s = torch.sigmoid(x)
            return gradient * (s + x * s * (1 - s))

    class Own(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Swish.apply(x)

    assert box(stack(conv(), Own(), conv()), "2", (3, 3)) == (3, 3, 8, 8)


def test_what_one_of_two_inputs_hides_the_other_shows() -> None:
    """A gate of one's own that half of the pixels pass at random: three quarters pass at one of two inputs."""

    class Gate(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            context.save_for_backward(x)
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * (context.saved_tensors[0] > 1)

    model = Own(lambda self, x: Gate.apply(x).mean((2, 3)))
    assert receptive_field(model, "out", (0, 0), input_shape=(1, 40, 40)).mask.mean() == pytest.approx(0.75, abs=0.05)


class Own(nn.Module):
    """A forward of a function, whose output has a name."""

    def __init__(self, function: Callable[[nn.Module, torch.Tensor], torch.Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function, self.out = function, nn.Identity()
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.function(self, x))


CHOOSING = {
    "max": lambda x: x.max(3, keepdim=True)[0],
    "min": lambda x: torch.min(x, dim=3, keepdim=True).values,
    "amin": lambda x: x.amin(3, keepdim=True),
    "median": lambda x: x.median(3, keepdim=True).values,
    "kthvalue": lambda x: x.kthvalue(2, 3, True)[0],
    "sort": lambda x: x.sort(dim=3, descending=True)[0],
    "topk": lambda x: torch.topk(x, 3, 3).values,
    "all": lambda x: x * x.max(),
}


@pytest.mark.parametrize("name", CHOOSING)
def test_all_that_could_be_chosen_counts(name: str) -> None:
    """Row 2 of the map sees rows 2 to 4 of the input, all columns; a maximum of everything, all."""
    model = Own(lambda self, x: CHOOSING[name](self.a(x)), a=conv())
    found = receptive_field(model, OUT, (2, 0), input_shape=(2, 9, 9))
    assert found.box == ((0, 0, 9, 9) if name == "all" else (0, 2, 9, 5))
    assert found.mask[found.box[1] : found.box[3]].all()


def test_no_more_than_what_could_be_chosen() -> None:
    model = Own(lambda self, x: torch.cat([self.a(x).cummax(3)[0], torch.minimum(self.a(x), x[..., 2:, 2:])], 1), a=conv())
    assert box(model, OUT, (3, 3), 9, unit=0) == (0, 3, 6, 6)
    assert box(model, OUT, (3, 3), 9, unit=3) == (3, 3, 6, 6)
    pooled = Own(lambda self, x: F.max_pool2d(x, 2, return_indices=True)[0])
    assert box(pooled, OUT, (3, 3), 9) == (6, 6, 8, 8)


def under_no_grad(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        x = model.a(x)
    return model.b(x)


@pytest.mark.parametrize(
    "function",
    [
        under_no_grad,  # a frozen part
        lambda self, x: self.b(self.a(x).detach()),
        lambda self, x: self.b(torch.round(4 * self.a(x)) / 4),
        lambda self, x: self.b(self.a(x).sign()),
        lambda self, x: self.b(self.a(x.float()).bfloat16()),
        lambda self, x: self.b(self.a(x.sub_(0.5).div_(0.2))),
        lambda self, x: self.b(F.dropout(self.a(x), 0.99)),
    ],
)
def test_what_has_no_gradient_is_felt_too(
    function: Callable[[nn.Module, torch.Tensor], torch.Tensor], same_random_states: Callable[[], AbstractContextManager[None]]
) -> None:
    model = Own(function, a=conv(), b=conv())
    with same_random_states():
        found = receptive_field(model, OUT, (2, 3), input_shape=(2, 9, 9))
    assert found.box == (3, 2, 8, 7)
    assert found.mask[2:7, 3:8].all()
    assert torch.is_grad_enabled()


def test_weights_and_indices_that_are_clamped_are_clamped() -> None:
    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((1, 1, 3, 3), -1.0))
            self.embedding, self.out = nn.Embedding(3, 1), nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.conv2d(x, self.weight.clamp(min=0))
            places = torch.arange(y.shape[-1]).sub(3).clamp(-1, 1) + 1
            return self.out(y + self.embedding(places)[:, 0])

    model = Clamped()
    with torch.no_grad():
        model.weight[0, 0, 1, 2] = 1.0
    found = receptive_field(model, OUT, (2, 2), input_shape=(1, 9, 9))
    assert np.argwhere(found.mask).tolist() == [[3, 4]]


def test_an_activation_is_not_what_it_was_made_from() -> None:
    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        before = self.a(x)
        after = F.relu(before)
        after += self.b(before)
        return torch.cat([before, after], dim=1)

    model = Own(forward, a=conv(1), b=conv(5, padding=2))
    assert box(model, OUT, (5, 5), unit=0) == (5, 5, 6, 6)
    assert box(model, OUT, (5, 5), unit=2) == (3, 3, 8, 8)


def test_masks_of_minus_a_hundred_separate_in_torchs_own_attention() -> None:
    def attend(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)[:, None]  # [n, one head, positions, channels]
        apart = torch.arange(tokens.shape[2])
        mask = torch.where((apart[:, None] < 32) == (apart < 32), 0.0, -100.0).to(x.dtype)
        found = F.scaled_dot_product_attention(tokens, tokens, tokens, attn_mask=mask)
        return found[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])

    assert box(Own(attend), OUT, (1, 1), 8) == (0, 0, 8, 4)
    causal = Own(
        lambda self, x: F.scaled_dot_product_attention(x, x, x, is_causal=True)  # rows of each channel as tokens
    )
    assert box(causal, OUT, (3, 0), 8) == (0, 0, 8, 4)


def test_the_model_is_left_as_it_was(same_random_states: Callable[[], AbstractContextManager[None]]) -> None:
    model = torchvision.models.resnet18().train()
    model.layer1.eval()
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    before, modes = fingerprint_model(model), [module.training for module in model.modules()]
    parameters = [id(parameter) for parameter in model.parameters()]
    with same_random_states(), torch.inference_mode():
        receptive_fields(model, "layer1", [(0, 0), (3, 3)], input_shape=(3, 64, 64))
    assert fingerprint_model(model) == before
    assert [module.training for module in model.modules()] == modes
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in model.parameters())
    assert model.conv1.weight.grad.eq(1).all()
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name != "conv1.weight")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.is_grad_enabled()


def test_hooks_are_gone_after_an_error() -> None:
    model = stack(conv(), nn.ReLU())
    with pytest.raises(InputError, match=r"Expected a model that runs in float64 on the CPU on an input \(3, 8, 8\)"):
        receptive_field(model, "1", (0, 0), input_shape=(3, 8, 8))
    assert not any(module._forward_hooks for module in model.modules())


def test_what_cannot_be_measured_is_refused() -> None:
    model = stack(conv(), nn.ReLU())
    for wrong, message in (
        ({"layer": "relu"}, "relu"),
        ({"position": (6, 0)}, r"Expected a position \(row, column\) in the map of '0', \(6, 6\), but got \(6, 0\)"),
        ({"unit": 2}, "Expected a unit from 0 to 1 of '0', but got 2"),
        ({"input_shape": (1, 2, 8, 8)}, "Leave the batch out"),
        *(({"input_shape": shape}, "Expected `input_shape`") for shape in (3, None, "abc", (2, True, 8))),
        ({"model": "model"}, "got str"),
        ({"model": nn.DataParallel(model)}, "model.module"),
    ):
        with pytest.raises((InputError, UnknownNameError), match=message):
            receptive_field(**{"model": model, "layer": "0", "position": (0, 0), "input_shape": (2, 8, 8), **wrong})  # type: ignore[arg-type]
    for positions in (3, None, (3, 3), [(1.5, 2)], [(True, False)], [(-1, 0)], [(1, 2, 3)], ["ab"]):
        with pytest.raises(InputError, match="Expected positions"):
            receptive_fields(model, "0", positions, input_shape=(2, 8, 8))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"'layer1\.0\.relu' to run once in a forward pass"):
        receptive_field(torchvision.models.resnet18(), "layer1.0.relu", (0, 0), input_shape=(3, 64, 64))


def test_models_that_cannot_run_say_why() -> None:
    vit = torchvision.models.VisionTransformer(image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16)
    with pytest.raises(InputError, match="Expected 32 but got 40"):  # an AssertionError of torchvision's
        receptive_field(vit, "encoder.ln", (0, 0), input_shape=(3, 40, 40))
    checkpointed = torchvision.models.DenseNet(8, (2, 2), 8, memory_efficient=True)
    with pytest.raises(InputError, match="gradient checkpointing, which has to be turned off"):
        receptive_field(checkpointed, "features.denseblock1", (2, 2), input_shape=(3, 64, 64))

    def unseen(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            x = self.a(x)
        return x

    with pytest.raises(InputError, match="inference mode"):
        receptive_field(Own(unseen, a=conv()), OUT, (2, 2), input_shape=(2, 9, 9))

    def late(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        self.a(x)
        raise IndexError

    assert box(Own(late, a=conv()), "a", (2, 2), 9) == (2, 2, 5, 5)  # what goes wrong behind the layer does not matter


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript_is_refused() -> None:
    traced = torch.jit.trace(stack(conv()), torch.zeros(1, 2, 8, 8))
    with pytest.raises(InputError, match=r"before torch\.jit\.script"):
        receptive_field(traced, "0", (0, 0), input_shape=(2, 8, 8))


def test_values_stay_of_moderate_size_in_deep_networks() -> None:
    for name in ("efficientnet_b0", "densenet121"):  # gates multiply, and concatenations add up
        model = torchvision.models.get_model(name, weights=None).eval().double()
        with torch.no_grad(), Dependence():
            values = model.features(torch.rand(1, 3, 64, 64, dtype=torch.float64) + 0.5)
        assert torch.isfinite(values).all()
        assert 1e-30 < values.min() <= values.max() < 1e30
