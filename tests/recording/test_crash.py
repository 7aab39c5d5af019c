"""A recording that is killed at random moments, again and again, ends with the bits of an undisturbed one."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neuroprobe import Activations
from neuroprobe.exceptions import StoreError

KILLS = 50
CODE = """
import sys, time, torch
torch.set_num_threads(1)
from neuroprobe import ActivationRecorder, Images
from neuroprobe.world import load_target, target_transform
slow = target_transform()
def transform(image):
    time.sleep(0.002)  # so that there is time to be killed in
    return slow(image)
recorder = ActivationRecorder(load_target(), ["features.1", "features.18", "classifier"], pooling="none")
images = Images(sys.argv[1], on_error="skip")
print("ready", flush=True)
recorder.record(images, transform=transform, store=sys.argv[2], batch_size=4)
"""


def start(photos: Path, store: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CODE, str(photos), str(store)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )


def same(one: Path, other: Path) -> bool:
    """Whether two stores hold the same images, values and facts."""
    a, b = Activations.open(one), Activations.open(other)
    values = all(a[layer].tobytes() == b[layer].tobytes() for layer in a.layers)
    return values and a.ids == b.ids and {**a.metadata} == {**b.metadata}


@pytest.mark.slow
def test_fifty_kills_and_the_same_bits(tmp_path: Path) -> None:
    from neuroprobe.world import world_images

    photos = tmp_path / "photos"
    photos.mkdir()
    images = world_images(400, seed=8)
    for i in range(len(images)):
        images[i].save(photos / f"{i:03d}.png")
    (photos / "100.png").write_bytes(b"no image")
    assert start(photos, tmp_path / "whole").wait() == 0
    assert len(Activations.open(tmp_path / "whole").ids) == 399
    generator, kills, stores, resumed = random.Random(0), 0, [tmp_path / "killed-0"], 0
    while kills < KILLS:
        process = start(photos, stores[-1])
        assert process.stdout is not None
        process.stdout.readline()  # ready
        time.sleep(generator.uniform(0.02, 0.3))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:  # it was done before
            stores.append(tmp_path / f"killed-{len(stores)}")
            continue
        kills += 1
        try:
            Activations.open(stores[-1])
        except StoreError:
            resumed += any(stores[-1].glob("journal-*.jsonl"))
    assert resumed >= KILLS / 4  # not all kills came before the first batch or after the last
    assert start(photos, stores[-1]).wait() == 0
    assert all(same(store, tmp_path / "whole") for store in stores)
