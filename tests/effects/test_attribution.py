from __future__ import annotations

import builtins
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import noise_images
from helpers import to_tensor as transform
from judged_world import BELOW, labeled, labels_of, recorded
from matplotlib.figure import Figure
from torch import nn

from neuroprobe import ActivationRecorder, Images
from neuroprobe.effects import AttributionReport, attribute_units, explain_class
from neuroprobe.effects.attribution import UnitAttributions
from neuroprobe.exceptions import InputError, MissingDependencyError, UnknownNameError
from neuroprobe.models import Site
from neuroprobe.world import load_target, target_transform, world_images

needs_captum = pytest.mark.skipif(importlib.util.find_spec("captum") is None, reason="captum is not installed")
METHODS = ["gradient_times_activation", pytest.param("integrated_gradients", marks=needs_captum)]


class Net(nn.Module):
    """A convolution, a smooth nonlinearity that works in place of nothing, one that works in place, and a linear head."""

    def __init__(self, *, smooth: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 5, 3)
            self.act = nn.Tanh() if smooth else nn.ReLU(inplace=True)
            self.mix = nn.Conv2d(5, 4, 1)
            self.last = nn.Softplus()
            self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.last(self.mix(self.act(self.conv(x)))).mean((2, 3)))


@pytest.mark.parametrize("method", METHODS)
def test_before_a_linear_head_both_are_weight_times_activation(method: str) -> None:
    net, images, baseline = Net(), noise_images(7), np.array([0.1, -0.2, 0.3, 2])
    pooled = ActivationRecorder(net, ["last"]).record(images, transform=transform, progress=False)["last"]
    for start in (None, baseline):
        found = attribute_units(net, images, "last", 1, transform=transform, method=method, baseline=start, batch_size=3)
        weights = net.head.weight[1].detach().numpy()
        np.testing.assert_allclose(found.values, weights * (pooled - (0 if start is None else start)), atol=1e-6)
        np.testing.assert_allclose(found.scores, pooled @ weights + net.head.bias[1].item(), atol=1e-5)
        np.testing.assert_allclose(found.gaps, 0, atol=1e-5)
        assert found.ids == tuple(images.ids)


def test_gradient_times_activation_is_that_of_autograd() -> None:
    net, images = Net(), noise_images(4)
    found = attribute_units(net, images, "conv", 2, transform=transform, baseline=[1, 2, 3, 4, 5], batch_size=2)
    for i in range(4):
        activation = net.conv(transform(images[i])[None]).detach().requires_grad_()
        score = net.head(net.last(net.mix(net.act(activation))).mean((2, 3)))[0, 2]
        score.backward()
        moved = activation.detach() - torch.arange(1.0, 6).reshape(1, 5, 1, 1)
        np.testing.assert_allclose(found.values[i], (activation.grad * moved).sum((0, 2, 3)), rtol=1e-4, atol=1e-6)
        assert found.scores[i] == pytest.approx(score.item())
    start = torch.arange(1.0, 6).reshape(1, 5, 1, 1).expand(1, 5, 6, 6)
    assert found.baseline_scores == pytest.approx(net.head(net.last(net.mix(net.act(start))).mean((2, 3)))[0, 2].item())


@needs_captum
def test_integrated_gradients_are_complete_and_those_of_a_slow_way() -> None:
    net, images = Net(), noise_images(5)
    baseline = np.linspace(-0.3, 0.5, 5)
    found = attribute_units(net, images, "conv", 0, transform=transform, method="integrated_gradients", baseline=baseline, batch_size=2)
    np.testing.assert_allclose(found.gaps, 0, atol=2e-6)
    np.testing.assert_allclose(found.values.sum(axis=1), found.scores - found.baseline_scores, atol=2e-6)
    # the mean of the gradients at the middles of 400 pieces of the line, as in the paper's sum
    activation = net.conv(transform(images[1])[None]).detach()
    start, total = torch.from_numpy(baseline).float().reshape(1, 5, 1, 1), 0.0
    for step in range(400):
        at = (start + (step + 0.5) / 400 * (activation - start)).requires_grad_()
        (gradient,) = torch.autograd.grad(net.head(net.last(net.mix(net.act(at))).mean((2, 3)))[0, 0], at)
        total = total + gradient / 400
    np.testing.assert_allclose(found.values[1], ((activation - start) * total).sum((0, 2, 3)), atol=1e-5)


@needs_captum
def test_integrated_gradients_are_captums_own_of_the_layer() -> None:
    """Captum takes the layer's output on a baseline image; a black one gives a convolution's bias everywhere."""
    from captum.attr import LayerIntegratedGradients

    net, images = Net(smooth=False), noise_images(3)
    inplace, net.act = net.act, nn.ReLU()
    x = torch.stack([transform(images[i]) for i in range(3)])
    theirs = LayerIntegratedGradients(net, net.conv).attribute(x, baselines=torch.zeros_like(x), target=1, n_steps=30)
    bias = net.conv.bias.detach().numpy()
    ours = attribute_units(net, images, "conv", 1, transform=transform, method="integrated_gradients", baseline=bias, n_steps=30)
    np.testing.assert_allclose(ours.values, theirs.detach().sum((2, 3)), atol=1e-5)
    net.act = inplace  # which captum's own cannot take
    ours = attribute_units(net, images, "conv", 1, transform=transform, method="integrated_gradients", baseline=bias, n_steps=30)
    np.testing.assert_allclose(ours.values, theirs.detach().sum((2, 3)), atol=1e-5)


@needs_captum
def test_more_steps_close_the_gap_of_a_network_with_corners() -> None:
    target, images = load_target(), world_images(3, seed=5)
    given = {"transform": target_transform(), "method": "integrated_gradients"}
    gaps = [np.abs(attribute_units(target, images, "features.14", 10, n_steps=n, **given).gaps).max() for n in (2, 60)]
    assert 5 * gaps[1] < gaps[0]


@pytest.mark.parametrize("method", METHODS)
def test_on_the_world_they_are_the_contributions_to_the_class(method: str) -> None:
    """Before the target's linear head, from the units' means: exactly what `explain_class` adds up."""
    activations, labels, images = recorded(), labeled(layer=BELOW), world_images(4, seed=11)
    mean = activations[BELOW].mean(axis=0, dtype=np.float64)
    target = load_target()
    found = attribute_units(target, images, BELOW, 10, transform=target_transform(), method=method, baseline=mean, n_steps=5)
    weights = target.classifier[1].weight[10].detach().double().numpy()
    np.testing.assert_allclose(found.values, weights * (activations[BELOW][:4] - mean), atol=1e-5)
    table = found.by_concept(2, labels).table.set_index("concept")["attribution"]
    only_this = np.arange(300) == 2
    report = explain_class(
        target.classifier, labels, 10, activations=activations, layer=BELOW, members=only_this, n_shuffles=1, n_resamples=10
    )  # fmt: skip
    contributions = report.table.set_index("concept")["contribution"]
    np.testing.assert_allclose(table[contributions.index], contributions, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_what_else_is_in_a_batch_changes_nothing(method: str) -> None:
    net, images = Net(), noise_images(6)
    given = {"transform": transform, "method": method}
    whole = attribute_units(net, images, "conv", 0, **given)
    np.testing.assert_allclose(attribute_units(net, images, "conv", 0, batch_size=1, **given).values, whole.values, atol=1e-6)
    one = attribute_units(net, images[3], "conv", 0, **given)
    assert one.values.shape == (1, 5)
    np.testing.assert_allclose(one.values[0], whole.values[3], atol=1e-6)
    two = attribute_units(net, [images[3], images[0]], "conv", 0, **given)
    np.testing.assert_allclose(two.values, whole.values[[3, 0]], atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_left_as_it_was(method: str, same_random_states) -> None:
    net = Net(smooth=False).train()
    net.act.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with same_random_states():
        attribute_units(net, noise_images(3), "conv", 0, transform=transform, method=method)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert [module.training for module in net.modules()] == [True, True, False, True, True, True]
    assert not any(module._forward_hooks for module in net.modules())
    with pytest.raises(ZeroDivisionError):
        attribute_units(net, noise_images(3), "conv", lambda returned: 1 / 0, transform=transform, method=method)
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("method", METHODS)
def test_tokens_before_images_and_a_function_as_output(method: str) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                self.embed, self.layer, self.head = nn.Linear(24, 6), nn.Linear(6, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            tokens = self.embed(x.permute(2, 0, 1, 3).flatten(2))  # [8 rows of pixels, n, 24]
            return {"logits": self.head(torch.sigmoid(self.layer(tokens)).mean(0))}

    net, images = Tokens(), noise_images(5)
    given = {"transform": transform, "method": method}
    found = attribute_units(net, images, Site("layer", layout="lnc"), lambda returned: returned["logits"][:, 1], **given)
    assert found.values.shape == (5, 4)
    x = torch.stack([transform(images[i]) for i in range(5)])
    np.testing.assert_allclose(found.scores, net(x)["logits"][:, 1].detach(), atol=1e-6)
    if method == "integrated_gradients":
        np.testing.assert_allclose(found.gaps, 0, atol=1e-6)
    else:
        activation = net.layer(net.embed(x.permute(2, 0, 1, 3).flatten(2))).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(net.head(torch.sigmoid(activation).mean(0))[:, 1].sum(), activation)
        np.testing.assert_allclose(found.values, (gradient * activation).sum(0).detach(), atol=1e-6)


def attributions() -> UnitAttributions:
    values = np.array([[1.0, -2, 0.5, 4], [0, 0, 0, 0]])
    return UnitAttributions(values, np.array([5.0, 1]), np.array([1.0, 1]), ("a.png", "b.png"), "fc", {"method": "by hand"})


def test_units_with_one_label_add_up() -> None:
    labels = labels_of(["red", "big", "red", ""])
    report = attributions().by_concept("a.png", labels)
    assert report.table[["concept", "attribution", "units", "n_units", "named"]].to_numpy().tolist() == [
        ["(unnamed)", 4.0, "3", 1, False],
        ["red", 1.5, "0 2", 2, True],
        ["big", -2.0, "1", 1, True],
    ]
    assert attributions().by_concept(0, labels, unnamed="apart").table["concept"].tolist()[0] == "(unit 3)"
    assert attributions().gaps.tolist() == [5 - 1 - 3.5, 0]
    assert report.metadata["gap"] == 0.5
    assert report.summary() == "a.png: score 5, of which 1 is the baseline's and 3.5 is attributed to 4 units"


def test_a_report_is_saved_and_read(tmp_path: Path) -> None:
    report = attributions().by_concept(0, labels_of(["NA", "<b>", "$x", ""]))
    report.save(tmp_path)
    read = AttributionReport.load(tmp_path)
    assert read.table.equals(report.table)
    ax = Figure().subplots()
    assert report.plot(ax) is ax
    assert [bar.get_width() for bar in ax.patches] == report.table["attribution"].tolist()


@pytest.mark.parametrize("image", ["c.png", 2, -1, True, None])
def test_an_image_that_is_not_there_is_refused(image) -> None:
    with pytest.raises(UnknownNameError, match="Expected one of the 2 images by its row or id"):
        attributions().by_concept(image, labels_of(["red", "big"]))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"layer": "cnov"}, UnknownNameError, "conv"),
        ({"output": 3}, InputError, "Expected an output of the model by its number"),
        ({"output": lambda returned: returned}, InputError, "one number for each of"),
        ({"output": lambda returned: torch.zeros(4)}, InputError, "output that depends on 'conv'"),
        ({"method": "gradient"}, InputError, "Expected `method` to be 'gradient_times_activation' or"),
        ({"baseline": [1, 2]}, InputError, "each of the 5 units of 'conv', but got 2"),
        ({"baseline": np.ones((5, 1))}, InputError, r"finite number per unit, \[n_units\], but got \(5, 1\)"),
        ({"baseline": [np.nan] * 5}, InputError, "finite number per unit"),
        *(({"baseline": wrong}, InputError, "Expected `baseline` to be numbers") for wrong in ("mean", [[1], [1, 2]], {"a": 1})),
        *(({"output": wrong}, InputError, "Expected output 'output' as its number or a function") for wrong in ("red", None, True, 1.0)),
        *(
            ({"images": wrong}, InputError, r"Expected a PIL image, several, or neuroprobe.Images \(for a folder: Images\(folder\)\)")
            for wrong in ("photos", Path("photos"), None, torch.zeros(2, 3, 8, 8))
        ),
        ({"model": None}, InputError, "Expected a torch.nn.Module"),
        ({"model": nn.DataParallel(Net())}, InputError, "model.module"),
        ({"layer": Site("conv", basis=torch.relu)}, InputError, "Expected a basis with `decode`"),
    ],
)
def test_what_makes_no_sense_is_refused(given, error, message: str) -> None:
    known = {"model": Net(), "images": noise_images(4), "layer": "conv", "output": 0, "transform": transform, **given}
    with pytest.raises(error, match=message):
        attribute_units(**known)


def test_without_captum_it_is_said_before_any_image_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    class Watched:
        ids = ("a",)

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int):
            read.append(index)
            return noise_images(1)[0]

    before = builtins.__import__

    def without(name: str, *args, **kwargs):
        if name.startswith("captum"):
            raise ImportError(name)
        return before(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setitem(__import__("sys").modules, "captum", None)
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    with pytest.raises(MissingDependencyError, match="need captum"):
        attribute_units(Net(), Images(Watched()), "conv", 0, transform=transform, method="integrated_gradients")
    assert read == []


def test_an_outputs_number_of_numpy_is_a_number() -> None:
    assert attribute_units(Net(), noise_images(2), "conv", np.int64(1), transform=transform).metadata["output"] == 1


def test_attributions_that_are_not_finite_are_told() -> None:
    net = Net()
    with torch.no_grad():
        net.head.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="finite outputs and gradients"):
        attribute_units(net, noise_images(2), "conv", 0, transform=transform)


@needs_captum
def test_before_a_layer_norm_gaps_are_wide_toward_zero_and_not_toward_other_baselines() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.conv, self.norm, self.head = nn.Conv2d(3, 5, 3), nn.LayerNorm(5), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(10_000 * self.conv(x).mean((2, 3))))

    given = {"transform": transform, "method": "integrated_gradients", "n_steps": 50}
    zero = attribute_units(Normed(), noise_images(3), "conv", 0, **given)
    assert (np.abs(zero.gaps) > 0.5 * np.abs(zero.scores - zero.baseline_scores)).all()
    mean = attribute_units(Normed(), noise_images(3), "conv", 0, baseline=[0.1, 0.2, -0.1, 0.3, 0], **given)
    np.testing.assert_allclose(mean.gaps, 0, atol=1e-3)
