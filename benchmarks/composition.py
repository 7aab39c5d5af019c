"""How much the first five concepts explain of every class of the world's target, and several concepts of every unit.

``python benchmarks/composition.py [--images 1000] [--seed 0]`` takes about two minutes on one core and needs no download. It prints the
numbers of docs/composition.md.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
import torch

import neuroprobe
from neuroprobe.effects import explain_class
from neuroprobe.images import collect
from neuroprobe.labeling import explain_units
from neuroprobe.world import (
    ATTRIBUTES,
    BACKGROUNDS,
    CLIP_PATH,
    COLORS,
    PATTERNS,
    SHAPES,
    WorldDataset,
    load_target,
    target_transform,
    world_images,
    world_vocabulary,
)

LAYER, HEAD = "features.18", "classifier"
GROUPS = {"all": ATTRIBUTES, "colors": COLORS, "shapes": SHAPES, "patterns": PATTERNS, "backgrounds": BACKGROUNDS}


def recorded(n_images: int, seed: int) -> tuple[neuroprobe.Activations, neuroprobe.ConceptScores]:
    recorder = neuroprobe.ActivationRecorder(load_target(), [LAYER, HEAD])
    source = neuroprobe.ConceptSource(neuroprobe.ClipEncoder(CLIP_PATH, device="cpu"), world_vocabulary())
    activations, scores = collect(
        world_images(n_images, seed=seed), [recorder.consumer(target_transform()), source.consumer()], progress=False
    )
    return activations, scores


def classes(activations: neuroprobe.Activations, labels: neuroprobe.LabelReport, truth: np.ndarray) -> pd.DataFrame:
    """A row per class: what its first concepts explain, and whether its own concept leads."""
    rows, head = {}, load_target().classifier
    for number, name in enumerate(ATTRIBUTES):
        report = explain_class(head, labels, name, classes=ATTRIBUTES, activations=activations, layer=LAYER, members=truth[:, number])
        named = report.table[report.table["named"]]
        rows[name] = {
            "r2 of 1 concept": named["r2"].iloc[0],
            "r2 of 5": report.value("r2"),
            "r2 of 5, labels shuffled": report.value("r2_shuffled"),
            "correlation of 5": report.value("correlation"),
            "p": report.value("p_value"),
            "own concept contributes most": named.sort_values("contribution")["concept"].iloc[-1] == name,
            "own concept adds most": report.leading(1)["concept"].iloc[0] == name,
        }
    return pd.DataFrame(rows).T.astype(float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the images; the target was trained on seed 2, the CLIP on seed 1")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    activations, scores = recorded(arguments.images, arguments.seed)
    labels = neuroprobe.dissect(activations, scores, n_bootstrap=0)
    found = classes(activations, labels, WorldDataset(arguments.images, seed=arguments.seed).truth())
    print(f"{arguments.images} images of seed {arguments.seed}; {LAYER} to the {len(ATTRIBUTES)} classes of the head")
    print(pd.DataFrame({name: found.loc[list(names)].mean() for name, names in GROUPS.items()}).round(3).to_string())
    print(f"r2 of 5 over all classes: from {found['r2 of 5'].min():.3f} to {found['r2 of 5'].max():.3f}; greatest p {found['p'].max():.3f}")
    print("\nunits as sums of at most 4 concepts")
    print(explain_units(activations, scores, labels=labels).overall.round(3).to_string())


if __name__ == "__main__":
    main()
