"""Do units named with a color carry it? ``python benchmarks/causal_effects.py``.

In late modules of the world's target, the units that `dissect` names with a color are set to their means, and the outputs of all
colors are looked at: on images with the color ("on the same images"), and each on images with its own color ("each on its own"),
always against matched images without. The labels come from other images than the effects.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import pandas as pd

from neuroprobe import ActivationRecorder, ClipEncoder, ConceptSource, Images, dissect
from neuroprobe.concepts import ConceptSets
from neuroprobe.effects import causal_effect, units_named
from neuroprobe.images import collect
from neuroprobe.world import ATTRIBUTES, CLIP_PATH, COLORS, WorldDataset, load_target, target_transform, world_images, world_vocabulary


def measured(layers: list[str], *, n_labels: int, n_images: int, n_pairs: int, n_random: int, seed: int) -> pd.DataFrame:
    """A row per layer and color that names units in it."""
    model, source = load_target(), ConceptSource(ClipEncoder(CLIP_PATH, device="cpu"), world_vocabulary())
    recorder = ActivationRecorder(model, layers)
    activations, scores = collect(world_images(n_labels, seed=seed), [recorder.consumer(target_transform()), source.consumer()])
    labels = dissect(activations, scores)
    data = WorldDataset(n_images, seed=seed + 1)
    images, truth = Images(data), pd.DataFrame(data.truth(), index=data.ids, columns=list(ATTRIBUTES))
    sets = ConceptSets.from_labels(truth[list(COLORS)], n_positive=n_pairs, n_negative=3 * n_pairs)
    shared: dict[str, Any] = {
        "outputs": {color: ATTRIBUTES.index(color) for color in COLORS},
        "transform": target_transform(), "activations": activations, "scores": source.score(images),
    }  # fmt: skip
    rows = []
    for layer in layers:
        for color in COLORS:
            units = units_named(labels, layer, color)
            if not units:
                continue
            every = causal_effect(model, images, sets, layer=layer, units=units, n_random=0, **shared)
            alone = causal_effect(model, images, sets[color], layer=layer, units=units, n_random=n_random, **shared).table
            apart = every.hurts_most(color, concept=color)
            rows.append({"layer": layer, "color": color, "units": len(units), **_row(every.table, alone, color, apart)})
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def _row(every: pd.DataFrame, alone: pd.DataFrame, color: str, apart: bool) -> dict[str, Any]:
    same = every[every["concept"] == color].set_index("output")
    own = every[every["concept"] == every["output"]].set_index("output")
    control = alone.set_index("output").loc[color]
    return {
        "effect": _interval(own.loc[color]),
        "next on the same images": _lowest(same.drop(color)),
        "apart (same images)": apart,
        "next, each on its own": _lowest(own.drop(color)),
        "apart (own images)": bool(own.loc[color, "high"] < own.drop(color)["low"].min()),
        "random units": f"{control['random_low']:.2f} to {control['random_high']:.2f}",
        "p": f"{control['p_value']:.3f}",
    }


def _interval(row: Any) -> str:
    return f"{row['effect']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _lowest(rows: pd.DataFrame) -> str:
    name = rows["effect"].idxmin()
    return f"{name} {_interval(rows.loc[name])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", default=[f"features.{i}" for i in range(14, 19)])
    parser.add_argument("--labels", type=int, default=1500, help="images that the labels come from")
    parser.add_argument("--images", type=int, default=1000, help="images that pairs are drawn from")
    parser.add_argument("--pairs", type=int, default=80)
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument("--seed", type=int, default=51)
    given = parser.parse_args()
    started = time.time()
    table = measured(
        given.layers, n_labels=given.labels, n_images=given.images, n_pairs=given.pairs, n_random=given.random, seed=given.seed
    )  # fmt: skip
    print("| " + " | ".join(table) + " |\n|" + " --- |" * len(table.columns))
    for row in table.itertuples(index=False):
        print("| " + " | ".join(str(value) for value in row) + " |")
    print(f"{time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
