"""Several processes under torchrun: the same bits as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neuroprobe import ActivationRecorder, ActivationSummary
from neuroprobe.exceptions import InputError
from neuroprobe.images import collect, started_by_torchrun
from neuroprobe.images.distributed import in_batch_order
from neuroprobe.recording.activations import open_store
from neuroprobe.world import CLIP_PATH, load_target, target_transform, world_images

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def dissect(folder: Path, words: Path, out: Path, *, processes: int) -> str:
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command = [
        *launcher, "neuroprobe", "dissect", "neuroprobe.world._concepts:target_with_transform", "--layers", "features.18", "classifier",
        "--images", str(folder), "--on-error", "skip", "--words", str(words), "--clip", str(CLIP_PATH), "--device", "cpu",
        "--batch-size", "8", "--out", str(out / "report"), "--store", str(out / "store"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_two_processes_give_the_bits_of_one(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    images = world_images(61, seed=4)  # eight batches of 8, the last one smaller
    for i in range(len(images)):
        images[i].save(photos / f"{i:02d}.png")
    (photos / "20.png").write_bytes(b"no image")
    words = tmp_path / "words.txt"
    words.write_text("red\nblue\nstriped\n")
    said = {n: dissect(photos, words, tmp_path / str(n), processes=n) for n in (1, 2)}
    assert said[2].count("units named") == 1  # one process speaks
    one, two = (open_store(tmp_path / str(n) / "store") for n in (1, 2))
    assert len(one.ids) == 60
    assert one.ids == two.ids
    for layer in one.layers:
        assert one[layer].tobytes() == two[layer].tobytes()
    tables = [(tmp_path / str(n) / "report" / "labels.csv").read_bytes() for n in (1, 2)]
    assert tables[0] == tables[1]
    facts = [json.loads((tmp_path / str(n) / "report" / "labels.json").read_text()) for n in (1, 2)]
    assert facts[0] == facts[1]


SUMMARIZE = """
import sys, torch
torch.set_num_threads(1)
from neuroprobe import ActivationRecorder, record_checkpoints
from neuroprobe.images import process_group, rank_and_size
from neuroprobe.world import load_target, target_checkpoints, target_transform, world_images
images, layers, transform = world_images(45, seed=3), ["features.18", "classifier"], target_transform()
with process_group() as several:
    summary = ActivationRecorder(load_target(), layers).summarize(images, transform=transform, k=4, batch_size=8, distributed=several)
    files = {name: target_checkpoints()[name] for name in ("step_00000", "step_05000")}
    series = record_checkpoints(load_target(), files, images, layers=layers, transform=transform, batch_size=8, distributed=several)
    rank = rank_and_size(several)[0]
    few = ActivationRecorder(load_target(), layers).record(  # one batch: the second process has no rows
        images.subset(images.ids[:5]), transform=transform, batch_size=8, distributed=several
    )
series["few"] = few
summary.save(f"{sys.argv[1]}/{rank}.npz")
torch.save({f"{n} {l}": torch.from_numpy(a[l]) for n, a in series.items() for l in layers}, f"{sys.argv[1]}/{rank}.pt")
"""


def test_summaries_and_series_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    script = tmp_path / "summarize.py"
    script.write_text(SUMMARIZE)
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    for processes in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if processes == 2 else []
        (tmp_path / str(processes)).mkdir()
        command = [sys.executable, *launcher, str(script), str(tmp_path / str(processes))]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    one = ActivationSummary.load(tmp_path / "1" / "0.npz")
    values = torch.load(tmp_path / "1" / "0.pt", weights_only=True)
    for rank in (0, 1):  # every process has the whole
        assert ActivationSummary.load(tmp_path / "2" / f"{rank}.npz").equals(one)
        found = torch.load(tmp_path / "2" / f"{rank}.pt", weights_only=True)
        assert found.keys() == values.keys()
        assert all(torch.equal(found[key], values[key]) for key in values)


def test_without_a_process_group_it_says_what_to_start() -> None:
    recorder = ActivationRecorder(load_target(), ["classifier"])
    with pytest.raises(InputError, match="Start the program with torchrun"):
        collect(world_images(4), [recorder.consumer(target_transform())], distributed=True)
    assert not started_by_torchrun()


def test_parts_are_joined_by_the_number_of_their_batch() -> None:
    parts = {10: torch.tensor([[5.0]]), 2: torch.tensor([[1.0], [2.0]]), 9: torch.tensor([[4.0]])}
    assert in_batch_order(parts, width=(1,), dtype=torch.float32, use=False).flatten().tolist() == [1, 2, 4, 5]
    assert in_batch_order({}, width=(3,), dtype=torch.float16, use=False).shape == (0, 3)
