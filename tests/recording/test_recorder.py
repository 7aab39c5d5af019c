"""ActivationRecorder: exact names, the right values, and a model left as it was found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from conftest import DAMAGED, GOOD
from torch import nn
from torchvision import transforms
from torchvision.models import VisionTransformer
from torchvision.models.feature_extraction import create_feature_extractor

from neuroprobe import ActivationRecorder, Images
from neuroprobe._core import fingerprint_model
from neuroprobe.exceptions import InputError, UnknownNameError, UnreadableImageError
from neuroprobe.images import collect
from neuroprobe.recording import ForwardPass
from neuroprobe.world import target_transform


def batch(n: int = 3, side: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def state_of(model: nn.Module) -> list[Any]:
    """Everything about the modules that a recorder might change."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
    state: list[Any] = [fingerprint_model(model)]
    for name, module in model.named_modules():
        registered = [list(getattr(module, kind).items()) for kind in hooks]
        state.append((name, id(module), module.training, registered, sorted(vars(module)), module.__dict__.get("forward")))
    state += [(parameter.requires_grad, parameter.device, id(parameter), parameter.grad) for parameter in model.parameters()]
    return state


class TestNames:
    model = torchvision.models.mobilenet_v2(weights=None, width_mult=0.25)

    def test_nearest_names_are_told(self) -> None:
        with pytest.raises(UnknownNameError, match=r"module names of MobileNetV2, but got 'features.19'. Did you mean 'features.9' or"):
            ActivationRecorder(self.model, ["features.18", "features.19"])

    @pytest.mark.parametrize("prefix", ["feature", "features.", "features.1.con", "features.*", "module:1", "FEATURES.1", ""])
    def test_a_prefix_or_a_pattern_is_no_name(self, prefix: str) -> None:
        with pytest.raises(
            UnknownNameError, match=r"Expected `layers` to be module names of MobileNetV2, but got '.*'. (Did you mean|Known:)"
        ):
            ActivationRecorder(self.model, [prefix])

    def test_a_name_that_begins_others_means_itself(self) -> None:
        recorder = ActivationRecorder(self.model, ["features.1"])
        with recorder.recording() as tape:
            self.model(batch(2))
        assert recorder.layers == ("features.1",)
        assert list(tape) == ["features.1"]

    def test_a_module_is_no_name(self) -> None:
        with pytest.raises(UnknownNameError, match="but got Linear"):
            ActivationRecorder(self.model, [self.model.classifier[1]])  # type: ignore[list-item]

    def test_one_name_alone(self) -> None:
        with pytest.raises(InputError, match=r"but got the single name 'features.1'. Write \['features.1'\]"):
            ActivationRecorder(self.model, "features.1")

    def test_any_iterable_will_do(self) -> None:
        assert ActivationRecorder(self.model, (f"features.{i}" for i in (3, 1))).layers == ("features.3", "features.1")  # type: ignore[arg-type]


@cache
def network(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if name == "vit_b_16":  # one as torchvision makes it, but small
            return VisionTransformer(image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=40).eval()
        options = {"width_mult": 0.25} if name == "mobilenet_v2" else {}
        return torchvision.models.get_model(name, weights=None, **options).eval()


#: Network -> layers and the axis of their units, known from torchvision's source.
LAYERS = {
    "resnet18": {"conv1": 1, "bn1": 1, "layer1.0.bn1": 1, "layer2": 1, "layer4.1": 1, "avgpool": 1, "fc": 1},
    "mobilenet_v2": {"features.0": 1, "features.1.conv.2": 1, "features.7": 1, "features.18": 1, "classifier": 1},
    "vit_b_16": {"conv_proj": 1, "encoder.layers.encoder_layer_0": 2, "encoder.layers.encoder_layer_1.mlp": 2, "encoder.ln": 2, "heads": 1},
    "swin_t": {"features.0": 3, "features.1.1": 3, "features.2": 3, "features.5.3.mlp": 3, "norm": 3, "permute": 1, "head": 1},
    "convnext_tiny": {"features.0": 1, "features.1.0": 1, "features.1.0.block.3": 3, "features.3": 1, "features.7.2": 1, "avgpool": 1},
}
POOLINGS: dict[str, Any] = {
    "mean": lambda values: values.mean(dim=2),
    "max": lambda values: values.max(dim=2).values,
    "none": lambda values: values.reshape(len(values), -1),
}


@cache
def reference(name: str) -> dict[str, torch.Tensor]:
    """What the layers return, by torchvision's feature extractor and without in-place operations."""
    model = copy.deepcopy(network(name))
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    extractor = create_feature_extractor(model, return_nodes=list(LAYERS[name]))
    with torch.no_grad():
        return extractor(batch())


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", LAYERS)
def test_values_are_those_of_a_feature_extractor(name: str, pooling: Any) -> None:
    with ActivationRecorder(network(name), list(LAYERS[name]), pooling=pooling).recording() as tape, torch.no_grad():
        network(name)(batch())
    for layer, axis in LAYERS[name].items():
        output = reference(name)[layer]
        values = output.movedim(axis, 1).reshape(len(output), output.shape[axis], -1)
        torch.testing.assert_close(tape[layer], POOLINGS[pooling](values), rtol=1e-4, atol=1e-5)


def test_a_function_of_the_users_gets_the_output_itself() -> None:
    layer = "encoder.layers.encoder_layer_1"
    with ActivationRecorder(network("vit_b_16"), [layer], pooling=lambda x: x[:, 0]).recording() as tape, torch.no_grad():
        network("vit_b_16")(batch())
    extractor = create_feature_extractor(network("vit_b_16"), [layer])
    with torch.no_grad():
        torch.testing.assert_close(tape[layer], extractor(batch())[layer][:, 0])


class TestInPlace:
    """What is recorded is what the module returned, whatever overwrites it afterward."""

    @pytest.mark.parametrize("pooling", ["mean", "max", "none", lambda x: x.flatten(1), lambda x: x[:, :, 0, 0]])
    def test_batch_norm_before_an_in_place_relu(self, pooling: Any) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).eval()
        with torch.no_grad():
            returned = model[1](model[0](batch(2, 8)))
            assert (returned < 0).any()
            with ActivationRecorder(model, ["1", "2"], pooling=pooling).recording() as tape:
                model(batch(2, 8))
        for layer, output in (("1", returned), ("2", returned.relu())):
            values = output.flatten(2)
            expected = POOLINGS[pooling](values) if isinstance(pooling, str) else pooling(output)
            torch.testing.assert_close(tape[layer], expected)

    def test_resnet(self) -> None:
        with ActivationRecorder(network("resnet18"), ["bn1"], pooling="none").recording() as tape, torch.no_grad():
            network("resnet18")(batch())
        assert (tape["bn1"] < 0).any()
        torch.testing.assert_close(tape["bn1"], reference("resnet18")["bn1"].flatten(1))

    def test_outputs_pass_through_unchanged(self) -> None:
        with torch.no_grad():
            expected = network("resnet18")(batch())
            with ActivationRecorder(network("resnet18"), ["bn1", "layer3"], pooling="none").recording():
                torch.testing.assert_close(network("resnet18")(batch()), expected, rtol=0, atol=0)


class Twice(nn.Module):
    """Calls one module as often as it is told, and another never."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.unused, self.pair = nn.Linear(4, 4), nn.Linear(4, 4), Pair()
        self.times = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            x = self.shared(x)
        return self.pair(x)[0]


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


class TestWhatCannotBeRecorded:
    x = torch.ones(2, 4)

    def run(self, *times: int, layers: list[str]) -> Any:
        model = Twice()
        with ActivationRecorder(model, layers).recording() as tape:
            for model.times in times:
                model(self.x)
        return tape

    def test_a_module_that_runs_twice_after_not_at_all(self) -> None:
        with pytest.raises(InputError, match="Expected 'shared' to run once"):
            self.run(0, 2, layers=["shared"])

    def test_a_relu_that_a_block_uses_twice(self) -> None:
        recorder = ActivationRecorder(network("resnet18"), ["layer1.0.relu"])
        with (
            pytest.raises(InputError, match=r"'layer1.0.relu' to run once .* Site\('layer1.0.relu', call=0\) for the first to 1 "),
            recorder.recording(),
        ):
            network("resnet18")(batch())

    def test_a_module_that_is_never_reached(self) -> None:
        tape = self.run(1, layers=["shared", "unused"])
        assert tape["shared"].shape == (2, 4)
        with pytest.raises(UnknownNameError, match="Expected a forward pass through 'unused', but it was never reached"):
            tape["unused"]

    def test_a_module_that_is_never_reached_by_a_whole_set(self, world: Images) -> None:
        model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())
        model.head = nn.Linear(2, 2)
        model.forward = lambda x: nn.Sequential.forward(model[:2], x)  # type: ignore[method-assign]
        with pytest.raises(UnknownNameError, match="Expected a forward pass through 'head', but it was never reached"):
            ActivationRecorder(model, ["0", "head"]).record(world, transform=transforms.ToTensor())

    def test_no_forward_at_all(self) -> None:
        with pytest.raises(UnknownNameError, match=r"'shared', but it was never reached. Run the model inside the `with` block"):
            self.run(layers=["shared"])["shared"]

    def test_an_output_whose_first_axis_does_not_hold_the_images(self, world: Images) -> None:
        model = nn.Sequential(nn.Conv2d(3, 6, 16, 16), nn.Flatten(2), nn.Unflatten(1, (6, 1)), nn.Flatten(1, 2), Turn(), nn.Linear(6, 5))
        with pytest.raises(InputError, match=r"Expected one row per image \(12\) from '5', but got 16: the first axis"):
            ActivationRecorder(model, ["5"]).record(world, transform=transforms.ToTensor())


class Turn(nn.Module):
    """[n, units, tokens] -> [tokens, n, units], as CLIP's own transformer has it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(2, 0, 1)


class TestTape:
    def test_forwards_follow_each_other(self) -> None:
        model = network("mobilenet_v2")
        recorder = ActivationRecorder(model, ["features.3", "classifier"])
        with recorder.recording() as tape, torch.no_grad():
            for part in batch(5).split([2, 1, 2]):
                model(part)
        with recorder.recording() as whole, torch.no_grad():
            model(batch(5))
        for layer in recorder.layers:
            assert tape[layer].shape == whole[layer].shape
            torch.testing.assert_close(tape[layer], whole[layer], rtol=1e-4, atol=1e-5)

    def test_nothing_is_recorded_outside_the_block(self) -> None:
        model = network("mobilenet_v2")
        with ActivationRecorder(model, ["features.3"]).recording() as tape, torch.no_grad():
            model(batch(2))
            assert len(tape["features.3"]) == 2
        with torch.no_grad():
            model(batch(3))
        assert len(tape["features.3"]) == 2

    def test_each_block_has_its_own_tape(self) -> None:
        model, recorder = network("mobilenet_v2"), ActivationRecorder(network("mobilenet_v2"), ["features.3"])
        with torch.no_grad(), recorder.recording() as outer:
            model(batch(2))
            with recorder.recording() as inner:
                model(batch(1))
        assert (len(outer["features.3"]), len(inner["features.3"])) == (3, 1)

    def test_a_part_of_the_model_alone(self) -> None:
        model = network("resnet18")
        x = torch.rand(2, 64, 8, 8)
        with ActivationRecorder(model, ["layer1.0"]).recording() as tape, torch.no_grad():
            expected = model.layer1[0](x).mean(dim=(2, 3))
        torch.testing.assert_close(tape["layer1.0"], expected)

    def test_is_a_mapping(self) -> None:
        with ActivationRecorder(network("mobilenet_v2"), ["features.3", "features.1"]).recording() as tape, torch.no_grad():
            network("mobilenet_v2")(batch(2))
        assert [(layer, rows.shape[1]) for layer, rows in tape.items()] == [("features.3", 8), ("features.1", 8)]
        assert "features.3" in tape
        assert "features.2" not in tape
        with pytest.raises(UnknownNameError, match=r"Expected a recorded layer, but got 'features.2'. Did you mean 'features.[13]'"):
            tape["features.2"]

    def test_gradients_are_not_recorded_and_still_flow(self) -> None:
        model, x = copy.deepcopy(network("mobilenet_v2")), batch(2).requires_grad_()
        with ActivationRecorder(model, ["features.3"]).recording() as tape:
            model(x).sum().backward()
        assert not tape["features.3"].requires_grad
        assert x.grad is not None


class TestModelIsLeftAsFound:
    @pytest.fixture
    def model(self) -> nn.Module:
        """Some modules in training mode, some not, hooks of the user's, a frozen parameter."""
        model = copy.deepcopy(network("mobilenet_v2"))
        model.train()
        model.features[3].eval()  # type: ignore[index]
        model.features[5].conv[1].eval()  # type: ignore[index]
        model.features[7].register_forward_hook(lambda module, args, output: None)  # type: ignore[index]
        next(model.parameters()).requires_grad_(False)
        return model

    def test_after_recording_a_set(self, model: nn.Module, world: Images) -> None:
        before = state_of(model)
        ActivationRecorder(model, ["features.3"]).record(world, transform=target_transform(), batch_size=5)
        assert state_of(model) == before

    def test_evaluation_mode_while_recording_a_set(self, model: nn.Module, world: Images) -> None:
        recorded = ActivationRecorder(model, ["classifier"]).record(world, transform=target_transform())
        with torch.no_grad():
            expected = copy.deepcopy(model).eval()(torch.stack([target_transform()(image) for image in world]))
        torch.testing.assert_close(torch.from_numpy(recorded["classifier"]), expected, rtol=1e-4, atol=1e-5)

    def test_the_mode_is_the_users_own_in_a_block(self, model: nn.Module) -> None:
        flags = [module.training for module in model.modules()]
        with ActivationRecorder(model, ["features.3"]).recording():
            assert [module.training for module in model.modules()] == flags
        assert [module.training for module in model.modules()] == flags

    def test_after_an_exception_in_the_users_block(self, model: nn.Module) -> None:
        before = state_of(model)
        with pytest.raises(ZeroDivisionError), ActivationRecorder(model, ["features.3"]).recording():
            raise ZeroDivisionError
        assert state_of(model) == before

    def test_after_an_exception_in_the_forward(self, model: nn.Module) -> None:
        before = state_of(model)
        with pytest.raises(RuntimeError, match="channels"), ActivationRecorder(model, ["features.3"]).recording():
            model(torch.rand(2, 4, 32, 32))
        assert state_of(model) == before

    def test_after_an_exception_while_recording_a_set(self, model: nn.Module, world: Images) -> None:
        before = state_of(model)
        gray = transforms.Compose([transforms.Grayscale(), transforms.ToTensor()])
        with pytest.raises(RuntimeError, match="channels"):
            ActivationRecorder(model, ["features.3"]).record(world, transform=gray)
        with pytest.raises(ZeroDivisionError):
            ActivationRecorder(model, ["features.3"], pooling=lambda x: 1 / 0).record(world, transform=target_transform())  # type: ignore[arg-type, return-value]
        assert state_of(model) == before

    def test_after_an_exception_the_next_forward_is_recorded_again(self) -> None:
        model = copy.deepcopy(network("mobilenet_v2"))
        recorder = ActivationRecorder(model, ["features.3"])
        with recorder.recording() as tape, torch.no_grad():
            with pytest.raises(RuntimeError, match="channels"):
                model(torch.rand(2, 4, 32, 32))
            model(batch(2))
        assert len(tape["features.3"]) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_random_states_are_left_alone(
    world: Images, target: nn.Module, workers: int, same_random_states: Callable[[], AbstractContextManager[None]]
) -> None:
    with same_random_states():
        recorder = ActivationRecorder(target.train(), ["features.4", "classifier"])
        recorder.record(world, transform=target_transform(), workers=workers, batch_size=5)
    with same_random_states(), pytest.raises(ZeroDivisionError), recorder.recording():
        raise ZeroDivisionError


class TestRecordingASet:
    def test_values(self, world: Images, target: nn.Module) -> None:
        x = torch.stack([target_transform()(image) for image in world])
        layers = ["features.2", "features.18", "classifier"]
        recorded = ActivationRecorder(target, layers, pooling="max").record(world, transform=target_transform(), batch_size=5)
        assert recorded.ids == world.ids
        assert recorded.layers == tuple(layers)
        with torch.no_grad():
            expected = create_feature_extractor(target, layers)(x)
        for layer in layers:
            output = expected[layer]
            rows = output.amax(dim=(2, 3)) if output.ndim == 4 else output
            torch.testing.assert_close(torch.from_numpy(recorded[layer]), rows, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("pooling", ["mean", "none"])
    def test_the_batch_size_and_workers_change_nothing(self, world: Images, target: nn.Module, pooling: Any) -> None:
        recorder = ActivationRecorder(target, ["features.2", "features.18", "classifier"], pooling=pooling)
        reference = recorder.record(world, transform=target_transform(), batch_size=12)
        for batch_size, workers in ((1, 0), (5, 2)):
            other = recorder.record(world, transform=target_transform(), batch_size=batch_size, workers=workers)
            assert other.metadata == reference.metadata
            for layer in recorder.layers:
                scale = abs(reference[layer]).max()
                assert abs(other[layer] - reference[layer]).max() <= 1e-5 * max(scale, 1)

    @pytest.mark.parametrize("batch_size", [1, 2, 64])
    def test_rows_stay_with_their_ids_when_images_are_skipped(self, damaged_folder: Path, target: nn.Module, batch_size: int) -> None:
        recorder = ActivationRecorder(target, ["features.5"])
        images = Images(damaged_folder, on_error="skip")
        recorded = recorder.record(images, transform=target_transform(), batch_size=batch_size)
        assert recorded.ids == GOOD
        assert tuple(recorded.metadata["skipped"]) == DAMAGED
        for id_, row in zip(recorded.ids, recorded["features.5"], strict=True):
            alone = recorder.record(images.subset([id_]), transform=target_transform())
            torch.testing.assert_close(torch.from_numpy(row), torch.from_numpy(alone["features.5"][0]), rtol=1e-4, atol=1e-5)

    def test_a_store_without_skipped_images_is_opened_again(self, damaged_folder: Path, target: nn.Module, tmp_path: Path) -> None:
        images = Images(damaged_folder, on_error="skip")
        first, again = (
            ActivationRecorder(target, ["features.5"]).record(images, transform=target_transform(), store=tmp_path / "store")
            for _ in range(2)
        )
        assert again.ids == first.ids == GOOD

    def test_a_damaged_image_is_named(self, damaged_folder: Path, target: nn.Module) -> None:
        images = Images([damaged_folder / "a_good.png", damaged_folder / "c_truncated.jpg"])
        with pytest.raises(UnreadableImageError, match=r"c_truncated.jpg' cannot be read"):
            ActivationRecorder(target, ["features.5"]).record(images, transform=target_transform())

    def test_a_broken_model_is_refused(self, world: Images, target: nn.Module) -> None:
        with torch.no_grad():
            target.get_parameter("features.0.0.weight")[3] = float("nan")
        message = "Expected finite activations, but 'features.0.0' gives some that are not. Check the model's weights"
        with pytest.raises(InputError, match=message):
            ActivationRecorder(target, ["features.0.0"]).record(world, transform=target_transform())

    def test_metadata_tells_apart_what_differs(self, world: Images, target: nn.Module) -> None:
        def metadata(model: nn.Module = target, images: Images = world, transform: Any = None, **options: Any) -> dict[str, Any]:
            recorder = ActivationRecorder(model, ["classifier"], **options)
            return dict(recorder.record(images, transform=transform or target_transform()).metadata)

        other = copy.deepcopy(target)
        with torch.no_grad():
            other.get_parameter("classifier.1.bias")[0] += 1
        first = metadata()
        assert first == metadata()
        assert {k for k, v in metadata(other).items() if v != first[k]} == {"model"}
        assert {k for k, v in metadata(images=world.subset(world.ids[::-1])).items() if v != first[k]} == {"images"}
        assert {k for k, v in metadata(transform=transforms.ToTensor()).items() if v != first[k]} == {"transform"}
        assert {k for k, v in metadata(pooling="max").items() if v != first[k]} == {"pooling"}
        assert {k for k, v in metadata(layout="nchw").items() if v != first[k]} == {"sites"}

    def test_several_recorders_share_one_forward(self, world: Images, target: nn.Module) -> None:
        forwards = []
        target.register_forward_pre_hook(lambda module, args: forwards.append(len(args[0])))
        mean, whole = ActivationRecorder(target, ["features.7"]), ActivationRecorder(target, ["features.7", "features.9"], pooling="none")
        (both,) = collect(world, [ForwardPass({"pooled": mean, "spatial": whole}, target_transform())], batch_size=8)
        assert forwards == [8, 4]
        assert both["pooled"].layers == ("features.7",)
        spatial = torch.from_numpy(both["spatial"]["features.7"]).reshape(12, -1, 4, 4)
        torch.testing.assert_close(torch.from_numpy(both["pooled"]["features.7"]), spatial.mean(dim=(2, 3)))
