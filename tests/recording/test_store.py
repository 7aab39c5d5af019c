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
from neuroprobe.exceptions import InputError, StoreError
from neuroprobe.images import BatchRecord, Collected
from neuroprobe.recording import record_beside, record_checkpoints
from neuroprobe.recording.activations import read_manifest
from neuroprobe.recording.store import StoreKeeper
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
        recorder_of(stops).record(images, transform=TRANSFORM, store=store, batch_size=8)
    stops.left = -1
    return stops


def test_a_store_holds_the_same_bits_as_memory(target: nn.Module, images: Images, tmp_path: Path) -> None:
    here = recorder_of(target).record(images, transform=TRANSFORM, batch_size=8)
    there = recorder_of(target).record(images, transform=TRANSFORM, batch_size=8, store=tmp_path / "s")
    assert there.ids == here.ids
    for layer in LAYERS:
        assert isinstance(there[layer], np.memmap)
        assert there[layer].tobytes() == here[layer].tobytes()
    assert {**there.metadata} == {**here.metadata}
    assert (Activations.open(tmp_path / "s")["classifier"] == here["classifier"]).all()


def test_a_cut_off_store_is_not_read_and_goes_on_with_the_same_bits(target: nn.Module, images: Images, tmp_path: Path) -> None:
    stops = cut_off(target, images, tmp_path / "s", after=3)
    with pytest.raises(StoreError, match="Record into the same store again to go on"):
        Activations.open(tmp_path / "s")
    stops.left = 4  # four of the seven batches are left: one forward more would stop it
    resumed = recorder_of(stops).record(images, transform=TRANSFORM, store=tmp_path / "s", batch_size=8)
    assert stops.left == 0
    stops.left = -1
    whole = recorder_of(stops).record(images, transform=TRANSFORM, store=tmp_path / "t", batch_size=8)
    for layer in resumed.layers:
        assert resumed[layer].tobytes() == whole[layer].tobytes()


def test_a_damaged_batch_or_journal_is_recorded_again(target: nn.Module, images: Images, tmp_path: Path) -> None:
    stops = cut_off(target, images, tmp_path / "s", after=4)
    journal = tmp_path / "s" / "journal-0-0.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[2] = bytes(len(lines[2]) - 1) + b"\n"  # zeros, as a power cut may leave
    journal.write_bytes(b"".join(lines)[:-20])  # the last line was not written whole
    with open(tmp_path / "s" / "layer-001.bin", "r+b") as values:
        values.seek(5)
        values.write(b"\xff\xff")  # the first batch's values were not
    stops.left = 6
    resumed = recorder_of(stops).record(images, transform=TRANSFORM, store=tmp_path / "s", batch_size=8)
    assert stops.left == 0
    stops.left = -1
    assert (
        resumed["model.classifier"].tobytes()
        == recorder_of(stops).record(images, transform=TRANSFORM, batch_size=8)["model.classifier"].tobytes()
    )


def test_a_complete_store_is_opened_and_not_recorded_again(target: nn.Module, images: Images, tmp_path: Path) -> None:
    stops = _Stops(target)
    first = recorder_of(stops).record(images, transform=TRANSFORM, store=tmp_path / "s", batch_size=8)
    stops.left = 0  # any forward would stop it
    again = recorder_of(stops).record(images, transform=TRANSFORM, store=tmp_path / "s", batch_size=8)
    assert again["model.classifier"].tobytes() == first["model.classifier"].tobytes()


def test_two_checkpoints_of_one_architecture_never_share_a_store(images: Images, tmp_path: Path) -> None:
    untrained, trained = (load_target(name) for name in ("step_00000", "step_05000"))
    recorder_of(untrained).record(images, transform=TRANSFORM, store=tmp_path / "s")
    with pytest.raises(StoreError, match=r"of the same recording, but .* model is"):
        recorder_of(trained).record(images, transform=TRANSFORM, store=tmp_path / "s")


def test_equal_weights_in_other_modules_never_share_a_store(images: Images, tmp_path: Path) -> None:
    first, other = (ActivationRecorder(nn.Sequential(nn.LeakyReLU(slope)).eval(), ["0"], layout="nchw") for slope in (0.1, 0.2))
    first.record(images, transform=TRANSFORM, store=tmp_path / "s")
    with pytest.raises(StoreError, match=r"of the same recording, but .* architecture is"):
        other.record(images, transform=TRANSFORM, store=tmp_path / "s")


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
    recorder_of(target).record(images, transform=TRANSFORM, store=tmp_path / "s", batch_size=8)
    recorder = ActivationRecorder(target, change.get("layers", LAYERS), pooling=change.get("pooling", "mean"))
    part = images.subset(images.ids[: change.get("n", 50)])
    with pytest.raises(StoreError, match=what):
        recorder.record(
            part, transform=TRANSFORM, store=tmp_path / "s",
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
        recorder_of(stops).record(Images(tmp_path / "photos"), transform=TRANSFORM, store=tmp_path / "s", batch_size=8)
    recorder_of(target).record(Images(tmp_path / "photos"), transform=TRANSFORM, store=tmp_path / "t", batch_size=8)
    images[48].save(tmp_path / "photos" / "02.png")
    with pytest.raises(StoreError, match="the content of some has changed"):
        recorder_of(target).record(Images(tmp_path / "photos"), transform=TRANSFORM, store=tmp_path / "t", batch_size=8)


def _stream(images: Images, order: list[int]) -> Images:
    return Images(lambda: ((str(position), images[i]) for position, i in enumerate(order)))


def test_another_stream_is_noticed(target: nn.Module, images: Images, tmp_path: Path) -> None:
    order = list(range(50))
    stops = cut_off(target, _stream(images, order), tmp_path / "s", after=3)
    order[0:2] = [1, 0]  # under the same ids
    with pytest.raises(StoreError, match="'0' is another now"):
        recorder_of(stops).record(_stream(images, order), transform=TRANSFORM, store=tmp_path / "s", batch_size=8)
    recorder_of(target).record(_stream(images, order), transform=TRANSFORM, store=tmp_path / "t")
    assert len(recorder_of(target).record(_stream(images, order), transform=TRANSFORM, store=tmp_path / "t").ids) == 50
    for other in (sorted(order), order[:40]):
        with pytest.raises(StoreError, match="the content of some has changed"):
            recorder_of(target).record(_stream(images, other), transform=TRANSFORM, store=tmp_path / "t")


class _Ids:
    """Another consumer, which has nothing from earlier runs."""

    transform = staticmethod(TRANSFORM)

    def consume(self, batch: torch.Tensor, record: BatchRecord) -> None: ...

    def finish(self, collected: Collected) -> tuple[str, ...]:
        return collected.ids


def test_a_store_goes_on_beside_a_consumer_only_with_the_same_rows(target: nn.Module, images: Images, tmp_path: Path) -> None:
    pairs = [(str(i), images[i]) for i in range(50)]
    stops = cut_off(target, Images(lambda: iter(pairs)), tmp_path / "s", after=3)
    pairs[0:2] = [pairs[1], pairs[0]]  # the ids move along
    with pytest.raises(StoreError, match="in another place"):
        record_beside(recorder_of(stops), Images(lambda: iter(pairs)), [_Ids()], transform=TRANSFORM, store=tmp_path / "s", batch_size=8)


def test_a_skipped_image_that_was_repaired_is_noticed_beside_a_consumer(target: nn.Module, images: Images, tmp_path: Path) -> None:
    _folder_of(images, tmp_path / "photos")
    (tmp_path / "photos" / "02.png").write_bytes(b"no image")
    stops = cut_off(target, Images(tmp_path / "photos", on_error="skip"), tmp_path / "s", after=3)
    images[2].save(tmp_path / "photos" / "02.png")
    files = Images(tmp_path / "photos", on_error="skip")
    with pytest.raises(StoreError, match=r"'02.png' is another now"):
        record_beside(recorder_of(stops), files, [_Ids()], transform=TRANSFORM, store=tmp_path / "s", batch_size=8)
    again = recorder_of(stops).record(files, transform=TRANSFORM, store=tmp_path / "s", batch_size=8)
    assert "02.png" not in again.ids  # alone, the store goes on with what it has


def test_skipped_images_leave_no_gap_in_the_store(target: nn.Module, images: Images, tmp_path: Path) -> None:
    _folder_of(images, tmp_path / "photos")
    for name in ("00.png", "17.png", "49.png"):
        (tmp_path / "photos" / name).write_bytes(b"no image")
    files = Images(tmp_path / "photos", on_error="skip")
    there = recorder_of(target).record(files, transform=TRANSFORM, store=tmp_path / "s", batch_size=8)
    here = recorder_of(target).record(files, transform=TRANSFORM, batch_size=8)
    assert len(there.ids) == 47
    assert there.ids == here.ids
    assert "17.png" not in there.ids
    for layer in LAYERS:
        assert there[layer].tobytes() == here[layer].tobytes()
    assert set(there.metadata["skipped"]) == {"00.png", "17.png", "49.png"}


@pytest.mark.parametrize("store", [None, "s"])
def test_values_too_large_for_float16_are_refused(store: str | None, images: Images, tmp_path: Path) -> None:
    layer = nn.Conv2d(3, 4, 3)
    nn.init.constant_(layer.weight, 1e6)
    model = nn.Sequential(layer).eval()
    recorder = ActivationRecorder(model, ["0"])
    folder = None if store is None else tmp_path / store
    with pytest.raises(InputError, match=r"fit into float16 \(at most 65504\), but '0' gives"):
        recorder.record(images, transform=TRANSFORM, store=folder, dtype="float16")


def test_float16_is_said_and_half_the_size(target: nn.Module, images: Images, tmp_path: Path) -> None:
    half = recorder_of(target).record(images, transform=TRANSFORM, store=tmp_path / "s", dtype="float16")
    full = recorder_of(target).record(images, transform=TRANSFORM)
    assert half.metadata["dtype"] == "float16"
    assert read_manifest(tmp_path / "s")["identity"]["dtype"] == "float16"
    assert (tmp_path / "s" / "layer-002.bin").stat().st_size == 50 * 31 * 2
    assert np.allclose(half["classifier"], full["classifier"], rtol=1e-3, atol=1e-2)


def test_a_store_in_use_is_refused(target: nn.Module, images: Images, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with FileLock(tmp_path / "s" / "lock"), pytest.raises(StoreError, match="another process is recording"):
        recorder_of(target).record(images, transform=TRANSFORM, store=tmp_path / "s")
    assert len(recorder_of(target).record(images, transform=TRANSFORM, store=tmp_path / "s").ids) == 50


def test_what_cannot_be_a_folder_is_refused(target: nn.Module, images: Images, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for store in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="Expected a folder to write a store into"):
            recorder_of(target).record(images, transform=TRANSFORM, store=store)


def test_a_store_whose_manifest_was_cut_off_is_begun_again(target: nn.Module, images: Images, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / ".manifest.json.99.part").write_text("{")
    assert len(recorder_of(target).record(images, transform=TRANSFORM, store=tmp_path / "s").ids) == 50


def test_a_folder_with_other_files_is_left_alone(target: nn.Module, images: Images, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="holds other files"):
        recorder_of(target).record(images, transform=TRANSFORM, store=tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_truncated_or_edited_store_is_refused(target: nn.Module, images: Images, tmp_path: Path) -> None:
    recorder_of(target).record(images, transform=TRANSFORM, store=tmp_path / "s")
    shutil.copytree(tmp_path / "s", tmp_path / "t")
    with open(tmp_path / "s" / "layer-001.bin", "r+b") as values:
        values.truncate(1000)
    with pytest.raises(StoreError, match="it has 1000 bytes"):
        Activations.open(tmp_path / "s")
    manifest = tmp_path / "t" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    (tmp_path / "s" / "images.json").unlink()
    with pytest.raises(StoreError, match=r"images.json' cannot be read"):
        Activations.open(tmp_path / "s")
    with pytest.raises(StoreError, match="has 99"):
        Activations.open(tmp_path / "t")
    manifest.write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        Activations.open(tmp_path / "t")


def test_a_full_disk_is_a_clear_error_and_the_store_goes_on(target: nn.Module, images: Images, tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "sys.path[:0] = ['tests/recording', 'tests/worlds', 'tests']\n"
        "from test_store import *\n"
        "try:\n"
        "    recorder_of(load_target()).record(world_images(50, seed=6), transform=TRANSFORM, store=Path(sys.argv[1]), batch_size=8)\n"
        "except StoreError as error:\n"
        "    print(error)\n"
    )
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s")], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert "What is written stays: make room" in done.stdout
    resumed = recorder_of(target).record(images, transform=TRANSFORM, store=tmp_path / "s", batch_size=8)
    here = recorder_of(target).record(images, transform=TRANSFORM, batch_size=8)
    assert np.allclose(resumed["features.18"], here["features.18"], atol=1e-5)  # another process: another number of threads
    assert len(resumed.ids) == 50


def test_a_full_disk_at_the_end_is_a_clear_error_too(
    target: nn.Module, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, rows: tuple[int, ...], row_size: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("neuroprobe.recording.store._close_gaps", full)
        with pytest.raises(StoreError, match="make room, and record into the same store"):
            recorder_of(target).record(images, transform=TRANSFORM, store=tmp_path / "s")
    assert len(recorder_of(target).record(images, transform=TRANSFORM, store=tmp_path / "s").ids) == 50


def test_processes_that_do_not_share_the_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="Choose a folder that all machines share"):
        StoreKeeper(tmp_path / "s", identity={}, layers=("0",), rank=1)
    keeper = StoreKeeper(tmp_path / "s", identity={}, layers=("0",))
    keeper.keep(BatchRecord(0, [0, 1], ["a", "b"], ["", ""], {}), {"0": torch.ones(2, 3)})
    with pytest.raises(StoreError, match=r"the rows of all 4 images .* but 2 are not there"):
        keeper.finish(Collected(("a", "b", "c", "d"), {}, "", (0, 1, 2, 3), distributed=True), {})
    with pytest.raises(StoreError, match="was cut off"):
        Activations.open(tmp_path / "s")


def test_dissect_reads_a_store_like_memory(target: nn.Module, images: Images, tmp_path: Path) -> None:
    from neuroprobe import ClipEncoder, ConceptSource
    from neuroprobe.world import CLIP_PATH, world_vocabulary

    scores = ConceptSource(ClipEncoder(CLIP_PATH, device="cpu"), world_vocabulary()).score(images)
    there = recorder_of(target).record(images, transform=TRANSFORM, store=tmp_path / "s")
    here = recorder_of(target).record(images, transform=TRANSFORM)
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
    alone = recorder_of(load_target("step_01000")).record(images, transform=TRANSFORM)
    assert (together["b"]["features.18"] == alone["features.18"]).all()
    assert together["same as a"] is together["a"]
    assert not np.allclose(together["a"]["features.18"], together["b"]["features.18"])
    assert "'a' and 'same as a' have the same weights" in caplog.text
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())
