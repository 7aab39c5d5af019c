"""What is no number, level, seed, unit, layer or device: every public function refuses it in words of ours.

Every public function with such a parameter has a call in `CALLS`, whose arguments are right; each of them is made wrong in
turn. A function without a call fails the test, so that a new one cannot be forgotten.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cached_property, partial, reduce
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import PixelEncoder, noise_images
from PIL import Image
from torch import nn

import neuroprobe
from neuroprobe import (
    concepts,
    effects,
    evaluation,
    images,
    labeling,
    models,
    pipeline,
    probing,
    recording,
    reports,
    statistics,
    visualization,
    world,
)
from neuroprobe.exceptions import NeuroprobeError

WRONG = (None, "x", -1, 2.5, True)

ROOMS = (statistics, images, models, recording, concepts, reports, labeling, probing, evaluation, visualization, effects, world, pipeline)

#: Parameters that are tried wherever a public function has them, and all whose names begin with "n_".
WATCHED = {
    *("k", "n", "top", "first", "step", "steps", "size", "columns", "side", "batch_size", "workers", "memory", "models_in_memory"),
    *("cv", "hidden", "max_iter", "controls", "permutations", "gap", "thumbnail", "max_distance", "max_facets", "max_length"),
    *("beam_width", "max_siblings", "cache_size", "seed", "seeds", "random_state", "level", "share", "rate", "held_out", "min_cosine"),
    *("min_gain", "most_shared", "min_fraction", "max_fraction", "tolerance", "false_discovery_rate", "least_fall", "diversity"),
    *("contrast", "decay", "step_size", "temperature", "threshold", "strength", "unit", "units", "layer", "layers", "device", "call"),
}

#: Counts of images that are weights as well: they need not be whole.
FRACTIONS = {
    "accuracy_interval": ("n_train", "n_test"),
    "auroc_interval": ("n_positive", "n_negative"),
    "balanced_accuracy_interval": ("n_train", "n_positive", "n_negative"),
    "corrected_interval": ("n_train", "n_test"),
    "wilson_interval": ("n_right", "n"),
}

#: What is no mistake, with the reason. A method counts for every class that has it.
ACCEPTED: dict[tuple[str, str], tuple[Any, ...]] = {
    ("", "n_jobs"): (-1,),  # a thread per processor, as scikit-learn has it
    ("", "strength"): (-1, 2.5),  # how far a direction is followed, either way
    ("", "threshold"): (-1, 2.5),  # a value of an activation
    ("", "temperature"): (2.5,),  # a number above 0, as are the next
    ("", "contrast"): (2.5,),
    ("", "decay"): (2.5,),
    ("", "step_size"): (2.5,),
    ("", "diversity"): (2.5,),
    ("", "least_fall"): (2.5,),
    ("", "max_siblings"): (None,),  # no limit
    ("labeling.search_units", "top"): (None,),  # all units
    **{(f"probing.{name}Probe", "random_state"): (None,) for name in ("Linear", "Nonlinear", "Sparse")},  # as scikit-learn's
    ("models.Direction", "seed"): (None,),  # of the mean over seeds
    ("models.Direction", "layer"): ("x",),  # which model it is of shows later
    ("models.Site", "layer"): ("x",),
    **{(f"statistics.{name}", n): (2.5,) for name, counts in FRACTIONS.items() for n in counts},  # counts, and means of counts
}

#: What users write or hand on and the library calls, and parameters of the same name that are other things.
CALLED_BY_US = {
    *("labeling.Scorer", "models.pool", "concepts.Ranking.check", "concepts.ConceptScores.similarities", "visualization.Jitter.draws"),
    *("visualization.Target", "visualization.ImageSpectrum"),
}

#: What needs a package or a file that is not here: only what is refused before is tried.
NOT_INSTALLED = {
    *("concepts.OpenClipEncoder", "concepts.OpenClipEncoder.from_text", "concepts.TransformersEncoder"),
    "concepts.Vocabulary.from_frequency",
}


def public() -> Iterator[tuple[str, list[str]]]:
    """Every function, class and method of the faces with parameters to try; a class's own methods only.

    A dataclass without a check of its own and a Report are results, which functions make and not users.
    """
    for room in ROOMS:
        for name in face(room):
            value, path = getattr(room, name), f"{room.__name__.rpartition('.')[2]}.{name}"
            if inspect.isfunction(value):
                yield path, tried(value)
            elif inspect.isclass(value) and value.__module__.startswith("neuroprobe"):
                made = dataclasses.is_dataclass(value) and not hasattr(value, "__post_init__")
                if not made and not issubclass(value, reports.Report):
                    yield path, tried(value)
                for method in vars(value):
                    if not method.startswith("_") and isinstance(getattr(value, method), (FunctionType, MethodType)):
                        yield f"{path}.{method}", tried(getattr(value, method))


def face(room: Any) -> list[str]:
    """The public names of a room: `__all__` of its stub, or what a room of one file defines."""
    stub = Path(neuroprobe.__file__).parent / room.__name__.rpartition(".")[2] / "__init__.pyi"
    if not stub.exists():
        return [
            name for name, value in vars(room).items() if inspect.isfunction(value) and value.__module__ == room.__name__ and name[0] != "_"
        ]
    (names,) = (ast.literal_eval(node.value) for node in ast.parse(stub.read_text(encoding="utf-8")).body if isinstance(node, ast.Assign))
    return list(names)


def taken(path: str, name: str) -> list[Any]:
    """The values that are right: a default, and what `ACCEPTED` has a reason for."""
    parameters = inspect.signature(reduce(getattr, path.split("."), neuroprobe)).parameters
    default = [parameters[name].default] if name in parameters else []
    return [*default, *(value for (where, what), values in ACCEPTED.items() if where in ("", path) and what == name for value in values)]


def tried(function: Callable[..., Any]) -> list[str]:
    parameters = dict(inspect.signature(function).parameters)
    if any("RankingOptions" in str(parameter.annotation) for parameter in parameters.values()):
        parameters |= inspect.signature(concepts.Ranking).parameters
    return [name for name in parameters if name in WATCHED or name.startswith("n_")]


# --- one small world


def transform(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)


class World:
    """A network of two layers, 48 images of noise, their scores, and the reports about them."""

    words = ("red", "green", "blue", "dotted", "striped", "round")
    n = 48

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images, self.encoder = noise_images(self.n), PixelEncoder()
        self.truth = np.random.default_rng(0).random((self.n, len(self.words))) < 0.5
        self.shown = pd.DataFrame(self.truth, columns=list(self.words), index=list(self.images.ids))

    @cached_property
    def model(self) -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        layers = {"conv": nn.Conv2d(3, 6, 3, padding=1), "act": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
        model = nn.Sequential(OrderedDict(**layers, fc=nn.Linear(6, 4))).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, generator=generator)
        return model

    @cached_property
    def source(self) -> concepts.ConceptSource:
        return concepts.ConceptSource(self.encoder, concepts.Vocabulary.from_words(self.words))

    @cached_property
    def scores(self) -> concepts.ConceptScores:
        return self.source.score(self.images, progress=False)

    @cached_property
    def recorder(self) -> recording.ActivationRecorder:
        return recording.ActivationRecorder(self.model, ["conv", "fc"])

    @cached_property
    def activations(self) -> recording.Activations:
        return self.recorder.record(self.images, transform=transform, progress=False)

    @cached_property
    def sets(self) -> concepts.ConceptSets:
        return concepts.ConceptSets.from_labels(self.shown[["red", "blue"]])

    @cached_property
    def labels(self) -> reports.LabelReport:
        named = {(layer, unit): self.words[unit % 6] for layer, n in (("conv", 6), ("fc", 4)) for unit in range(n)}
        table = pd.DataFrame([{"layer": layer, "unit": unit, "concept": word, "score": 1.0} for (layer, unit), word in named.items()])
        return reports.LabelReport(table.assign(status="named"), {})

    def study(self, **options: Any) -> probing.ProbingStudy:
        return probing.ProbingStudy(self.model, ["fc"], self.sets, probes=[("linear", "pooled")], **{"seeds": [0], **options})

    @cached_property
    def probes(self) -> reports.ProbeReport:
        study = self.study(scopes=("neuron", "layer"), keep_directions=True)
        return study.run(self.images, transform=transform, n_jobs=1, progress=False)

    @cached_property
    def facets(self) -> Any:
        return visualization.facets(self.activations, self.scores, "fc", 0, k=12, n_null=19)

    @cached_property
    def composition(self) -> effects.CompositionReport:
        return CALLS["effects.explain_class"](self)()

    @cached_property
    def sums(self) -> Any:
        return CALLS["labeling.explain_units"](self)()

    @cached_property
    def direction(self) -> models.Direction:
        return self.probes.direction("red", "fc")

    @cached_property
    def examples(self) -> Any:
        return visualization.top_images(self.activations, "conv", 0, k=2)


DIRECTION = ("concept", "checkpoint", "layer", "features", "kind", "seed", "weights", "bias")

LISTED = {"held_out": 0.3, "n_resamples": 20, "seed": 0}

#: The calls, by what is public; each with arguments that are right.
CALLS: dict[str, Callable[[World], Callable[..., Any]]] = {
    "statistics.accuracy_interval": lambda w: partial(statistics.accuracy_interval, [0.5, 0.6], n_train=10, n_test=5),
    "statistics.auroc_interval": lambda w: partial(statistics.auroc_interval, 0.7, 10, 12),
    "statistics.balanced_accuracy_interval": lambda w: partial(
        statistics.balanced_accuracy_interval, [0.5, 0.6], [0.5, 0.7], n_train=10, n_positive=5, n_negative=6
    ),
    "statistics.bootstrap": lambda w: partial(statistics.bootstrap, [1.0, 2.0, 4.0], n_resamples=10),
    "statistics.corrected_interval": lambda w: partial(statistics.corrected_interval, [0.5, 0.6], n_train=10, n_test=5),
    "statistics.paired_interval": lambda w: partial(statistics.paired_interval, [1.0, 2.0, 4.0]),
    "statistics.wilson_interval": lambda w: partial(statistics.wilson_interval, 2, 5),
    "images.collect": lambda w: partial(images.collect, w.images, [w.recorder.consumer(transform=transform)], progress=False),
    "images.near_duplicate_vectors": lambda w: partial(images.near_duplicate_vectors, list("abc"), np.eye(3), min_cosine=0.9),
    "images.near_duplicates": lambda w: partial(images.near_duplicates, w.images, progress=False),
    "models.Direction": lambda w: partial(models.Direction, **{field: getattr(w.direction, field) for field in DIRECTION}),
    "models.Site": lambda w: partial(models.Site, "fc"),
    "models.load_model": lambda w: partial(models.load_model, "squeezenet1_1", weights=None),
    "models.preprocessing": lambda w: partial(models.preprocessing, size=16),
    "models.resolve_device": lambda w: partial(models.resolve_device, "cpu"),
    "recording.ActivationRecorder": lambda w: partial(recording.ActivationRecorder, w.model, ["conv"]),
    "recording.ActivationRecorder.record": lambda w: partial(w.recorder.record, w.images, transform=transform, progress=False),
    "recording.ActivationRecorder.summarize": lambda w: partial(w.recorder.summarize, w.images, transform=transform, k=3, progress=False),
    "recording.record_beside": lambda w: partial(recording.record_beside, w.recorder, w.images, [], transform=transform, progress=False),
    "recording.record_checkpoints": lambda w: partial(
        recording.record_checkpoints, w.model, {"a": w.model.state_dict()}, w.images, layers=["fc"], transform=transform, progress=False
    ),
    "concepts.ConceptScores.blocks": lambda w: w.scores.blocks,
    "concepts.ConceptScores.rank": lambda w: partial(w.scores.rank, n_positive=5, n_negative=8),
    "concepts.ConceptSets.from_labels": lambda w: partial(concepts.ConceptSets.from_labels, w.shown, n_positive=5, n_negative=8),
    "concepts.ConceptSource": lambda w: partial(concepts.ConceptSource, w.encoder, w.source.vocabulary),
    "concepts.ConceptSource.rank": lambda w: partial(w.source.rank, w.images, n_positive=5, n_negative=8, progress=False),
    "concepts.ConceptSource.score": lambda w: partial(w.source.score, w.images, progress=False),
    "concepts.GivenLabels.score": lambda w: partial(concepts.GivenLabels(w.shown).score, w.images, progress=False),
    "concepts.ClipEncoder": lambda w: partial(concepts.ClipEncoder, world.CLIP_PATH, device="cpu"),
    "concepts.ClipEncoder.from_text": lambda w: partial(concepts.ClipEncoder.from_text, str(world.CLIP_PATH), device="cpu"),
    "concepts.OpenClipEncoder.from_text": lambda w: partial(concepts.OpenClipEncoder.from_text, "ViT-B-32/no-file"),
    "concepts.load_encoder": lambda w: partial(concepts.load_encoder, str(world.CLIP_PATH), device="cpu"),
    "concepts.OpenClipEncoder": lambda w: partial(concepts.OpenClipEncoder, "ViT-B-32", pretrained="no-file"),
    "concepts.TransformersEncoder": lambda w: partial(concepts.TransformersEncoder, "no-folder/no-model"),
    "concepts.Vocabulary.from_frequency": lambda w: partial(concepts.Vocabulary.from_frequency, 5),
    "concepts.contact_sheet": lambda w: partial(concepts.contact_sheet, w.sets["red"], w.images, first=4, step=2),
    "concepts.set_quality": lambda w: partial(concepts.set_quality, w.sets, w.shown),
    "concepts.ConceptSet.split": lambda w: partial(w.sets["red"].split, held_out=0.3),
    "concepts.Ranking": lambda w: concepts.Ranking,
    "concepts.with_label_noise": lambda w: partial(concepts.with_label_noise, w.sets, 0.1, seed=0),
    "reports.UnitReport.label": lambda w: partial(w.labels.label, "fc", 0),
    "reports.ProbeReport.to_html": lambda w: partial(w.probes.to_html, w.folder / "probes"),
    "reports.LabelReport.to_html": lambda w: partial(w.labels.to_html, w.folder / "labels"),
    "reports.JudgmentReport.value": lambda w: partial(CALLS["evaluation.evaluate_labels"](w)().value, "named"),
    "reports.ProbeReport.compare_scopes": lambda w: w.probes.compare_scopes,
    "reports.ProbeReport.direction": lambda w: partial(w.probes.direction, "red", "fc"),
    "reports.ProbeReport.plot_units": lambda w: w.probes.plot_units,
    "reports.ProbeReport.summary_table": lambda w: w.probes.summary_table,
    "labeling.dissect": lambda w: partial(labeling.dissect, w.activations, w.scores, n_null=0, n_bootstrap=0),
    "labeling.dissect_formulas": lambda w: partial(labeling.dissect_formulas, w.activations, w.shown, n_null=0, max_length=1),
    "labeling.dissect_pairs": lambda w: partial(labeling.dissect_pairs, w.activations, w.scores, encoder=w.encoder, n_words=3),
    "labeling.explain_units": lambda w: partial(labeling.explain_units, w.activations, w.scores, layers=["fc"], units=[0], **LISTED),
    "labeling.score_units": lambda w: partial(labeling.score_units, w.activations, w.scores, k=5),
    "labeling.search_units": lambda w: partial(labeling.search_units, "red", w.activations, w.scores, encoder=w.encoder, k=5, n_null=20),
    **{
        f"labeling.{name}": lambda w, name=name: partial(getattr(labeling, name), w.activations["fc"], w.scores.similarities().numpy())
        for name in ("auc", "average_precision", "mean_difference", "peak_correlation", "soft_wpmi", "wpmi")
    },
    "labeling.FormulaReport.formula": lambda w: partial(CALLS["labeling.dissect_formulas"](w)().formula, "fc", 0),
    "labeling.UnitCompositionReport.formula": lambda w: partial(w.sums.formula, "fc", 0),
    "labeling.UnitCompositionReport.predict": lambda w: partial(w.sums.predict, w.scores, "fc"),
    "probing.make_probe": lambda w: partial(probing.make_probe, "linear"),
    "probing.LinearProbe": lambda w: fitted(probing.LinearProbe, C=(0.1, 1), cv=2),
    "probing.NonlinearProbe": lambda w: fitted(probing.NonlinearProbe, hidden=2),
    "probing.SparseProbe": lambda w: fitted(probing.SparseProbe, cv=2),
    "probing.ProbingStudy": lambda w: partial(probing.ProbingStudy, w.model, ["fc"], w.sets),
    "probing.ProbingStudy.run": lambda w: partial(w.study().run, w.images, transform=transform, n_jobs=1, progress=False),
    "evaluation.check_metrics": lambda w: partial(evaluation.check_metrics, w.activations, w.shown, truth(w)),
    "evaluation.check_on_images": lambda w: partial(evaluation.check_on_images, w.labels, w.activations, w.shown, n_resamples=20),
    "evaluation.classes_from_labels": lambda w: partial(
        evaluation.classes_from_labels,
        w.labels,
        w.activations,
        ["red", "green"] * 24,
        layer="fc",
        encoder=w.encoder,
        top=1,
        n_permutations=5,
    ),
    "evaluation.compare_reports": lambda w: partial(evaluation.compare_reports, w.labels, w.labels),
    "evaluation.compare_weights": lambda w: partial(
        evaluation.compare_weights,
        w.labels,
        w.model.fc.weight,
        upper="fc",
        lower="conv",
        encoder=w.encoder,
        n_permutations=5,
        n_resamples=9,
    ),
    "evaluation.dissect_without": lambda w: partial(
        evaluation.dissect_without,
        w.activations,
        w.scores,
        ["red"],
        given_labels=w.shown,
        truth=truth(w),
        n_resamples=20,
        options={"n_null": 0, "n_bootstrap": 0},
    ),
    "evaluation.evaluate_labels": lambda w: partial(evaluation.evaluate_labels, w.labels, truth(w), n_resamples=20),
    "evaluation.labels_along": lambda w: partial(evaluation.labels_along, {"a": w.labels, "b": w.labels}),
    "evaluation.LabelHistoryReport.became": lambda w: partial(evaluation.labels_along({"a": w.labels, "b": w.labels}).became, "fc", 0),
    "visualization.facets": lambda w: partial(visualization.facets, w.activations, w.scores, "fc", 0, k=12, n_null=19),
    "visualization.layer_facets": lambda w: partial(visualization.layer_facets, w.activations, w.scores, "fc", [0], k=12, n_null=19),
    "visualization.image_spectrum": lambda w: partial(visualization.image_spectrum, w.images, size=8, progress=False),
    "visualization.plot_examples": lambda w: partial(visualization.plot_examples, w.examples, w.images),
    "visualization.plot_facets": lambda w: partial(visualization.plot_facets, w.facets, w.images),
    "visualization.quantile_examples": lambda w: partial(visualization.quantile_examples, w.activations, "fc", 0),
    "visualization.receptive_field": lambda w: partial(visualization.receptive_field, w.model, "conv", (2, 2), input_shape=(3, 8, 8)),
    "visualization.receptive_fields": lambda w: partial(visualization.receptive_fields, w.model, "conv", [(2, 2)], input_shape=(3, 8, 8)),
    "visualization.unit_maps": lambda w: partial(visualization.unit_maps, w.model, w.images, "conv", 0, transform=transform),
    "visualization.firing_threshold": lambda w: partial(visualization.firing_threshold, w.model, w.images, "conv", 0, transform=transform),
    "visualization.regions": lambda w: partial(
        visualization.regions, w.model, w.images, w.examples, transform=transform, receptive_fields=False
    ),
    "visualization.top_images": lambda w: partial(visualization.top_images, w.activations, "fc", 0),
    "visualization.visualize": lambda w: partial(visualization.visualize, w.model, "fc", 0, size=8, steps=1, progress=False),
    "effects.ablate": lambda w: partial(effects.ablate, w.model, "fc", [0], "zero"),
    "effects.steer": lambda w: partial(effects.steer, w.model, "fc", w.direction, 1.0),
    "effects.attribute_units": lambda w: partial(
        effects.attribute_units, w.model, w.images, "conv", 0, transform=transform, progress=False
    ),
    "effects.causal_effect": lambda w: partial(
        effects.causal_effect,
        w.model,
        w.images,
        w.sets["red"],
        layer="conv",
        units=[0],
        outputs=0,
        transform=transform,
        value="zero",
        match="random",
        n_random=2,
        progress=False,
    ),
    "effects.explain_class": lambda w: partial(
        effects.explain_class,
        w.model.fc,
        {("conv", u): w.words[u] for u in range(6)},
        0,
        activations=w.activations,
        layer="conv",
        n_shuffles=3,
        **LISTED,
    ),
    "effects.tcav": lambda w: partial(
        effects.tcav,
        w.model,
        w.images,
        [w.direction],
        outputs=0,
        transform=transform,
        random_images=w.images,
        progress=False,
        n_random=20,
        n_positive=8,
        n_negative=9,
    ),
    "effects.directional_derivatives": lambda w: partial(
        effects.directional_derivatives, w.model, w.images, [w.direction], outputs={"0": 0}, transform=transform, progress=False
    ),
    "effects.match_images": lambda w: partial(effects.match_images, w.sets["red"], w.scores),
    "effects.CompositionReport.leading": lambda w: w.composition.leading,
    "effects.units_named": lambda w: partial(effects.units_named, w.labels, "fc", "red"),
    "world.WorldDataset": lambda w: partial(world.WorldDataset, 3),
    "world.world_images": lambda w: partial(world.world_images, 3),
    "pipeline.dissect_model": lambda w: partial(
        pipeline.dissect_model, w.model, w.images, w.source, layers=["fc"], transform=transform, n_null=0, n_bootstrap=0, progress=False
    ),
    "pipeline.probe_model": lambda w: partial(
        pipeline.probe_model,
        w.model,
        w.images,
        w.source,
        layers=["fc"],
        transform=transform,
        n_positive=8,
        n_negative=16,
        probes=[("linear", "pooled")],
        seeds=[0],
        n_jobs=1,
        progress=False,
    ),
}


def truth(w: World) -> dict[str, list[str]]:
    return {"fc": list(w.words[:4]), "conv": list(w.words)}


def fitted(probe: type, **parameters: Any) -> Callable[..., Any]:
    """Estimators store what they are given, as scikit-learn's do, and refuse it when they are fitted."""
    rows = np.random.default_rng(0).normal(size=(20, 3))
    return partial(lambda **given: probe(**given).fit(rows, rows[:, 0] > 0), **parameters)


def finish(result: Any) -> Any:
    """What is done only when it is entered or asked for."""
    if hasattr(result, "__enter__"):
        with result:
            pass
    return list(result) if isinstance(result, Iterator) else result


def changed(call: Callable[..., Any], name: str, value: Any) -> Any:
    """The call with another value of one argument, by position or by name as it is given."""
    function, args, given = (call.func, list(call.args), dict(call.keywords)) if isinstance(call, partial) else (call, [], {})
    names = list(inspect.signature(function).parameters)[: len(args)]
    if name in names:
        args[names.index(name)] = value
    else:
        given[name] = value
    return finish(function(*args, **given))


PUBLIC = {path: names for path, names in public() if names and not any(f"{path}.".startswith(f"{ours}.") for ours in CALLED_BY_US)}


#: Whether they must be given, by what takes images.
IMAGES = {
    path: parameters["images"].default is inspect.Parameter.empty
    for path in CALLS
    if "images" in (parameters := inspect.signature(reduce(getattr, path.split("."), neuroprobe)).parameters)
}


#: What takes pictures in a list as well.
PICTURES_TOO = {"effects.attribute_units", "visualization.unit_maps", "visualization.image_spectrum"}


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("parameters"))


def test_every_public_function_with_such_a_parameter_is_tried() -> None:
    assert set(CALLS) == set(PUBLIC), "Give it a call in CALLS, or take out what is gone."


@pytest.mark.parametrize("path", sorted(set(PUBLIC) & set(CALLS)))
def test_a_wrong_value_is_refused_in_words_of_ours(path: str, small_world: World) -> None:
    call, wrong = CALLS[path](small_world), []
    if path not in NOT_INSTALLED:
        finish(call())
    for name in PUBLIC[path]:
        for value in WRONG:
            if any(value is one or (value == one and type(value) is type(one)) for one in taken(path, name)):
                continue
            try:
                changed(call, name, value)
            except NeuroprobeError as error:
                if name not in str(error) and repr(value) not in str(error):
                    wrong.append(f"{name}={value!r}: {error}")
            except Exception as error:
                wrong.append(f"{name}={value!r}: {type(error).__name__}: {error}")
            else:
                wrong.append(f"{name}={value!r} is taken")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", sorted(IMAGES))
def test_what_is_no_set_of_images_is_refused(path: str, small_world: World) -> None:
    for value in ("photos/", 3, *([None] if IMAGES[path] else []), *([] if path in PICTURES_TOO else [[Image.new("RGB", (8, 8))]])):
        with pytest.raises(NeuroprobeError, match=r"neuroprobe\.Images.* but got"):
            changed(CALLS[path](small_world), "images", value)


def test_other_things_in_the_place_of_sources_probes_and_sets_are_refused(small_world: World) -> None:
    for path, name, value, words in (
        ("pipeline.dissect_model", "source", "ViT-B/16", "a source of concepts such as ConceptSource"),
        ("pipeline.probe_model", "source", small_world.encoder, "a source of concepts such as ConceptSource"),
        ("probing.ProbingStudy", "probes", [probing.LinearProbe()], "every probe with its features"),
        ("probing.ProbingStudy", "checkpoints", [small_world.model.state_dict()], "checkpoints"),
        ("probing.ProbingStudy", "concept_sets", {"red": small_world.sets["red"]}, "a ConceptSets"),
    ):
        with pytest.raises(NeuroprobeError, match=words):
            changed(CALLS[path](small_world), name, value)
    with pytest.raises(NeuroprobeError, match=r"probing set as neuroprobe\.Images"):
        images.Images.concat({"first": small_world.images})  # type: ignore[arg-type]
