"""Layers: exact names only, blocks as one would name them, and the table of a model's modules."""

from __future__ import annotations

import copy
from typing import Any

import pandas as pd
import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import VisionTransformer

from neuroprobe import ActivationRecorder, all_layers, block_layers, list_layers
from neuroprobe._core import fingerprint_model
from neuroprobe.exceptions import InputError, UnknownNameError


def vit() -> nn.Module:
    return VisionTransformer(image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=40)


def model_of(name: str) -> nn.Module:
    if name == "vit":
        return vit()
    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, **options)


BLOCKS = {
    "resnet18": ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"],
    "resnet152": ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"],
    "mobilenet_v2": [*(f"features.{i}" for i in range(19)), "classifier"],
    "convnext_tiny": [*(f"features.{i}" for i in range(8)), "avgpool", "classifier"],
    "efficientnet_b0": [*(f"features.{i}" for i in range(9)), "avgpool", "classifier"],
    "vgg11": [*(f"features.{i}" for i in range(21)), "avgpool", *(f"classifier.{i}" for i in range(7))],
    "mnasnet0_5": [*(f"layers.{i}" for i in range(17)), "classifier"],
    "vit": ["conv_proj", "encoder.dropout", *(f"encoder.layers.encoder_layer_{i}" for i in range(2)), "encoder.ln", "heads"],
    "maxvit_t": ["stem", *(f"blocks.{i}" for i in range(4)), "classifier"],
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_known_networks(name: str) -> None:
    assert block_layers(model_of(name)) == BLOCKS[name]


def test_blocks_of_inception_without_its_auxiliary_head() -> None:
    blocks = block_layers(model_of("inception_v3"))
    assert blocks[:2] == ["Conv2d_1a_3x3", "Conv2d_2a_3x3"]
    assert "AuxLogits" not in blocks


def test_all_layers_are_the_modules_that_can_run() -> None:
    model = model_of("maxvit_t")
    assert all_layers(model) == [name for name, module in model.named_modules() if name and not isinstance(module, nn.ModuleList)]


class TestChoosing:
    model = torchvision.models.mobilenet_v2(weights=None, width_mult=0.25).eval()

    def test_by_a_function_of_name_and_module(self) -> None:
        recorder = ActivationRecorder(self.model, lambda name, module: isinstance(module, nn.Conv2d) and name.startswith("features.1."))
        assert recorder.layers == ("features.1.conv.0.0", "features.1.conv.1")

    def test_names_that_are_code_are_only_looked_up(self) -> None:
        model = nn.Sequential()
        names = ["__import__('os')", 'x["y"]', "a[0]", "f(1)", "1+1", "{x}", "%s", "features*"]
        for name in names:
            model.add_module(name, nn.Linear(2, 2))
        with ActivationRecorder(model, names).recording() as tape:
            model(torch.ones(1, 2))
        assert list(tape) == names
        for name in ("__import__('sys')", "features.*", "a[1]", "[0]"):
            with pytest.raises(UnknownNameError, match="Expected `layers` to be module names of Sequential, but got "):
                ActivationRecorder(model, [name])

    def test_a_second_name_of_a_shared_module(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        model.alias = model[0]
        model.forward = lambda x: model[0](x)  # type: ignore[method-assign]
        with ActivationRecorder(model, ["0", "alias"]).recording() as tape:
            model(torch.ones(1, 2))
        torch.testing.assert_close(tape["alias"], tape["0"])


class Several(nn.Module):
    """Returns tuples, runs a module twice and another never."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.unused = nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Linear(2, 2)
        self.moved, self.pair = Moved(), Pair()

    def forward(self, x: torch.Tensor, *, twice: bool = True) -> torch.Tensor:
        x = self.relu(self.conv(x))
        x = self.relu(x) if twice else x
        self.moved(x)
        return self.pair(x)[0]


class Moved(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1)


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return x, None


class TestTable:
    def test_by_hand(self) -> None:
        table = list_layers(Several(), torch.ones(1, 3, 4, 6)).set_index("name")
        assert table.loc["conv"].tolist() == ["Conv2d", (1, 5, 4, 6), 5, 1]
        assert table.loc["relu"].tolist() == ["ReLU", (1, 5, 4, 6), 5, 2]
        assert table.loc["moved", "shape"] == (1, 4, 6, 5)
        assert table.loc["moved", "units"] is pd.NA
        assert table.loc["pair", "shape"] == "tuple (0: (1, 5, 4, 6), 1: None)"
        assert table.loc["pair", "units"] is pd.NA
        assert table.loc["unused", "shape"] is None
        assert table.loc["unused", "calls"] == 0

    def test_an_example_of_several_arguments(self) -> None:
        x = torch.ones(1, 3, 4, 6)
        for example in ((x,), {"x": x, "twice": False}):
            table = list_layers(Several(), example).set_index("name")
            assert table.loc["conv", "units"] == 5
        assert table.loc["relu", "calls"] == 1

    def test_against_the_recorder(self) -> None:
        model = torchvision.models.resnet18(weights=None).eval()
        x = torch.rand(1, 3, 64, 64)
        table = list_layers(model, x)
        once = table[(table["calls"] == 1)]
        with ActivationRecorder(model, list(once["name"])).recording() as tape, torch.no_grad():
            model(x)
        assert {layer: rows.shape[1] for layer, rows in tape.items()} == dict(zip(once["name"], once["units"], strict=True))
        assert set(table.loc[table["calls"] == 2, "name"]) == {f"layer{i}.{j}.relu" for i in (1, 2, 3, 4) for j in (0, 1)}

    def test_the_model_is_left_as_found(self) -> None:
        model = torchvision.models.mobilenet_v2(weights=None, width_mult=0.25).train()
        before = copy.deepcopy(model.state_dict())
        list_layers(model, torch.rand(1, 3, 32, 32))
        with pytest.raises(RuntimeError):
            list_layers(model, torch.rand(1, 4, 32, 32))
        assert all(module.training and not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert fingerprint_model(model)


class TestModelsThatHooksDoNotWorkIn:
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval()

    def test_data_parallel(self) -> None:
        with pytest.raises(InputError, match=r"a plain model, but got DataParallel: its replicas .* Record the model in it: model.module"):
            ActivationRecorder(nn.DataParallel(self.plain), ["module.0"])
        inside = nn.Sequential(nn.DataParallel(self.plain))
        with pytest.raises(InputError, match=r"but got DataParallel \(at '0'\)"):
            ActivationRecorder(inside, ["0"])
        assert ActivationRecorder(nn.DataParallel(self.plain).module, ["0"]).layers == ("0",)

    def test_distributed_data_parallel(self) -> None:
        distributed = torch.distributed
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
        try:
            model = nn.parallel.DistributedDataParallel(copy.deepcopy(self.plain))
            with pytest.raises(InputError, match=r"but got DistributedDataParallel: .* Record the model in it: model.module"):
                ActivationRecorder(model, ["module.0"])
            with ActivationRecorder(model.module, ["0"]).recording() as tape, torch.no_grad():
                model(torch.ones(3, 4))
            assert tape["0"].shape == (3, 4)
        finally:
            distributed.destroy_process_group()

    def test_compiled(self) -> None:
        compiled: Any = torch.compile(self.plain, backend="eager")
        with pytest.raises(InputError, match=r"hooks added after torch.compile never run. Record the model in it: model._orig_mod"):
            ActivationRecorder(compiled, ["0"])
        in_place = copy.deepcopy(self.plain)
        in_place.compile(backend="eager")
        with pytest.raises(InputError, match=r"after model.compile\(\) never run. Record a copy, which is not compiled: copy.deepcopy"):
            ActivationRecorder(in_place, ["0"])
        for model in (compiled._orig_mod, copy.deepcopy(in_place)):
            with ActivationRecorder(model, ["0"]).recording() as tape, torch.no_grad():
                model(torch.ones(3, 4))
            torch.testing.assert_close(tape["0"], self.plain[0](torch.ones(3, 4)).detach())

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, torch.ones(1, 4))])
    def test_scripted(self, make: Any) -> None:
        with pytest.raises(InputError, match=r"hooks inside it never run. Record the model it was made from, before torch.jit.script"):
            ActivationRecorder(make(self.plain), ["0"])

    def test_no_model(self) -> None:
        with pytest.raises(InputError, match=r"Expected a torch\.nn\.Module, but got str"):
            ActivationRecorder("resnet18", ["0"])  # type: ignore[arg-type]
