"""What the examples share: their common options, what ``--offline`` puts in the place of downloads, and how an error is told.

With ``--offline``, images rendered by `neuroprobe.world` take the place of a folder of photographs, and the world's small CLIP that
of OpenAI's. Which network takes the place of the pretrained one stands in each example.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from neuroprobe import ClipEncoder, Images, Report, Vocabulary
from neuroprobe._core import check_writable
from neuroprobe.exceptions import NeuroprobeError
from neuroprobe.models import resolve_device
from neuroprobe.world import CLIP_PATH, world_images, world_vocabulary


def example_parser(description: str | None, *, out: str, count: int) -> argparse.ArgumentParser:
    """A parser with the options of every example; `count` is how many images are rendered with --offline."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, metavar="DIR", help="folder of images, searched recursively")
    source.add_argument("--offline", action="store_true", help="download nothing: rendered images, the world's CLIP, see above")
    parser.add_argument("--on-error", default="raise", choices=("raise", "skip"), help="a file that is no image (default: %(default)s)")
    parser.add_argument("--images-count", type=int, default=count, metavar="N", help="rendered with --offline (default: %(default)s)")
    parser.add_argument("--clip", metavar="MODEL", help="a CLIP model, or a checkpoint file of one (default: ViT-B/16)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per batch (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images (default: none beside this one)")
    parser.add_argument("--out", type=Path, default=Path(out), metavar="DIR", help="folder for what is written (default: %(default)s)")
    return parser


def add_labeling(parser: argparse.ArgumentParser) -> None:
    """The options of the examples that name units."""
    parser.add_argument("--words", type=Path, metavar="FILE", help="one concept per line (default: the class names; offline: the world's)")
    parser.add_argument("--similarity", default="peak_correlation", help="soft_wpmi is CLIP-Dissect's (default: %(default)s)")
    parser.add_argument(
        "--false-discovery-rate",
        type=float,
        default=0.05,
        metavar="Q",
        help="units with a larger q-value get no label; 1 names all, as CLIP-Dissect does (default: %(default)s)",
    )


def add_weights(parser: argparse.ArgumentParser, weights: str, *, offline: str = "none") -> None:
    """The option of the examples whose model is one of torchvision's."""
    what = f"of torchvision, a file, or none for random (default: {weights}; offline: {offline})"
    parser.add_argument("--weights", metavar="NAME", help=what)


def chosen_weights(arguments: argparse.Namespace, weights: str) -> str | None:
    """What `neuroprobe.models.load_model` takes as weights; None, random ones, is the default with --offline."""
    given = arguments.weights or ("none" if arguments.offline else weights)
    return None if given.lower() == "none" else str(given)


def load_images(arguments: argparse.Namespace) -> Images:
    """The user's folder, or rendered images."""
    return world_images(arguments.images_count) if arguments.offline else Images(arguments.images, on_error=arguments.on_error)


def load_encoder(arguments: argparse.Namespace) -> ClipEncoder:
    """CLIP by name or file, or the world's."""
    return ClipEncoder(arguments.clip or (CLIP_PATH if arguments.offline else "ViT-B/16"), device=resolve_device(arguments.device))


def load_words(arguments: argparse.Namespace, model: str) -> Vocabulary:
    """The words of the file; without one the class names of a torchvision model, or offline what the world's CLIP knows."""
    if arguments.words:
        return Vocabulary.from_file(arguments.words)
    return world_vocabulary() if arguments.offline else Vocabulary.from_weights(model)


def save(report: Report, folder: Path) -> None:
    """Write a report's table, figure and page, and print its summary."""
    paths = report.save(folder)
    print(report.summary())
    print("Written: " + ", ".join(str(path) for path in paths))


def run(example: Callable[[Any], None], parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Run an example: 0 when it is done; 2 and one line on standard error when something in the input is not as it must be."""
    arguments = parser.parse_args(argv)
    try:
        check_writable(arguments.out)
        if arguments.offline:
            print("Offline: what is printed shows the steps on rendered images; it says nothing about photographs.")
        example(arguments)
    except (NeuroprobeError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
