"""What both training scripts of the world share: rendered images in memory, and the record of a training run."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from neuroprobe.world._images import draw
from neuroprobe.world._scenes import Combinations, Scene


def draw_many(n: int, *, seed: int, combinations: Combinations, processes: int) -> tuple[list[Scene], torch.Tensor]:
    """Scenes and pixels, uint8 [n, 3, 64, 64], of images 0 to n - 1."""
    pixels = torch.empty(n, 3, 64, 64, dtype=torch.uint8)
    scenes = []
    with multiprocessing.Pool(processes) as pool:
        drawn = pool.imap(partial(draw, seed=seed, combinations=combinations), range(n), chunksize=500)
        for i, (scene, picture) in enumerate(drawn):
            scenes.append(scene)
            pixels[i] = torch.from_numpy(picture).permute(2, 0, 1)  # [h, w, 3] -> [3, h, w]
    return scenes, pixels


def write_record(path: Path, *, files: list[Path], **facts: Any) -> None:
    """Keep what made the files: arguments, versions, time, figures, and the files' SHA-256."""
    record = {
        **facts,
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__, "numpy": np.__version__},
        "sha256": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
    }
    path.write_text(json.dumps(record, indent=2) + "\n")
