from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import noise_images
from helpers import to_tensor as transform
from scipy import stats
from torch import nn
from torchvision.models import vision_transformer

from neuroprobe import ActivationRecorder, Images
from neuroprobe.effects import TcavReport, directional_derivatives, tcav
from neuroprobe.effects.derivatives import _tested
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.models import Direction
from neuroprobe.probing import LinearProbe, make_probe
from neuroprobe.world import ATTRIBUTES, WorldDataset, load_target, target_transform


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


def direction(layer: str, n: int, *, concept: str = "red", seed: int = 0, kind: str = "linear", features: str = "pooled") -> Direction:
    return Direction(concept, "model", layer, features, kind, seed, np.random.default_rng(seed).normal(size=n), 0.0)


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

    for one, message in (
        (direction("conv3", 4), "conv3"),
        (direction("conv", 9), r"Expected directions of 'conv' with 4 pooled features, but got one with 9"),
        (direction("conv", 4, features="spatial"), "with 144 spatial features, but got one with 4"),
        (direction("unused", 2), "Expected 'unused' to run"),
    ):
        with pytest.raises((InputError, UnknownNameError), match=message):
            derivatives(one)
    for outputs, message in (
        ({"0": 3}, r"0 = 3: the model returns \(2, 3\)"),
        ({"all": lambda y: y}, "one number for each of 2 images"),
        ({"nothing": lambda y: y[:, 0].detach() * 0}, "depends on 'conv'"),
        ({}, "Expected `outputs`"),
    ):
        with pytest.raises(InputError, match=message):
            derivatives(direction("conv", 4), outputs=outputs)
    assert not any(module._forward_hooks for module in net.modules())


def test_a_layer_that_runs_twice_or_gives_no_tensor_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.pair = nn.Linear(192, 192), nn.LSTM(192, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layer(self.layer(x.flatten(1)))
            return self.pair(x[:, None])[0][:, 0]

    for layer, message in (("layer", "to run once in a forward pass, but it runs 2 times"), ("pair", "returns tuple")):
        with pytest.raises(InputError, match=message):
            directional_derivatives(Twice(), noise_images(2), [direction(layer, 192)], outputs={"0": 0}, transform=transform)


def test_directions_of_one_layer_have_one_size(net: Net) -> None:
    with pytest.raises(InputError, match=r"equally many pooled features, but got \[4, 5\]"):
        directional_derivatives(net, noise_images(2), [direction("conv", 4), direction("conv", 5)], outputs={"0": 0}, transform=double)


# --- against random concepts


@pytest.fixture
def small() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(128, 4)).eval()


SMALL = {"transform": transform, "n_random": 20, "n_positive": 10, "n_negative": 15}


def test_scores_by_hand() -> None:
    # two seeds, four images: shares 3/4 and 1/2, means 1 and -.25; random concepts: means 1, 2, 3, 4, shares 1
    ours = np.array([[1.0, 2, 3, -2], [1, 1, -1, -2]])
    null = np.repeat([[1.0], [2], [3], [4]], 4, axis=1)
    found = _tested(ours, null, "derivative")
    assert found["score"] == 0.625
    assert found["derivative"] == pytest.approx(0.375)
    assert (found["random_score"], found["random_score_std"]) == (1, 0)
    spread = np.std([1, 2, 3, 4], ddof=1)
    assert found["random_derivative_std"] == pytest.approx(spread)
    assert found["p_value"] == pytest.approx(2 * stats.t.sf((2.5 - 0.375) / (spread * np.sqrt(1.25)), 3))
    uneven = _tested(np.array([[0.0, 1]]), np.array([[1.0, 2], [0, 1], [-1, 0]]), "derivative")
    assert uneven["score"] == 0.5  # 0 is no rise
    assert uneven["random_score"] == 0.5
    assert uneven["random_score_std"] == np.std([1, 0.5, 0], ddof=1)
    shares = _tested(ours, ours, "share")
    assert shares["p_value"] == pytest.approx(1)


def test_the_papers_test_is_welchs() -> None:
    generator = np.random.default_rng(0)
    ours, null = generator.normal(1, 1, size=(5, 30)), generator.normal(size=(20, 30))
    expected = stats.ttest_ind((ours > 0).mean(1), (null > 0).mean(1), equal_var=False).pvalue
    assert _tested(ours, null, "share")["p_value"] == pytest.approx(expected)
    assert _tested(np.ones((3, 5)), np.ones((20, 5)), "share")["p_value"] == 1
    assert _tested(np.ones((3, 5)), -np.ones((20, 5)), "share")["p_value"] == 0


def test_p_values_are_uniform_for_what_is_random() -> None:
    generator = np.random.default_rng(0)
    found = [
        _tested(generator.normal(size=(1, 1)) * [[1, 1]], generator.normal(size=(25, 1)) * [[1, 1]], "derivative") for _ in range(2000)
    ]
    p = np.array([one["p_value"] for one in found])
    for level in (0.05, 0.3):
        assert np.mean(p <= level) == pytest.approx(level, abs=0.03)


def test_a_row_per_concept_layer_and_output(small: nn.Module) -> None:
    images, pool = noise_images(6, seed=1), noise_images(30)
    given = [
        direction(layer, n, concept=concept, seed=seed) for concept in ("a", "b") for layer, n in (("0", 6), ("2", 8)) for seed in (1, 2)
    ]
    table = tcav(small, images, given, outputs={"first": 0, "last": 3}, random_images=pool, **SMALL).table
    assert table[["concept", "layer", "output"]].drop_duplicates().shape[0] == len(table) == 8
    assert (table["n_directions"] == 2).all()
    assert (table["n_images"] == 6).all()
    derivatives = directional_derivatives(small, images, given, outputs={"first": 0, "last": 3}, transform=transform)
    row = table[(table["concept"] == "b") & (table["layer"] == "2") & (table["output"] == "last")].iloc[0]
    assert row["score"] == pytest.approx((derivatives[6:, 1] > 0).mean())
    assert row["derivative"] == pytest.approx(derivatives[6:, 1].mean())
    assert (table["q_value"] >= table["p_value"]).all()


def test_random_concepts_are_random_choices_of_images(small: nn.Module) -> None:
    pool, images = noise_images(30), noise_images(5, seed=1)
    table = tcav(small, images, direction("2", 8), outputs=1, random_images=pool, seed=4, **SMALL).table
    rows = ActivationRecorder(small, ["2"]).record(pool, transform=transform)["2"]
    random = []
    for i in range(20):
        chosen = np.random.default_rng((4, i)).permutation(30)[:25]
        probe = LinearProbe().fit(rows[chosen], np.arange(25) < 10)
        random.append(Direction("", "", "2", "pooled", "linear", 0, probe.coef_[0], 0.0))
    derivatives = directional_derivatives(small, images, random, outputs={"1": 1}, transform=transform)[:, 0]
    assert table["random_score"][0] == pytest.approx((derivatives > 0).mean())
    assert table["random_derivative_std"][0] == pytest.approx(derivatives.mean(axis=1).std(ddof=1), rel=1e-3)


def test_spatial_directions_and_other_kinds(small: nn.Module) -> None:
    given = [direction("2", 8 * 16, features="spatial"), direction("2", 8, kind="mean_difference")]
    table = tcav(small, noise_images(5), given, outputs=0, random_images=noise_images(30), **SMALL).table
    assert table["features"].tolist() == ["spatial", "pooled"]
    assert table["kind"].tolist() == ["linear", "mean_difference"]
    # random concepts get their directions by the same kind of probe: a row does not depend on what else is asked
    more = [*given, direction("2", 8)]
    rows = tcav(small, noise_images(5), more, outputs=0, random_images=noise_images(30), **SMALL).table.drop(columns=["q_value"])
    pd.testing.assert_frame_equal(rows[:2], table.drop(columns=["q_value"]))
    assert rows["random_derivative_std"].nunique() == 3


def test_the_number_of_an_output_may_be_numpys(small: nn.Module) -> None:
    images = noise_images(30)
    tables = [
        tcav(small, noise_images(5), direction("2", 8), outputs=output, random_images=images, **SMALL).table for output in (1, np.int64(1))
    ]
    assert tables[0].equals(tables[1])


def test_a_report_is_saved_and_read(small: nn.Module, tmp_path: Path) -> None:
    report = tcav(
        small, noise_images(5), direction("2", 8, concept="NA"), outputs={"1": 1, "<b>": 2}, random_images=noise_images(30), seed=3, **SMALL
    )  # fmt: skip
    report.save(tmp_path)
    read = TcavReport.load(tmp_path)
    pd.testing.assert_frame_equal(read.table, report.table)
    assert (read.metadata["n_random"], read.metadata["seed"], read.metadata["test"]) == (20, 3, "derivative")
    assert read.metadata["random_images"] == noise_images(30).fingerprint != read.metadata["images"] == noise_images(5).fingerprint
    few = TcavReport(report.table.assign(q_value=[0.05, 0.051]), {})
    assert few.summary() == "2 rows, 1 concepts; 1 rows with a false discovery rate of at most 0.05"


def test_tests_that_cannot_be_are_refused(small: nn.Module) -> None:
    def test(given: Direction | list[Direction], **changed):
        return tcav(small, noise_images(5), given, **{"outputs": 0, "random_images": noise_images(30), **SMALL, **changed})

    one = direction("2", 8)
    for given, changed, message in (
        (one, {"n_random": 19}, r"`n_random`.* at least 20, but got 19"),
        (one, {"n_negative": 21}, "at least 31 images for random concepts of 10 and 21, but got 30"),
        (one, {"outputs": "first"}, "a mapping from names to outputs, but got str 'first'"),
        (one, {"outputs": {"a": "red"}}, "Expected output 'a' as its number"),
        ([one, dataclasses.replace(one, checkpoint="early")], {}, "of one checkpoint, the model's, but got some of 'early' and 'model'"),
        (one, {"test": "shares"}, "'derivative' or 'share', but got 'shares'"),
        *((none, {}, "at least one Direction") for none in ([], ["red"], "red")),
        (one, {"test": "share"}, "several directions of 'red' in '2'"),
        (direction("2", 8, kind="nonlinear"), {}, "'nonlinear', whose probes have no coefficients"),
    ):
        with pytest.raises(InputError, match=message):
            test(given, **changed)


# --- the world's target, whose outputs are known


def world_directions(rows: dict[str, np.ndarray], targets: np.ndarray, concept: str) -> list[Direction]:
    found = []
    for seed in range(5):
        generator = np.random.default_rng(seed)
        train = np.concatenate([generator.permutation(np.flatnonzero(targets == side))[:n] for side, n in ((True, 70), (False, 140))])
        for layer, values in rows.items():
            probe = make_probe("linear").fit(values[train], targets[train])
            found.append(Direction(concept, "trained", layer, "pooled", "linear", seed, probe.coef_[0], float(probe.intercept_[0])))
    return found


@pytest.mark.slow
def test_the_output_red_depends_on_red_in_late_layers_and_on_no_random_concept() -> None:
    data = WorldDataset(500, seed=5)
    images, red = Images(data), data.truth()[:, ATTRIBUTES.index("red")]
    model, layers = load_target(), ["features.14", "features.17", "features.18"]
    rows = dict(ActivationRecorder(model, layers).record(images, transform=target_transform()).arrays)
    given = world_directions(rows, red, "red")
    for i in range(8):
        chosen = np.random.default_rng(100 + i).permutation(500)[:100]
        given += world_directions(rows, np.isin(np.arange(500), chosen), f"random choice {i}")
    settings = {"outputs": {"red": ATTRIBUTES.index("red")}, "transform": target_transform(), "random_images": images, "n_random": 30}
    shown = images.subset([data.ids[i] for i in np.flatnonzero(red)[:50]])
    table = tcav(model, shown, given, **settings).table
    is_red = table["concept"] == "red"
    assert (table["score"][is_red] > 0.95).all()
    assert (table["q_value"][is_red] < 0.001).all()
    assert (table["q_value"][~is_red] > 0.05).all()
    # why the paper's own test is not the default: seeds of one random concept agree, and pass for evidence
    share = tcav(model, shown, given, test="share", **settings).table
    assert (share["q_value"][~is_red] < 0.05).mean() > 0.15
