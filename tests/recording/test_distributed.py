"""Several processes under torchrun: the same bits as one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from neuroprobe import ActivationRecorder, Activations, ActivationSummary
from neuroprobe.exceptions import InputError
from neuroprobe.images import collect, started_by_torchrun
from neuroprobe.images.distributed import in_batch_order
from neuroprobe.world import load_target, target_transform, world_images

#: What one process and each of several do, in a folder that holds `photos` and `words.txt`.
PROGRAM = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from neuroprobe import ActivationRecorder, record_checkpoints
from neuroprobe._cli import main
from neuroprobe.images import process_group, rank_and_size
from neuroprobe.world import CLIP_PATH, load_target, target_checkpoints, target_transform, world_images

def work(folder, out):
    code = main([
        "dissect", "neuroprobe.world:target_with_transform", "--layers", "features.18", "classifier", "--images", str(folder / "photos"),
        "--on-error", "skip", "--words", str(folder / "words.txt"), "--clip", str(CLIP_PATH), "--device", "cpu", "--batch-size", "8",
        "--out", str(out / "report"), "--store", str(out / "store"),
    ])
    images, layers, transform = world_images(45, seed=3), ["features.18", "classifier"], target_transform()
    with process_group() as several:
        recorder = ActivationRecorder(load_target(), layers)
        summary = recorder.summarize(images, transform=transform, k=4, batch_size=8, distributed=several)
        files = {name: target_checkpoints()[name] for name in ("step_00000", "step_05000")}
        series = record_checkpoints(load_target(), files, images, layers=layers, transform=transform, batch_size=8, distributed=several)
        # one batch: the second process has no rows
        series["few"] = recorder.record(images.subset(images.ids[:5]), transform=transform, batch_size=8, distributed=several)
        rank = rank_and_size(several)[0]
    summary.save(out / f"{rank}.npz")
    torch.save({f"{n} {l}": torch.from_numpy(a[l]) for n, a in series.items() for l in layers}, out / f"{rank}.pt")
    return code

if __name__ == "__main__":
    with process_group():
        code = work(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.exit(code)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The program run in this process (folder ``1``) and by torchrun in two (folder ``2``), and what those two said."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "photos").mkdir()
    images = world_images(61, seed=4)  # eight batches of 8, the last one smaller
    for i in range(len(images)):
        images[i].save(folder / "photos" / f"{i:02d}.png")
    (folder / "photos" / "20.png").write_bytes(b"no image")
    (folder / "words.txt").write_text("red\nblue\nstriped\n")
    (folder / "program.py").write_text(PROGRAM)
    for n in (1, 2):
        (folder / str(n)).mkdir()
    names: dict[str, Any] = {"__name__": "program"}
    exec(PROGRAM, names)
    assert names["work"](folder, folder / "1") == 0
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(root)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, str(folder / "program.py"), str(folder), str(folder / "2")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, done.stdout


def test_two_processes_give_the_bits_of_one(runs: tuple[Path, str]) -> None:
    folder, said = runs
    assert said.count("units named") == 1  # one process speaks
    one, two = (Activations.open(folder / str(n) / "store") for n in (1, 2))
    assert len(one.ids) == 60
    assert one.ids == two.ids
    for layer in one.layers:
        assert one[layer].tobytes() == two[layer].tobytes()
    for name in ("labels.csv", "labels.json"):
        assert (folder / "1" / "report" / name).read_bytes() == (folder / "2" / "report" / name).read_bytes()


def test_summaries_and_series_of_two_processes_are_those_of_one(runs: tuple[Path, str]) -> None:
    folder, _ = runs
    one = ActivationSummary.load(folder / "1" / "0.npz")
    values = torch.load(folder / "1" / "0.pt", weights_only=True)
    for rank in (0, 1):  # every process has the whole
        assert ActivationSummary.load(folder / "2" / f"{rank}.npz").equals(one)
        found = torch.load(folder / "2" / f"{rank}.pt", weights_only=True)
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
