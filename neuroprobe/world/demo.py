"""The demo: the whole path on the offline world, where the truth is known."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from neuroprobe.concepts import ConceptSource
from neuroprobe.encoders import ClipEncoder
from neuroprobe.exceptions import InputError
from neuroprobe.images import Images
from neuroprobe.pipeline import dissect_model, probe_model
from neuroprobe.probe_report import ProbeReport
from neuroprobe.report import LabelReport, check_writable
from neuroprobe.study import check_seeds
from neuroprobe.vocabulary import Vocabulary
from neuroprobe.world import CLIP_PATH, world_vocabulary
from neuroprobe.world.images import world_images
from neuroprobe.world.scenes import ATTRIBUTES
from neuroprobe.world.target import LAYERS, load_target, target_checkpoints, target_transform

HEAD = LAYERS[-1]
MODULES = LAYERS[:-1]

#: Splits of every concept's images.
N_SEEDS = 3

#: Fewer images hold too few of each concept for sets of it.
FEWEST_IMAGES = 300


def run_demo(
    out: Path, *, n_images: int = 1000, seed: int = 0, say: Callable[[str], None] = lambda text: None
) -> tuple[LabelReport, ProbeReport]:
    """Name every unit of the world's target, probe its layers, and write both reports.

    Parameters
    ----------
    out : Path
        Folder for tables, figures and pages.
    n_images : int, default 1000
        At least 300.
    seed : int, default 0
        Of the images, the concept sets and the splits.
    say : callable, optional
        Gets a line of text at a time.

    Returns
    -------
    LabelReport, ProbeReport

    Raises
    ------
    InputError
        Too few images, no such seed, or a folder that cannot be written to.
    """
    if n_images < FEWEST_IMAGES:
        raise InputError(f"Expected at least {FEWEST_IMAGES} images, so that every concept is in some, but got {n_images}.")
    check_seeds([seed])
    check_writable(out)
    started = time.perf_counter()
    images = world_images(n_images, seed=seed)
    encoder = ClipEncoder(CLIP_PATH)
    say(f"The offline world: {n_images} rendered images, a small CLIP, and a MobileNetV2 with {len(ATTRIBUTES)} outputs.")
    labels = name_units(images, encoder)
    n_right = count_true_names(labels)
    say(f"Named: {labels.summary()}.")
    say(f"Of the head's {len(ATTRIBUTES)} units, whose truth is known, {n_right} got their true name ({n_right / len(ATTRIBUTES):.0%}).")
    probes = probe_layers(images, encoder, seed=seed)
    for line in summarise(probes):
        say(line)
    paths = [*labels.save(out), *probes.save(out)]
    say(f"Written to {out}: {', '.join(path.name for path in paths)}")
    say(f"Took {time.perf_counter() - started:.0f} s. Open {out / 'labels.html'} and {out / 'probes.html'} in a browser.")
    say("Next, your own model and photographs: neuroprobe dissect --help, neuroprobe probe --help")
    return labels, probes


def name_units(images: Images, encoder: ClipEncoder) -> LabelReport:
    """A label for every unit of the trained target's 19 modules and its head."""
    source = ConceptSource(encoder, world_vocabulary())
    return dissect_model(load_target(), images, source, layers=LAYERS, transform=target_transform())


def probe_layers(images: Images, encoder: ClipEncoder, *, seed: int) -> ProbeReport:
    """The blog's three probes for its nine concepts in the 19 modules and all together, and every unit by itself, untrained and trained."""
    files = target_checkpoints()
    first, last = min(files), max(files)
    n_positive = min(100, len(images) // 10)
    return probe_model(
        load_target(last),
        images,
        ConceptSource(encoder, Vocabulary.probing_blog()),
        layers=MODULES,
        transform=target_transform(),
        n_positive=n_positive,
        n_negative=2 * n_positive,
        scopes={"layer": ["linear", "nonlinear"], "neuron": ["linear"], "full": ["linear", "nonlinear"]},
        checkpoints={"untrained": files[first], "trained": files[last]},
        seeds=range(seed, seed + N_SEEDS),
        n_jobs=-1,
    )


def count_true_names(labels: LabelReport) -> int:
    """How many of the head's units are named what they were trained for."""
    return sum(labels.label(HEAD, unit) == name for unit, name in enumerate(ATTRIBUTES))


def summarise(probes: ProbeReport) -> list[str]:
    """A line per checkpoint: how far the probes of the late modules are above the baseline."""
    table = probes.table
    late = table[table["layer"].isin(MODULES[-5:]) & (table["scope"] == "layer")]
    gain = (late["test_accuracy"] - late["baseline"]).groupby(late["checkpoint"], sort=False).mean()
    return [
        f"Probes: {probes.summary()}.",
        *(f"In the last five modules of the {name} target, probes are {value:+.3f} from the baseline." for name, value in gain.items()),
    ]
