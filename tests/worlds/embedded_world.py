"""The world's images embedded and recorded once, and summaries of activations, for the tests of what reads image vectors."""

from __future__ import annotations

import functools

import numpy as np
import torch

from neuroprobe.concepts import ClipEncoder, ConceptScores, ConceptSource
from neuroprobe.images import collect
from neuroprobe.recording import ActivationRecorder, Activations, ActivationSummary
from neuroprobe.recording.summaries import LayerSummary
from neuroprobe.world import CLIP_PATH, WorldDataset, load_target, target_transform, world_images, world_vocabulary

N_IMAGES, SEED = 600, 5


@functools.cache
def world_encoder() -> ClipEncoder:
    return ClipEncoder(CLIP_PATH, device="cpu")


@functools.cache
def world_truth() -> WorldDataset:
    return WorldDataset(N_IMAGES, seed=SEED)


@functools.cache
def recorded_world() -> tuple[Activations, ConceptScores]:
    """The trained target's head and last module, and the concept scores, of the same images."""
    recorder = ActivationRecorder(load_target(), ["features.18", "classifier"])
    source = ConceptSource(world_encoder(), world_vocabulary())
    images = world_images(N_IMAGES, seed=SEED)
    activations, scores = collect(images, [recorder.consumer(transform=target_transform()), source.consumer()], progress=False)
    return activations, scores


def planted(*units: np.ndarray, noise: float = 0.05, seed: int = 0) -> Activations:
    """Units that are what is given, [n_images] each, and some noise."""
    _, scores = recorded_world()
    values = np.stack([np.asarray(unit, dtype=float) for unit in units], axis=1)
    values += noise * np.random.default_rng(seed).normal(size=values.shape)
    return Activations({"planted": values.astype(np.float32)}, scores.ids, {"images": scores.metadata["images"]})


def summary_of(activations: Activations, *, k: int) -> ActivationSummary:
    """What a recording in batches would have kept of these activations."""
    statistics = {}
    for layer in activations.layers:
        one = LayerSummary(layer, activations[layer].shape[1], k=k)
        for batch, start in enumerate(range(0, len(activations.ids), 7)):
            values = torch.from_numpy(activations[layer][start : start + 7])
            one.update(values, rows=np.arange(start, start + len(values)), batch=batch)
        statistics[layer] = one.statistics(lambda row: activations.ids[row])
    return ActivationSummary(statistics, dict(activations.metadata))
