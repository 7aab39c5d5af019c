"""How right labels are where the truth is known: ``python benchmarks/known_truth.py``.

Units whose concept is known by construction stand in layers of several sizes, on images of the offline world; every
similarity function labels them with the world's 31 attributes among some 900 names of other things. With ``--photographs``
the figures of examples/real_photographs.py are added. `neuroprobe.dissect`'s default is the function elected here.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torchvision.models import get_model_weights

from neuroprobe import ActivationRecorder, Activations, ClipEncoder, ConceptScores, ConceptSource, Vocabulary, dissect
from neuroprobe.images import Images, collect
from neuroprobe.world import ATTRIBUTES, CLIP_PATH, LAYERS, WorldDataset, build_target, load_target, target_transform

#: Function and parameters of every line of the table.
FUNCTIONS: dict[str, tuple[str, dict[str, object]]] = {
    "peak_correlation (default)": ("peak_correlation", {}),
    "peak_correlation, no competition": ("peak_correlation", {"competition": 0}),
    "peak_correlation, full competition": ("peak_correlation", {"competition": 1}),
    "peak_correlation, not decorrelated": ("peak_correlation", {"decorrelate": False}),
    "peak_mean": ("peak_mean", {}),
    "peak_mean, not decorrelated": ("peak_mean", {"decorrelate": False}),
    "pearson": ("pearson", {}),
    "auc": ("auc", {}),
    "average_precision": ("average_precision", {}),
    "mean_difference": ("mean_difference", {}),
    "soft_wpmi (published)": ("soft_wpmi", {}),
    "soft_wpmi, no prior": ("soft_wpmi", {"prior": None}),
    "soft_wpmi, k = 5, a = 30": ("soft_wpmi", {"k": 5, "a": 30}),
    "wpmi (published)": ("wpmi", {}),
    "rank_reorder": ("rank_reorder", {}),
    "cos_similarity": ("cos_similarity", {}),
    "cos_similarity_cubed": ("cos_similarity_cubed", {}),
}

Maker = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]

#: From the truth of a concept, and of another, [n_images] each, to activations.
NAMEABLE: dict[str, Maker] = {
    "clean": lambda t, other, g: t,
    "noise 0.5": lambda t, other, g: t + 0.5 * g.normal(size=len(t)),
    "noise 1": lambda t, other, g: t + g.normal(size=len(t)),
    "noise 2": lambda t, other, g: t + 2 * g.normal(size=len(t)),
    "two": lambda t, other, g: np.maximum(t, other) + 0.3 * g.normal(size=len(t)),
    "sparse": lambda t, other, g: t * (g.random(len(t)) < 0.1) + 0.02 * g.normal(size=len(t)),
    "negative": lambda t, other, g: (t - 1) * (1 + 0.3 * np.abs(g.normal(size=len(t)))) - 0.1,
}
FAINT: dict[str, Maker] = {"noise 4": lambda t, other, g: t + 4 * g.normal(size=len(t))}
NOISE: dict[str, Maker] = {
    "normal": lambda t, other, g: g.normal(size=len(t)),
    "heavy": lambda t, other, g: np.exp(2 * g.normal(size=len(t))),
    "rare": lambda t, other, g: g.random(len(t)) * (g.random(len(t)) < 0.01),
}
KINDS = {**NAMEABLE, **FAINT, **NOISE, "dead": lambda t, other, g: np.full(len(t), 0.3)}

#: Units per layer, and how many such layers.
SIZES = {16: 12, 256: 2, 2048: 1}


def make_layer(n_units: int, truth: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, list[str], list[set[str]]]:
    """Units of every kind in turn, each for a concept at random: activations, kinds, and the names that are right."""
    kinds = [list(KINDS)[i % len(KINDS)] for i in generator.permutation(n_units)]
    concepts = [generator.choice(len(ATTRIBUTES), size=2, replace=False) for _ in kinds]
    columns = [KINDS[kind](truth[:, c[0]], truth[:, c[1]], generator) for kind, c in zip(kinds, concepts, strict=True)]
    right = [{ATTRIBUTES[i] for i in (c if kind == "two" else c[:1])} for kind, c in zip(kinds, concepts, strict=True)]
    return np.stack(columns, axis=1).astype(np.float32), kinds, right


def make_copies(n_units: int, concept: int, truth: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A layer whose units all follow one concept, each with noise of its own."""
    return (truth[:, concept : concept + 1] + generator.normal(size=(len(truth), n_units))).astype(np.float32)


def constructed(truth: np.ndarray, *, seed: int = 0) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Layers of all sizes, and of copies; and what is right about every unit."""
    arrays, facts = {}, []
    for size, count in SIZES.items():
        for i in range(count):
            layer = f"{size}.{i}"
            arrays[layer], kinds, right = make_layer(size, truth, np.random.default_rng((seed, size, i)))
            facts += [(layer, unit, size, kind, names) for unit, (kind, names) in enumerate(zip(kinds, right, strict=True))]
    for concept in range(0, len(ATTRIBUTES), 5):
        layer = f"copies.{concept}"
        arrays[layer] = make_copies(64, concept, truth, np.random.default_rng((seed, concept)))
        facts += [(layer, unit, 64, "copies", {ATTRIBUTES[concept]}) for unit in range(64)]
    return arrays, pd.DataFrame(facts, columns=["layer", "unit", "size", "kind", "right"])


def world(n_images: int, *, seed: int) -> tuple[dict[str, Activations], ConceptScores, np.ndarray]:
    """The trained target, untrained ones, and concept scores over the 31 attributes and some 900 other names."""
    dataset = WorldDataset(n_images, seed=seed)
    names = dict.fromkeys(get_model_weights("resnet50").DEFAULT.meta["categories"])
    # "red wolf" is red to a text encoder that has never heard of wolves
    others = [name for name in names if not any(attribute in name.lower() for attribute in ATTRIBUTES)]
    vocabulary = Vocabulary.from_words([*ATTRIBUTES, *others])
    models = {"trained": load_target(), **{f"untrained {i}": untrained(i) for i in range(5)}}
    consumers = [ActivationRecorder(model, LAYERS).consumer(target_transform()) for model in models.values()]
    source = ConceptSource(ClipEncoder(CLIP_PATH, device="cpu"), vocabulary)
    *recorded, scores = collect(Images(dataset), [*consumers, source.consumer()])
    return dict(zip(models, recorded, strict=True)), scores, dataset.truth().astype(float)


def untrained(seed: int) -> torch.nn.Module:
    """The target with first weights of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_target().eval()


def figures_of_constructed(table: pd.DataFrame, facts: pd.DataFrame) -> dict[str, float]:
    """Shares rightly named, and shares of noise wrongly named, of the constructed units."""
    units = facts.merge(table, on=["layer", "unit"])
    units["hit"] = [concept in names for concept, names in zip(units["concept"], units["right"], strict=True)]
    units["named"] = units["status"] == "named"
    nameable = units[units["kind"].isin(NAMEABLE)]
    by_kind = units[units["kind"].isin([*NAMEABLE, *FAINT, "copies"])].groupby("kind", sort=False)["hit"].mean()
    noise = units[units["kind"].isin(NOISE)]
    return {
        "nameable right": nameable["hit"].mean(),
        **{f"right, {size} units": part["hit"].mean() for size, part in nameable.groupby("size")},
        **{kind: by_kind[kind] for kind in (*NAMEABLE, *FAINT, "copies")},
        "noise named": noise["named"].mean(),
        "dead named": units.loc[units["kind"] == "dead", "named"].mean(),
    }


def figures_of_world(
    recorded: dict[str, Activations], scores: ConceptScores, similarity: str, parameters: dict[str, object]
) -> dict[str, float]:
    """The trained head's units rightly named; units named of an untrained network, against shuffles and against others like it."""
    head = dissect(recorded["trained"], scores, similarity=similarity, parameters=parameters, layers=["classifier"], n_bootstrap=0).table
    layers = ["features.6", "features.12", "features.18", "classifier"]
    others = [recorded[f"untrained {i}"] for i in range(1, 5)]
    options = {"similarity": similarity, "parameters": parameters, "layers": layers, "n_bootstrap": 0}
    shuffled = dissect(recorded["untrained 0"], scores, **options).table
    control = dissect(recorded["untrained 0"], scores, control=others, **options).table
    trained = dissect(recorded["trained"], scores, control=others, **options).table
    return {
        "head right": float(np.mean(head["concept"] == list(ATTRIBUTES))),
        "untrained named, shuffles": float((shuffled["status"] == "named").mean()),
        "untrained named, control": float((control["status"] == "named").mean()),
        "trained named, control": float((trained["status"] == "named").mean()),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Label units whose concept is known, by every similarity function.")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--functions", nargs="*", default=list(FUNCTIONS), metavar="NAME", help="lines of the table (default: all)")
    parser.add_argument("--photographs", type=Path, metavar="DIR", help="add the figures of examples/real_photographs.py")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the figures as CSV")
    arguments = parser.parse_args(argv)
    recorded, scores, truth = world(arguments.images, seed=77)
    arrays, facts = constructed(truth)
    activations = Activations(arrays, scores.ids, {"images": scores.metadata["images"]})
    rows = {}
    for name in arguments.functions:
        similarity, parameters = FUNCTIONS[name]
        started = time.perf_counter()
        table = dissect(activations, scores, similarity=similarity, parameters=parameters, n_bootstrap=0).table
        cost = time.perf_counter() - started
        rows[name] = {**figures_of_constructed(table, facts), **figures_of_world(recorded, scores, similarity, parameters), "seconds": cost}
        if arguments.photographs is not None:
            rows[name].update(photograph_figures(arguments.photographs, similarity, parameters))
        print(name, {key: round(value, 3) for key, value in rows[name].items()}, flush=True)
    figures = pd.DataFrame(rows).T
    if arguments.out is not None:
        figures.to_csv(arguments.out)
    print(markdown(figures))


@functools.cache
def recorded_photographs(folder: Path) -> tuple[Any, ...]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    import real_photographs

    return real_photographs, real_photographs.record(folder)


def photograph_figures(folder: Path, similarity: str, parameters: dict[str, object]) -> dict[str, float]:
    """Right names among the classes, and mean cosine of label and name among 20,000 words."""
    real_photographs, (activations, by_class, by_word, units) = recorded_photographs(folder)
    figures = {}
    for name, scores, figure in (("classes", by_class, "n_right"), ("words", by_word, "mean_cosine")):
        report = dissect(activations, scores, similarity=similarity, parameters=parameters, n_null=0, n_bootstrap=0)
        found = real_photographs.judge(report, scores, by_class.text_vectors, units)[figure]
        figures[name] = found / len(units) if figure == "n_right" else found
    return figures


def markdown(figures: pd.DataFrame) -> str:
    """The figures as a Markdown table."""
    lines = [["function", *figures.columns], ["---"] * (figures.shape[1] + 1)]
    lines += [[name, *(f"{value:.2f}" for value in row)] for name, row in zip(figures.index, figures.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
