"""Site: one text per place in a model and basis, and what is no site."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from neuroprobe import Direction, Site
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.models import Directions, as_site, check_same_site, check_site, check_sites


class Autoencoder(nn.Module):
    def __init__(self, n_units: int = 4, n_latents: int = 6) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(n_units, n_latents), nn.Linear(n_latents, n_units)

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        return self.down(values).relu()

    def decode(self, units: torch.Tensor) -> torch.Tensor:
        return self.up(units)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(values))


MODEL = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.ModuleList([nn.Linear(4, 2)]))


class TestIdentity:
    def test_a_name_is_the_plain_site(self) -> None:
        assert as_site("0") == Site("0")
        assert Site("0").key == Site("0").identity == "0"

    def test_a_site_is_told_from_every_other(self) -> None:
        first = Autoencoder()
        options: list[dict[str, Any]] = [
            {}, {"side": "input"}, {"call": 0}, {"call": 1}, {"select": 0}, {"select": "0"}, {"select": lambda x: x[0]},
            {"select": lambda x: x[1]}, {"layout": "nlc"}, {"layout": "lnc"}, {"tokens": "class_token"}, {"tokens": "patches"},
            {"tokens": "token 0"}, {"basis": first}, {"basis": Autoencoder()}, {"basis": first.encode}, {"basis": first.down},
            {"basis": Directions(torch.eye(4))}, {"basis": Directions(2 * torch.eye(4))}, {"basis": torch.relu},
        ]  # fmt: skip
        sites = [Site("0", **chosen) for chosen in options]
        assert len({site.identity for site in sites}) == len(sites)
        assert len({site.key for site in sites}) == len(sites) - 2  # where units are is no other site to read about
        assert len(set(sites)) == len(sites)

    def test_a_name_is_only_what_it_is_called(self) -> None:
        site = Site("0", call=1, name="second")
        assert (site.key, site.identity) == ("second", Site("0", call=1).identity)

    def test_a_copy_is_the_same_and_other_weights_are_not(self) -> None:
        basis = Autoencoder()
        site, twin = Site("0", basis=basis), Site("0", basis=copy.deepcopy(basis))
        assert site.identity == twin.identity
        assert "0x" not in site.identity
        with torch.no_grad():
            basis.down.bias[0] += 1
        assert site.identity != twin.identity

    def test_another_site_is_refused_in_words(self) -> None:
        check_same_site("0", Site("0").identity)
        latents = Site("0", basis=Autoencoder())
        message = (
            r"Expected units of .0. as its module gives them, but these activations are of .0. in the basis "
            r"\w*\.?Autoencoder#[0-9a-f]{8}\. "
            "Hand in the same Site."
        )
        with pytest.raises(InputError, match=message):
            check_same_site("0", latents.identity)
        with pytest.raises(InputError, match=r"Expected units of '0' call 1, but these examples are of '0' call 0\."):
            check_same_site(Site("0", call=1), Site("0", call=0).identity, what="these examples")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": ""}, "Expected a site's layer as a module's name"),
        ({"layer": 3}, "Expected a site's layer as a module's name, but got int 3"),
        ({"side": "both"}, "Expected `side` to be 'output' or 'input', but got 'both'"),
        ({"call": -1}, "Expected `call` to be a number from 0, but got -1 for '0'"),
        ({"call": True}, "Expected `call` to be a number from 0"),
        ({"select": 1.5}, "Expected `select` to be a position, a key or a function"),
        ({"select": True}, "Expected `select` to be a position, a key or a function"),
        ({"layout": "nhw"}, "Expected a layout, but got 'nhw'. Did you mean 'nhwc'"),
        ({"tokens": "cls"}, "Expected `tokens` to be 'class_token', 'patches' or such as 'token 3', but got 'cls'"),
        ({"tokens": "token -1"}, "Expected `tokens` to be"),
        ({"name": ""}, "Expected `name` to be a text"),
        ({"basis": 3}, "Expected a basis with `encode` and `fingerprint`, or a function"),
        ({"basis": Autoencoder}, "Expected a basis with `encode`"),
        ({"basis": type("Codes", (), {"encode": abs})()}, "Expected a basis that has a `fingerprint`"),
    ],
)
def test_what_is_no_site(options: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, UnknownNameError), match=message):
        Site(**{"layer": "0", **options})


class TestCheckingSites:
    def test_names_sites_and_functions(self) -> None:
        latents = Site("0", basis=torch.relu)
        assert check_sites(MODEL, ["0", latents]) == (Site("0"), latents)
        assert [site.layer for site in check_sites(MODEL, lambda name, module: isinstance(module, nn.Linear))] == ["0", "2.0"]

    @pytest.mark.parametrize("sites", [[], ["0", Site("0")], [Site("0"), Site("1", name="0")]])
    def test_none_or_twice(self, sites: Any) -> None:
        with pytest.raises(InputError, match="Expected `layers` to name at least one layer, each once"):
            check_sites(MODEL, sites)

    @pytest.mark.parametrize("sites", [None, 3, "0", Site("0")])
    def test_no_list(self, sites: Any) -> None:
        with pytest.raises(InputError, match="Expected `layers` to be a list"):
            check_sites(MODEL, sites)

    def test_layers_that_there_are_not(self) -> None:
        with pytest.raises(UnknownNameError, match="Expected `layer` to be module names of Sequential, but got '7'"):
            check_site(MODEL, Site("7", call=0))
        with pytest.raises(InputError, match=r"'2' is a ModuleList, which has no forward of its own. Record its members: '2.0'.$"):
            check_site(MODEL, "2")


def direction(layer: str = "0", features: str = "pooled", weights: Any = (1.0, 2.0)) -> Direction:
    return Direction("red", "model", layer, features, "linear", 0, weights, 0.5)


class TestDirections:
    def test_units_are_the_log_odds(self) -> None:
        both = [direction(), direction(weights=(0.0, -1.0))]
        values = torch.randn(3, 5, 2)
        found = Directions(both).encode(values)
        expected = torch.stack([torch.from_numpy(one.decision(values.reshape(15, 2).numpy())).reshape(3, 5) for one in both], dim=-1)
        torch.testing.assert_close(found, expected.float())

    @pytest.mark.parametrize("matrix", [torch.eye(4), torch.eye(4)[[2, 0, 3, 1]], torch.eye(4)[:2]])
    def test_orthonormal_rows_are_inverted_to_the_bit(self, matrix: torch.Tensor) -> None:
        basis, units = Directions(matrix), torch.randn(5, len(matrix))
        assert basis.decode is not None
        assert torch.equal(basis.encode(basis.decode(units)), units)

    def test_decoding_undoes_encoding_within_the_span(self) -> None:
        matrix = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
        basis, values = Directions(matrix), torch.randn(7, 5)
        assert basis.decode is not None
        decoded = basis.decode(basis.encode(values))
        torch.testing.assert_close(basis.encode(decoded), basis.encode(values), rtol=1e-4, atol=1e-5)
        expected = torch.linalg.lstsq(matrix.T, values.T).solution.T @ matrix  # the projection
        torch.testing.assert_close(decoded, expected, rtol=1e-4, atol=1e-4)

    def test_biases_are_taken_back(self) -> None:
        basis, units = Directions([direction(), direction(weights=(0.0, -1.0))]), torch.randn(5, 2)
        assert basis.decode is not None
        torch.testing.assert_close(basis.encode(basis.decode(units)), units)

    def test_rows_that_depend_on_each_other_have_no_inverse(self) -> None:
        assert Directions(torch.ones(2, 3)).decode is None
        assert Directions(torch.randn(4, 3)).decode is None

    def test_of_another_layer(self) -> None:
        with pytest.raises(InputError, match="Expected directions of '1', but got some of '0'"):
            Site("1", basis=Directions([direction()]))

    @pytest.mark.parametrize(
        "given",
        [[direction(), direction("1")], [direction(features="spatial")], [], [1.0], [[float("nan")]], "red", torch.zeros(2, 2, 2), None],
    )
    def test_what_is_none(self, given: Any) -> None:
        with pytest.raises(InputError, match="Expected directions"):
            Directions(given)

    def test_values_of_another_layer(self) -> None:
        with pytest.raises(InputError, match="Expected values of 4 units for these directions, but got 3"):
            Directions(torch.eye(4)).encode(torch.zeros(2, 3))
