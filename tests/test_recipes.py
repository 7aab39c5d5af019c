"""The code of the how-to pages and recipes runs as it stands, offline; what does not run says why."""

from __future__ import annotations

import argparse
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
FOLDERS = ("how_to", "recipes", "reproducing")
PAGES = sorted(page for folder in FOLDERS for page in (ROOT / "docs" / folder).glob("*.md") if page.stem != "index")

#: Packages that a page needs beside our own.
NEEDED = {"timm": "timm", "transformers": "transformers", "open_clip": "open_clip"}


def name_of(page: Path) -> str:
    return f"{page.parent.name}/{page.stem}"


def blocks_of(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


RUN = [page for page in PAGES if blocks_of(page, "python")]


def run_page(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a page's blocks leave, run one after the other in one namespace."""
    page = ROOT / "docs" / f"{name}.md"
    package = NEEDED.get(page.stem)
    if package and find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    with torch.random.fork_rng(devices=[]):
        for block in blocks_of(page, "python"):
            exec(compile(block, str(page), "exec"), names)
    return names


def test_every_recipe_of_the_table_of_contents_is_there() -> None:
    recipes = {page.stem for page in PAGES if page.parent.name == "recipes"}
    assert recipes == {
        "timm", "transformers", "open_clip", "clip_image_encoder", "own_model_with_checkpoints", "mobilenet_v2_checkpoints",
        "torchrun", "gpu", "little_memory", "million_images",
    }  # fmt: skip
    assert {page.stem for page in RUN if page.parent.name == "recipes"} == recipes


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_that_does_not_run_says_why(page: Path) -> None:
    assert all(block.startswith("# not run here: ") for block in blocks_of(page, "py"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_that_does_not_run_is_python_all_the_same(page: Path) -> None:
    for block in blocks_of(page, "py"):
        compile(block, str(page), "exec")


@pytest.mark.parametrize("name", ["recipes/torchrun"])
def test_a_short_pages_code_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(name, tmp_path, monkeypatch)


def test_short_and_long_pages_are_all_pages() -> None:
    assert {name_of(page) for page in RUN} == {"recipes/torchrun", *EXPECTED}


@pytest.mark.slow
class TestRecipes:
    def test_timm(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        table = run_page("recipes/timm", tmp_path, monkeypatch)["report"].table
        assert table.groupby("layer").size().to_dict() == {"blocks.0": 48, "blocks.1": 48, "blocks.2": 48, "blocks.2.mlp.act": 192}

    def test_transformers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        names = run_page("recipes/transformers", tmp_path, monkeypatch)
        assert len(names["layers"]) == 3
        assert names["tape"][names["layers"][0]].shape == (1, 48)

    def test_open_clip(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        table = run_page("recipes/open_clip", tmp_path, monkeypatch)["report"].table
        assert table.groupby("layer").size().tolist() == [64, 256]

    def test_clip_image_encoder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        names = run_page("recipes/clip_image_encoder", tmp_path, monkeypatch)
        assert names["activations"]["transformer.resblocks.2.mlp.gelu"].shape == (20, 192)
        assert (names["report"].table["status"] == "named").mean() > 0.5

    def test_own_model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        table = run_page("recipes/own_model_with_checkpoints", tmp_path, monkeypatch)["probes"].table
        means = table.groupby(["layer", "checkpoint"])["test_accuracy"].mean()
        assert means["body", "epoch 020"] > means["body", "epoch 000"] + 0.05
        assert means["stem", "epoch 000"] > 0.85

    def test_torchvisions_checkpoints(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        names = run_page("recipes/mobilenet_v2_checkpoints", tmp_path, monkeypatch)
        assert [file.name for file in names["files"]] == ["epoch_000.pth", "epoch_030.pth", "epoch_060.pth"]
        state = torch.load(names["files"][1], weights_only=True)  # what is kept needs no class of its own
        with torch.serialization.safe_globals([argparse.Namespace]):
            original = torch.load(tmp_path / "trained" / "model_29.pth", weights_only=True)["model"]
        assert all(torch.equal(state[key], value) for key, value in original.items())

    def test_gpu(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert len(run_page("recipes/gpu", tmp_path, monkeypatch)["report"]) == 1280

    def test_little_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        names = run_page("recipes/little_memory", tmp_path, monkeypatch)
        assert len(names["summarized"]) == len(names["report"])
        assert set(names["probes"].table["features"]) == {"pooled", "spatial"}

    def test_million_images(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        names = run_page("recipes/million_images", tmp_path, monkeypatch)
        assert len(names["sample"]) == 300
        assert all(id_.startswith("image ") for id_ in names["summary"]["features.18"].top_ids[0, :3])


EXPECTED = {
    f"recipes/{name}"
    for name in (
        "timm", "transformers", "open_clip", "clip_image_encoder", "own_model_with_checkpoints", "mobilenet_v2_checkpoints",
        "gpu", "little_memory", "million_images",
    )
}  # fmt: skip
