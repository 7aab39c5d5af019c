"""Pooling: rows of units against a plain reimplementation, and the axis of the units in every kind of network."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer
from torchvision.models.maxvit import MaxVit
from torchvision.ops import Permute

from neuroprobe import ActivationRecorder, Site
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.models import UnitAxisTracker, describe_pooling, pool


def slow_pool(output: torch.Tensor, pooling: str, axis: int) -> list[list[float]]:
    """Image by image and unit by unit, in plain Python."""
    rows = []
    for image in output:
        units = [image.select(axis - 1, unit).flatten().tolist() for unit in range(image.shape[axis - 1])]
        reduced = {"mean": lambda v: [sum(v) / len(v)], "max": lambda v: [max(v)], "none": lambda v: v}[pooling]
        rows.append([value for unit in units for value in reduced(unit)])
    return rows


@pytest.mark.parametrize("pooling", ["mean", "max", "none"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((2, 3, 4, 5), 1), ((2, 4, 5, 3), 3), ((2, 6, 3), 2), ((2, 3, 6), 1), ((2, 3, 2, 4, 2), 1), ((2, 7), 1)]
)
def test_against_plain_python(shape: tuple[int, ...], axis: int, pooling: str) -> None:
    output = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows = pool(output, pooling, unit_axis=axis)  # type: ignore[arg-type]
    torch.testing.assert_close(rows, torch.tensor(slow_pool(output, pooling, axis)))


@pytest.mark.parametrize("shape", [(3, 40, 4, 4), (3, 40, 7, 9), (3, 40, 17), (3, 40, 1)])
def test_a_units_bits_depend_neither_on_its_number_nor_on_the_memory(shape: tuple[int, ...]) -> None:
    """Of 40 units the first 32 and the last 8 are not added alike by `torch.mean`, nor tokens that are kept images second."""
    output, order = torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.arange(40).roll(13)
    expected = pool(output, "mean", unit_axis=1)
    last = output.movedim(1, -1)[..., order].contiguous()
    assert torch.equal(pool(last, "mean", unit_axis=last.ndim - 1), expected[:, order])
    assert torch.equal(pool(last.transpose(0, 1).contiguous().transpose(0, 1), "mean", unit_axis=last.ndim - 1), expected[:, order])


def test_by_hand() -> None:
    output = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[-1.0, -2.0], [-3.0, 0.0]]]])  # [1, 2 units, 2, 2]
    assert pool(output, "mean", unit_axis=1).tolist() == [[3.0, -1.5]]
    assert pool(output, "max", unit_axis=1).tolist() == [[6.0, 0.0]]
    assert pool(output, "none", unit_axis=1).tolist() == [[1.0, 2.0, 3.0, 6.0, -1.0, -2.0, -3.0, 0.0]]
    assert pool(output, "none", unit_axis=3).tolist() == [[1.0, 3.0, -1.0, -3.0, 2.0, 6.0, -2.0, 0.0]]


@pytest.mark.parametrize("pooling", ["mean", "max", "none", lambda x: x.flatten(1), lambda x: x.reshape(2, -1)[:, :3]])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 4), (2, 3, 1, 1)])
def test_rows_never_share_memory_with_the_output(shape: tuple[int, ...], pooling: str) -> None:
    output = torch.randn(shape)
    rows = pool(output, pooling, unit_axis=1)  # type: ignore[arg-type]
    before = rows.clone()
    output.zero_()
    torch.testing.assert_close(rows, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rows_are_float32(dtype: torch.dtype) -> None:
    output = torch.ones(2, 3, 4, 4, dtype=dtype)
    assert pool(output, "mean", unit_axis=1).dtype == torch.float32


class TestTokens:
    output = torch.arange(24.0).reshape(2, 4, 3)  # [n, tokens, d]

    def test_by_hand(self) -> None:
        def pooled(pooling: Any) -> list[list[float]]:
            return pool(self.output, pooling, unit_axis=2).tolist()

        assert pooled("class_token") == pooled(("token", 0)) == [[0, 1, 2], [12, 13, 14]]
        assert pooled(("token", 3)) == [[9, 10, 11], [21, 22, 23]]
        assert pooled("mean_tokens") == [[6, 7, 8], [18, 19, 20]]
        assert pooled("mean") == [[4.5, 5.5, 6.5], [16.5, 17.5, 18.5]]

    @pytest.mark.parametrize("pooling", ["mean", "max", "none", "class_token", "mean_tokens", ("token", 2)])
    def test_tokens_before_images(self, pooling: Any) -> None:
        moved = self.output.transpose(0, 1)  # [tokens, n, d]
        torch.testing.assert_close(pool(moved, pooling, unit_axis=2, image_axis=1), pool(self.output, pooling, unit_axis=2))

    @pytest.mark.parametrize("pooling", ["class_token", "mean_tokens", ("token", 1)])
    def test_an_output_without_tokens(self, pooling: Any) -> None:
        for shape, axis in (((2, 3, 4, 4), 1), ((2, 4, 4, 3), 3), ((2, 3, 6), 1)):
            message = rf"Expected tokens \[n, tokens, units\] from 'x' to take .*, but got {re.escape(str(shape))}"
            with pytest.raises(InputError, match=message):
                pool(torch.zeros(shape), pooling, unit_axis=axis, layer="x")
        assert pool(torch.ones(2, 3), pooling, unit_axis=1).shape == (2, 3)  # rows stay as they are

    def test_a_token_that_is_not_there(self) -> None:
        with pytest.raises(InputError, match=r"Expected a token from 0 to 3 of 'x', but got 4: its output's shape is \(2, 4, 3\)"):
            pool(self.output, ("token", 4), unit_axis=2, layer="x")
        with pytest.raises(InputError, match=r"Expected tokens beside the class token in 'x' .*, but got \(2, 1, 3\)"):
            pool(self.output[:, :1], "mean_tokens", unit_axis=2, layer="x")

    @pytest.mark.parametrize("pooling", [("token", -1), ("token", True), ("token", 1.0), ("tokens", 1), ("token",), 3, None])
    def test_what_is_no_pooling(self, pooling: Any) -> None:
        with pytest.raises(InputError, match=r"Expected a pooling's name, \('token', 3\) or a function, but got "):
            ActivationRecorder(nn.Sequential(nn.ReLU()), ["0"], pooling=pooling)

    def test_described(self) -> None:
        assert describe_pooling(("token", 3)) == "token 3"
        assert describe_pooling("class_token") == "class_token"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("pooling", "shape", "axis"), [("mean", (2, 3, 16, 16), 1), ("mean_tokens", (2, 257, 3), 2)])
def test_means_are_in_float32(dtype: torch.dtype, pooling: Any, shape: tuple[int, ...], axis: int) -> None:
    output = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 100).to(dtype)
    rows = pool(output, pooling, unit_axis=axis)
    assert torch.equal(rows, pool(output.float(), pooling, unit_axis=axis))
    assert not torch.equal(rows, rows.to(dtype).float())


def test_other_kinds_of_numbers() -> None:
    counts = torch.tensor([[[1, 2], [3, 5]]])  # [1, 2 units, 2]
    assert pool(counts, "mean", unit_axis=1).tolist() == [[1.5, 4.0]]
    assert pool(counts > 2, "mean", unit_axis=1).tolist() == [[0.0, 1.0]]
    with pytest.raises(InputError, match=r"Expected real values from 'fft', but got torch.complex64. Give a pooling function"):
        pool(torch.zeros(1, 2, 2, dtype=torch.complex64), "mean", unit_axis=1, layer="fft")


class TestFunctionsOfTheUsers:
    output = torch.arange(24.0).reshape(2, 4, 3)

    def test_gets_the_output_as_it_is(self) -> None:
        rows = pool(self.output, lambda x: x[:, 0], unit_axis=1)  # the class token
        torch.testing.assert_close(rows, self.output[:, 0])

    @pytest.mark.parametrize(
        ("function", "what"),
        [
            (lambda x: x, r"\(2, 4, 3\)"),
            (lambda x: x.mean(), r"\(\)"),
            (lambda x: x.mean(dim=0), r"\(4, 3\)"),
            (lambda x: x[0, :2], None),
            (lambda x: x.tolist(), "list"),
            (lambda x: None, "NoneType"),
        ],
    )
    def test_must_return_a_row_per_image(self, function: Callable[[torch.Tensor], torch.Tensor], what: str | None) -> None:
        if what is None:  # [2, 3] by chance: a function may return what it likes as long as the shape fits
            assert pool(self.output, function, unit_axis=1).shape == (2, 3)
            return
        with pytest.raises(InputError, match=rf"Expected the pooling function to return \[2, units\], but got {what}"):
            pool(self.output, function, unit_axis=1)


@dataclass
class TopK:
    k: int

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        return output.flatten(2).topk(self.k, dim=2).values.mean(dim=2)


def class_token(output: torch.Tensor, *, index: int = 0) -> torch.Tensor:
    return output[:, index]


class TestDescriptions:
    def test_names(self) -> None:
        assert describe_pooling("max") == "max"
        assert describe_pooling(class_token) == f"{__name__}.class_token"

    def test_parameters_are_told_apart(self) -> None:
        assert describe_pooling(TopK(3)) != describe_pooling(TopK(4))
        first, last = functools.partial(class_token, index=0), functools.partial(class_token, index=-1)
        assert describe_pooling(last) == f"{__name__}.class_token(index=-1)"
        assert describe_pooling(first) != describe_pooling(last)

    def test_no_address_in_it(self) -> None:
        class Plain:
            def __call__(self, output: torch.Tensor) -> torch.Tensor:
                return output

        for pooling in (Plain(), class_token, lambda x: x):
            assert "0x" not in describe_pooling(pooling)


def test_unknown_pooling() -> None:
    with pytest.raises(
        UnknownNameError, match=r"Expected a pooling's name or a function, but got 'avg'. Known: 'mean', 'max', 'class_token'"
    ):
        ActivationRecorder(nn.Sequential(nn.ReLU()), ["0"], pooling="avg")  # type: ignore[arg-type]


# The axis of the units. The truth is the axes that stay as they are when the image's size changes; tensors without
# content ("meta") are enough for that.


def outputs(model: nn.Module, side: int) -> dict[str, tuple[tuple[int, ...], int | str]]:
    """The shape of every module's output that has positions, and the axis of its units, or why it is refused."""
    tracker = UnitAxisTracker()
    found: dict[str, tuple[tuple[int, ...], int | str]] = {}

    def note(name: str, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.ndim > 2 and name not in found:
            try:
                found[name] = tuple(output.shape), tracker.axes(output, layer=name).units
            except InputError as error:
                found[name] = tuple(output.shape), str(error)

    with tracker.following(model):
        handles = [
            m.register_forward_hook(lambda module, args, output, name=name: note(name, output)) for name, m in model.named_modules() if name
        ]
        model.eval()(torch.rand(2, 3, side, side, device="meta"))
        for handle in handles:
            handle.remove()
    return found


def vit(side: int) -> nn.Module:
    return VisionTransformer(image_size=side, patch_size=16, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=40)


def swin(side: int) -> nn.Module:
    return SwinTransformer([4, 4], 12, depths=[2, 1], num_heads=[2, 2], window_size=[4, 4], num_classes=5)


def maxvit(side: int) -> nn.Module:
    return MaxVit((side, side), 16, side // 32, block_channels=[16, 24], block_layers=[1, 1], head_dim=8, stochastic_depth_prob=0.0)


def by_name(name: str, **options: object) -> Callable[[int], nn.Module]:
    return lambda side: torchvision.models.get_model(name, weights=None, **options)


#: Network, and two image sizes.
NETWORKS = {
    "resnet18": (by_name("resnet18"), 64, 96),
    "mobilenet_v2": (by_name("mobilenet_v2"), 64, 96),
    "mobilenet_v3_small": (by_name("mobilenet_v3_small"), 64, 96),
    "densenet121": (by_name("densenet121"), 64, 96),
    "googlenet": (by_name("googlenet", init_weights=False, aux_logits=False), 64, 96),
    "squeezenet1_1": (by_name("squeezenet1_1"), 64, 96),
    "shufflenet_v2_x0_5": (by_name("shufflenet_v2_x0_5"), 64, 96),
    "convnext_tiny": (by_name("convnext_tiny"), 64, 96),
    "swin": (swin, 32, 48),
    "vit": (vit, 32, 48),
    "maxvit": (maxvit, 64, 96),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_unit_axis_is_the_one_that_does_not_grow_with_the_image(name: str) -> None:
    make, small, large = NETWORKS[name]
    with torch.device("meta"):
        at_small, at_large = outputs(make(small), small), outputs(make(large), large)
    assert at_small.keys() == at_large.keys()
    for layer, (shape, axis) in at_small.items():
        assert isinstance(axis, int), axis
        constant = [i for i in range(1, len(shape)) if shape[i] == at_large[layer][0][i]]
        assert axis in constant, layer


class Functional(nn.Module):
    """A module, and then a function of its output that no module does."""

    def __init__(self, module: nn.Module, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner = nn.Sequential(module)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.inner(x))


def recorded(inner: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    model = nn.Sequential(Functional(inner, function)).eval()
    with ActivationRecorder(model, ["0"]).recording() as tape, torch.no_grad():
        model(x)
    return tape["0"]


class TestAxisAfterFunctions:
    def test_moved_axes_are_refused(self) -> None:
        with pytest.raises(InputError, match=r"'0' gives \(2, 5, 5, 8\).*layout='nchw', 'nhwc', 'nlc' or 'lnc'"):
            recorded(nn.Conv2d(3, 8, 1), lambda x: x.permute(0, 2, 3, 1), torch.rand(2, 3, 5, 5))

    def test_an_axis_that_fits_twice_is_refused(self) -> None:
        def swap(x: torch.Tensor) -> torch.Tensor:  # [n, 8, 4, 4] -> [n, 4, 8, 8], by chance with two eights
            return x.permute(0, 2, 3, 1).repeat(1, 1, 2, 1)

        with pytest.raises(InputError, match=r"'0' gives \(2, 4, 8, 8\)"):
            recorded(nn.Conv2d(3, 8, 1), swap, torch.rand(2, 3, 4, 4))
        with pytest.raises(InputError, match=r"'0' gives \(2, 8, 8\)"):  # as many tokens as units
            recorded(nn.Conv2d(3, 8, 1), lambda x: x.flatten(2).transpose(1, 2), torch.rand(2, 3, 2, 4))

    def test_a_norm_over_several_axes_says_nothing(self) -> None:
        x = torch.rand(2, 3, 5, 5)
        conv = nn.Conv2d(3, 8, 1)
        model = nn.Sequential(conv, nn.LayerNorm([8, 5, 5])).eval()
        with ActivationRecorder(model, ["1"]).recording() as tape, torch.no_grad():
            expected = model(x).mean(dim=(2, 3))
        torch.testing.assert_close(tape["1"], expected)

    @pytest.mark.parametrize("function", [lambda x: torch.cat([x, -x], dim=1), lambda x: x[:, :3], lambda x: x.relu()])
    def test_more_or_fewer_units(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        x, conv = torch.rand(2, 3, 5, 6), nn.Conv2d(3, 8, 1)
        with torch.no_grad():
            torch.testing.assert_close(recorded(conv, function, x), function(conv(x)).mean(dim=(2, 3)))

    def test_fewer_positions(self) -> None:
        x, conv = torch.rand(2, 3, 6, 6), nn.Conv2d(3, 8, 1)
        with torch.no_grad():
            rows = recorded(conv, lambda x: nn.functional.max_pool2d(x, 2), x)
            torch.testing.assert_close(rows, nn.functional.max_pool2d(conv(x), 2).mean(dim=(2, 3)))

    def test_a_permuting_module_after_a_function(self) -> None:
        conv, x = nn.Conv2d(3, 8, 1), torch.rand(2, 3, 5, 6)
        model = nn.Sequential(Functional(conv, lambda x: torch.cat([x, x], dim=1)), Permute([0, 2, 3, 1]), nn.GELU()).eval()
        with ActivationRecorder(model, ["1", "2"]).recording() as tape, torch.no_grad():
            model(x)
            torch.testing.assert_close(tape["1"], torch.cat([conv(x), conv(x)], dim=1).mean(dim=(2, 3)))
        assert tape["2"].shape == (2, 16)

    def test_subclasses_that_return_something_else(self) -> None:
        class Linear(nn.Linear):
            def forward(self, x: torch.Tensor) -> Any:
                return {"output": super().forward(x)}

        model = nn.Sequential(nn.Conv2d(3, 8, 1), Functional(Linear(6, 6), lambda output: output["output"])).eval()
        with pytest.raises(InputError, match=r"'1' gives \(2, 8, 5, 6\)"), ActivationRecorder(model, ["0", "1"]).recording():
            model(torch.rand(2, 3, 5, 6))

    def test_somebodys_layer_norm_of_maps(self) -> None:
        """As timm's LayerNorm2d: a LayerNorm by its type, though it gives channels first."""

        class LayerNorm2d(nn.LayerNorm):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

        class CastingNorm(nn.LayerNorm):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return super().forward(x.float())

        x = torch.rand(2, 3, 5, 8)
        model = nn.Sequential(nn.Conv2d(3, 6, 1), LayerNorm2d(6), nn.GELU()).eval()
        last = nn.Sequential(nn.Conv2d(3, 6, 1), Permute([0, 2, 3, 1]), CastingNorm(6)).eval()
        with ActivationRecorder(model, ["1", "2"]).recording() as tape, torch.no_grad():
            torch.testing.assert_close(model(x).mean(dim=(2, 3)), tape["2"])
            torch.testing.assert_close(model[:2](x).mean(dim=(2, 3)), tape["1"])
        with ActivationRecorder(last, ["2"]).recording() as tape, torch.no_grad():
            torch.testing.assert_close(last(x).mean(dim=(1, 2)), tape["2"])
        square = nn.Sequential(nn.Conv2d(3, 8, 1), LayerNorm2d(8)).eval()  # as many columns as units
        with pytest.raises(InputError, match="Say where its units are"), ActivationRecorder(square, ["1"]).recording():
            square(x)
        with ActivationRecorder(square, ["1"], layout="nchw").recording() as tape, torch.no_grad():
            torch.testing.assert_close(square(x).mean(dim=(2, 3)), tape["1"])

    def test_a_permuting_module_called_by_keyword(self) -> None:
        conv, permute = nn.Conv2d(3, 8, 1), Permute([0, 2, 3, 1])
        model = nn.Sequential(conv, Functional(nn.Identity(), lambda x: x))
        model.permute = permute
        model.forward = lambda x: permute(x=conv(x))  # type: ignore[method-assign]
        with pytest.raises(InputError, match=r"'permute' gives \(2, 5, 6, 8\)"), ActivationRecorder(model, ["permute"]).recording():
            model(torch.rand(2, 3, 5, 6))

    def test_what_no_module_made_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"Expected an output \[n, units\] or one whose axes follow from its modules"):
            recorded(nn.Identity(), torch.relu, torch.rand(2, 3, 5, 6))


class TestLayout:
    x = torch.rand(2, 3, 5, 6)
    moved = nn.Sequential(Functional(nn.Conv2d(3, 8, 1), lambda x: x.permute(0, 2, 3, 1))).eval()

    def test_given(self) -> None:
        with ActivationRecorder(self.moved, ["0"], layout="nhwc").recording() as tape, torch.no_grad():
            expected = self.moved(self.x).mean(dim=(1, 2))
        torch.testing.assert_close(tape["0"], expected)

    def test_that_does_not_fit_the_shape(self) -> None:
        message = r"Expected the output of '0' to have 3 axes \(nlc\), but its shape is \(2, 5, 6, 8\)"
        with pytest.raises(InputError, match=message), ActivationRecorder(self.moved, ["0"], layout="nlc").recording():
            self.moved(self.x)

    @pytest.mark.parametrize("layout", ["nchw", "nhwc"])
    def test_that_does_not_fit_tokens(self, layout: str) -> None:
        recorder = ActivationRecorder(vit(32), ["encoder.ln"], layout=layout)  # type: ignore[arg-type]
        message = rf"Expected the output of 'encoder.ln' to have 4 axes \({layout}\), but its shape is \(2, 5, 24\)"
        with pytest.raises(InputError, match=message), recorder.recording():
            recorder.model(torch.rand(2, 3, 32, 32))

    def test_that_the_modules_contradict(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()).eval()
        message = r"that fits '1', but got 'nhwc': its shape is \(2, 8, 5, 6\), and by its modules the units are on axis 1"
        with pytest.raises(InputError, match=message), ActivationRecorder(model, ["1"], layout="nhwc").recording():
            model(self.x)

    def test_for_one_layer_of_several(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 8, 1), Functional(nn.Conv2d(8, 4, 1), lambda x: x.permute(0, 2, 3, 1))).eval()
        with ActivationRecorder(model, ["0", Site("1", layout="nhwc")]).recording() as tape, torch.no_grad():
            model(self.x)
            torch.testing.assert_close(tape["0"], model[0](self.x).mean(dim=(2, 3)))
            torch.testing.assert_close(tape["1"], model(self.x).mean(dim=(1, 2)))
        with pytest.raises(UnknownNameError, match="Expected a layout, but got 'nhw'"):
            Site("1", layout="nhw")  # type: ignore[arg-type]

    def test_attention_with_tokens_before_images(self) -> None:
        """With as many images as tokens a wrong axis would not show in the shape: it has to be said."""
        model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 3)).eval()
        x = torch.rand(5, 5, 8)  # [tokens, n, d]
        with pytest.raises(InputError, match=r"'1' gives \(5, 5, 3\). Say where .* 'lnc'"), ActivationRecorder(model, ["1"]).recording():
            model(x)
        with ActivationRecorder(model, ["1"], layout="lnc").recording() as tape, torch.no_grad():
            torch.testing.assert_close(model(x).mean(0), tape["1"])

    def test_says_nothing_about_rows(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(90, 4))
        with ActivationRecorder(model, ["1"], layout="nhwc").recording() as tape:
            expected = model(self.x).detach()
        torch.testing.assert_close(tape["1"], expected)
