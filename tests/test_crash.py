"""A recording that is killed at random moments, again and again, ends with the bits of an undisturbed one."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neuroprobe.exceptions import StoreError
from neuroprobe.store import open_store

KILLS = 50
CODE = """
import sys, time, torch
torch.set_num_threads(1)
from neuroprobe import ActivationRecorder, Images
from neuroprobe.recording import record
from neuroprobe.world import load_target, target_transform
slow = target_transform()
def transform(image):
    time.sleep(0.002)  # so that there is time to be killed in
    return slow(image)
print("ready", flush=True)
record(ActivationRecorder(load_target(), ["features.1", "features.18", "classifier"], pooling="none"), Images(sys.argv[1], on_error="skip"),
       transform=transform, store=sys.argv[2], batch_size=4)
print("done", flush=True)
"""


def start(photos: Path, store: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CODE, str(photos), str(store)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    )


@pytest.mark.slow
def test_fifty_kills_and_the_same_bits(tmp_path: Path) -> None:
    from neuroprobe.world import world_images

    photos = tmp_path / "photos"
    photos.mkdir()
    images = world_images(600, seed=8)
    for i in range(len(images)):
        images[i].save(photos / f"{i:03d}.png")
    (photos / "100.png").write_bytes(b"no image")
    undisturbed = start(photos, tmp_path / "whole")
    assert undisturbed.wait() == 0
    generator, kills = random.Random(0), 0
    while True:
        process = start(photos, tmp_path / "killed")
        assert process.stdout is not None
        process.stdout.readline()  # ready
        time.sleep(generator.uniform(0.0, 0.12))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0 or "done" in process.stdout.read():
            break
        kills += 1
        if kills < KILLS:
            with pytest.raises(StoreError, match=r"cut off|cannot be read"):
                open_store(tmp_path / "killed")
        else:
            assert start(photos, tmp_path / "killed").wait() == 0
            break
    assert kills >= KILLS
    whole, killed = open_store(tmp_path / "whole"), open_store(tmp_path / "killed")
    assert killed.ids == whole.ids
    assert len(killed.ids) == 599
    for layer in whole.layers:
        assert killed[layer].tobytes() == whole[layer].tobytes()
    assert {**killed.metadata} == {**whole.metadata}
