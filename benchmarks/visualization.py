"""How fast images are made, and how good they are where the truth is known: ``python benchmarks/visualization.py``.

Speed: units of the world's head in batches of 8, and one at a time, in turn in one run. Quality (``--quality``, some minutes):
how many of the head's units reach more than on 99 % of 2,000 rendered images, and how many of its eight color units' images show that
color more than any other (`neuroprobe.world.color_votes`), by setting, over several seeds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from neuroprobe import ActivationRecorder
from neuroprobe.visualization import Jitter, Visualization, image_spectrum, visualize
from neuroprobe.world import ATTRIBUTES, COLORS, color_votes, load_target, target_transform, world_images

HEAD = "classifier"
FIRST_COLOR = ATTRIBUTES.index(COLORS[0])
N_UNITS = len(ATTRIBUTES)
STILL = Jitter(0, 0, 0, 0)

#: What differs from the defaults with a spectrum of the world's own images.
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "ImageNet's colors": {"spectrum": None},
    "64 steps": {"steps": 64},
    "256 steps": {"steps": 256},
    "no jitter": {"jitter": STILL},
    "jitter without noise": {"jitter": Jitter(noise=0)},
    "twice the jitter": {"jitter": Jitter(0.1, 0.1, 10, 0.1)},
    "contrast 1": {"contrast": 1.0},
    "contrast 2": {"contrast": 2.0},
    "decay 0.5": {"decay": 0.5},
    "decay 1.5": {"decay": 1.5},
    "phase": {"parametrization": "phase"},
    "phase, 128 steps of 0.1": {"parametrization": "phase", "steps": 128, "step_size": 0.1},
}


def speed(repeats: int, n_units: int) -> None:
    """Print units per minute, batched and one at a time, and the median ratio."""
    model, units = load_target(), list(range(n_units))
    batched, single = [], []
    for _ in range(repeats):
        started = time.perf_counter()
        visualize(model, HEAD, units, transform=target_transform())
        batched.append(time.perf_counter() - started)
        started = time.perf_counter()
        for unit in units:
            visualize(model, HEAD, unit, transform=target_transform(), batch_size=1)
        single.append(time.perf_counter() - started)
    ratios = np.divide(single, batched)
    print(f"one at a time / in batches of 8: {np.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")
    for name, seconds in (("in batches of 8", np.median(batched)), ("one at a time", np.median(single))):
        print(f"{name}: {60 * n_units / seconds:.0f} units per minute, {seconds / n_units:.2f} s each")


def judge(found: Visualization, high: np.ndarray) -> tuple[int, int, float]:
    """Units above `high`, color units whose image shows their color most, and neighboring pixels' mean difference over the spread."""
    colors = color_votes(found.images[FIRST_COLOR : FIRST_COLOR + len(COLORS)]).argmax(axis=1)
    rough = np.abs(np.diff(found.images, axis=3)).mean() / found.images.std()
    return int((found.values > high).sum()), int((colors == np.arange(len(COLORS))).sum()), float(rough)


def quality(seeds: Sequence[int], names: Sequence[str]) -> None:
    """Print a row per setting."""
    model, transform = load_target(), target_transform()
    recorded = ActivationRecorder(model, [HEAD]).record(world_images(2000, seed=1), transform=transform, progress=False)[HEAD]
    high = np.quantile(recorded, 0.99, axis=0)
    spectrum = image_spectrum(world_images(300, seed=5), transform=transform, progress=False)
    print(f"| setting | above the 99 % quantile (of {N_UNITS}) | own color (of 8) | roughness | s per unit |\n|---|---|---|---|---|")
    for name in names:
        started = time.perf_counter()
        arguments = {"spectrum": spectrum, **SETTINGS[name]}
        rows = [judge(visualize(model, HEAD, range(N_UNITS), transform=transform, seed=seed, **arguments), high) for seed in seeds]
        above, right, rough = np.mean(rows, axis=0)
        seconds = (time.perf_counter() - started) / len(seeds) / N_UNITS
        print(f"| {name} | {above:.1f} | {right:.1f} | {rough:.2f} | {seconds:.2f} |", flush=True)


def main() -> None:
    """Read the arguments and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quality", action="store_true", help="the table of settings instead of the speed")
    parser.add_argument("--units", type=int, default=N_UNITS, help="of the head, to time")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settings", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.quality:
        quality(range(arguments.seeds), arguments.settings)
    else:
        speed(3, arguments.units)


if __name__ == "__main__":
    main()
