"""Hooks: which call, which part, where a forward pass ends, and when it may stop."""

from __future__ import annotations

import copy
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
import torchvision
from recording.test_recorder import batch, network, state_of
from torch import nn
from torchvision import transforms

from neuroprobe import ActivationRecorder, Images, Site
from neuroprobe.exceptions import InputError
from neuroprobe.images import collect
from neuroprobe.recording import ForwardPass
from neuroprobe.recording._forward import Listening
from neuroprobe.world import target_transform

Named = namedtuple("Named", ["logits", "aux"])


class Repeats(nn.Module):
    """Runs one module as often as it is told, and then another."""

    def __init__(self, times: int = 3) -> None:
        super().__init__()
        self.shared, self.last, self.times = nn.Linear(4, 4), nn.Linear(4, 2), times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            x = self.shared(x)
        return self.last(x)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.shared(self.shared(x))


class Returns(nn.Module):
    """A model whose first module returns what it is told."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.forward = function  # type: ignore[method-assign]

    def forward(self, x: torch.Tensor) -> Any:
        return self.inner(x)


X = torch.arange(8.0).reshape(2, 4)


class TestCalls:
    @pytest.mark.parametrize("call", [0, 1, 2])
    def test_the_one_that_is_meant(self, call: int) -> None:
        model = Repeats()
        with ActivationRecorder(model, [Site("shared", call=call), "last"]).recording() as tape, torch.no_grad():
            for x in (X, X + 1):
                model(x)
        with torch.no_grad():
            expected = torch.cat([X, X + 1])
            for _ in range(call + 1):
                expected = model.shared(expected)
        torch.testing.assert_close(tape[Site("shared", call=call)], expected)

    def test_how_many_there_are_is_told(self) -> None:
        model = Repeats()
        message = r"'shared' to run once in a forward pass, but it runs 3 times. Say .*, Site\('shared', call=0\) for the first to 2"
        with pytest.raises(InputError, match=message), ActivationRecorder(model, ["shared"]).recording():
            model(X)
        message = r"Expected a call of 'shared' from 0 to 2, but got 3: it runs 3 times"
        with pytest.raises(InputError, match=message), ActivationRecorder(model, [Site("shared", call=3)]).recording():
            model(X)

    def test_two_recorders_want_two_calls(self) -> None:
        model = Repeats().eval()
        recorders = {str(i): ActivationRecorder(model, [Site("shared", call=i, name="it")]) for i in (0, 2)}
        listening = Listening(recorders, stop_early=True)
        for _ in range(2):
            rows = listening.run(X)
            with torch.no_grad():
                first = model.shared(X)
                torch.testing.assert_close(rows["0"]["it"], first)
                torch.testing.assert_close(rows["2"]["it"], model.shared(model.shared(first)))

    def test_several_calls_in_one_recorder(self) -> None:
        model, sites = Repeats(), [Site("shared", call=2), Site("shared", call=0)]
        with ActivationRecorder(model, sites).recording() as tape, torch.no_grad():
            model(X)
        assert list(tape) == ["shared (call 2)", "shared (call 0)"]
        torch.testing.assert_close(tape["shared (call 0)"], tape[sites[1]])
        with torch.no_grad():
            torch.testing.assert_close(tape[sites[0]], model.features(tape[sites[1]]))


def part(output: Any, selection: Any = None) -> torch.Tensor:
    model = Returns(lambda x: output)
    site = Site("inner", select=selection)
    with ActivationRecorder(model, [site]).recording() as tape:
        model(X)
    return tape[site]


class TestPartsOfAnOutput:
    a, b = torch.zeros(2, 3), torch.ones(2, 5)

    @pytest.mark.parametrize(
        ("output", "selection", "wanted"),
        [
            ((a, b), 1, b),
            ([a, b], 0, a),
            ({"x": a, "y": b}, "y", b),
            ({0: b, "y": a}, 0, b),
            (OrderedDict(last=b), "last", b),
            (Named(a, b), "aux", b),
            (Named(a, b), 1, b),
            ((a, (a, b)), lambda output: output[1][1], b),
            ((a, None), None, a),
            ({"x": None, "y": b}, None, b),
        ],
    )
    def test_the_one_that_is_meant(self, output: Any, selection: Any, wanted: torch.Tensor) -> None:
        torch.testing.assert_close(part(output, selection), wanted)

    @pytest.mark.parametrize(
        ("output", "message"),
        [
            (
                (a, b),
                r"it returns tuple \(0: \(2, 3\), 1: \(2, 5\)\). Say which part: Site\('inner', select=0\) or Site\('inner', select=1\)",
            ),
            ({"x": a, "y": b}, r"it returns dict \('x': \(2, 3\), 'y': \(2, 5\)\). Say which part: Site\('inner', select='x'\)"),
            (Named(a, b), r"it returns Named \('logits': \(2, 3\), 'aux': \(2, 5\)\). Say which part: Site\('inner', select='logits'\)"),
            (((a, b), None), r"it returns tuple .*\. Give a function that takes the tensor out of it, Site\('inner', select=function\)"),
            (None, "it returns None. Give a function"),
            (3.5, "it returns float. Give a function"),
        ],
    )
    def test_the_parts_are_told(self, output: Any, message: str) -> None:
        with pytest.raises(InputError, match="Expected 'inner' to return a tensor, but " + message):
            part(output)

    @pytest.mark.parametrize(
        ("output", "selection", "message"),
        [
            ((a, b), 2, r"Expected a part of what 'inner' returns, but got 2; it returns tuple"),
            ({"x": a}, 0, r"but got 0; it returns dict \('x': \(2, 3\)\). Say which part: Site\('inner', select='x'\)"),
            ((a, None), 1, r"Expected the selection 1 of 'inner' to be a tensor, but it is None of tuple"),
            (a, 0, r"but got 0; it returns \(2, 3\). Leave `select` out"),
        ],
    )
    def test_parts_that_are_not_there(self, output: Any, selection: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            part(output, selection)

    def test_attention_of_a_vision_transformer(self) -> None:
        site = Site("encoder.layers.encoder_layer_0.self_attention", select=0)
        with ActivationRecorder(network("vit_b_16"), [site], pooling="none").recording() as tape, torch.no_grad():
            network("vit_b_16")(batch())
        assert tape[site].shape == (3, 24 * 17)


class TestStoppingEarly:
    @pytest.fixture
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.Linear(4, 2)).eval()

    @staticmethod
    def count(model: nn.Module) -> list[str]:
        ran: list[str] = []
        for name, module in model.named_modules():
            module.register_forward_hook(lambda module, args, output, name=name: ran.append(name))
        return ran

    def test_after_the_last_wanted_module(self, model: nn.Module) -> None:
        ran = self.count(model)
        with ActivationRecorder(model, ["2", "0"]).recording(stop_early=True) as tape, torch.no_grad():
            for x in (X, X + 1, X + 2):
                with tape.forward():
                    model(x)
        whole = ["0", "1", "2", "3", ""]
        assert ran == whole + ["0", "1", "2"] * 2
        with torch.no_grad():
            torch.testing.assert_close(tape["0"], model[0](torch.cat([X, X + 1, X + 2])))
            torch.testing.assert_close(tape["2"], model[:3](torch.cat([X, X + 1, X + 2])))

    def test_a_whole_set(self, world: Images, target: nn.Module) -> None:
        ran = self.count(target)
        early = ActivationRecorder(target, ["features.3", "features.6"]).record(world, transform=target_transform(), batch_size=4)
        assert [ran.count(name) for name in ("features.6", "features.7", "classifier", "")] == [3, 1, 1, 1]
        whole = ActivationRecorder(target, ["features.3", "features.6", "classifier"]).record(
            world, transform=target_transform(), batch_size=4
        )
        for layer in early.layers:
            assert (early[layer] == whole[layer]).all()

    def test_when_every_recorder_has_what_it_wants(self, world: Images, target: nn.Module) -> None:
        ran = self.count(target)
        recorders = {"first": ActivationRecorder(target, ["features.2"]), "later": ActivationRecorder(target, ["features.5", "features.2"])}
        (both,) = collect(world, [ForwardPass(recorders, target_transform())], batch_size=4)
        assert [ran.count(name) for name in ("features.5", "features.6")] == [3, 1]
        assert (both["first"]["features.2"] == both["later"]["features.2"]).all()

    def test_not_before_the_last_call_that_is_wanted(self) -> None:
        model = Repeats(4).eval()
        ran = self.count(model)
        listening = Listening({"": ActivationRecorder(model, [Site("shared", call=2)])}, stop_early=True)
        assert torch.equal(listening.run(X)[""]["shared (call 2)"], listening.run(X)[""]["shared (call 2)"])
        assert ran == ["shared"] * 4 + ["last", ""] + ["shared"] * 3

    def test_a_second_call_is_found_although_it_would_stop(self) -> None:
        model = Repeats(2).eval()
        listening = Listening({"": ActivationRecorder(model, ["shared"])}, stop_early=True)
        for _ in range(2):
            with pytest.raises(InputError, match="it runs 2 times"):
                listening.run(X)

    def test_a_model_that_catches_errors_does_not_hold_it_up(self) -> None:
        class Catches(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner, self.after = nn.Linear(4, 4), nn.Linear(4, 4)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                try:
                    x = self.inner(x)
                except Exception:
                    x = x * 0
                return self.after(x)

        model = Catches().eval()
        ran = self.count(model)
        listening = Listening({"": ActivationRecorder(model, ["inner"])}, stop_early=True)
        assert torch.equal(listening.run(X)[""]["inner"], listening.run(X)[""]["inner"])
        assert ran.count("after") == 1

    def test_only_where_the_forward_is_surrounded(self, model: nn.Module) -> None:
        message = r"Write `with tape.forward\(\): model\(batch\)`"
        with pytest.raises(InputError, match=message), ActivationRecorder(model, ["0"]).recording(stop_early=True):
            model(X)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, RuntimeError])
@pytest.mark.parametrize("forward", [0, 1])
def test_the_model_is_left_as_found_after_an_interruption(error: type[BaseException], forward: int) -> None:
    model = copy.deepcopy(network("mobilenet_v2")).train()
    recorder = ActivationRecorder(model, ["features.3", "features.9"])
    before, listening = state_of(model), Listening({"": recorder}, stop_early=True)
    for _ in range(forward):
        listening.run(batch())

    def interrupt(module: nn.Module, args: Any) -> None:
        raise error

    handle = model.features[5].register_forward_pre_hook(interrupt)  # type: ignore[index]
    with pytest.raises(error):
        listening.run(batch())
    handle.remove()
    assert state_of(model) == before
    assert listening.run(batch(2))[""]["features.3"].shape[0] == 2  # nothing is left of the one that failed


class TestWhereAForwardEnds:
    def test_a_forward_that_fails_leaves_no_rows(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        with ActivationRecorder(model, ["0", "1"]).recording() as tape, torch.no_grad():
            model(X)
            handle = model[1].register_forward_pre_hook(lambda module, args: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                model(X)
            assert len(tape["0"]) == 2
            handle.remove()
            model(X[:1])
        assert len(tape["0"]) == len(tape["1"]) == 3

    def test_another_method_of_the_model_once(self) -> None:
        model = Repeats(1)
        with ActivationRecorder(model, ["last"]).recording() as tape, torch.no_grad():
            model.last(X)
            assert len(tape["last"]) == 2

    def test_a_part_alone_is_no_forward_that_others_miss(self) -> None:
        model = Repeats(1)
        with ActivationRecorder(model, ["shared", "last"]).recording() as tape, torch.no_grad():
            model.last(X)
            model(X)
        assert (len(tape["shared"]), len(tape["last"])) == (2, 4)

    def test_another_method_of_the_model_again_is_refused(self) -> None:
        model = Repeats()
        message = r"'shared' ran again outside of Repeats's own call \(in encode_image.* Write `with tape.forward\(\): ...` around each"
        with pytest.raises(InputError, match=message), ActivationRecorder(model, ["shared"]).recording():
            model.features(X)

    def test_surrounded(self) -> None:
        model = Repeats()
        with ActivationRecorder(model, [Site("shared", call=1)]).recording() as tape, torch.no_grad():
            for x in (X, X + 1):
                with tape.forward():
                    model.features(x)
        with torch.no_grad():
            torch.testing.assert_close(tape["shared (call 1)"], model.features(torch.cat([X, X + 1])))

    def test_surrounded_one_layer_that_runs_twice(self) -> None:
        model = Repeats()
        recorder = ActivationRecorder(model, ["shared"])
        with pytest.raises(InputError, match="it runs 2 times"), recorder.recording() as tape, tape.forward():
            model.features(X)

    def test_a_call_outside_of_a_forward_is_refused(self) -> None:
        model = Repeats()
        message = "'shared' ran outside of Repeats's own call"
        with pytest.raises(InputError, match=message), ActivationRecorder(model, [Site("shared", call=0)]).recording():
            model.features(X)

    def test_one_inside_another(self) -> None:
        recorder = ActivationRecorder(Repeats(1), ["last"])
        with pytest.raises(InputError, match="one begins inside another"), recorder.recording() as tape, tape.forward(), tape.forward():
            pass

    def test_a_layer_that_some_forwards_leave_out(self) -> None:
        model = Repeats(1)
        with ActivationRecorder(model, ["shared", "last"]).recording() as tape, torch.no_grad():
            for model.times in (1, 0, 1):
                model(X)
        assert len(tape["last"]) == 6
        with pytest.raises(InputError, match=r"Expected every forward pass to reach 'shared', but it took no part in 1 of them"):
            tape["shared"]

    def test_copies_as_data_parallel_makes_them(self) -> None:
        model = Repeats(1)
        replica: Any = model._replicate_for_data_parallel()
        part = copy.copy(model.shared)
        message = r"but a copy of it did, as in DataParallel.* Call the model in it: model.module\(batch\)"
        with pytest.raises(InputError, match=message), ActivationRecorder(model, ["shared"]).recording():
            replica(X)
        message = "Expected Linear itself to run, but a copy of it did"
        with pytest.raises(InputError, match=message), ActivationRecorder(model, ["shared"]).recording():
            part(X)

    def test_data_parallel_around_the_model_on_one_device(self) -> None:
        model = Repeats(1)
        with ActivationRecorder(model, ["shared"]).recording() as tape, torch.no_grad():
            nn.DataParallel(model)(X)
        assert tape["shared"].shape == (2, 4)


class Encoder(nn.Module):
    """A sparse autoencoder's first half."""

    def __init__(self, n_inputs: int, n_latents: int = 7) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(n_inputs, n_latents), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.linear(x).relu())


def head_norms(output: torch.Tensor) -> torch.Tensor:
    """[n, tokens, d] -> [n, tokens, 2 heads]"""
    return output.unflatten(2, (2, -1)).norm(dim=3)


class TestBases:
    layer = "encoder.layers.encoder_layer_0"

    def recorded(self, basis: Any, layers: list[str] | None = None, *, pooling: Any = "mean", **place: Any) -> dict[str, torch.Tensor]:
        sites = [*(layers or []), Site(self.layer, basis=basis, name="units", **place)]
        return Listening({"": ActivationRecorder(network("vit_b_16"), sites, pooling=pooling)}).run(batch())[""]

    @pytest.fixture
    def output(self) -> torch.Tensor:
        kept: list[torch.Tensor] = []
        handle = network("vit_b_16").get_submodule(self.layer).register_forward_hook(lambda module, args, output: kept.append(output))
        with torch.no_grad():
            network("vit_b_16")(batch())
        handle.remove()
        return kept[0]

    def test_a_module_in_evaluation_mode(self, output: torch.Tensor) -> None:
        encoder = Encoder(24).train()
        rows = self.recorded(encoder)["units"]
        torch.testing.assert_close(rows, encoder.linear(output).relu().mean(dim=1).detach())
        assert encoder.training
        assert encoder.dropout.training
        assert not encoder.linear._forward_hooks

    def test_a_function_and_the_layer_itself_in_one_pass(self, output: torch.Tensor) -> None:
        rows = self.recorded(head_norms, [self.layer], layout="nlc", pooling="class_token")
        torch.testing.assert_close(rows["units"], head_norms(output)[:, 0])
        torch.testing.assert_close(rows[self.layer], output[:, 0])

    def test_before_a_pooling_function(self, output: torch.Tensor) -> None:
        rows = self.recorded(head_norms, pooling=lambda x: x.amax(1))["units"]
        torch.testing.assert_close(rows, head_norms(output).amax(1))

    def test_it_says_nothing_about_the_modules_that_follow(self) -> None:
        around = ["encoder", "encoder.layers.encoder_layer_0.mlp", self.layer]
        recorder = ActivationRecorder(network("vit_b_16"), around)
        alone = Listening({"": recorder}).run(batch())[""]
        mixed = self.recorded(Encoder(24, 17), around)
        assert all(torch.equal(mixed[layer], rows) for layer, rows in alone.items())

    def test_what_it_is_and_its_weights_are_in_the_metadata(self) -> None:
        def identity(basis: Any) -> str:
            recorder = ActivationRecorder(network("vit_b_16"), [Site(self.layer, basis=basis, name="units")])
            return str(recorder.metadata["sites"]["units"])

        first, second = Encoder(24), Encoder(24)
        assert identity(first) == identity(copy.deepcopy(first))
        ways = [first, second, first.forward, second.forward, lambda x: first(x), lambda x: second(x), head_norms]
        assert len({identity(basis) for basis in ways}) == len(ways)
        assert all("0x" not in identity(basis) for basis in ways)


class TestMixedPrecision:
    model = torchvision.models.resnet18(weights=None).eval()

    @pytest.mark.parametrize("autocast", ["bfloat16", torch.bfloat16])
    def test_the_forward_is_narrow_and_the_mean_is_not(self, autocast: Any) -> None:
        kept: list[torch.Tensor] = []
        handle = self.model.conv1.register_forward_hook(lambda module, args, output: kept.append(output))
        rows = Listening({"": ActivationRecorder(self.model, ["conv1"], autocast=autocast)}).run(batch())[""]["conv1"]
        handle.remove()
        assert kept[0].dtype == torch.bfloat16
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows, kept[0].double().mean(dim=(2, 3)).float(), rtol=1e-5, atol=1e-7)
        assert ActivationRecorder(self.model, ["conv1"], autocast=autocast).metadata["autocast"] == "bfloat16"

    def test_ranks_do_not_collapse(self) -> None:
        """Means of bfloat16 values that differ by less than its precision stay apart, and in order."""
        x = torch.full((64, 1, 16, 16), 100.0)
        for image in range(64):
            x[image].view(-1)[: image + 1] += 1
        model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
        nn.init.ones_(model[0].weight)
        rows = Listening({"": ActivationRecorder(model, ["0"], autocast="bfloat16")}).run(x)[""]["0"]
        assert rows[:, 0].argsort().tolist() == list(range(64))
        assert len(rows.unique()) == 64
        assert len(x.bfloat16().mean(dim=(1, 2, 3)).unique()) < 10  # what the mean in bfloat16 would leave

    def test_a_basis_works_in_float32(self) -> None:
        seen: list[torch.dtype] = []
        encoder = nn.Linear(64, 5)

        def latents(x: torch.Tensor) -> torch.Tensor:
            seen.extend([x.dtype, encoder(x).dtype])
            return encoder(x)  # type: ignore[no-any-return]

        recorder = ActivationRecorder(self.model, [Site("conv1", basis=latents)], autocast="bfloat16")
        Listening({"": recorder}).run(batch())
        assert seen == [torch.float32, torch.float32]

    def test_only_where_the_forward_is_surrounded(self) -> None:
        recorder = ActivationRecorder(self.model, ["conv1"], autocast="bfloat16")
        with pytest.raises(InputError, match=r"may stop early or has `autocast`"), recorder.recording():
            self.model(batch())

    @pytest.mark.parametrize("autocast", ["float8", "bf16", torch.float32, 16])
    def test_unknown(self, autocast: Any) -> None:
        with pytest.raises(InputError, match="Expected `autocast` to be 'bfloat16', 'float16' or None, but got"):
            ActivationRecorder(self.model, ["conv1"], autocast=autocast)

    def test_recorders_of_one_forward_agree(self) -> None:
        plain, narrow = ActivationRecorder(self.model, ["conv1"]), ActivationRecorder(self.model, ["conv1"], autocast="bfloat16")
        other = ActivationRecorder(copy.deepcopy(self.model), ["conv1"])
        for recorder in (narrow, other):
            with pytest.raises(InputError, match="Expected recorders of one model with one `autocast`, but got several"):
                ForwardPass({"a": plain, "b": recorder}, transforms.ToTensor())
