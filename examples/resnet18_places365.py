"""Name the units of ResNet-18 trained on Places365, from the checkpoint as its authors publish it.

Their file (http://places2.csail.mit.edu/models_places365/resnet18_places365.pth.tar) is a dict whose "state_dict" was saved from a
DataParallel model, so every key starts with "module."; it has 365 outputs, and is older than BatchNorm's counters. It is read with
torch.load(weights_only=True), which runs nothing that stands in it. The classes, one line "/a/airfield 0" each, are
categories_places365.txt of https://github.com/CSAILVision/places365. The labels of fc are judged by the names of the classes.

Offline: random weights and 365 of the world's combinations ("striped red circle") as classes, written as files of these formats and
read like them; rendered images, the world's CLIP and the world's 31 concepts.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice, product
from pathlib import Path

import torch
from common import add_labeling, example_parser, load_encoder, load_images, run, save
from sentences import add_sentences, text_encoders
from torch import nn
from torchvision.models import get_model, get_model_weights

from neuroprobe import ConceptSource, Vocabulary, evaluate_labels
from neuroprobe.exceptions import InputError
from neuroprobe.models import load_checkpoint, resolve_device
from neuroprobe.pipeline import dissect_model
from neuroprobe.world import COLORS, PATTERNS, SHAPES, world_vocabulary

LAYERS = ("conv1", "layer1", "layer2", "layer3", "layer4", "fc")
CHECKPOINT, CATEGORIES = Path("resnet18_places365.pth.tar"), Path("categories_places365.txt")
EXAMPLES = """examples:
  python examples/resnet18_places365.py --images photos/ --checkpoint resnet18_places365.pth.tar --categories categories_places365.txt
  python examples/resnet18_places365.py --offline
"""


def load_places(checkpoint: str | Path = CHECKPOINT) -> nn.Module:
    """A ResNet-18 with the weights of a file in the format of Places365, in evaluation mode."""
    model: nn.Module = get_model("resnet18", weights=None, num_classes=365)
    return load_checkpoint(model, checkpoint).eval()


def read_categories(path: str | Path = CATEGORIES) -> list[str]:
    """The names of the classes by number: "/a/apartment_building/outdoor 8" is "apartment building outdoor"."""
    try:
        lines = [line.split() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise InputError(f"Expected the list of Places' classes, but {str(path)!r} cannot be read: {error.strerror}.") from error
    if [line[1:] for line in lines] != [[str(i)] for i in range(365)]:
        raise InputError(f"Expected 365 lines such as '/a/airfield 0', numbered from 0, but {str(path)!r} is something else.")
    return [name[3:].replace("/", " ").replace("_", " ") for name, _ in lines]


def write_stand_ins(folder: Path) -> tuple[Path, Path]:
    """A checkpoint of random weights and a list of classes, in the formats of Places365."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.DataParallel(get_model("resnet18", weights=None, num_classes=365))
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save({"epoch": 0, "arch": "resnet18", "state_dict": state, "best_prec1": 0.0}, folder / CHECKPOINT)
    names = ("_".join(names) for names in islice(product(PATTERNS, COLORS, SHAPES), 365))
    (folder / CATEGORIES).write_text("".join(f"/{name[0]}/{name} {i}\n" for i, name in enumerate(names)), encoding="utf-8")
    return folder / CHECKPOINT, folder / CATEGORIES


def name_units(arguments: argparse.Namespace) -> None:
    """Label every unit, and judge the labels of fc."""
    images, encoder = load_images(arguments), load_encoder(arguments)
    judges = text_encoders(arguments, clip=encoder)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, categories = write_stand_ins(Path(folder)) if arguments.offline else (CHECKPOINT, CATEGORIES)
        model, classes = load_places(arguments.checkpoint or checkpoint), read_categories(arguments.categories or categories)
    words = world_vocabulary() if arguments.offline else Vocabulary.from_words(classes, group="Places365")
    report = dissect_model(
        model.to(resolve_device(arguments.device)),
        images,
        ConceptSource(encoder, Vocabulary.from_file(arguments.words) if arguments.words else words),
        layers=LAYERS,
        transform=get_model_weights("resnet18").IMAGENET1K_V1.transforms(),  # Places' own preparation is the same
        similarity=arguments.similarity,
        false_discovery_rate=arguments.false_discovery_rate,
        page=arguments.out,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
    )
    save(report, arguments.out)
    print("fc against the names of the classes:")
    save(evaluate_labels(report, {"fc": classes}, encoder=judges), arguments.out / "evaluation")


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = example_parser(__doc__, out="places365-labels", count=300)
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help=f"of Places365 (default: {CHECKPOINT}; offline: random)")
    parser.add_argument("--categories", type=Path, metavar="FILE", help=f"of Places365 (default: {CATEGORIES}; offline: made)")
    add_labeling(parser)
    add_sentences(parser)
    parser.epilog = EXAMPLES
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example and return its exit code."""
    return run(name_units, build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
