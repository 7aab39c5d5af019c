"""How good the sets are that the world's CLIP makes, and how far the estimate is off: ``python benchmarks/set_quality.py``.

The world's CLIP is almost never wrong about a likeliest image, so it is also made worse on purpose: Gaussian noise is added
to the image vectors, whose length is 1 (noise 2: noise twice as long as the vector), and the temperature stays as it was.
Nine concepts, 2,000 images, 100 positives, 200 negatives.
"""

from __future__ import annotations

import dataclasses

import pandas as pd
import torch
from torch.nn import functional as F

from neuroprobe import ClipEncoder, ConceptScores, ConceptSource, Images, Vocabulary
from neuroprobe.concepts import Negatives, estimate_set_quality, set_quality
from neuroprobe.world import ATTRIBUTES, CLIP_PATH, WorldDataset

RANKINGS: tuple[tuple[Negatives, int], ...] = (("random", 0), ("random", 200), ("least_likely", 0), ("group", 0))


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    dataset = WorldDataset(2000, seed=3)
    truth = pd.DataFrame(dataset.truth(), index=dataset.ids, columns=ATTRIBUTES)
    source = ConceptSource(ClipEncoder(CLIP_PATH, device="cpu"), Vocabulary.probing_blog())
    scores = source.score(Images(dataset), progress=False)
    print("precision, by how the negatives are chosen")
    for negatives, gap in RANKINGS:
        found = set_quality(scores.rank(negatives=negatives, gap=gap), truth).groupby("side")["precision"].agg(["mean", "min"])
        print(f"{negatives:13s} gap {gap:3d}  ", found.round(3).to_dict("index"))
    print("\nthe estimate, by the noise added to the image vectors")
    for noise in (0, 0.5, 1, 1.5, 2, 3):
        print(f"noise {noise:3}\n{estimated(worse(scores, noise), truth).round(3).to_string()}")


def worse(scores: ConceptScores, noise: float) -> ConceptScores:
    """The same scores with noise of this length added to every image vector."""
    vectors = scores.image_vectors
    drawn = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0)) / vectors.shape[1] ** 0.5
    return dataclasses.replace(scores, image_vectors=F.normalize(vectors + noise * drawn, dim=1))


def estimated(scores: ConceptScores, truth: pd.DataFrame) -> pd.DataFrame:
    """Means over the concepts, and how far the estimate of a concept is off."""
    sets = scores.rank()
    both = set_quality(sets, truth).merge(estimate_set_quality(sets, scores), on=["concept", "side"])
    both["off"] = (both["estimated_precision"] - both["precision"]).abs()
    columns = {"precision": "mean", "estimated_precision": "mean", "mean_likelihood": "mean", "off": ["mean", "max"]}
    return both.groupby("side").agg(columns)


if __name__ == "__main__":
    main()
