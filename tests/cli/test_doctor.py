"""What `neuroprobe doctor` and `neuroprobe layers` say."""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from neuroprobe._cli import doctor, main


def test_it_names_versions_devices_and_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert f"torch            {torch.__version__.split('+')[0]}" in said
    assert "the offline world: there" in said
    assert "missing, install" not in said


def test_every_extra_that_it_names_is_one_of_the_package() -> None:
    extras = set(metadata("neuroprobe-clip").get_all("Provides-Extra") or ())
    assert {package.extra for package in doctor.OPTIONAL} <= extras


def test_another_package_of_the_same_import_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any("of the same import name" in line for line in doctor.examine())
    known = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: "9.9" if name == "neuroprobe" else known(name))
    assert any("another package, neuroprobe 9.9, of the same import name" in line for line in doctor.examine())


def test_a_missing_package_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "open_clip" else found(name, *rest))
    (line,) = (line for line in doctor.examine() if line.strip().startswith("open_clip"))
    assert "missing: pip install 'neuroprobe-clip[openclip]'" in line


def test_cached_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".cache" / "clip").mkdir(parents=True)
    (tmp_path / ".cache" / "clip" / "ViT-B-16.pt").write_bytes(b"0" * 2_000_000)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "resnet50-1.pth").write_bytes(b"0")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    said = "\n".join(doctor.examine())
    assert "CLIP: ViT-B/16 (2 MB)" in said
    assert "torchvision: resnet50-1.pth" in said


def test_layers_need_no_weights_and_are_exact_names(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> None:
        pytest.fail("weights were asked for")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    assert main(["layers", "resnet18"]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:-1]]
    assert "layer4" in rows
    assert "layer4.1" not in rows
    assert main(["layers", "resnet18", "--all"]) == 0
    assert "layer4.1.conv1" in capsys.readouterr().out


def test_layers_of_ones_own_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "neuroprobe.world:target_with_transform"]) == 0
    assert "classifier" in capsys.readouterr().out


def test_a_package_that_is_broken_does_not_end_the_examination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "clip", None)
    assert "  CLIP: the package cannot be imported (import of clip halted; None in sys.modules)" in doctor.examine()
