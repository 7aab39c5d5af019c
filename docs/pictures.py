"""Draws the pictures of the idea pages, on the offline world: ``python docs/pictures.py NAME ...`` writes docs/images/NAME.png.

Names: recording, concept_sources, naming, probing, judging, seeing, architecture. Without a name, all of them are drawn; each takes up
to a minute, and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

import neuroprobe
from neuroprobe.evaluation import evaluate_labels
from neuroprobe.images import collect
from neuroprobe.visualization import quantile_examples, top_images, visualize
from neuroprobe.world import ATTRIBUTES, CLIP_PATH, load_target, target_checkpoints, target_transform, world_images, world_vocabulary

FOLDER = Path(__file__).parent / "images"
HEAD = "classifier"


def encoder() -> neuroprobe.ClipEncoder:
    return neuroprobe.ClipEncoder(CLIP_PATH, device="cpu")


def recording() -> Figure:
    """Four channels' maps of one image at three layers, and the number that the mean makes of each."""
    images, layers, shown = world_images(40, seed=3), ("features.2", "features.6", "features.13"), 6
    model, transform = load_target(), target_transform()
    maps = neuroprobe.ActivationRecorder(model, layers, pooling="none").record(images, transform=transform)
    means = neuroprobe.ActivationRecorder(model, layers).record(images, transform=transform)
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots(3, 6, width_ratios=[1.3, 1, 1, 1, 1, 2.2])
    for row, layer in enumerate(layers):
        n_units = means[layer].shape[1]
        side = int(np.sqrt(maps[layer].shape[1] // n_units))
        cube = maps[layer][shown].reshape(n_units, side, side)
        units = np.sort(np.argsort(-cube.std((1, 2)), kind="stable")[:4])
        axes[row, 0].imshow(images[shown])
        axes[row, 0].set_ylabel(f"{layer}\n{n_units} units, {side} x {side}", fontsize=9)
        for ax, unit in zip(axes[row, 1:5], units, strict=True):
            ax.imshow(cube[unit], cmap="viridis")
            ax.set_title(f"unit {unit}: mean {means[layer][shown, unit]:.2f}", fontsize=7)
        axes[row, 5].imshow(_standardized(means[layer]), aspect="auto", cmap="viridis")
        axes[row, 5].set_title(f"recorded: {len(images)} images x {n_units} units", fontsize=8)
        for ax in axes[row]:
            ax.set_xticks([], [])
            ax.set_yticks([], [])
        axes[row, 5].yaxis.tick_right()
        axes[row, 5].set_yticks([shown], ["this\nimage"], fontsize=7)
    return figure


def _standardized(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    scaled: npt.NDArray[np.float32] = np.clip((values - values.mean(0)) / (values.std(0) + 1e-9), -2.5, 2.5)
    return scaled


def concept_sources() -> Figure:
    """Ten images and their likelihoods within each of the blog's groups."""
    images = world_images(10, seed=8)
    vocabulary = neuroprobe.Vocabulary.probing_blog()
    scores = neuroprobe.ConceptSource(encoder(), vocabulary).score(images)
    figure = Figure(figsize=(7.4, 6.2), layout="constrained")
    sizes = [len(group.names) for group in vocabulary.groups]
    left, *panels = figure.subplots(1, 4, width_ratios=[1.1, *sizes])
    left.imshow(np.concatenate([np.asarray(image) for image in images]))
    for ax, group in zip(panels, vocabulary.groups, strict=True):
        shares = scores.likelihoods(group.name).numpy()
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), share in np.ndenumerate(shares):
            ax.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=8, color="white" if share > 0.5 else "black")
        ax.set_xticks(range(len(group.names)), group.names, rotation=45, ha="right")
        ax.set_title(group.name, fontsize=10)
        ax.set_yticks([], [])
    left.set_axis_off()
    return figure


def naming() -> Figure:
    """One unit's activations against the scores of its label and of two other concepts, image by image."""
    images, unit = world_images(600, seed=3), ATTRIBUTES.index("red")
    source = neuroprobe.ConceptSource(encoder(), world_vocabulary())
    recorder = neuroprobe.ActivationRecorder(load_target(), [HEAD])
    activations, scores = collect(images, [recorder.consumer(target_transform()), source.consumer()])
    report = neuroprobe.dissect(activations, scores)
    row = report.table.set_index("unit").loc[unit]
    values = activations[HEAD][:, unit]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for ax, concept in zip(figure.subplots(1, 3, sharey=True), (row["concept"], "heart", "striped"), strict=True):
        column = scores.concepts.index(concept)
        cosine = scores.similarities(slice(column, column + 1)).numpy()[:, 0]
        ax.plot(cosine, values, linestyle="", marker="o", markersize=3, alpha=0.5)
        ax.set_xlabel(f"score of {concept!r} (cosine)")
        ax.set_title(f"{concept}: correlation {np.corrcoef(cosine, values)[0, 1]:.2f}", fontsize=10)
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel(f"activation of unit {unit}")
    figure.suptitle(f"{HEAD}, unit {unit}, {len(images)} images: named {row['concept']!r}, q = {row['q_value']:.1g}", fontsize=10)
    return figure


def probing() -> Figure:
    """What linear probes say of training and held-out images, at three depths."""
    images, concept, layers = world_images(1000, seed=3), "striped", ("features.2", "features.8", "features.18")
    sets = neuroprobe.ConceptSource(encoder(), neuroprobe.Vocabulary.probing_blog()).rank(images)
    chosen = sets[concept]
    train, test = chosen.split(held_out=0.3, seed=0)
    activations = neuroprobe.ActivationRecorder(load_target(), layers).record(images.subset(chosen.ids), transform=target_transform())
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for column, (layer, pair) in enumerate(zip(layers, figure.subplots(2, 3, sharex="col").T, strict=True)):
        probe = neuroprobe.LinearProbe().fit(activations[layer][train], chosen.targets[train])
        for ax, name, rows in zip(pair, ("training", "held out"), (train, test), strict=True):
            _two_histograms(ax, probe.decision_function(activations[layer][rows]), chosen.targets[rows])
            right = float((probe.predict(activations[layer][rows]) == chosen.targets[rows]).mean())
            ax.set_title(f"{layer}, {name}: {right:.3f} right", fontsize=9)
            ax.set_ylabel("images" if column == 0 else "")
        pair[1].set_xlabel("log-odds of the probe")
        if column == 0:
            pair[0].legend(fontsize=8, loc="upper right")
    sizes = f"{len(chosen.positives)} positives, {len(chosen.negatives)} negatives"
    figure.suptitle(f"{concept!r}: {sizes}; {(chosen.targets == 0).mean():.3f} is the share of negatives", fontsize=10)
    return figure


def seeing() -> Figure:
    """Three outputs: their five strongest images, two that are as usual, and the image they say most of."""
    images, names, k = world_images(1000, seed=3), ("red", "striped", "star"), 5
    model, transform = load_target(), target_transform()
    activations = neuroprobe.ActivationRecorder(model, [HEAD]).record(images, transform=transform)
    units = [ATTRIBUTES.index(name) for name in names]
    made = visualize(model, HEAD, units, transform=transform)
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    for row, name, unit, image, value in zip(figure.subplots(3, k + 3), names, units, made.to_pil(), made.values, strict=True):
        shown = [*top_images(activations, HEAD, unit, k), *quantile_examples(activations, HEAD, unit, quantiles=(0.5,), k=2)[0.5]]
        for ax, example in zip(row, shown, strict=False):
            ax.imshow(images[example.row])
            ax.set_title(f"{example.value:.1f}", fontsize=8)
        row[-1].imshow(image)
        row[-1].set_title(f"made: {value:.1f}", fontsize=8)
        row[0].set_ylabel(name, fontsize=10)
        for ax in row:
            ax.set_xticks([], [])
            ax.set_yticks([], [])
    return figure


def _two_histograms(ax: Axes, values: npt.NDArray[np.float64], positive: npt.NDArray[np.int64]) -> None:
    edges = np.linspace(values.min(), values.max(), 25).tolist()
    for kind, name, color in ((False, "negatives", "0.6"), (True, "positives", "C0")):
        ax.hist(values[positive.astype(bool) == kind], bins=edges, alpha=0.65, label=name, color=color)
    ax.axvline(0, color="black", linewidth=0.8)


def judging() -> Figure:
    """The share of the head's units with their true label, along training."""
    images, names = world_images(500, seed=11), list(target_checkpoints())
    source = neuroprobe.ConceptSource(encoder(), world_vocabulary())
    scores, points = source.score(images), []
    for name in names:
        activations = neuroprobe.ActivationRecorder(load_target(name), [HEAD]).record(images, transform=target_transform())
        overall = evaluate_labels(neuroprobe.dissect(activations, scores), {HEAD: list(ATTRIBUTES)}).overall.set_index("quantity")
        points.append(overall.loc["top_1", ["value", "low", "high"]].to_numpy(dtype=float))
    value, low, high = np.array(points).T
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    ax = figure.subplots()
    ax.errorbar(range(len(names)), value, yerr=(value - low, high - value), marker="o", capsize=3)
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
    ax.set_ylim(-0.03, 1.03)
    ax.set_ylabel(f"share of {len(ATTRIBUTES)} units")
    ax.set_title("Labels of the head that are the concept it was trained for, with 95 % intervals", fontsize=10)
    return figure


#: Rows of rooms from top to bottom, each with its name and some of its modules; a row uses those below it.
ROOMS = (
    (("pipeline, _cli", "the whole path in one call; the command line"),),
    (("world", "rendered images with known concepts, a small CLIP, a small MobileNetV2"),),
    (("visualization", "examples, regions, facets, images made for units"), ("effects", "ablate, steer, classes, attribution, TCAV")),
    (("evaluation", "labels judged by truth, images, weights, along checkpoints"),),
    (("labeling", "dissect, similarity functions, formulas, search"), ("probing", "probes, studies")),
    (("reports", "tables, figures, the page"),),
    (("concepts", "vocabulary, encoders, scores, sets, given labels"),),
    (("recording", "ActivationRecorder, activations, summaries, the store"),),
    (("models", "layers, Site, taps, pooling, transforms, checkpoints"),),
    (("images", "one decode per image, any number of consumers"),),
    (("exceptions, _core, statistics", "errors, checks, files, fingerprints; intervals and tests of arrays"),),
)


def architecture() -> Figure:
    """The rooms of the package: a row uses the rows below it."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    ax = figure.subplots()
    ax.set_axis_off()
    ax.set_xlim(0, 12)
    ax.set_ylim(-len(ROOMS) + 0.2, 0.1)
    for row, rooms in enumerate(ROOMS):
        width = 12 / len(rooms)
        for i, (name, holds) in enumerate(rooms):
            box = FancyBboxPatch((i * width + 0.1, -row - 0.72), width - 0.2, 0.72, boxstyle="round,pad=0,rounding_size=0.12")
            box.set(facecolor=f"C{row % 10}", edgecolor="none", alpha=0.18)
            ax.add_patch(box)
            ax.text((i + 0.5) * width, -row - 0.22, name, ha="center", va="center", fontsize=11, weight="bold")
            ax.text((i + 0.5) * width, -row - 0.52, holds, ha="center", va="center", fontsize=8.5)
        if row + 1 < len(ROOMS):
            ax.annotate("", (6, -row - 1.0), (6, -row - 0.72), arrowprops={"arrowstyle": "-|>", "color": "0.45"})
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure with a palette of its colors, which a page loads faster."""
    memory = io.BytesIO()
    figure.savefig(memory, dpi=100)
    with Image.open(memory) as picture:
        picture.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


PICTURES = {draw.__name__: draw for draw in (recording, concept_sources, naming, probing, judging, seeing, architecture)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(PICTURES)} (default: all)")
    for name in parser.parse_args().names or PICTURES:
        if name not in PICTURES:
            parser.error(f"Expected one of {', '.join(PICTURES)}, but got {name!r}.")
        save(PICTURES[name](), FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()
