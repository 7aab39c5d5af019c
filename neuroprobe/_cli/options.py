"""The options of the command line: one parser, a command each for `demo`, `dissect`, `probe`, `layers` and `doctor`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from neuroprobe._core import __version__

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

LOG_LEVELS = ("debug", "info", "warning", "error")

_EXAMPLES = {
    "demo": "neuroprobe demo --out neuroprobe-demo",
    "dissect": "neuroprobe dissect resnet50 --layers layer3 layer4 --images photos/ --words words.txt --clip ViT-B/16",
    "probe": "neuroprobe probe mobilenet_v2 --layers features.1 features.18 --images photos/ --clip ViT-B/16",
    "layers": "neuroprobe layers mobilenet_v2",
    "doctor": "neuroprobe doctor",
}


COMMANDS = tuple(_EXAMPLES)

_EXIT_CODES = """
exit codes:
  0    done
  2    something in the input is not as it must be, or the model or its transform raises; one line says what
  130  interrupted
"""


def _path(text: str) -> Path:
    """A path as it is typed; of "", which is what an unset variable of the shell leaves, `Path` would make the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, but got ''; for the current folder write .")
    return Path(text)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="neuroprobe",
        description="Probe and name the neurons of a vision model with concepts from CLIP.",
        epilog="examples:\n" + "".join(f"  {line}\n" for line in _EXAMPLES.values()) + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"neuroprobe {__version__}")
    _add_completion(parser)
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    _add_demo(commands)
    _add_dissect(commands)
    _add_probe(commands)
    _add_layers(commands)
    _add_doctor(commands)
    return parser


def command_parser(parser: argparse.ArgumentParser, command: str) -> argparse.ArgumentParser:
    """The parser of one command."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    found: argparse.ArgumentParser = commands.choices[command]
    return found


def _add_completion(parser: argparse.ArgumentParser) -> None:
    """``--print-completion``, where the package shtab is installed."""
    try:
        import shtab
    except ImportError:
        return
    shtab.add_argument_to(parser, "--print-completion", help="print what makes a shell complete options, and exit")


def _add_command(commands: Commands, name: str, *, help: str, description: str | None = None) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=help,
        description=description or help[0].upper() + help[1:] + ".",
        epilog=f"example:\n  {_EXAMPLES[name]}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a file's keys are whole names too
    )
    parser.add_argument("--log-level", default="warning", choices=LOG_LEVELS, help="what is told on the way (default: %(default)s)")
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=_path,
        metavar="FILE",
        help="a TOML file with any of these options, such as the run.toml beside a report; what is in it need not be typed, "
        "and what is typed counts more",
    )


def _add_layers(commands: Commands) -> None:
    parser = _add_command(commands, "layers", help="list a model's layers by their exact names, with shapes and units")
    _add_model(parser, weights="none")  # names need no download
    parser.add_argument("--all", action="store_true", help="every module (default: the blocks)")


def _add_doctor(commands: Commands) -> None:
    _add_command(commands, "doctor", help="tell what is installed, which devices there are, and which weights need no download")


def _add_demo(commands: Commands) -> None:
    parser = _add_command(commands, "demo", help="the whole path on the offline world, in about a minute")
    _add_config(parser)
    parser.add_argument(
        "--out", type=_path, default=Path("neuroprobe-demo"), help="folder for tables, figures and pages (default: %(default)s)"
    )
    parser.add_argument("--images", type=int, default=1000, help="how many images to render, 300 or more (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the images, the sets and the splits (default: %(default)s)")


def _add_dissect(commands: Commands) -> None:
    parser = _add_command(
        commands,
        "dissect",
        help="name every unit of some layers",
        description="Name every unit of some layers with the concept it responds to.",
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
    parser.add_argument(
        "--similarity",
        default="peak_correlation",
        help="how a unit's activations are compared with a concept's scores: soft_wpmi and the others of docs/naming.md "
        "(default: %(default)s)",
    )
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
        "--store", type=_path, metavar="DIR", help="keep the activations there, and go on from there if cut off (default: in memory)"
    )


def _add_probe(commands: Commands) -> None:
    parser = _add_command(
        commands,
        "probe",
        help="measure which layers know which concepts",
        description="Rank the images by concept, and measure how well probes read each concept from each layer.",
    )
    _add_common(parser, out="neuroprobe-probes")
    parser.add_argument(
        "--words", type=_path, action="append", metavar="FILE",
        help='word list of one group of concepts that exclude each other, to which "none" is added; give it once per group '
        "(default: the probing blog's groups color, pattern and sex)",
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
    parser.add_argument("--controls", type=int, default=0, help="control labelings per split, for selectivity (default: none)")
    parser.add_argument("--held-out", type=float, default=0.3, help="share of each class kept for the test (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), help="one split each (default: 0 to 4)")
    parser.add_argument("--checkpoints", type=_path, nargs="+", metavar="FILE", help="state dicts to probe in turn instead of the weights")
    parser.add_argument("--jobs", type=int, default=-1, help="threads that fit probes (default: one per processor)")
    parser.add_argument(
        "--store", type=_path, metavar="DIR", help="keep finished cells there, and go on from there if cut off (default: none are kept)"
    )


def _add_common(parser: argparse.ArgumentParser, *, out: str) -> None:
    _add_config(parser)
    _add_model(parser)
    parser.add_argument("--layers", nargs="+", metavar="LAYER", help="exact module names, as in model.named_modules()")
    parser.add_argument(
        "--site", action="append", metavar="LAYER,KEY=VALUE,...",
        help="a layer read in another way, beside --layers or in their place: side=input, call=1, select=0, layout=nlc, tokens=patches, "
        "name=..., basis=FILE.npy (a matrix of directions [k, d]); give it once per site",
    )  # fmt: skip
    parser.add_argument(
        "--layout",
        choices=("nchw", "nhwc", "nlc", "lnc"),
        help="where the units are in a layer's output (default: from the modules' types)",
    )
    parser.add_argument("--images", type=_path, required=True, metavar="DIR", help="folder of images, searched recursively")
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
    parser.add_argument(
        "--duplicates",
        default="raise",
        choices=("raise", "drop"),
        help="what to do with a word that is there twice (default: %(default)s)",
    )
    parser.add_argument("--text-cache", type=_path, metavar="DIR", help="keep the texts' vectors there (default: computed each time)")
    parser.add_argument("--trust", action="store_true", help="also load a TorchScript archive, which can run code, for --clip")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per batch (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images (default: none beside this one)")
    parser.add_argument("--out", type=_path, default=Path(out), metavar="DIR", help="folder for the report (default: %(default)s)")
    parser.add_argument("--no-page", action="store_true", help="without the page to look through in a browser (index.html)")


def _add_model(parser: argparse.ArgumentParser, *, weights: str = "DEFAULT") -> None:
    parser.add_argument("model", help="a torchvision model's name, or module:function that returns a model (or a model and its transform)")
    parser.add_argument(
        "--weights",
        default=weights,
        help="name of torchvision weights, a file with a state dict, or none for random (default: %(default)s)",
    )
