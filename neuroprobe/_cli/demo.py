"""The demo: the whole path on the offline world, where the truth is known."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch import nn

from neuroprobe._core import check_writable
from neuroprobe.concepts import ClipEncoder, ConceptScores, ConceptSource, Vocabulary
from neuroprobe.effects import EffectReport, causal_effect, units_named
from neuroprobe.exceptions import InputError
from neuroprobe.images import Images
from neuroprobe.labeling import dissect
from neuroprobe.models import one_thread_each
from neuroprobe.pipeline import probe_model
from neuroprobe.probing import check_seeds
from neuroprobe.recording import ActivationRecorder, Activations, record_beside
from neuroprobe.reports import LabelReport, ProbeReport
from neuroprobe.visualization import Visualization, image_spectrum, visualize
from neuroprobe.world import (
    ATTRIBUTES,
    CLIP_PATH,
    LAYERS,
    load_target,
    target_checkpoints,
    target_transform,
    world_images,
    world_vocabulary,
)

HEAD = LAYERS[-1]
MODULES = LAYERS[:-1]

#: Of the last module: visualized, taken away.
CHOSEN = ("red", "blue", "striped")

#: Of a visualization.
STEPS = 64

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
    model = load_target()
    images = world_images(n_images, seed=seed)
    encoder = ClipEncoder(CLIP_PATH)
    say(f"The offline world: {n_images} rendered images, a small CLIP, and a MobileNetV2 with {len(ATTRIBUTES)} outputs.")
    named = name_units(model, images, encoder)
    labels = named.labels
    n_right = count_true_names(labels)
    say(f"Named: {labels.summary()}.")
    say(f"Of the head's {len(ATTRIBUTES)} units, whose truth is known, {n_right} got their true name ({n_right / len(ATTRIBUTES):.0%}).")
    probes = probe_layers(images, encoder, seed=seed)
    for line in summarize(probes):
        say(line)
    with one_thread_each():  # 64 pixels
        pictures = visualize_units(model, images, labels, seed=seed)
        effects = take_units_away(model, images, named, seed=seed)
    say(f"Visualized: {', '.join(f'{len(made)} units of {made.layer}' for made in pictures)}.")
    for effect in effects:
        say(f"Taken away: {effect.summary()}.")
    paths = [*labels.save(out), *probes.save(out)]
    pages = labels.to_html(
        out,
        images=images,
        activations=named.activations,
        probes=probes,
        visualizations={unit: image for made in pictures for unit, image in made.by_unit().items()},
        effects=[*effects, on_outputs(effects)] if effects else [],
        title="The offline world",
    )
    say(f"Written to {out}: {', '.join(path.name for path in paths)}, and a page of {len(pages)} files.")
    say(f"Took {time.perf_counter() - started:.0f} s. Open {pages[0]} in a browser.")
    say("Next, your own model and photographs: neuroprobe dissect --help, neuroprobe probe --help")
    return labels, probes


@dataclass(frozen=True, eq=False)
class Named:
    """Labels, and what they were made from."""

    labels: LabelReport
    activations: Activations
    scores: ConceptScores


def on_outputs(effects: Sequence[EffectReport]) -> EffectReport:
    """Effects as the outputs meet them: each row is of the head's unit that is the row's output."""
    table = pd.concat([effect.table for effect in effects], ignore_index=True)
    counts = table["units"].str.split().str.len().astype(str)
    what = counts + " units of " + table["layer"] + " named " + table["concept"] + ": " + table["intervention"]
    units = [str(ATTRIBUTES.index(name)) for name in table["output"]]
    return EffectReport(table.assign(layer=HEAD, units=units, intervention=what), {})


def name_units(model: nn.Module, images: Images, encoder: ClipEncoder) -> Named:
    """A label for every unit of the trained target's 19 modules and its head."""
    source = ConceptSource(encoder, world_vocabulary())
    activations, scores = record_beside(ActivationRecorder(model, LAYERS), images, [source.consumer()], transform=target_transform())
    return Named(dissect(activations, scores), activations, scores)


def visualize_units(model: nn.Module, images: Images, labels: LabelReport, *, seed: int) -> list[Visualization]:
    """Of every unit of the head, and of the last module's best unit for each of the chosen concepts."""
    table = labels.table[labels.table["layer"] == MODULES[-1]]
    best = [unit for name in CHOSEN for unit in table[table["concept"] == name].nlargest(1, "score")["unit"]]
    wanted = {HEAD: list(range(len(ATTRIBUTES))), MODULES[-1]: best}
    spectrum = image_spectrum(images.subset(images.ids[:FEWEST_IMAGES]), transform=target_transform())
    return [
        visualize(model, layer, units, transform=target_transform(), spectrum=spectrum, steps=STEPS, seed=seed, progress=False)
        for layer, units in wanted.items()
        if units
    ]


def take_units_away(model: nn.Module, images: Images, named: Named, *, seed: int) -> list[EffectReport]:
    """What becomes of all outputs when the last module's units of a chosen concept are set to their means."""
    n_positive = min(40, len(images) // 10)
    sets = named.scores.rank(n_positive=n_positive, n_negative=2 * n_positive, seed=seed)
    units = {name: units_named(named.labels, MODULES[-1], name) for name in CHOSEN}
    return [
        causal_effect(
            model,
            images,
            {name: sets[name]},
            layer=MODULES[-1],
            units=units[name],
            outputs={attribute: i for i, attribute in enumerate(ATTRIBUTES)},
            transform=target_transform(),
            activations=named.activations,
            scores=named.scores,
            seed=seed,
            progress=False,
        )
        for name in CHOSEN
        if units[name]
    ]


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


def summarize(probes: ProbeReport) -> list[str]:
    """A line per checkpoint: how far the probes of the late modules are above the baseline."""
    table = probes.table
    late = table[table["layer"].isin(MODULES[-5:]) & (table["scope"] == "layer")]
    gain = (late["test_accuracy"] - late["baseline"]).groupby(late["checkpoint"], sort=False).mean()
    return [
        f"Probes: {probes.summary()}.",
        *(f"In the last five modules of the {name} target, probes are {value:+.3f} from the baseline." for name, value in gain.items()),
    ]
