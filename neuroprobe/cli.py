"""The command line: ``neuroprobe demo | dissect | probe``.

Exit codes: 0, done; 2, something in the input is not as it must be, or the model or its transform raises (one line on
standard error says what); 130, interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import neuroprobe
from neuroprobe.exceptions import InputError, NeuroprobeError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from neuroprobe.collection import Transform
    from neuroprobe.concepts import ConceptSource
    from neuroprobe.encoders import ImageTextEncoder
    from neuroprobe.images import Images
    from neuroprobe.report import Report
    from neuroprobe.vocabulary import Vocabulary

_DISSECT_EXAMPLE = """example:
  neuroprobe dissect resnet50 --layers layer3 layer4 --images photos/ --words words.txt --clip ViT-B/16
"""
_PROBE_EXAMPLE = """example:
  neuroprobe probe mobilenet_v2 --layers features.1 features.18 --images photos/ --clip ViT-B/16
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        arguments.run(arguments)
    except (NeuroprobeError, OSError) as error:
        print(f"neuroprobe: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("neuroprobe: interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # the user's model and transform can raise anything, and we have mistakes too
        print(f"neuroprobe: {_told(error)}", file=sys.stderr)
        return 2
    return 0


def _told(error: Exception) -> str:
    """An exception that is none of ours, in one line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = str(error)
    if "Original Traceback" in text:  # what a process that reads images passes on
        text = text.strip().splitlines()[-1]
    return (
        f"Expected the model, its transform and neuroprobe itself to run, but {Path(place.filename).name}, line {place.lineno}, "
        f"raised {type(error).__name__}: {' '.join(text.split())}. The same from Python shows the whole traceback."
    )


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="neuroprobe", description="Probe and name the neurons of a vision model with concepts from CLIP.")
    parser.add_argument("--version", action="version", version=f"neuroprobe {neuroprobe.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_demo(commands)
    _add_dissect(commands)
    _add_probe(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("demo", help="the whole path on the offline world, in about a minute")
    parser.add_argument(
        "--out", type=Path, default=Path("neuroprobe-demo"), help="folder for tables, figures and pages (default: %(default)s)"
    )
    parser.add_argument("--images", type=int, default=1000, help="how many images to render, 300 or more (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the images, the sets and the splits (default: %(default)s)")
    parser.set_defaults(run=_demo)


def _add_dissect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "dissect",
        help="name every unit of some layers",
        description="Name every unit of some layers with the concept it responds to.",
        epilog=_DISSECT_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_common(parser, out="neuroprobe-labels")
    parser.add_argument(
        "--words",
        required=True,
        metavar="LIST",
        help="a file (UTF-8, one concept per line); weights:NAME for the class names of torchvision weights (weights:resnet50); "
        "frequent:N for the N most frequent English words (needs the extra `words`)",
    )
    parser.add_argument(
        "--template", default="{}", help="prompt with one {} for the word, or the name of a set such as clip-7 (default: the word alone)"
    )
    parser.add_argument("--similarity", default="peak_correlation", help="similarity function (default: %(default)s)")
    parser.add_argument(
        "--false-discovery-rate",
        type=float,
        default=0.05,
        metavar="Q",
        help="units with a larger q-value get no label (default: %(default)s)",
    )
    parser.add_argument(
        "--null-units", type=int, metavar="N", help="per layer, for p-values; 0 for none (default: as many as it has units, 1000 to 5000)"
    )
    parser.add_argument(
        "--resamples", type=int, default=20, metavar="N", help="of the images, for the labels' stability; 0 for none (default: %(default)s)"
    )
    parser.add_argument(
        "--pooling", default="mean", choices=("mean", "max", "class_token", "mean_tokens"), help="over positions (default: %(default)s)"
    )
    parser.add_argument(
        "--store", type=Path, metavar="DIR", help="keep the activations there, and go on from there if cut off (default: in memory)"
    )
    parser.set_defaults(run=_dissect)


def _add_probe(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "probe",
        help="measure which layers know which concepts",
        description="Rank the images by concept, and measure how well probes read each concept from each layer.",
        epilog=_PROBE_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_common(parser, out="neuroprobe-probes")
    parser.add_argument(
        "--words", type=Path, action="append", metavar="FILE",
        help='word list of one group of concepts that exclude each other, to which "none" is added; give it once per group '
        "(default: the probing blog's groups colour, pattern and sex)",
    )  # fmt: skip
    parser.add_argument("--positives", type=int, default=100, help="likeliest images per concept (default: %(default)s)")
    parser.add_argument("--negatives", type=int, default=200, help="others per concept (default: %(default)s)")
    parser.add_argument(
        "--negatives-from",
        default="random",
        choices=("random", "least_likely", "group"),
        help="which others: at random, the least likely, or the likeliest of the group's other concepts (default: %(default)s)",
    )
    parser.add_argument("--gap", type=int, default=0, help="images left out behind the positives in the ranking (default: %(default)s)")
    parser.add_argument(
        "--scopes", nargs="+", default=["layer"], choices=("neuron", "layer", "full"), help="what one probe may read (default: layer)"
    )
    parser.add_argument("--controls", type=int, default=0, help="control labellings per split, for selectivity (default: none)")
    parser.add_argument("--held-out", type=float, default=0.3, help="share of each class kept for the test (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), help="one split each (default: 0 to 4)")
    parser.add_argument("--checkpoints", type=Path, nargs="+", metavar="FILE", help="state dicts to probe in turn instead of the weights")
    parser.add_argument("--jobs", type=int, default=-1, help="threads that fit probes (default: one per processor)")
    parser.add_argument(
        "--store", type=Path, metavar="DIR", help="keep finished cells there, and go on from there if cut off (default: none are kept)"
    )
    parser.set_defaults(run=_probe)


def _add_common(parser: argparse.ArgumentParser, *, out: str) -> None:
    parser.add_argument("model", help="a torchvision model's name, or module:function that returns a model (or a model and its transform)")
    parser.add_argument(
        "--weights",
        default="DEFAULT",
        help="name of torchvision weights, a file with a state dict, or none for random (default: %(default)s)",
    )
    parser.add_argument("--layers", nargs="+", required=True, metavar="LAYER", help="exact module names, as in model.named_modules()")
    parser.add_argument(
        "--layout",
        choices=("nchw", "nhwc", "nlc", "lnc"),
        help="where the units are in a layer's output (default: from the modules' types)",
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images, searched recursively")
    parser.add_argument(
        "--on-error", default="raise", choices=("raise", "skip"), help="what to do with a file that is no image (default: %(default)s)"
    )
    parser.add_argument(
        "--clip",
        required=True,
        metavar="MODEL",
        help="a CLIP model such as ViT-B/16, or a checkpoint file of one; open_clip:MODEL/PRETRAINED (needs the extra `openclip`); "
        "transformers:NAME_OR_FOLDER of a CLIP or SigLIP (needs the extra `transformers`)",
    )
    parser.add_argument("--text-cache", type=Path, metavar="DIR", help="keep the texts' vectors there (default: computed each time)")
    parser.add_argument("--trust", action="store_true", help="also load a TorchScript archive, which can run code, for --clip")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per batch (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images (default: none beside this one)")
    parser.add_argument("--out", type=Path, default=Path(out), metavar="DIR", help="folder for the report (default: %(default)s)")


def _demo(arguments: argparse.Namespace) -> None:
    from neuroprobe.world.demo import run_demo

    run_demo(arguments.out, n_images=arguments.images, seed=arguments.seed, say=print)


def _dissect(arguments: argparse.Namespace) -> None:
    from neuroprobe.distributed import process_group

    with process_group() as distributed:
        _dissect_in(arguments, distributed)


def _dissect_in(arguments: argparse.Namespace, distributed: bool) -> None:
    from neuroprobe.distributed import rank_and_size
    from neuroprobe.pipeline import dissect_model

    vocabulary = _vocabulary(arguments.words, arguments.template)
    images, source, model, transform = _inputs(arguments, vocabulary)
    report = dissect_model(
        model,
        images,
        source,
        layers=arguments.layers,
        layout=arguments.layout,
        transform=transform,
        pooling=arguments.pooling,
        similarity=arguments.similarity,
        false_discovery_rate=arguments.false_discovery_rate,
        n_null=arguments.null_units,
        n_bootstrap=arguments.resamples,
        store=arguments.store,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        distributed=distributed,
    )
    if rank_and_size(distributed)[0] == 0:
        _save(report, arguments.out)


def _probe(arguments: argparse.Namespace) -> None:
    from neuroprobe.pipeline import probe_model
    from neuroprobe.vocabulary import ConceptGroup, Vocabulary

    vocabulary = Vocabulary.probing_blog()
    if arguments.words:
        listed = [(path.stem, Vocabulary.from_file(path).names) for path in arguments.words]
        vocabulary = Vocabulary([ConceptGroup(group, tuple(n for n in names if n != "none"), none="none") for group, names in listed])
    images, source, model, transform = _inputs(arguments, vocabulary)
    report = probe_model(
        model,
        images,
        source,
        layers=arguments.layers,
        layout=arguments.layout,
        transform=transform,
        n_positive=arguments.positives,
        n_negative=arguments.negatives,
        negatives=arguments.negatives_from,
        gap=arguments.gap,
        scopes=arguments.scopes,
        controls=arguments.controls,
        store=arguments.store,
        checkpoints=_named(arguments.checkpoints),
        seeds=arguments.seeds,
        held_out=arguments.held_out,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        n_jobs=arguments.jobs,
    )
    _save(report, arguments.out)


def _inputs(arguments: argparse.Namespace, vocabulary: Vocabulary) -> tuple[Images, ConceptSource, nn.Module, Transform]:
    """What both commands need; the cheap checks come first."""
    from neuroprobe.concepts import ConceptSource
    from neuroprobe.images import Images
    from neuroprobe.models import load_model
    from neuroprobe.modes import resolve_device
    from neuroprobe.recorder import check_layers
    from neuroprobe.report import check_writable

    check_writable(arguments.out)
    device = resolve_device(arguments.device)
    images = Images(arguments.images, on_error=arguments.on_error)
    weights = None if arguments.weights.lower() == "none" else arguments.weights
    model, transform = load_model(arguments.model, weights=weights)
    check_layers(model, arguments.layers)
    source = ConceptSource(_encoder(arguments.clip, device, trust=arguments.trust), vocabulary, text_cache=arguments.text_cache)
    return images, source, model.to(device), transform


def _encoder(name: str, device: torch.device, *, trust: bool) -> ImageTextEncoder:
    from neuroprobe.encoders import ClipEncoder, OpenClipEncoder, TransformersEncoder

    kind, _, rest = name.partition(":")
    if kind == "open_clip" and rest:
        model, _, pretrained = rest.rpartition("/")
        if not model:
            raise InputError(f"Expected open_clip:MODEL/PRETRAINED, such as open_clip:ViT-B-32/laion2b_s34b_b79k, but got {name!r}.")
        return OpenClipEncoder(model, pretrained=pretrained, device=device)
    if kind == "transformers" and rest:
        return TransformersEncoder(rest, device=device)
    return ClipEncoder(name, device=device, trust=trust)


def _vocabulary(words: str, template: str) -> Vocabulary:
    from neuroprobe.vocabulary import Vocabulary

    templates = (template,) if "{" in template else template
    kind, _, rest = words.partition(":")
    if kind == "weights" and rest:
        return Vocabulary.from_weights(rest, templates=templates)
    if kind == "frequent" and rest:
        if not rest.isdecimal():
            raise InputError(f"Expected frequent:N with a number of words, but got {words!r}.")
        return Vocabulary.from_frequency(int(rest), templates=templates)
    return Vocabulary.from_file(words, templates=templates)


def _named(checkpoints: Sequence[Path] | None) -> dict[str, Path] | None:
    """Checkpoints by the stem of their file."""
    if not checkpoints:
        return None
    named = {path.stem: path for path in checkpoints}
    if len(named) < len(checkpoints):
        raise InputError(f"Expected checkpoint files of different names, but got {', '.join(map(str, checkpoints))}. Rename some.")
    return named


def _save(report: Report, folder: Path) -> None:
    paths = report.save(folder)
    print(report.summary())
    print("Written: " + ", ".join(str(path) for path in paths))


if __name__ == "__main__":
    sys.exit(main())
