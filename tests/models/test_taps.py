"""Taps: what is read, what is put in its place, and a model left as it was found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from models.test_sites import Autoencoder
from recording.test_recorder import batch, network, state_of
from torch import nn

from neuroprobe import Site
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.models import Axes, Directions, tapped

NETWORKS = {"resnet18": "layer2", "vit_b_16": "encoder.layers.encoder_layer_0", "swin_t": "features.1.1", "mobilenet_v2": "features.3"}
AFTER = {"resnet18": "fc", "vit_b_16": "encoder", "swin_t": "head", "mobilenet_v2": "classifier"}


def outputs(model: nn.Module, layer: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer and the model return, by a plain hook."""
    kept: list[torch.Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: kept.append(output.clone()))
    with torch.no_grad():
        returned = model(x)
    handle.remove()
    return kept[0], returned


def read(model: nn.Module, site: Any, x: torch.Tensor, **options: Any) -> Any:
    with torch.no_grad(), tapped(model, [site], **options) as taps, taps.forward():
        model(x)
    return taps[site]


def changed(model: nn.Module, site: Any, function: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), tapped(model, replace={site: function}):
        return model(x)  # type: ignore[no-any-return]


def n_units(name: str) -> int:
    reading = read(network(name), NETWORKS[name], batch())
    return int(reading.by_unit.shape[1])


@pytest.mark.parametrize("name", NETWORKS)
class TestBases:
    """With the identity the layer's own bits; with a basis that permutes, what the permuted channel gives."""

    def test_reading(self, name: str) -> None:
        model, layer, n = network(name), NETWORKS[name], n_units(name)
        output, _ = outputs(model, layer, batch())
        plain = read(model, layer, batch())
        assert torch.equal(plain.values, output)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
        for basis, rows in ((torch.eye(n), plain.by_unit), (torch.eye(n)[order], plain.by_unit[:, order])):
            reading = read(model, Site(layer, basis=Directions(basis)), batch())
            assert torch.equal(reading.by_unit, rows)
            assert reading.axes == Axes(output.ndim - 1, 0)

    def test_replacing(self, name: str) -> None:
        model, layer, n = network(name), NETWORKS[name], n_units(name)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
        inverse = order.argsort()

        def zero(*units: int) -> Any:
            return lambda values: values.index_fill(1, torch.tensor(units), 0.0)

        def after(site: Any, *units: int) -> torch.Tensor:
            with tapped(model, replace={site: zero(*units)}):
                return outputs(model, AFTER[name], batch())[0]

        expected = after(layer, 1, 3)
        assert not torch.allclose(expected, outputs(model, AFTER[name], batch())[0])
        identity, permuted = Site(layer, basis=Directions(torch.eye(n))), Site(layer, basis=Directions(torch.eye(n)[order]))
        assert torch.equal(after(identity, 1, 3), expected)
        assert torch.equal(after(permuted, int(inverse[1]), int(inverse[3])), expected)

    def test_nothing_changed_is_the_models_own_bits(self, name: str) -> None:
        model, layer, n = network(name), NETWORKS[name], n_units(name)
        expected = outputs(model, AFTER[name], batch())[0]
        for basis in (None, Directions(torch.randn(n, n)), Autoencoder(n, 2 * n), Directions(torch.randn(2, n))):
            with tapped(model, replace={Site(layer, basis=basis): lambda values: values}):
                assert torch.equal(outputs(model, AFTER[name], batch())[0], expected)


class TestEditing:
    model = nn.Sequential(nn.Linear(4, 4), nn.Identity()).eval()
    x = torch.randn(3, 5, 4)
    basis = Autoencoder(4, 9)

    def test_the_rest_that_a_basis_does_not_explain_stays(self) -> None:
        def edit(units: torch.Tensor) -> torch.Tensor:
            units[0, 2, 1] += 3.0  # [n, latents, positions]
            return units

        with torch.no_grad():
            values = self.model[0](self.x)
            units = self.basis.encode(values)
            edited = units.clone()
            edited[0, 1, 2] += 3.0
            expected = values.clone()
            expected[0, 1] = (self.basis.decode(edited) + (values - self.basis.decode(units)))[0, 1]
        found = changed(self.model, Site("0", basis=self.basis, layout="nlc"), edit, self.x)
        torch.testing.assert_close(found[0, 1], expected[0, 1])
        assert not torch.allclose(found[0, 1], values[0, 1])
        mask = torch.ones(3, 5, dtype=torch.bool)
        mask[0, 1] = False
        assert torch.equal(found[mask], values[mask])

    def test_a_gradient_with_respect_to_units_that_stay(self) -> None:
        added: list[torch.Tensor] = []

        def add_nothing(units: torch.Tensor) -> torch.Tensor:
            added.append(torch.zeros_like(units, requires_grad=True))
            return units + added[0]

        with torch.no_grad():
            expected = self.model(self.x)
        with tapped(self.model, replace={Site("0", basis=self.basis, layout="nlc"): add_nothing}):
            returned = self.model(self.x)
        assert torch.equal(returned, expected)
        (gradient,) = torch.autograd.grad(returned[..., 2].sum(), added[0])
        torch.testing.assert_close(gradient, self.basis.up.weight[2].detach()[:, None].expand(3, 9, 5))

    def test_a_basis_that_cannot_decode(self) -> None:
        for basis in (torch.relu, Directions(torch.ones(2, 4))):
            with (
                pytest.raises(InputError, match="Expected a basis with `decode` to set units of '0' in"),
                tapped(self.model, replace={Site("0", basis=basis): abs}),
            ):
                pass

    def test_what_a_replacement_may_not_return(self) -> None:
        for returned in (None, torch.zeros(2)):
            with pytest.raises(InputError, match=r"Expected a replacement of '0' to return values \(3, 4, 5\)"):
                changed(self.model, Site("0", layout="nlc"), lambda values, returned=returned: returned, self.x)

    def test_a_part_of_a_tuple(self) -> None:
        lstm = nn.Sequential(nn.LSTM(4, 3, batch_first=True)).eval()
        with torch.no_grad():
            rows, state = lstm(self.x)
        new, left = changed(lstm, Site("0", select=0, layout="nlc"), lambda values: values.index_fill(1, torch.tensor([2]), 9.0), self.x)  # type: ignore[misc]
        assert torch.equal(new[..., :2], rows[..., :2])
        assert (new[..., 2] == 9).all()
        assert all(torch.equal(one, other) for one, other in zip(left, state, strict=True))

    def test_a_site_that_takes_no_part_is_told(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model.forward = lambda x: model[0](x)  # type: ignore[method-assign]
        with pytest.raises(InputError, match="Expected '1' to run in a forward pass, but it does not, so nothing was changed"):
            changed(model, "1", abs, self.x)

    def test_every_run_or_the_one_that_is_meant(self) -> None:
        block = nn.Identity()
        model = nn.Sequential(block, block, block)
        x = torch.ones(1, 2)
        assert changed(model, "0", lambda values: values + 1, x).tolist() == [[4.0, 4.0]]
        assert changed(model, Site("0", call=1), lambda values: values * 5, x).tolist() == [[5.0, 5.0]]


class TestReadings:
    def test_the_input_of_a_module(self) -> None:
        model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval(), torch.randn(5, 4)
        with torch.no_grad():
            expected = model[:2](x)
            silenced = model[2](expected.index_fill(1, torch.tensor([0]), 0.0))
        site = Site("2", side="input")
        assert torch.equal(read(model, site, x).values, expected)
        assert torch.equal(changed(model, site, lambda values: values.index_fill(1, torch.tensor([0]), 0.0), x), silenced)

    def test_arguments_by_position_and_name(self) -> None:
        class Sum(nn.Module):
            def forward(self, a: torch.Tensor, *, b: torch.Tensor) -> torch.Tensor:
                return a + b

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.sum = Sum()

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.sum(x, b=2 * x)  # type: ignore[no-any-return]

        x = torch.randn(2, 3)
        assert torch.equal(read(Net(), Site("sum", side="input", select=0), x).values, x)
        assert torch.equal(read(Net(), Site("sum", side="input", select="b"), x).values, 2 * x)
        assert torch.equal(changed(Net(), Site("sum", side="input", select="b"), torch.zeros_like, x), x)
        told = r"to get a tensor, but it gets .* Site\('sum', side='input', select=0\) or Site\('sum', side='input', select='b'\)"
        with pytest.raises(InputError, match=told):
            read(Net(), Site("sum", side="input"), x)

    @pytest.mark.parametrize(("tokens", "part"), [("class_token", lambda x: x[:, 0]), ("token 2", lambda x: x[:, 2])])
    def test_one_token(self, tokens: str, part: Any) -> None:
        model, layer = network("vit_b_16"), NETWORKS["vit_b_16"]
        output, _ = outputs(model, layer, batch())
        reading = read(model, Site(layer, tokens=tokens), batch())
        assert torch.equal(reading.values, part(output))
        assert reading.axes == Axes(1)
        encoder = Autoencoder(24, 30)
        latents = read(model, Site(layer, tokens=tokens, basis=encoder), batch())
        torch.testing.assert_close(latents.by_unit, encoder.encode(part(output)).detach())

    def test_patches_and_only_their_units_change(self) -> None:
        model, layer = network("vit_b_16"), NETWORKS["vit_b_16"]
        site, other = Site(layer, tokens="patches"), "encoder.layers.encoder_layer_1"
        output, _ = outputs(model, layer, batch())
        assert torch.equal(read(model, site, batch()).values, output[:, 1:])
        seen: list[torch.Tensor] = []
        handle = model.get_submodule(other).register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
        changed(model, site, torch.zeros_like, batch())
        handle.remove()
        assert torch.equal(seen[0][:, 0], output[:, 0])
        assert not seen[0][:, 1:].any()

    def test_tokens_before_images(self) -> None:
        class Turned(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:  # [n, tokens, d] -> [tokens, n, d]
                return x.transpose(0, 1)

        model, x, basis = nn.Sequential(Turned()), torch.randn(2, 5, 4), Autoencoder(4, 6)
        units = basis.encode(x).detach().movedim(-1, 1)  # [n, units, tokens]
        for tokens, rows in ((None, units), ("patches", units[:, :, 1:]), ("token 3", units[:, :, 3])):
            site = Site("0", layout="lnc", basis=basis, tokens=tokens)
            torch.testing.assert_close(read(model, site, x).by_unit, rows)
        only = changed(model, Site("0", layout="lnc", tokens="patches"), torch.zeros_like, x)
        assert torch.equal(only[0], x[:, 0])
        assert not only[1:].any()

    def test_several_sites_of_one_layer(self) -> None:
        model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 4)
        sites = [Site("0"), Site("0", basis=torch.relu), Site("0", basis=torch.neg), Site("0", side="input")]
        with torch.no_grad(), tapped(model, sites) as taps, taps.forward():
            model(x)
        raw, positive, negative, given = (taps[site].values for site in sites)
        assert torch.equal(positive, raw.relu())
        assert torch.equal(negative, -raw)
        assert torch.equal(given, x)

    def test_gradients_where_they_are_wanted(self) -> None:
        model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(3, 4, requires_grad=True)
        with tapped(model, ["0"], gradients=True) as taps, taps.forward():
            model(x)
        (gradient,) = torch.autograd.grad(taps["0"].values[:, 1].sum(), x)
        assert torch.equal(gradient, model[0].weight[1].detach().expand(3, 4))  # type: ignore[union-attr, operator]
        assert not read(model, "0", x).values.requires_grad

    def test_axes_that_nobody_knows(self) -> None:
        model = nn.Sequential(nn.Unflatten(1, (2, 3, 4)))
        reading = read(model, "0", torch.randn(2, 24))
        assert reading.values.shape == (2, 2, 3, 4)
        with pytest.raises(InputError, match="Say where its units are"):
            reading.axes  # noqa: B018
        with pytest.raises(InputError, match="Say where its units are"):
            read(model, Site("0", basis=torch.relu), torch.randn(2, 24))
        assert read(model, Site("0", layout="nhwc"), torch.randn(2, 24)).axes == Axes(3)

    def test_a_basis_of_convolutions_gets_channels_first(self) -> None:
        encoder, layer = nn.Conv2d(128, 6, 1), "layer2"
        output, _ = outputs(network("resnet18"), layer, batch())
        reading = read(network("resnet18"), Site(layer, basis=encoder), batch())
        torch.testing.assert_close(reading.by_unit, encoder(output).detach())

    def test_what_a_basis_may_not_return(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4))
        for basis in (lambda values: values.tolist(), lambda values: values.sum(0)):
            with pytest.raises(InputError, match=r"Expected the basis of '0' to make a tensor \[2, units\] of values \(2, 4\), but got"):
                read(model, Site("0", basis=basis), torch.randn(2, 4))

    def test_sites_that_are_not_read(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4))
        with tapped(model, ["0"]) as taps:
            with pytest.raises(InputError, match="Expected '0' to run in a forward pass, but it does not"):
                taps["0"]
            with pytest.raises(UnknownNameError, match="Expected a site that is read, but got '1'"):
                taps["1"]

    def test_a_view_that_a_basis_gives_is_not_written_over(self) -> None:
        model, same = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)), Site("0", basis=lambda values: values)
        with torch.no_grad(), tapped(model, ["0", same]) as taps, taps.forward():
            model(torch.randn(2, 3, 8, 8))
        assert torch.equal(taps[same].by_unit, taps["0"].by_unit)
        assert (taps["0"].values < 0).any()


class TestForwards:
    def test_stops_behind_the_last_wanted_module_after_the_first(self) -> None:
        model, ran = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)), list[str]()
        for name, module in model.named_children():
            module.register_forward_hook(lambda module, args, output, name=name: ran.append(name))
        with torch.no_grad(), tapped(model, ["0", Site("1", side="input")]) as taps:
            for _ in range(2):
                with taps.forward():
                    model(torch.zeros(1, 4))
        assert ran == ["0", "1", "2", "0"]

    def test_none_stops_where_something_is_replaced(self) -> None:
        model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(2, 4)
        with torch.no_grad():
            given, expected = model[0](x), model[1](torch.zeros(2, 4))
        with torch.no_grad(), tapped(model, ["0"], replace={"0": torch.zeros_like}) as taps:
            for _ in range(2):
                with taps.forward():
                    returned = model(x)
                assert torch.equal(taps["0"].values, given)
                assert torch.equal(returned, expected)

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_the_model_is_left_as_found(self, error: type[BaseException]) -> None:
        model = torchvision.models.mobilenet_v2(width_mult=0.25).train()
        model.features[3].eval()
        before = state_of(model)

        def fail(values: torch.Tensor) -> torch.Tensor:
            raise error

        sites = ["features.3", Site("features.9", side="input")]
        with pytest.raises(error), tapped(model, sites, replace={"features.5": fail}) as taps, taps.forward():
            model(batch())
        assert state_of(model)[1:] == before[1:]  # the first is of the weights: batch norms count batches
