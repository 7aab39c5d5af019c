"""The world's head, recorded and labeled once for all the tests that judge its labels."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import torch

from neuroprobe import ActivationRecorder, Activations, ClipEncoder, ConceptScores, ConceptSource, LabelReport, dissect
from neuroprobe.world import ATTRIBUTES, CLIP_PATH, WorldDataset, load_target, target_transform, world_images, world_vocabulary

N = 300
HEAD, BELOW = "classifier", "features.18"
TRUTH = {HEAD: list(ATTRIBUTES)}


@functools.cache
def encoder() -> ClipEncoder:
    return ClipEncoder(CLIP_PATH, device="cpu")


@functools.cache
def recorded(seed: int = 11, checkpoint: str = "step_05000") -> Activations:
    recorder = ActivationRecorder(load_target(checkpoint), [BELOW, HEAD])
    return recorder.record(world_images(N, seed=seed), transform=target_transform(), progress=False)


@functools.cache
def scored(seed: int = 11) -> ConceptScores:
    return ConceptSource(encoder(), world_vocabulary()).score(world_images(N, seed=seed), progress=False)


@functools.cache
def labeled(checkpoint: str = "step_05000", *, layer: str = HEAD) -> LabelReport:
    return dissect(recorded(checkpoint=checkpoint), scored(), layers=[layer], n_bootstrap=0)


@functools.cache
def shown(seed: int = 11) -> pd.DataFrame:
    return pd.DataFrame(WorldDataset(N, seed=seed).truth(), columns=list(ATTRIBUTES))


def labels_of(concepts: list[str], *, layer: str = "fc", **columns: object) -> LabelReport:
    """A report by hand, one row per concept."""
    table = pd.DataFrame({"layer": layer, "unit": range(len(concepts)), "concept": concepts, "score": np.arange(len(concepts), 0.0, -1)})
    table["status"] = np.where(table["concept"] == "", "not significant", "named")
    return LabelReport(table.assign(**columns), {})


class TableEncoder:
    """Texts as the vectors of a table; what is not in it cannot be embedded."""

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        self.vectors, self.asked = vectors, []

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        self.asked.append(list(texts))
        return torch.tensor([self.vectors[text] for text in texts])
