"""What the training scripts share: rendered images in memory, how good the models are, and the record of a run."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchvision

from neuroprobe.concepts import BLOG_TEMPLATE, ConceptGroup, ConceptScores, ConceptSource, ImageTextEncoder, Vocabulary
from neuroprobe.images import Images, collect
from neuroprobe.models import load_checkpoint
from neuroprobe.recording import ActivationRecorder
from neuroprobe.world._images import WorldDataset, draw
from neuroprobe.world._scenes import ATTRIBUTES, COLORS, PATTERNS, SHAPES, Combinations, Scene
from neuroprobe.world._target import build_target, target_transform

_GROUPS = {"shape": SHAPES, "color": COLORS, "pattern": PATTERNS}


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


def zero_shot_accuracies(encoder: ImageTextEncoder, *, n_images: int, seed: int, combinations: Combinations) -> dict[str, float]:
    """Share of images with one object whose shape, color and pattern are likeliest among all, by the blog's prompt."""
    dataset = WorldDataset(n_images, seed=seed, combinations=combinations)
    single = [i for i in range(n_images) if len(dataset.scene(i).objects) == 1]
    vocabulary = Vocabulary([ConceptGroup(name, values, templates=(BLOG_TEMPLATE,)) for name, values in _GROUPS.items()])
    scores = ConceptSource(encoder, vocabulary).score(Images(dataset).subset([dataset.ids[i] for i in single]), progress=False)
    accuracies = {}
    for name, values in _GROUPS.items():
        truth = [getattr(dataset.scene(i).objects[0], name) for i in single]
        found = scores.likelihoods(name).argmax(dim=1)
        accuracies[name] = float(np.mean([values[int(j)] == true for j, true in zip(found, truth, strict=True)]))
    return accuracies


def precisions_at(k: int, encoder: ImageTextEncoder, *, n_images: int, seed: int) -> dict[str, float]:
    """Share of true ones among the k likeliest images of every concept of the blog's groups, "none" included.

    "none" is true of an image that shows no concept of the group.
    """
    dataset = WorldDataset(n_images, seed=seed)
    vocabulary = Vocabulary.probing_blog()
    scores = ConceptSource(encoder, vocabulary).score(Images(dataset), progress=False)
    truth = dataset.truth()
    precisions = {}
    for group in vocabulary.groups:
        true = truth[:, [ATTRIBUTES.index(name) for name in group.concepts]]
        true = np.column_stack([true, ~true.any(axis=1)])
        precisions.update(_precisions_of_group(k, scores, group, true))
    return precisions


def _precisions_of_group(k: int, scores: ConceptScores, group: ConceptGroup, true: npt.NDArray[np.bool_]) -> dict[str, float]:
    likelihoods = scores.likelihoods(group.name)
    top = torch.topk(likelihoods, k, dim=0).indices.numpy()  # [k, n_concepts_of_group]
    return {f"{group.name}: {name}": float(true[top[:, i], i].mean()) for i, name in enumerate(group.names)}


def target_accuracies(model: torch.nn.Module, *, n_images: int, seed: int) -> dict[str, float]:
    """Mean over the target's outputs of accuracy and of balanced accuracy (the sign of the output as prediction)."""
    dataset = WorldDataset(n_images, seed=seed)
    recorder = ActivationRecorder(model, ["classifier"])
    (activations,) = collect(Images(dataset), [recorder.consumer(target_transform())], progress=False)
    predicted, truth = activations["classifier"] > 0, dataset.truth()
    recall = (predicted & truth).sum(axis=0) / truth.sum(axis=0)
    specificity = (~predicted & ~truth).sum(axis=0) / (~truth).sum(axis=0)
    return {"accuracy": float(np.mean(predicted == truth)), "balanced_accuracy": float(np.mean((recall + specificity) / 2))}


def clip_figures(encoder: ImageTextEncoder) -> dict[str, dict[str, float]]:
    """All figures of the world's CLIP, on images it was not trained on."""
    return {
        "zero-shot accuracy, combinations seen": zero_shot_accuracies(encoder, n_images=4000, seed=11, combinations="seen"),
        "zero-shot accuracy, combinations never seen": zero_shot_accuracies(encoder, n_images=4000, seed=12, combinations="unseen"),
        "precision at 100 of 2,000 images": precisions_at(100, encoder, n_images=2000, seed=13),
    }


def target_figures(files: Sequence[Path]) -> dict[str, dict[str, float]]:
    """The accuracies of every checkpoint of the target, on images it was not trained on."""
    model = build_target()
    return {file.stem: target_accuracies(load_checkpoint(model, file), n_images=2000, seed=14) for file in files}
