"""Recordings on disk: the same numbers as in memory, refused when they are of anything else, resumed when cut off."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import nn

from neuroprobe import ActivationRecorder, Activations, Images, dissect
from neuroprobe.exceptions import StoreError
from neuroprobe.recording import record, record_checkpoints
from neuroprobe.store import open_store, read_manifest
from neuroprobe.world import load_target, target_checkpoints, target_transform, world_images

LAYERS = ["features.2", "features.18", "classifier"]
TRANSFORM = target_transform()


@pytest.fixture(scope="module")
def target() -> nn.Module:
    return load_target()


@pytest.fixture(scope="module")
def images() -> Images:
    return world_images(50, seed=6)


class Stopped(Exception):
    """Stands for whatever ends a recording in the middle."""


class _Stops(nn.Module):
    """A model that stops working after some batches."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.left = model, -1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left == -1:
            raise Stopped
        return self.model(x)


def recorder_of(model: nn.Module, **more: str) -> ActivationRecorder:
    prefix = "model." if isinstance(model, _Stops) else ""
    return ActivationRecorder(model, [prefix + layer for layer in LAYERS], **more)  # type: ignore[arg-type]


def cut_off(model: nn.Module, images: Images, store: Path, *, after: int) -> _Stops:
    """Record into the store until `after` batches of 8 are done."""
    stops = _Stops(model)
    stops.left = after
    with pytest.raises(Stopped):
        record(recorder_of(stops), images, transform=TRANSFORM, store=store, batch_size=8)
    stops.left = -1
    return stops


def test_a_store_holds_the_same_bits_as_memory(target: nn.Module, images: Images, tmp_path: Path) -> None:
    here = record(recorder_of(target), images, transform=TRANSFORM, batch_size=8)
    there = record(recorder_of(target), images, transform=TRANSFORM, batch_size=8, store=tmp_path / "s")
    assert there.ids == here.ids
    for layer in LAYERS:
        assert isinstance(there[layer], np.memmap)
        assert there[layer].tobytes() == here[layer].tobytes()
    assert {**there.metadata} == {**here.metadata}
    assert (Activations.open(tmp_path / "s")["classifier"] == here["classifier"]).all()


def test_a_cut_off_store_is_not_read_and_goes_on_with_the_same_bits(target: nn.Module, images: Images, tmp_path: Path) -> None:
    stops = cut_off(target, images, tmp_path / "s", after=3)
    with pytest.raises(StoreError, match="Record into the same store again to go on"):
        open_store(tmp_path / "s")
    stops.left = 4  # four of the seven batches are left: one forward more would stop it
    resumed = record(recorder_of(stops), images, transform=TRANSFORM, store=tmp_path / "s", batch_size=8)
    assert stops.left == 0
    stops.left = -1
    whole = record(recorder_of(stops), images, transform=TRANSFORM, store=tmp_path / "t", batch_size=8)
    for layer in resumed.layers:
        assert resumed[layer].tobytes() == whole[layer].tobytes()


def test_a_damaged_batch_or_journal_is_recorded_again(target: nn.Module, images: Images, tmp_path: Path) -> None:
    stops = cut_off(target, images, tmp_path / "s", after=4)
    journal = tmp_path / "s" / "journal-0-0.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])  # the last line was not written whole
    with open(tmp_path / "s" / "layer-001.bin", "r+b") as values:
        values.seek(5)
        values.write(b"\xff\xff")  # the first batch's values were not
    stops.left = 5
    resumed = record(recorder_of(stops), images, transform=TRANSFORM, store=tmp_path / "s", batch_size=8)
    assert stops.left == 0
    stops.left = -1
    assert (
        resumed["model.classifier"].tobytes()
        == record(recorder_of(stops), images, transform=TRANSFORM, batch_size=8)["model.classifier"].tobytes()
    )


def test_a_complete_store_is_opened_and_not_recorded_again(target: nn.Module, images: Images, tmp_path: Path) -> None:
    stops = _Stops(target)
    first = record(recorder_of(stops), images, transform=TRANSFORM, store=tmp_path / "s", batch_size=8)
    stops.left = 0  # any forward would stop it
    again = record(recorder_of(stops), images, transform=TRANSFORM, store=tmp_path / "s", batch_size=8)
    assert again["model.classifier"].tobytes() == first["model.classifier"].tobytes()


def test_two_checkpoints_of_one_architecture_never_share_a_store(images: Images, tmp_path: Path) -> None:
    untrained, trained = (load_target(name) for name in ("step_00000", "step_05000"))
    record(recorder_of(untrained), images, transform=TRANSFORM, store=tmp_path / "s")
    with pytest.raises(StoreError, match=r"of the same recording, but .* model is"):
        record(recorder_of(trained), images, transform=TRANSFORM, store=tmp_path / "s")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"pooling": "max"}, "pooling is 'mean', not 'max'"),
        ({"batch_size": 16}, "batch_size is 8, not 16"),
        ({"dtype": "float16"}, "dtype is 'float32', not 'float16'"),
        ({"n": 40}, "images is"),
        ({"layers": ["classifier"]}, "layers is"),
    ],
)
def test_anything_different_is_refused_and_named(change: dict, what: str, target: nn.Module, images: Images, tmp_path: Path) -> None:
    record(recorder_of(target), images, transform=TRANSFORM, store=tmp_path / "s", batch_size=8)
    recorder = ActivationRecorder(target, change.get("layers", LAYERS), pooling=change.get("pooling", "mean"))
    part = images.subset(images.ids[: change.get("n", 50)])
    with pytest.raises(StoreError, match=what):
        record(
            recorder, part, transform=TRANSFORM, store=tmp_path / "s",
            batch_size=change.get("batch_size", 8), dtype=change.get("dtype", "float32"),
        )  # fmt: skip


def _folder_of(images: Images, folder: Path) -> Images:
    folder.mkdir()
    for i in range(len(images)):
        images[i].save(folder / f"{i:02d}.png")
    return Images(folder)


def test_images_whose_content_changed_are_noticed(target: nn.Module, images: Images, tmp_path: Path) -> None:
    files = _folder_of(images, tmp_path / "photos")
    stops = cut_off(target, files, tmp_path / "s", after=3)
    images[49].save(tmp_path / "photos" / "02.png")
    with pytest.raises(StoreError, match=r"'02.png' is another now"):
        record(recorder_of(stops), Images(tmp_path / "photos"), transform=TRANSFORM, store=tmp_path / "s", batch_size=8)
    record(recorder_of(target), Images(tmp_path / "photos"), transform=TRANSFORM, store=tmp_path / "t", batch_size=8)
    images[48].save(tmp_path / "photos" / "02.png")
    with pytest.raises(StoreError, match="the content of some has changed"):
        record(recorder_of(target), Images(tmp_path / "photos"), transform=TRANSFORM, store=tmp_path / "t", batch_size=8)


def test_skipped_images_leave_no_gap_in_the_store(target: nn.Module, images: Images, tmp_path: Path) -> None:
    _folder_of(images, tmp_path / "photos")
    for name in ("00.png", "17.png", "49.png"):
        (tmp_path / "photos" / name).write_bytes(b"no image")
    files = Images(tmp_path / "photos", on_error="skip")
    there = record(recorder_of(target), files, transform=TRANSFORM, store=tmp_path / "s", batch_size=8)
    here = record(recorder_of(target), files, transform=TRANSFORM, batch_size=8)
    assert len(there.ids) == 47
    assert there.ids == here.ids
    assert "17.png" not in there.ids
    for layer in LAYERS:
        assert there[layer].tobytes() == here[layer].tobytes()
    assert set(there.metadata["skipped"]) == {"00.png", "17.png", "49.png"}


def test_float16_is_said_and_half_the_size(target: nn.Module, images: Images, tmp_path: Path) -> None:
    half = record(recorder_of(target), images, transform=TRANSFORM, store=tmp_path / "s", dtype="float16")
    full = record(recorder_of(target), images, transform=TRANSFORM)
    assert half.metadata["dtype"] == "float16"
    assert read_manifest(tmp_path / "s")["identity"]["dtype"] == "float16"
    assert (tmp_path / "s" / "layer-002.bin").stat().st_size == 50 * 31 * 2
    assert np.allclose(half["classifier"], full["classifier"], rtol=1e-3, atol=1e-2)


def test_a_store_in_use_is_refused(target: nn.Module, images: Images, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with FileLock(tmp_path / "s" / "lock"), pytest.raises(StoreError, match="another process is recording"):
        record(recorder_of(target), images, transform=TRANSFORM, store=tmp_path / "s")
    assert len(record(recorder_of(target), images, transform=TRANSFORM, store=tmp_path / "s").ids) == 50


def test_a_folder_with_other_files_is_left_alone(target: nn.Module, images: Images, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="holds other files"):
        record(recorder_of(target), images, transform=TRANSFORM, store=tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_truncated_or_edited_store_is_refused(target: nn.Module, images: Images, tmp_path: Path) -> None:
    record(recorder_of(target), images, transform=TRANSFORM, store=tmp_path / "s")
    shutil.copytree(tmp_path / "s", tmp_path / "t")
    with open(tmp_path / "s" / "layer-001.bin", "r+b") as values:
        values.truncate(1000)
    with pytest.raises(StoreError, match="it has 1000 bytes"):
        open_store(tmp_path / "s")
    manifest = tmp_path / "t" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    with pytest.raises(StoreError, match="has 99"):
        open_store(tmp_path / "t")
    manifest.write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        open_store(tmp_path / "t")


def test_a_full_disk_is_a_clear_error_and_the_store_goes_on(target: nn.Module, images: Images, tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from tests.test_store import *\n"
        "try:\n"
        "    record(recorder_of(load_target()), world_images(50, seed=6), transform=TRANSFORM, store=Path(sys.argv[1]), batch_size=8)\n"
        "except StoreError as error:\n"
        "    print(error)\n"
    )
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s")], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    assert "What is written stays: make room" in done.stdout
    resumed = record(recorder_of(target), images, transform=TRANSFORM, store=tmp_path / "s", batch_size=8)
    here = record(recorder_of(target), images, transform=TRANSFORM, batch_size=8)
    assert np.allclose(resumed["features.18"], here["features.18"], atol=1e-5)  # another process: another number of threads
    assert len(resumed.ids) == 50


def test_dissect_reads_a_store_like_memory(target: nn.Module, images: Images, tmp_path: Path) -> None:
    from neuroprobe import ClipEncoder, ConceptSource
    from neuroprobe.world import CLIP_PATH, world_vocabulary

    scores = ConceptSource(ClipEncoder(CLIP_PATH, device="cpu"), world_vocabulary()).score(images)
    there = record(recorder_of(target), images, transform=TRANSFORM, store=tmp_path / "s")
    here = record(recorder_of(target), images, transform=TRANSFORM)
    assert dissect(there, scores).table.equals(dissect(here, scores).table)


def test_dissecting_again_with_a_complete_store_runs_no_forward(target: nn.Module, images: Images, tmp_path: Path) -> None:
    from neuroprobe import ClipEncoder, ConceptSource
    from neuroprobe.pipeline import dissect_model
    from neuroprobe.world import CLIP_PATH, world_vocabulary

    source, stops = ConceptSource(ClipEncoder(CLIP_PATH, device="cpu"), world_vocabulary()), _Stops(target)
    layers = [f"model.{layer}" for layer in LAYERS]
    first = dissect_model(stops, images, source, layers=layers, transform=TRANSFORM, store=tmp_path / "s")
    stops.left = 0
    again = dissect_model(stops, images, source, layers=layers, transform=TRANSFORM, store=tmp_path / "s")
    assert again.table.equals(first.table)


def test_checkpoints_in_a_series_equal_each_by_itself(target: nn.Module, images: Images, caplog: pytest.LogCaptureFixture) -> None:
    files = target_checkpoints()
    series = {"a": files["step_00000"], "b": files["step_01000"], "same as a": files["step_00000"]}
    before = {k: v.clone() for k, v in target.state_dict().items()}
    together = record_checkpoints(target, series, images, layers=LAYERS, transform=TRANSFORM, models_in_memory=2)
    assert list(together) == ["a", "b", "same as a"]
    alone = record(recorder_of(load_target("step_01000")), images, transform=TRANSFORM)
    assert (together["b"]["features.18"] == alone["features.18"]).all()
    assert together["same as a"] is together["a"]
    assert not np.allclose(together["a"]["features.18"], together["b"]["features.18"])
    assert "'a' and 'same as a' have the same weights" in caplog.text
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())
