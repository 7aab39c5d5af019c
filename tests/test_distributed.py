"""Several processes under torchrun: the same bits as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neuroprobe import ActivationRecorder
from neuroprobe.collection import collect
from neuroprobe.distributed import in_batch_order, started_by_torchrun
from neuroprobe.exceptions import InputError
from neuroprobe.store import open_store
from neuroprobe.world import CLIP_PATH, load_target, target_transform, world_images

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def dissect(folder: Path, words: Path, out: Path, *, processes: int) -> str:
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command = [
        *launcher, "neuroprobe", "dissect", "neuroprobe.world:target_with_transform", "--layers", "features.18", "classifier",
        "--images", str(folder), "--on-error", "skip", "--words", str(words), "--clip", str(CLIP_PATH), "--device", "cpu",
        "--batch-size", "8", "--out", str(out / "report"), "--store", str(out / "store"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, check=False)
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


def test_without_a_process_group_it_says_what_to_start() -> None:
    recorder = ActivationRecorder(load_target(), ["classifier"])
    with pytest.raises(InputError, match="Start the program with torchrun"):
        collect(world_images(4), [recorder.consumer(target_transform())], distributed=True)
    assert not started_by_torchrun()


def test_parts_are_joined_by_the_number_of_their_batch() -> None:
    parts = {10: torch.tensor([[5.0]]), 2: torch.tensor([[1.0], [2.0]]), 9: torch.tensor([[4.0]])}
    assert in_batch_order(parts, width=(1,), dtype=torch.float32, use=False).flatten().tolist() == [1, 2, 4, 5]
    assert in_batch_order({}, width=(3,), dtype=torch.float16, use=False).shape == (0, 3)
