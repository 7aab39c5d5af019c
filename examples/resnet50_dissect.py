"""Name the units of an ImageNet ResNet-50, as CLIP-Dissect's quickstart does, and judge the names of its output units.

The layers are conv1, layer1 to layer4, and fc. An output unit's right name is known, the class, so the labels of fc are compared with
the class names: which are equal, and how close the others are, as the cosine of both texts' vectors in CLIP and, with --sentences, in
a sentence encoder (CLIP-Dissect, ICLR 2023, section 4; it takes mpnet, 20,000 words and the images of Broden and ImageNet).

Offline: random weights, rendered images, the world's CLIP and the world's 31 concepts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from common import add_labeling, add_weights, chosen_weights, example_parser, load_encoder, load_images, load_words, run, save
from sentences import add_sentences, text_encoders
from torchvision.models import get_model_weights

from neuroprobe import ConceptSource, evaluate_labels
from neuroprobe.models import load_model, resolve_device
from neuroprobe.pipeline import dissect_model

WEIGHTS = "IMAGENET1K_V1"  # those of the paper; V2 are trained for longer
LAYERS = ("conv1", "layer1", "layer2", "layer3", "layer4", "fc")
EXAMPLES = """examples:
  python examples/resnet50_dissect.py --images photos/
  python examples/resnet50_dissect.py --images photos/ --words 20k.txt --similarity soft_wpmi --false-discovery-rate 1 \\
      --sentences all-mpnet-base-v2
  python examples/resnet50_dissect.py --offline
"""


def name_units(arguments: argparse.Namespace) -> None:
    """Label every unit, and judge the labels of fc."""
    images, encoder = load_images(arguments), load_encoder(arguments)
    judges = text_encoders(arguments, clip=encoder)
    model, transform = load_model("resnet50", weights=chosen_weights(arguments, WEIGHTS))
    report = dissect_model(
        model.to(resolve_device(arguments.device)),
        images,
        ConceptSource(encoder, load_words(arguments, "resnet50")),
        layers=LAYERS,
        transform=transform,
        similarity=arguments.similarity,
        false_discovery_rate=arguments.false_discovery_rate,
        page=arguments.out,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
    )
    save(report, arguments.out)
    classes: list[str] = get_model_weights("resnet50").DEFAULT.meta["categories"]
    print("fc against the class names:")
    save(evaluate_labels(report, {"fc": classes}, encoder=judges), arguments.out / "evaluation")


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = example_parser(__doc__, out="resnet50-labels", count=150)
    add_weights(parser, WEIGHTS)
    add_labeling(parser)
    add_sentences(parser)
    parser.epilog = EXAMPLES
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example and return its exit code."""
    return run(name_units, build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
