"""Name the units of a Vision Transformer's blocks: ViT-B/16 of torchvision, by its class token, as CLIP-Dissect does.

A block's output is tokens [images, 197, 768]: the class token and 14 x 14 patches. Its units are the 768 features of a token; what one
does on an image is, with the pooling class_token, its value in the class token. --pooling mean_tokens or max ask the patches instead.

Offline: random weights, rendered images, the world's CLIP and the world's 31 concepts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from common import add_labeling, add_weights, chosen_weights, example_parser, load_encoder, load_images, load_words, run, save

from neuroprobe import ConceptSource
from neuroprobe.models import load_model, resolve_device
from neuroprobe.pipeline import dissect_model

WEIGHTS = "IMAGENET1K_V1"
LAYERS = tuple(f"encoder.layers.encoder_layer_{i}" for i in range(12))
EXAMPLES = """examples:
  python examples/vit_b_16_dissect.py --images photos/ --words 20k.txt
  python examples/vit_b_16_dissect.py --images photos/ --layers encoder.layers.encoder_layer_11 --pooling mean_tokens
  python examples/vit_b_16_dissect.py --offline
"""


def name_units(arguments: argparse.Namespace) -> None:
    """Label every unit of the blocks."""
    images, encoder = load_images(arguments), load_encoder(arguments)
    model, transform = load_model("vit_b_16", weights=chosen_weights(arguments, WEIGHTS))
    report = dissect_model(
        model.to(resolve_device(arguments.device)),
        images,
        ConceptSource(encoder, load_words(arguments, "vit_b_16")),
        layers=arguments.layers,
        transform=transform,
        pooling=arguments.pooling,
        layout="nlc",  # images, tokens, units
        similarity=arguments.similarity,
        false_discovery_rate=arguments.false_discovery_rate,
        page=arguments.out,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
    )
    save(report, arguments.out)
    named = report.table["status"].eq("named").groupby(report.table["layer"], sort=False).mean()
    print("Share of units with a name, by block:")
    print(named.to_string(header=False, float_format="{:.2f}".format))


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = example_parser(__doc__, out="vit-b-16-labels", count=80)
    add_weights(parser, WEIGHTS)
    add_labeling(parser)
    parser.add_argument("--layers", nargs="+", default=LAYERS, metavar="LAYER", help="exact module names (default: the 12 blocks)")
    parser.add_argument(
        "--pooling", default="class_token", choices=("class_token", "mean_tokens", "max"), help="over tokens (default: %(default)s)"
    )
    parser.epilog = EXAMPLES
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example and return its exit code."""
    return run(name_units, build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
