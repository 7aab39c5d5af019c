"""Sites: with the identity as basis everything is as of the raw layer, bit for bit; with one that permutes, as of the permuted channel."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from bases import Reordered, direction
from helpers import noise_images
from helpers import to_tensor as transform
from torch import nn

from neuroprobe import LabelReport
from neuroprobe.concepts import ConceptSet
from neuroprobe.effects import ablate, attribute_units, causal_effect, directional_derivatives, explain_class, steer, tcav, units_named
from neuroprobe.exceptions import InputError
from neuroprobe.models import Directions, Site
from neuroprobe.recording import ActivationRecorder, Activations

IMAGES = noise_images(10)
#: Unit i of the permuting basis is channel ORDER[i].
ORDER = [2, 0, 4, 1, 3]


class Rectified:
    """Latents that leave something out of what they encode."""

    fingerprint = "rectified"
    rows = torch.tensor([[1.0, -1, 0, 0.5, 0], [0, 0.3, 1, 0, -2], [2, 0, 0, 1, 1]])

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        return torch.relu(values @ self.rows.T)

    def decode(self, units: torch.Tensor) -> torch.Tensor:
        return units @ self.rows


IDENTITY, PERMUTED = (Site("conv", basis=Reordered(order), name="conv") for order in (list(range(5)), ORDER))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.mix, self.head = nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Conv2d(5, 6, 3), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.mix(self.act(self.conv(x)))).mean((2, 3)))

    def after(self, x: torch.Tensor) -> torch.Tensor:
        """The output where `conv` gives x."""
        return self.head(torch.tanh(self.mix(self.act(x))).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().eval()


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.stack([transform(image) for image in noise_images(5, seed=1)])


def recorded(net: Net, site: str | Site) -> Activations:
    return ActivationRecorder(net, [site]).record(IMAGES, transform=transform)


def permuted(weights) -> np.ndarray:
    """What belongs to channels, in the order of the permuting basis's units."""
    return np.asarray(weights)[ORDER]


@pytest.mark.parametrize("value", ["zero", "mean", 0.7, [0.5, -2.0]])
def test_ablation(net: Net, batch: torch.Tensor, value) -> None:
    def ablated(site: str | Site, units: list[int]) -> torch.Tensor:
        activations = recorded(net, site) if value == "mean" else None
        with torch.no_grad(), ablate(net, site, units, value, activations=activations):
            return net(batch)

    expected = ablated("conv", [4, 1])
    assert torch.equal(ablated(IDENTITY, [4, 1]), expected)
    assert torch.equal(ablated(PERMUTED, [ORDER.index(4), ORDER.index(1)]), expected)


def test_steering(net: Net, batch: torch.Tensor) -> None:
    def steered(site: str | Site, direction: np.ndarray, activations: Activations | None) -> torch.Tensor:
        with torch.no_grad(), steer(net, site, direction, 1.5, activations=activations):
            return net(batch)

    vector = np.array([1.0, -2, 0, 0.5, 3])
    for with_activations in (False, True):
        expected, identity, other = (
            steered(site, given, recorded(net, site) if with_activations else None)
            for site, given in (("conv", vector), (IDENTITY, vector), (PERMUTED, permuted(vector)))
        )
        assert torch.equal(identity, expected)
        torch.testing.assert_close(other, expected, rtol=1e-6, atol=1e-6)  # the vector's length is another sum


def test_nothing_changed_in_a_basis_is_the_models_own_output(net: Net, batch: torch.Tensor) -> None:
    site = Site("conv", basis=Rectified())
    with torch.no_grad():
        plain = net(batch)
        with steer(net, site, [1.0, 0, 0], 0):
            assert torch.equal(net(batch), plain)


def test_in_a_basis_with_an_error_the_rest_of_the_layer_stays(net: Net, batch: torch.Tensor) -> None:
    """x + (edited latents - latents) @ rows, written out; where nothing is edited, x itself."""
    site, basis = Site("conv", basis=Rectified()), Rectified()
    with torch.no_grad():
        x = net.conv(batch)
        latents = basis.encode(x.movedim(1, -1))
        edited = latents.clone()
        edited[..., 2] = 0
        moved = (basis.decode(edited) - basis.decode(latents)).movedim(-1, 1)
        assert moved.abs().max() > 0.1
        with ablate(net, site, 2, "zero"):
            torch.testing.assert_close(net(batch), net.after(x + moved))
        seen = []
        with ablate(net, site, 2, "zero"):
            handle = net.conv.register_forward_hook(lambda module, args, output: seen.append(output))
            net(batch)
            handle.remove()
    dead = (latents[..., 2] == 0)[:, None].expand_as(x)
    assert 0 < dead.sum() < dead.numel()
    assert torch.equal(seen[0][dead], x[dead])


def test_causal_effects(net: Net) -> None:
    red = ConceptSet("red", "color", ("0", "3", "4"), ("1", "2", "5", "6"))
    probe = direction("mix", np.arange(6.0), bias=0.5)

    def effects(site: str | Site, units: list[int]) -> pd.DataFrame:
        return causal_effect(
            net, IMAGES, red, layer=site, units=units, outputs={"first": 0, "probe": probe}, transform=transform, match="random",
            activations=recorded(net, site), n_random=10,
        ).table  # fmt: skip

    expected = effects("conv", [4, 1])
    pd.testing.assert_frame_equal(effects(IDENTITY, [4, 1]), expected, check_exact=True)
    # all sets of other units are taken, in the order of their numbers
    found = effects(PERMUTED, [ORDER.index(4), ORDER.index(1)])
    assert found["layer"].tolist() == ["conv", "conv"]
    pd.testing.assert_frame_equal(found.drop(columns=["units"]), expected.drop(columns=["units"]))


@pytest.mark.parametrize("method", ["gradient_times_activation", "integrated_gradients"])
def test_attributions(net: Net, method: str) -> None:
    pytest.importorskip("captum")
    baseline = np.array([0.1, -0.3, 0.2, 0, 0.5])

    def attributed(site: str | Site, start: np.ndarray) -> list[np.ndarray]:
        found = attribute_units(net, IMAGES, site, 1, transform=transform, method=method, baseline=start, n_steps=5)
        return [found.values, found.scores, found.baseline_scores]

    expected = attributed("conv", baseline)
    for one, other in zip(attributed(IDENTITY, baseline), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    values, *scores = attributed(PERMUTED, permuted(baseline))
    np.testing.assert_array_equal(values, expected[0][:, ORDER])
    np.testing.assert_array_equal(scores, expected[1:])


def test_attributions_to_latents_by_hand(net: Net) -> None:
    """The gradient of a latent is that of the layer, along its decoder row."""
    site, basis = Site("conv", basis=Rectified()), Rectified()
    found = attribute_units(net, IMAGES[2], site, 3, transform=transform)
    x = net.conv(transform(IMAGES[2])[None]).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(net.after(x)[0, 3], x)
    latents = basis.encode(x.detach().movedim(1, -1))
    expected = (latents * (gradient.movedim(1, -1) @ basis.rows.T)).sum((0, 1, 2))
    np.testing.assert_allclose(found.values[0], expected, rtol=1e-4, atol=1e-6)
    start = x.detach() - basis.decode(latents).movedim(-1, 1)
    np.testing.assert_allclose(found.baseline_scores, net.after(start)[:, 3].detach(), rtol=1e-5)


def test_derivatives(net: Net) -> None:
    vector, map_ = np.array([1.0, -2, 0, 0.5, 3]), np.random.default_rng(0).normal(size=(5, 36))

    def derivatives(of: np.ndarray, at: np.ndarray, *sites: Site) -> np.ndarray:
        given = [direction("conv", of), direction("conv", at.reshape(-1), "spatial")]
        return directional_derivatives(net, IMAGES, given, outputs={"0": 0, "3": 3}, transform=transform, sites=sites)

    expected = derivatives(vector, map_)
    np.testing.assert_array_equal(derivatives(vector, map_, IDENTITY), expected)
    np.testing.assert_allclose(derivatives(permuted(vector), permuted(map_), PERMUTED), expected, rtol=1e-4, atol=1e-7)
    latent = direction("latents", [0, 0, 1.0])
    site = Site("conv", basis=Rectified(), name="latents")
    found = directional_derivatives(net, IMAGES, [latent], outputs={"0": 0}, transform=transform, sites=[site])
    row = directional_derivatives(net, IMAGES, [direction("conv", Rectified.rows[2].numpy())], outputs={"0": 0}, transform=transform)
    np.testing.assert_allclose(found, row * np.linalg.norm(Rectified.rows[2]), rtol=1e-4)


def test_tcav(net: Net) -> None:
    vector = np.array([1.0, -2, 0, 0.5, 3])

    def tested(given: np.ndarray, *sites: Site) -> pd.DataFrame:
        return tcav(
            net, IMAGES, direction("conv", given), outputs=1, transform=transform, random_images=noise_images(30, seed=2), n_random=20,
            n_positive=10, n_negative=15, sites=sites,
        ).table  # fmt: skip

    expected = tested(vector)
    pd.testing.assert_frame_equal(tested(vector, IDENTITY), expected, check_exact=True)
    pd.testing.assert_frame_equal(tested(permuted(vector), PERMUTED), expected, rtol=1e-3)


def test_classes_and_names(net: Net) -> None:
    weights, names = np.array([[1.0, -2, 0.2, 0.5, 3]]), ["red", "big", "red", "", "old"]

    def labels(given: list[str], activations: Activations) -> LabelReport:
        rows = {"layer": "conv", "unit": range(5), "concept": given, "score": 1.0, "status": "named"}
        return LabelReport(pd.DataFrame(rows), {"activations": dict(activations.metadata)})

    def explained(site: str | Site, given: np.ndarray, concepts: list[str]) -> pd.DataFrame:
        activations = recorded(net, site)
        report = explain_class(
            (given, None), labels(concepts, activations), 0, activations=activations, layer=site, n_shuffles=3, n_resamples=10
        )  # fmt: skip
        return report.table

    expected = explained("conv", weights, names)
    pd.testing.assert_frame_equal(explained(IDENTITY, weights, names), expected, check_exact=True)
    found = explained(PERMUTED, weights[:, ORDER], permuted(names).tolist())
    columns = ["rank", "concept", "n_units", "contribution", "lowest", "highest", "share", "r2", "correlation"]
    pd.testing.assert_frame_equal(found[columns], expected[columns])
    report = labels(permuted(names).tolist(), recorded(net, PERMUTED))
    assert [ORDER[unit] for unit in units_named(report, PERMUTED, "red")] == [2, 0]
    with pytest.raises(InputError, match="Expected units of 'conv' as its module gives them, but"):
        units_named(report, Site("conv"), "red")
    with pytest.raises(InputError, match="Hand in the same Site"):
        explain_class((weights, None), report, 0, activations=recorded(net, "conv"), layer="conv", n_shuffles=3, n_resamples=10)


@pytest.mark.parametrize("value", ["zero", "mean", 1.0])
def test_activations_of_another_site_are_refused(net: Net, value) -> None:
    red = ConceptSet("red", "color", ("0", "3", "4"), ("1", "2", "5", "6"))
    for site, other in (("conv", PERMUTED), (PERMUTED, "conv"), (IDENTITY, PERMUTED)):
        activations = recorded(net, other)
        with pytest.raises(InputError, match="Hand in the same Site"), ablate(net, site, 0, value, activations=activations):
            pass
        with pytest.raises(InputError, match="Hand in the same Site"), steer(net, site, np.ones(5), 1, activations=activations):
            pass
        with pytest.raises(InputError, match="Hand in the same Site"):
            causal_effect(
                net, IMAGES, red, layer=site, units=0, outputs=0, transform=transform, match="random", value=value, activations=activations
            )  # fmt: skip


def test_units_of_a_basis_that_cannot_decode_are_not_set(net: Net) -> None:
    for basis in (torch.relu, Directions(np.ones((2, 5)))):
        site = Site("conv", basis=basis)
        for wrong in (ablate(net, site, 0, "zero"), steer(net, site, np.ones(5), 1)):
            with pytest.raises(InputError, match="Expected a basis with `decode`"), wrong:
                pass
        with pytest.raises(InputError, match="Expected a basis with `decode`"):
            attribute_units(net, IMAGES, site, 0, transform=transform)


def test_one_call_of_a_layer_and_one_token_are_sites_too() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.tanh(self.layer(tokens)))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Twice(), torch.rand(3, 5, 4)
    with torch.no_grad():
        first = model.layer(x)
        first[..., 1] = 2.0
        with ablate(model, Site("layer", call=0, layout="nlc"), 1, 2.0):
            assert torch.equal(model(x), model.layer(torch.tanh(first)))
        second = model(x)
        second[:, 0, 3] = -1.0
        with ablate(model, Site("layer", call=1, layout="nlc", tokens="class_token"), 3, -1.0):
            assert torch.equal(model(x), second)


def test_a_basis_works_in_evaluation_mode_and_gets_its_own_back(net: Net) -> None:
    class Dropping(nn.Dropout):
        def encode(self, values: torch.Tensor) -> torch.Tensor:
            return self(values)

        decode = encode

    basis, red = Dropping().train(), ConceptSet("red", "color", ("0", "3", "4"), ("1", "2", "5", "6"))
    site, given = Site("conv", basis=basis, name="conv"), {"outputs": {"0": 0}, "transform": transform}
    for function in (
        lambda site: attribute_units(net, IMAGES, site, 0, transform=transform).values,
        lambda site: directional_derivatives(net, IMAGES, [direction("conv", np.arange(5.0))], sites=[site], **given),
        lambda site: causal_effect(net, IMAGES, red, layer=site, units=1, value="zero", match="random", n_random=0, **given).table[
            "effect"
        ],
    ):
        np.testing.assert_array_equal(function(site), function("conv"))
        assert basis.training
