from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import noise_images
from torch import nn

from neuroprobe.concepts import ConceptSet, ConceptSets
from neuroprobe.exceptions import CheckpointError, InputError, UnknownNameError
from neuroprobe.images import Images
from neuroprobe.models import Directions, Site
from neuroprobe.probing import LinearProbe, NonlinearProbe, ProbingStudy
from neuroprobe.probing import _run as running
from neuroprobe.probing._run import Pass, plan_passes
from neuroprobe.statistics import corrected_interval
from neuroprobe.world import ATTRIBUTES, LAYERS, WorldDataset, load_target, target_checkpoints, target_transform, world_images

TRANSFORM = target_transform()
IMAGES = world_images(600, seed=5)
TRUTH = WorldDataset(600, seed=5).truth()
MODULES = LAYERS[:-1]


def true_set(concept: str, *, n_positive: int = 60, n_negative: int = 60, types: bool = False) -> ConceptSet:
    shows, ids = TRUTH[:, ATTRIBUTES.index(concept)], np.array(IMAGES.ids)
    positives, negatives = np.flatnonzero(shows)[:n_positive], np.flatnonzero(~shows)[:n_negative]
    rows = np.concatenate([positives, negatives])
    shapes = TRUTH[:, :8].argmax(axis=1)
    known = tuple(int(t) for t in shapes[rows]) if types else ()
    return ConceptSet(concept, "world", tuple(ids[positives].tolist()), tuple(ids[negatives].tolist()), types=known)


def sets(*concept_sets: ConceptSet) -> ConceptSets:
    return ConceptSets({s.concept: s for s in concept_sets}, {"made": "by hand"})


RED, STRIPED = true_set("red"), true_set("striped")
FEW = ConceptSet("few", "world", IMAGES.ids[:7], IMAGES.ids[7:15])


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return load_target()


def study(model: nn.Module, **options) -> ProbingStudy:
    given = {"layers": ["features.1", "features.18"], "concept_sets": sets(RED, STRIPED), "probes": [("linear", "pooled")], "seeds": (0, 1)}
    return ProbingStudy(model, **{**given, **options})


# --- few passes


def test_all_concepts_are_recorded_in_one_pass_and_in_several_where_memory_is_short(model, monkeypatch) -> None:
    passes: list[int] = []
    collect = running.collect

    def counted(images: Images, *args, **kwargs):
        passes.append(len(images))
        return collect(images, *args, **kwargs)

    monkeypatch.setattr(running, "collect", counted)
    probing = study(model, probes=[("linear", "spatial"), ("nonlinear", "pooled")])
    whole = probing.run(IMAGES, transform=TRANSFORM).table
    assert passes == [1, len({*RED.ids, *STRIPED.ids})]  # one image to see how large the layers are
    passes.clear()
    parts = probing.run(IMAGES, transform=TRANSFORM, memory=10_000).table
    assert passes == [1, 120, 120, 120, 120]
    pd.testing.assert_frame_equal(whole, parts, atol=0.03)  # other batches in the forward pass: other last bits


def test_everything_in_one_pass_if_it_fits() -> None:
    concepts = {"a": ["1", "2"], "b": ["2", "3"]}
    wanted = {"a": ["x", "y"], "b": ["x", "y"]}
    assert plan_passes({"x": 10, "y": 5}, concepts, wanted, memory=45) == [Pass(("x", "y"), ("a", "b"))]


def test_fewer_concepts_and_then_fewer_layers_where_it_does_not() -> None:
    concepts = {"a": ["1", "2"], "b": ["2", "3"]}
    wanted = {"a": ["x", "y"], "b": ["x", "y"]}
    assert plan_passes({"x": 10, "y": 5}, concepts, wanted, memory=44) == [Pass(("x", "y"), ("a",)), Pass(("x", "y"), ("b",))]
    assert plan_passes({"x": 10, "y": 5}, concepts, wanted, memory=20) == [
        Pass(("x",), ("a",)), Pass(("x",), ("b",)), Pass(("y",), ("a", "b"))
    ]  # fmt: skip
    assert plan_passes({"x": 10}, concepts, {"a": [], "b": ["x"]}, memory=1) == [Pass(("x",), ("b",))]


# --- finished cells


def test_what_is_finished_is_not_done_again(model, tmp_path: Path, monkeypatch) -> None:
    options = {"scopes": ("neuron", "layer", "full"), "keep_directions": True}
    first = study(model, **options).run(IMAGES, transform=TRANSFORM, store=tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2 * (2 + 2 + 1)

    def refused(*args, **kwargs):
        raise AssertionError("images were recorded")

    monkeypatch.setattr(running, "collect", refused)
    again = study(model, **options).run(IMAGES, transform=TRANSFORM, store=tmp_path)
    pd.testing.assert_frame_equal(again.table, first.table, check_exact=True)
    pd.testing.assert_frame_equal(again.units, first.units, check_exact=True)
    for a, b in zip(first.directions, again.directions, strict=True):
        np.testing.assert_array_equal(a.weights, b.weights)


def test_a_half_written_cell_is_done_again_alone(model, tmp_path: Path, monkeypatch) -> None:
    first = study(model).run(IMAGES, transform=TRANSFORM, store=tmp_path).table
    damaged = next(path for path in tmp_path.iterdir() if json.loads(path.read_text())["key"]["sites"] == ["features.18"])
    damaged.write_bytes(damaged.read_bytes()[:-30])
    finished: list[running.Cell] = []
    finish = running.Run._finish

    def noted(self, cell, result):
        finished.append(cell)
        finish(self, cell, result)

    monkeypatch.setattr(running.Run, "_finish", noted)
    second = study(model).run(IMAGES, transform=TRANSFORM, store=tmp_path).table
    assert [cell.layer for cell in finished] == ["features.18"]
    pd.testing.assert_frame_equal(second, first, atol=0.03)


@pytest.mark.parametrize(
    "changed",
    [
        {"seeds": (0, 2)},
        {"held_out": 0.4},
        {"probes": [(LinearProbe(C=0.5), "pooled")]},
        {"concept_sets": sets(true_set("red", n_negative=59))},
        {"permutations": 2},
        {"model": "step_00150"},
        {"pooling": "max"},
        {"layers": [Site("features.18", basis=Directions(-np.eye(1280)), name="features.18")]},
    ],
)
def test_a_cell_that_depends_on_anything_else_is_another(model, tmp_path: Path, changed: dict) -> None:
    base = {"layers": ["features.18"], "concept_sets": sets(RED)}
    study(model, **base).run(IMAGES, transform=TRANSFORM, store=tmp_path)
    other = load_target(changed["model"]) if "model" in changed else model
    options = {**base, **{k: v for k, v in changed.items() if k != "model"}}
    study(other, **options).run(IMAGES, transform=TRANSFORM, store=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


# --- what can be asked


def test_a_function_may_make_the_model() -> None:
    alone = study(load_target).run(IMAGES, transform=TRANSFORM).table
    pd.testing.assert_frame_equal(alone, study(load_target()).run(IMAGES, transform=TRANSFORM).table)
    with pytest.raises(InputError, match=r"torch\.nn\.Module or a function that makes one, but got dict"):
        study(dict)


def test_every_scope_and_kind_has_its_name(model) -> None:
    probes = [("linear", "pooled"), ("nonlinear", "pooled"), ("sparse", "pooled"), ("mean_difference", "spatial")]
    layers = ["features.1", "features.4"]
    report = study(model, layers=layers, probes=probes, scopes=("neuron", "layer", "full"), seeds=(0,), concept_sets=sets(RED)).run(
        IMAGES, transform=TRANSFORM
    )
    table = report.table
    assert set(table["probe"]) == {
        "prob-neuron-linear", "prob-neuron-nonlinear", "prob-layer-linear", "prob-layer-nonlinear", "prob-layer-sparse",
        "prob-layer-mean_difference", "prob-full-linear", "prob-full-nonlinear", "prob-full-mean_difference",
    }  # fmt: skip
    assert set(table.loc[table["scope"] == "full", "layer"]) == {"all layers"}
    assert (table["unit"].notna() == (table["scope"] == "neuron")).all()
    assert report.units.groupby(["layer", "probe"]).size().tolist() == [8] * 4  # a quarter of MobileNetV2's units, at least 8
    assert (report.units["q_value"] >= report.units["p_value"]).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": ["feature.1"]}, UnknownNameError, r"module names of MobileNetV2, but got 'feature\.1'\. Did you mean 'features\.1'"),
        ({"probes": [("quadratic", "pooled")]}, UnknownNameError, "a kind of probe, but got 'quadratic'. Known: 'linear', 'sparse'"),
        ({"probes": [("linear", "gap")]}, UnknownNameError, "features 'pooled' or 'spatial', but got 'gap'"),
        ({"probes": []}, InputError, "at least one probe, but got none"),
        ({"concept_sets": sets()}, InputError, "at least one concept, but `concept_sets` is empty"),
        ({"checkpoints": {}}, CheckpointError, "at least one checkpoint, but got none"),
        ({"checkpoints": {"a": "epoch_30.pt"}}, CheckpointError, r"nothing at .*epoch_30\.pt"),
        ({"scopes": ("head",)}, UnknownNameError, "a scope, but got 'head'. Known: 'neuron', 'layer', 'full'"),
        ({"scopes": ()}, InputError, "`scopes` to hold at least one scope"),
        ({"scopes": ("neuron",), "probes": [("linear", "spatial")]}, InputError, "a probe that scope 'neuron' can take"),
        ({"scopes": ("full",), "probes": [("sparse", "pooled")]}, InputError, "a probe that scope 'full' can take"),
        ({"probes": [("linear", "pooled"), (LinearProbe(C=2), "pooled")]}, InputError, "every kind of probe once"),
        ({"probes": [(LinearProbe(C=0), "pooled")]}, InputError, "`C` to be a number above 0"),
        ({"probes": [("regression", "pooled")]}, InputError, "likelihoods of 'red' for a regression"),
        ({"controls": 1}, InputError, "types of the images of 'red' for control labels"),
        ({"permutations": -1}, InputError, "`permutations` to be a whole number of at least 0, but got -1"),
        ({"permutations": 1.5}, InputError, "`permutations` to be a whole number of at least 0, but got 1.5"),
        *[
            ({"seeds": seeds}, InputError, "`seeds` to be integers from 0 .*, but got")
            for seeds in [(), (0, -1), (0, 0), (2**32,), (0.2,), 5, "01"]
        ],
        ({"probes": ["linear"]}, InputError, r"every probe with its features, such as \('linear', 'pooled'\), but got 'linear'"),
        ({"probes": [(LinearProbe(C=(0.1, 1), cv=1), "pooled")]}, InputError, "`cv` to be a whole number of at least 2, but got 1"),
        ({"probes": [(NonlinearProbe(hidden=0), "pooled")]}, InputError, "`hidden` to be a whole number of at least 1, but got 0"),
        ({"concept_sets": {"red": RED}}, InputError, "Expected a ConceptSets, .* but got dict"),
        ({"concept_sets": sets(FEW), "held_out": 0.5, "codelength": True}, InputError, "at least 16 images of 'few' .* its set has 15"),
    ],
)
def test_what_cannot_be_is_refused_before_the_run(model, options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        study(model, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 0}, "`memory` to be a whole number of at least 1, but got 0"),
        *[({"n_jobs": n_jobs}, rf"`n_jobs` to be a number of threads, .* but got {n_jobs}") for n_jobs in (0, -5, 1.5)],
    ],
)
def test_settings_that_cannot_be_are_refused(model, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        study(model).run(IMAGES, transform=TRANSFORM, **options)


# --- a concept in one unit, and in none


class Planted(nn.Module):
    """Units of noise, which the pixels seed; in `one`, unit 3 carries the concept, in `many`, ten units together and none alone."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("mix", torch.randn(3 * 64, 64, generator=generator))
        self.one, self.many = nn.Identity(), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = (x.flatten(1) - 0.5) @ self.mix
        shown = noise[:, :1].sign()
        spread = torch.cat([torch.tensor([1.0, -1.0] * 5) / 10**0.5, torch.zeros(30)])
        rest = noise[:, 1:41] / 4  # of pixels that are even between 0 and 1, whose variance is a twelfth: 192 / 12 = 4 ** 2
        direction = rest @ spread
        self.one(torch.cat([rest[:, :3], 2 * shown + 0.2 * rest[:, 3:4], rest[:, 4:]], dim=1))
        return self.many(rest - direction[:, None] * spread + 0.9 * shown * spread)


def test_one_unit_is_found_by_scope_neuron_and_ten_only_by_scope_layer() -> None:
    images, model = noise_images(500, seed=1), Planted()
    pixels = torch.stack([torch.from_numpy(np.asarray(images[i]).copy()).float() / 255 for i in range(500)]).flatten(1)
    shows = ((pixels - 0.5) @ model.mix)[:, 0] > 0
    ids = np.array(images.ids)
    planted = ConceptSet("planted", "g", tuple(ids[shows][:200].tolist()), tuple(ids[~shows][:200].tolist()))
    report = ProbingStudy(
        model, ["one", "many"], sets(planted), probes=[("linear", "pooled")], scopes=("neuron", "layer"), seeds=range(3)
    ).run(images, transform=lambda image: torch.from_numpy(np.asarray(image).copy()).float() / 255, batch_size=500)
    accuracy = report.table.groupby(["layer", "scope"])["test_accuracy"].mean()
    assert set(report.table.query("layer == 'one' and scope == 'neuron'")["unit"]) == {3}
    assert accuracy["one", "neuron"] > 0.95
    assert accuracy["many", "layer"] > 0.95
    assert accuracy["many", "neuron"] < 0.75
    units = report.units
    assert units.loc[units["layer"] == "one"].set_index("unit")["q_value"].idxmin() == 3


# --- the world, whose truth is known


@pytest.mark.slow
def test_the_world_is_read_where_it_should_be() -> None:
    """Color early and everywhere, pattern and shape later; the trained target above the untrained one, intervals apart."""
    files = target_checkpoints()
    concepts = {"color": ("red", "blue"), "pattern": ("striped", "dotted"), "shape": ("star", "ring")}
    concept_sets = sets(*(true_set(c) for group in concepts.values() for c in group))
    probing = ProbingStudy(
        load_target(), ["features.0", "features.2", "features.9", "features.16", "features.18"], concept_sets,
        probes=[("linear", "pooled")], checkpoints={"untrained": files["step_00000"], "trained": files["step_05000"]},
    )  # fmt: skip
    table = probing.run(IMAGES, transform=TRANSFORM, n_jobs=2).table
    group = {c: name for name, members in concepts.items() for c in members}
    means = table.groupby([table["concept"].map(group), "checkpoint", "layer"])["test_accuracy"].mean()
    trained = means.xs("trained", level="checkpoint").unstack()
    assert trained.loc["color", "features.2"] > 0.7
    assert trained.loc["color"].min() > 0.65
    for later in ("pattern", "shape"):
        assert trained.loc[later, "features.18"] - trained.loc[later, "features.0"] > 0.15
        assert trained.loc["color", "features.2"] > trained.loc[later, "features.2"] + 0.05
    last = table[table["layer"] == "features.18"]
    scores = last.groupby(["checkpoint", "seed"])["test_accuracy"].mean().unstack()  # over the concepts, by split
    n_train, n_test = int(last["n_train"].iloc[0]), int(last["n_test"].iloc[0])
    low, _ = corrected_interval(scores.loc["trained"].to_numpy(), n_train=n_train, n_test=n_test)
    _, high = corrected_interval(scores.loc["untrained"].to_numpy(), n_train=n_train, n_test=n_test)
    assert low > high


@pytest.mark.slow
def test_with_random_labels_the_interval_holds_one_half() -> None:
    """A cell's labels are drawn anew; its interval over splits should hold 0.5 in 95 % of cells."""
    generator = np.random.default_rng(0)
    ids = np.array(IMAGES.ids)
    drawn = [generator.permutation(ids)[:160].tolist() for _ in range(200)]
    concept_sets = sets(*(ConceptSet(f"random {i}", "g", tuple(d[:80]), tuple(d[80:])) for i, d in enumerate(drawn)))
    table = (
        ProbingStudy(load_target(), ["features.4"], concept_sets, probes=[("linear", "pooled")], seeds=range(5))
        .run(IMAGES, transform=TRANSFORM, n_jobs=2)
        .table
    )
    scores = table.pivot(index="concept", columns="seed", values="balanced_accuracy").to_numpy()
    low, high = corrected_interval(scores, n_train=112, n_test=48)
    covered = np.mean((low <= 0.5) & (high >= 0.5))
    assert 0.91 <= covered <= 0.99  # three standard errors of 200 cells around 0.95
