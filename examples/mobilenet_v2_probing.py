"""The probing blog, end to end: which of MobileNetV2's 19 modules know a color, a pattern or a sex, and since when.

CLIP ranks the images by each of nine concepts ("This image has a concept: red", a softmax within the concept's group). The likeliest
100 are the concept's positives, 200 others its negatives. From every module three probes read every concept: linear and nonlinear on
the averaged maps, nonlinear on the whole maps; 30 % of the images are held out, once per seed. With several checkpoints this is done
for each, in the order given. Beside the report stand the tables in the blog's style, and a what-where-when picture for every probe.

Offline: the world's small MobileNetV2 with the same 19 modules at four moments of its training, rendered images, the world's CLIP.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from common import add_weights, chosen_weights, example_parser, load_encoder, load_images, run, save

from neuroprobe import ConceptSource, ProbeReport, Vocabulary
from neuroprobe.exceptions import InputError
from neuroprobe.models import load_model, resolve_device
from neuroprobe.pipeline import probe_model
from neuroprobe.probing import BLOG_PROBES
from neuroprobe.world import target_checkpoints, target_with_transform

WEIGHTS = "IMAGENET1K_V1"
MOMENTS = ("step_00000", "step_00400", "step_01000", "step_05000")  # of the training of the world's network, offline
LAYERS = tuple(f"features.{i}" for i in range(19))
EXAMPLES = """examples:
  python examples/mobilenet_v2_probing.py --images photos/
  python examples/mobilenet_v2_probing.py --images photos/ --weights none --checkpoints epoch_000.pt epoch_030.pt epoch_060.pt
  python examples/mobilenet_v2_probing.py --offline
"""


def probe(arguments: argparse.Namespace) -> None:
    """Probe every module for every concept, and write tables and pictures."""
    checkpoints = by_name(arguments.checkpoints)
    if arguments.offline and not arguments.weights:
        model, transform = target_with_transform()
        checkpoints = checkpoints or {name: target_checkpoints()[name] for name in MOMENTS}
    else:
        model, transform = load_model("mobilenet_v2", weights=chosen_weights(arguments, WEIGHTS))
    report = probe_model(
        model.to(resolve_device(arguments.device)),
        load_images(arguments),
        ConceptSource(load_encoder(arguments), Vocabulary.probing_blog()),
        layers=LAYERS,
        transform=transform,
        n_positive=arguments.positives,
        n_negative=arguments.negatives,
        checkpoints=checkpoints,
        seeds=range(arguments.seeds),
        store=arguments.store,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        n_jobs=-1,
    )
    save(report, arguments.out)
    report.to_html(arguments.out)
    draw(report, arguments.out)


def by_name(files: Sequence[Path] | None) -> Mapping[str, Path] | None:
    """Checkpoints by the stem of their file."""
    named = {path.stem: path for path in files or ()}
    if len(named) < len(files or ()):
        raise InputError("Expected checkpoint files of different names, but some are alike. Rename them.")
    return named or None


def draw(report: ProbeReport, folder: Path) -> None:
    """The blog's tables, the accuracy along the modules at the last checkpoint, and what-where-when for every probe."""
    report.to_markdown(folder / "blog_tables.md", style="blog")
    report.plot_layers().savefig(folder / "layers.png", dpi=110)
    pictures = [f"what_where_when_{kind}_{features}.png" for kind, features in BLOG_PROBES]
    for (kind, features), picture in zip(BLOG_PROBES, pictures, strict=True):
        report.plot_what_where_when(kind=kind, features=features).savefig(folder / picture, dpi=110)
    print("And: " + ", ".join(str(folder / name) for name in ("blog_tables.md", "layers.png", *pictures)))


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = example_parser(__doc__, out="mobilenet-v2-probes", count=600)
    add_weights(parser, WEIGHTS, offline="the world's network")
    parser.add_argument("--checkpoints", type=Path, nargs="+", metavar="FILE", help="state dicts to probe in turn instead of the weights")
    parser.add_argument("--positives", type=int, default=100, help="likeliest images per concept (default: %(default)s)")
    parser.add_argument("--negatives", type=int, default=200, help="others per concept, at random (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="splits of every concept's images (default: %(default)s)")
    parser.add_argument("--store", type=Path, metavar="DIR", help="keep finished cells there, and go on from there if cut off")
    parser.epilog = EXAMPLES
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example and return its exit code."""
    return run(probe, build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
