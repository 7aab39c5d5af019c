"""How often a unit's facets are the concepts it was made of, on the offline world: ``python benchmarks/facets.py``.

Units are made from the truth: 1 where any of their concepts is in the image, else 0, and Gaussian noise on top. Their concepts
are one (all 31 attributes), two or three (drawn by seed); or a pair that has to be there together, which is one facet; or none.
"Right" is the share of units with as many facets as concepts (a pair together and noise: one facet), "named" of those whose facets' labels
are exactly these concepts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from neuroprobe import Activations, ClipEncoder, ConceptSource, Images
from neuroprobe.visualization import layer_facets
from neuroprobe.world import ATTRIBUTES, CLIP_PATH, COLORS, PATTERNS, WorldDataset, world_vocabulary

SEED = 12


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    rows = []
    for n in (600, 2000):
        dataset = WorldDataset(n, seed=SEED)
        source = ConceptSource(ClipEncoder(CLIP_PATH, device="cpu"), world_vocabulary())
        scores = source.score(Images(dataset), progress=False)
        for noise in (0.3, 0.6):
            for kind, units in kinds().items():
                activations = made(dataset.truth(), units, noise, together=kind == "two together", scores=scores)
                found = layer_facets(activations, scores, "made")
                expected = [1 if kind in ("two together", "none") else len(concepts) for concepts in units]
                right = np.mean([len(facets) == number for facets, number in zip(found, expected, strict=True)])
                named = np.mean([sorted(facets.labels) == sorted(concepts) for facets, concepts in zip(found, units, strict=True)])
                shown = np.nan if kind in ("two together", "none") else named
                rows.append({"images": n, "noise": noise, "concepts": kind, "units": len(units), "right": right, "named": shown})
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.2f}".format))


def kinds() -> dict[str, list[tuple[str, ...]]]:
    """The concepts of every unit, by kind."""
    generator = np.random.default_rng(SEED)

    def drawn(size: int, count: int) -> list[tuple[str, ...]]:
        choices = list(itertools.combinations(ATTRIBUTES, size))
        return [choices[i] for i in generator.choice(len(choices), count, replace=False)]

    together = list(itertools.product(COLORS, PATTERNS))
    return {
        "one": [(name,) for name in ATTRIBUTES],
        "two": drawn(2, 60),
        "three": drawn(3, 60),
        "two together": together,
        "none": [()] * 60,
    }


def made(truth: np.ndarray, units: Sequence[tuple[str, ...]], noise: float, *, together: bool, scores: object) -> Activations:
    """A layer of such units."""
    generator = np.random.default_rng(SEED + 1)
    columns = []
    for concepts in units:
        there = truth[:, [ATTRIBUTES.index(name) for name in concepts]]
        fires = (there.all(axis=1) if together else there.any(axis=1)) if concepts else np.zeros(len(truth))
        columns.append(fires + (noise if concepts else 1) * generator.normal(size=len(truth)))
    values = np.stack(columns, axis=1).astype(np.float32)
    return Activations({"made": values}, scores.ids, {"images": scores.metadata["images"]})  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
