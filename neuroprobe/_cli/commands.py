"""The command line: ``neuroprobe demo | dissect | probe | layers | doctor``; its options are in `options.py`.

Exit codes: 0, done; 2, something in the input is not as it must be, or the model or its transform raises (one line on
standard error says what); 130, interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from neuroprobe._cli.options import COMMANDS, build_parser, command_parser
from neuroprobe._cli.run_file import read_run, write_run
from neuroprobe.exceptions import InputError, NeuroprobeError, UnknownNameError, suggest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import nn

    from neuroprobe.concepts import ConceptSource, Vocabulary
    from neuroprobe.images import Images, Transform
    from neuroprobe.models import Site
    from neuroprobe.reports import Report


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S", level=arguments.log_level.upper())
        _RUN[arguments.command](arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads the output has enough of it, as in `neuroprobe layers resnet50 | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be written at the exit goes nowhere
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


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options that are typed, those of a file (``--config``) where they are not, and the defaults for the rest.

    Raises
    ------
    NeuroprobeError
        A file of options that is none, or does not fit the command.
    """
    parser = build_parser()
    filed: dict[argparse.Action, Any] = {}
    where = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    where.add_argument("--config")
    config = where.parse_known_args(list(argv[1:]))[0].config if argv and argv[0] in COMMANDS else None
    if config is not None:
        command = command_parser(parser, argv[0])
        filed = read_run(config, command, argv[0])
        for action, value in filed.items():
            action.required = False
            if not action.option_strings:
                action.nargs = "?"
            if not isinstance(action, argparse._AppendAction):  # which would add what is typed to the file's
                action.default = value
    found = parser.parse_args(argv)
    for action, value in filed.items():
        if getattr(found, action.dest) is None:
            setattr(found, action.dest, value)
    return found


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


def _demo(arguments: argparse.Namespace) -> None:
    from neuroprobe._cli.demo import run_demo

    run_demo(arguments.out, n_images=arguments.images, seed=arguments.seed, say=print)
    _write_run(arguments)


def _layers(arguments: argparse.Namespace) -> None:
    import pandas as pd

    from neuroprobe.models import block_layers, list_layers, load_model

    model, transform = load_model(arguments.model, weights=_weights(arguments))
    table = list_layers(model, _gray_image(transform))
    if not arguments.all:
        table = table[table["name"].isin(block_layers(model))]
    with pd.option_context("display.max_rows", None, "display.max_colwidth", None, "display.width", None):
        print(table.to_string(index=False, na_rep="?"))
    if not arguments.all:
        print("These are the blocks; --all lists every module.")


def _gray_image(transform: Transform) -> torch.Tensor:
    """A batch of one image, as a model gets it."""
    from PIL import Image

    return transform(Image.new("RGB", (256, 256), (128, 128, 128))).unsqueeze(0)


def _doctor(arguments: argparse.Namespace) -> None:
    from neuroprobe._cli.doctor import examine

    print("\n".join(examine()))


def _dissect(arguments: argparse.Namespace) -> None:
    from neuroprobe.images import process_group

    with process_group() as distributed:
        _dissect_in(arguments, distributed)


def _dissect_in(arguments: argparse.Namespace, distributed: bool) -> None:
    from neuroprobe.images import rank_and_size
    from neuroprobe.pipeline import dissect_model

    vocabulary = _vocabulary(arguments.words, arguments.template, arguments.duplicates)
    images, source, model, transform = _inputs(arguments, vocabulary)
    report = dissect_model(
        model,
        images,
        source,
        layers=_sites(arguments),
        layout=arguments.layout,
        transform=transform,
        pooling=arguments.pooling,
        similarity=arguments.similarity,
        false_discovery_rate=arguments.false_discovery_rate,
        n_null=arguments.null_units,
        n_bootstrap=arguments.resamples,
        device=arguments.device,
        store=arguments.store,
        page=None if arguments.no_page else arguments.out,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        distributed=distributed,
    )
    if rank_and_size(distributed)[0] == 0:
        _save(report, arguments)


def _probe(arguments: argparse.Namespace) -> None:
    from neuroprobe.concepts import ConceptGroup, Vocabulary
    from neuroprobe.images import started_by_torchrun
    from neuroprobe.pipeline import probe_model

    if started_by_torchrun():
        raise InputError("Expected one process for `neuroprobe probe`, but torchrun started several. Start it alone: --workers, --jobs.")
    vocabulary = Vocabulary.probing_blog()
    if arguments.words:
        listed = [(path.stem, Vocabulary.from_file(path, duplicates=arguments.duplicates).names) for path in arguments.words]
        vocabulary = Vocabulary([ConceptGroup(group, tuple(n for n in names if n != "none"), none="none") for group, names in listed])
    images, source, model, transform = _inputs(arguments, vocabulary)
    report = probe_model(
        model,
        images,
        source,
        layers=_sites(arguments),
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
    if not arguments.no_page:
        report.to_html(arguments.out)
    _save(report, arguments)


def _inputs(arguments: argparse.Namespace, vocabulary: Vocabulary) -> tuple[Images, ConceptSource, nn.Module, Transform]:
    """What both commands need; the cheap checks come first."""
    from neuroprobe._core import check_writable
    from neuroprobe.concepts import ConceptSource, load_encoder
    from neuroprobe.images import Images
    from neuroprobe.models import check_sites, load_model, resolve_device

    check_writable(arguments.out)
    device = resolve_device(arguments.device)
    images = Images(arguments.images, on_error=arguments.on_error)
    model, transform = load_model(arguments.model, weights=_weights(arguments))
    check_sites(model, _sites(arguments))
    source = ConceptSource(load_encoder(arguments.clip, device=device, trust=arguments.trust), vocabulary, text_cache=arguments.text_cache)
    return images, source, model.to(device), transform


def _sites(arguments: argparse.Namespace) -> list[str | Site]:
    """The layers, and then the sites, in the order in which they were typed."""
    found = [*(arguments.layers or ()), *map(_site, arguments.site or ())]
    if not found:
        raise InputError("Expected --layers or --site, but got neither. `neuroprobe layers MODEL` lists a model's layers.")
    return found


def _site(text: str) -> Site:
    """A site as it is typed, such as encoder.ln,tokens=class_token."""
    from neuroprobe.models import Directions, Site

    layer, *rest = text.split(",")
    fields = dict(part.partition("=")[::2] for part in rest)
    keys = [field.name for field in dataclasses.fields(Site) if field.name != "layer"]
    if unknown := [key for key in fields if key not in keys]:
        raise UnknownNameError(f"Expected a site as LAYER,KEY=VALUE,..., but got {unknown[0]!r} in {text!r}. {suggest(unknown[0], keys)}")
    if len(fields) < len(rest):
        raise InputError(f"Expected every KEY=VALUE of a site once, but got one twice in {text!r}. Give --site once per site.")
    numbers = {key: int(value) for key, value in fields.items() if key in ("call", "select") and value.isdecimal()}
    values: dict[str, Any] = {**fields, **numbers}
    if "basis" in values:
        values["basis"] = Directions(_matrix(Path(values["basis"])))
    return Site(layer, **values)


def _matrix(path: Path) -> npt.NDArray[np.float32]:
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"Expected a basis as a file that np.save wrote, a matrix [k, d], but {str(path)!r} is none: {error}.") from error


def _vocabulary(words: str, template: str, duplicates: Literal["raise", "drop"]) -> Vocabulary:
    from neuroprobe.concepts import Vocabulary

    templates = (template,) if "{" in template else template
    kind, _, rest = words.partition(":")
    if kind == "weights" and rest:
        return Vocabulary.from_weights(rest, templates=templates)
    if kind == "frequent" and rest:
        if not rest.isdecimal():
            raise InputError(f"Expected frequent:N with a number of words, but got {words!r}.")
        return Vocabulary.from_frequency(int(rest), templates=templates)
    return Vocabulary.from_file(words, templates=templates, duplicates=duplicates)


def _named(checkpoints: Sequence[Path] | None) -> dict[str, Path] | None:
    """Checkpoints by the stem of their file."""
    if not checkpoints:
        return None
    named = {path.stem: path for path in checkpoints}
    if len(named) < len(checkpoints):
        raise InputError(f"Expected checkpoint files of different names, but got {', '.join(map(str, checkpoints))}. Rename some.")
    return named


def _weights(arguments: argparse.Namespace) -> str | None:
    return None if arguments.weights.lower() == "none" else str(arguments.weights)


def _save(report: Report, arguments: argparse.Namespace) -> None:
    paths = [*report.save(arguments.out), _write_run(arguments)]
    page = arguments.out / "index.html"
    print(report.summary())
    print("Written: " + ", ".join(str(path) for path in paths))
    if skipped := _skipped(report.metadata):
        print(f"Left out: {len(skipped)} images that cannot be read, such as {skipped[0]}. All stand in {report.name}.json.")
    if not arguments.no_page:
        print(f"Open {page} in a browser.")


def _skipped(metadata: Mapping[str, Any]) -> list[str]:
    """The images that were left out, of either report."""
    read = metadata.get("activations") or metadata.get("concept_sets") or {}
    return list(read.get("skipped", ()))


def _write_run(arguments: argparse.Namespace) -> Path:
    return write_run(arguments.out, command_parser(build_parser(), arguments.command), arguments)


_RUN = {"demo": _demo, "dissect": _dissect, "probe": _probe, "layers": _layers, "doctor": _doctor}

if __name__ == "__main__":
    sys.exit(main())
