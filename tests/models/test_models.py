"""Models by name: what a name can be, which weights it can have, and that random ones are the same every time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from neuroprobe._core import fingerprint_model
from neuroprobe.exceptions import CheckpointError, InputError, UnknownNameError
from neuroprobe.models import load_model

SMALL = "shufflenet_v2_x0_5"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module into the current folder; returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(body: str) -> str:
        name = f"models_of_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(f"from torch import nn\nfrom torchvision import transforms\n{body}\n")
        return name

    return write


class TestTorchvision:
    def test_random_weights_by_seed(self, same_random_states: Callable[[], AbstractContextManager[None]]) -> None:
        with same_random_states():
            first, again, other = (load_model(SMALL, weights=None, seed=seed)[0] for seed in (3, 3, 4))
        assert fingerprint_model(first) == fingerprint_model(again)
        assert fingerprint_model(first) != fingerprint_model(other)

    def test_random_weights_are_those_of_torchs_own_seed(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            expected = torchvision.models.get_model(SMALL, weights=None)
        assert fingerprint_model(load_model(SMALL, weights=None, seed=5)[0]) == fingerprint_model(expected)

    def test_the_global_seed_has_no_part_in_it(self) -> None:
        fingerprints = set()
        for seed in (1, 2):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                fingerprints.add(fingerprint_model(load_model(SMALL, weights=None)[0]))
        assert len(fingerprints) == 1

    def test_evaluation_mode_and_a_transform_that_fits(self) -> None:
        model, transform = load_model(SMALL, weights=None)
        assert not any(module.training for module in model.modules())
        x = transform(Image.new("RGB", (300, 250), (124, 116, 104)))  # ImageNet's mean color
        assert x.shape == (3, 224, 224)
        torch.testing.assert_close(x, torch.zeros(3, 224, 224), rtol=0, atol=0.02)
        with torch.no_grad():
            assert model(x[None]).shape == (1, 1000)

    def test_a_file_of_weights(self, tmp_path: Path) -> None:
        trained = load_model(SMALL, weights=None, seed=8)[0]
        torch.save({"state_dict": trained.state_dict()}, tmp_path / "w.pth")
        assert fingerprint_model(load_model(SMALL, weights=str(tmp_path / "w.pth"))[0]) == fingerprint_model(trained)

    def test_a_file_without_a_known_suffix(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        trained = load_model(SMALL, weights=None, seed=8)[0]
        torch.save(trained.state_dict(), tmp_path / "epoch30")
        assert fingerprint_model(load_model(SMALL, weights="epoch30")[0]) == fingerprint_model(trained)

    def test_a_file_that_is_missing(self) -> None:
        with pytest.raises(CheckpointError, match=r"Expected a file of weights, but there is nothing at 'gone.pt'"):
            load_model(SMALL, weights="gone.pt")

    @pytest.mark.parametrize("name", ["resnet5O", "ResNet50", "resnet", "deeplabv3_resnet50"])
    def test_unknown_names(self, name: str) -> None:
        with pytest.raises(
            UnknownNameError, match=f"torchvision classification model or module:function, but got '{name}'. Did you mean '"
        ):
            load_model(name)

    def test_unknown_name_of_weights(self) -> None:
        with pytest.raises(
            UnknownNameError, match=r"weights for resnet50, or a file, but got 'IMAGENET1K_V3'. Did you mean 'IMAGENET1K_V[12]'"
        ):
            load_model("resnet50", weights="IMAGENET1K_V3")

    def test_no_network(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def unreachable(*args: Any, **kwargs: Any) -> None:
            raise URLError("no network")

        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(torch.hub, "urlopen", unreachable)
        with pytest.raises(
            InputError, match=f"Expected to download the weights 'DEFAULT' of {SMALL}, but .*no network.*give a file of weights"
        ):
            load_model(SMALL)


class TestFunctions:
    def test_a_model_and_its_transform(self, models: Callable[[str], str]) -> None:
        name = models("def make():\n    return nn.Linear(2, 3), transforms.ToTensor()")
        model, transform = load_model(f"{name}:make")
        assert not model.training
        assert model(torch.zeros(1, 2)).shape == (1, 3)
        assert transform(Image.new("RGB", (5, 4))).shape == (3, 4, 5)

    @pytest.mark.parametrize("returned", ["nn.Linear(2, 3)", "(nn.Linear(2, 3), None)"])
    def test_a_model_alone_gets_imagenets_transform(self, models: Callable[[str], str], returned: str) -> None:
        _, transform = load_model(f"{models(f'def make(): return {returned}')}:make")
        assert transform(Image.new("RGB", (300, 250))).shape == (3, 224, 224)

    def test_of_a_package(self) -> None:
        model, transform = load_model("neuroprobe.world:target_with_transform")
        assert transform(Image.new("RGB", (64, 64))).shape == (3, 64, 64)
        assert model.classifier[1].out_features == 31

    def test_a_file_of_weights(self, models: Callable[[str], str], tmp_path: Path) -> None:
        weights = nn.Linear(2, 3).state_dict()
        torch.save(weights, tmp_path / "w.pt")
        model, _ = load_model(f"{models('def make(): return nn.Linear(2, 3)')}:make", weights="w.pt")
        torch.testing.assert_close(dict(model.state_dict()), dict(weights))

    def test_weights_by_name(self, models: Callable[[str], str]) -> None:
        with pytest.raises(UnknownNameError, match=r"Expected `weights` to be a file for '.*:make', but there is no file 'IMAGENET1K_V1'"):
            load_model(f"{models('def make(): return nn.Linear(2, 3)')}:make", weights="IMAGENET1K_V1")

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ("def make(): return 7", "return a torch.nn.Module, or one and its transform, but got int"),
            ("def make(): return None", "or one and its transform, but got NoneType"),
            ("def make(): return nn.Linear", "or one and its transform, but got type"),
            ("def make(): return transforms.ToTensor(), nn.Linear(2, 3)", "or one and its transform, but got ToTensor"),
            ("def make(): return nn.Linear(2, 3), 224", "return a model and its transform, but the transform is a int"),
            ("raise RuntimeError('at import')", "Expected to import 'models_of_.*', but that raised RuntimeError: "),
            ("def make(:", "Expected to import 'models_of_.*', but that raised SyntaxError: "),
            ("import sys; sys.exit(3)", "Expected to import 'models_of_.*', but that raised SystemExit: "),
            ("def make(): 1 / 0", "make' to return a model, but it raised ZeroDivisionError: "),
            ("def make(size): return nn.Linear(size, 3)", "make' to return a model, but it raised TypeError: "),
            ("def make(): raise SystemExit(3)", "make' to return a model, but it raised SystemExit: "),
            ("def make_it(): pass", "Expected a function of models_of_.*, but got 'make'. Did you mean 'make_it'"),
            ("make = 3", "Expected a function of models_of_.*, but got 'make'"),
        ],
    )
    def test_what_makes_no_model(self, models: Callable[[str], str], body: str, message: str) -> None:
        with pytest.raises((InputError, UnknownNameError), match=message):
            load_model(f"{models(body)}:make")

    def test_unknown_module(self) -> None:
        with pytest.raises(UnknownNameError, match="Expected module:function, but 'no_such_module' cannot be imported: No module named"):
            load_model("no_such_module:make")

    @pytest.mark.parametrize("module", ["", ".models", "my-models", "folder/models.py"])
    def test_what_cannot_be_a_module(self, module: str) -> None:
        with pytest.raises(UnknownNameError, match=f"Expected module:function, but '{module}' is no module's name"):
            load_model(f"{module}:make")

    def test_the_search_path_is_left_alone(self, models: Callable[[str], str]) -> None:
        import sys

        before = list(sys.path)
        load_model(f"{models('def make(): return nn.Linear(2, 3)')}:make")
        with pytest.raises(UnknownNameError):
            load_model("no_such_module:make")
        assert sys.path == before
