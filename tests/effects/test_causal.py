"""Causal effects: pairs, changes, intervals and controls; and what is known of the world's target."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import noise_images
from helpers import to_tensor as transform
from PIL import Image
from scipy import stats
from torch import nn

from neuroprobe import ClipEncoder, Images, LabelReport, dissect
from neuroprobe.concepts import ConceptScores, ConceptSet, ConceptSets, ConceptSource, GivenLabels, Vocabulary
from neuroprobe.effects import EffectReport, ablate, causal_effect, units_named
from neuroprobe.effects.causal import _effect, _magnitudes
from neuroprobe.effects.matching import match_images, random_units
from neuroprobe.exceptions import InputError, UnknownNameError, UnreadableImageError
from neuroprobe.images import collect
from neuroprobe.models import Direction, Site, as_site
from neuroprobe.probing import LinearProbe
from neuroprobe.recording import ActivationRecorder, Activations
from neuroprobe.statistics import paired_interval
from neuroprobe.world import ATTRIBUTES, CLIP_PATH, COLORS, WorldDataset, load_target, target_transform, world_images, world_vocabulary


@pytest.fixture
def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Tanh(), nn.Dropout(), nn.Flatten(), nn.Linear(128, 4))
    return model.eval()


IMAGES = noise_images(12)
RED = ConceptSet("red", "color", ("0", "3", "4", "8"), ("1", "2", "5", "6", "9", "11"))
SETTINGS = {"transform": transform, "match": "random", "value": "zero", "n_random": 0}


def effects(
    model: nn.Module, concepts=RED, *, layer: str = "2", units=(1, 5), outputs=2, images: Images = IMAGES, **changed
) -> EffectReport:
    return causal_effect(model, images, concepts, layer=layer, units=units, outputs=outputs, **{**SETTINGS, **changed})


def scores_of(vectors: np.ndarray, text: np.ndarray, ids=IMAGES.ids) -> ConceptScores:
    vocabulary = Vocabulary.from_words(["red", "blue"])
    return ConceptScores(torch.from_numpy(vectors), torch.from_numpy(text), vocabulary, tuple(ids), 0.01, {})


@pytest.fixture
def scores() -> ConceptScores:
    generator = np.random.default_rng(0)
    vectors, text = generator.normal(size=(12, 5)), generator.normal(size=(2, 5))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (vectors, text)]
    return scores_of(unit[0].astype(np.float32), unit[1].astype(np.float32))


# --- effects


def test_a_linear_layer_by_hand() -> None:
    # of a linear output, taking unit u away changes it by weight * (value - activation), here 10 * (1 - a)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
        model[2].weight.copy_(torch.tensor([[10.0, 0], [0, 1]]))
    pictures = Images([Image.new("RGB", (1, 1), (a, 7, 0)) for a in (4, 6, 2, 1)])
    report = causal_effect(
        model, pictures, {"red": (["0", "1"], ["3", "2"])}, layer="1", units=0, outputs={"first": 0, "second": 1},
        transform=lambda image: 255 * transform(image), value=1.0, match="random", n_random=5,
    )  # fmt: skip
    table = report.table
    assert table["change_with"].tolist() == [-40, 0]  # (-30 - 50) / 2
    assert table["change_without"].tolist() == [-5, 0]  # (-10 - 0) / 2
    assert table["effect"].tolist() == [-35, 0]
    assert table["n_random"].tolist() == [1, 1]  # there is one other unit
    assert table["random"].tolist() == [0, 0]  # it is 7 on all images
    assert table["p_value"].tolist() == [0.5, 1]
    assert table["intervention"].tolist() == ["set to 1", "set to 1"]


def slow_effect(model: nn.Module, pairs, layer: str, units, value, measure) -> np.ndarray:
    """Image by image, with a plain hook: the differences of all pairs."""
    found = []
    for pair in pairs:
        changes = []
        for id_ in pair:
            x = transform(IMAGES[int(id_)])[None]

            def hook(module, args, output):
                output = output.clone()
                for i, unit in enumerate(units):
                    output[:, unit] = float(np.broadcast_to(value, len(units))[i])
                return output

            with torch.no_grad():
                before = measure(model, x)
                handle = model.get_submodule(layer).register_forward_hook(hook)
                changes.append(measure(model, x) - before)
                handle.remove()
        found.append(changes[0] - changes[1])
    return np.array(found)


@pytest.mark.parametrize("value", ["zero", "mean", 0.3, [0.1, -0.4]])
def test_effects_are_those_of_a_plain_loop(net: nn.Module, scores: ConceptScores, value) -> None:
    activations = ActivationRecorder(net, ["2"]).record(IMAGES, transform=transform)
    report = effects(
        net, value=value, activations=activations, match="nearest", scores=scores, n_random=6,
        outputs={"a": 0, "d": lambda y: y[:, 3] ** 2}, batch_size=5,
    )  # fmt: skip
    matched = match_images(RED, scores)
    pairs = list(zip(matched.with_concept, matched.without, strict=True))
    for o, measure in enumerate((lambda m, x: float(m(x)[0, 0]), lambda m, x: float(m(x)[0, 3]) ** 2)):
        means = activations["2"].mean(0)
        numbers = {"zero": 0.0, "mean": means[[1, 5]]}.get(value, value) if isinstance(value, str) else value
        row = report.table.iloc[o]
        expected = slow_effect(net, pairs, "2", [1, 5], numbers, measure)
        assert row["effect"] == pytest.approx(expected.mean(), abs=1e-6)
        interval = stats.ttest_1samp(expected, 0).confidence_interval(0.95)
        assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high), abs=1e-6)
        random = []
        for set_ in report.metadata["random_units"]:
            random.append(slow_effect(net, pairs, "2", set_, means[set_] if value == "mean" else numbers, measure).mean())
        assert row["random"] == pytest.approx(np.mean(random), abs=1e-6)
        assert (row["random_low"], row["random_high"]) == pytest.approx((min(random), max(random)), abs=1e-6)
        assert row["p_value"] == (1 + np.sum(np.abs(random) >= abs(expected.mean()) - 1e-9)) / 7


def test_several_concepts_are_measured_as_each_alone(net: nn.Module) -> None:
    both = {"red": RED, "blue": (["1", "2"], ["0", "7", "10"])}
    together = effects(net, both, n_random=4)
    for concept, sides in both.items():
        alone = effects(net, {concept: sides}, n_random=4).table
        rows = together.table[together.table["concept"] == concept].reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, alone, rtol=1e-6)
    assert [pair["n_pairs"] for pair in together.metadata["pairs"]] == [4, 2]


def test_the_model_and_random_states_are_left_as_found(net: nn.Module, same_random_states) -> None:
    net.train()
    with same_random_states():
        first, second = (effects(net, n_random=3).table for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert net.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    with pytest.raises(ZeroDivisionError):
        effects(net, outputs={"a": lambda y: y[:, 0] if len(y) == 1 else 1 / 0})
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_probe_downstream_is_an_output(net: nn.Module) -> None:
    generator = np.random.default_rng(1)
    rows = ActivationRecorder(net, ["3"]).record(IMAGES, transform=transform)["3"]
    probe = LinearProbe().fit(rows, np.arange(12) % 2)
    pooled = Direction("red", "", "3", "pooled", "linear", 0, probe.coef_[0], float(probe.intercept_[0]))
    spatial = Direction("red", "", "3", "spatial", "linear", 0, generator.normal(size=128), 1.0)
    outputs = {"first": 0, "pooled": pooled, "probe": ("3", probe), "spatial": spatial}
    table = effects(net, layer="0", units=[2, 4], outputs=outputs).table.set_index("output")
    matched = match_images(RED, match="random")
    pairs = list(zip(matched.with_concept, matched.without, strict=True))

    def measured(weights, pool):
        return lambda model, x: float(pool(model[:4](x))[0].double().numpy() @ weights)

    for name, weights, pool in (
        ("pooled", pooled.weights.astype(float), lambda y: y.mean((2, 3))),
        ("spatial", spatial.weights.astype(float), lambda y: y.flatten(1)),
    ):
        expected = slow_effect(net, pairs, "0", [2, 4], 0.0, measured(weights, pool)).mean()
        assert expected != 0
        assert table.loc[name, "effect"] == pytest.approx(expected, abs=1e-5)
    assert table.loc["probe", "effect"] == pytest.approx(table.loc["pooled", "effect"], rel=1e-4)
    # of the layer itself a probe reads what the units were set to: its own two parts of the log-odds go
    own = effects(net, layer="3", units=[2, 4], outputs={"pooled": (Site("3"), pooled)}).table["effect"]
    parts = -(rows[:, [2, 4]] @ probe.coef_[0, [2, 4]])
    assert own.item() == pytest.approx(np.mean([parts[int(one)] - parts[int(other)] for one, other in pairs]), abs=1e-5)
    with pytest.raises(InputError, match="comes after '4', but '3' ends before"):
        effects(net, layer="4", outputs={"probe": pooled})
    with pytest.raises(InputError, match=r"Expected a probe 'probe' of the 6 features of '1'"):
        effects(net, layer="0", outputs={"probe": ("1", probe)})


def test_images_that_cannot_be_read_leave_their_pair_out(net: nn.Module) -> None:
    class Damaged:
        ids = IMAGES.ids

        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int):
            if index in (0, 3):
                raise OSError("damaged")
            return IMAGES[index]

    images = Images(Damaged(), on_error="skip")
    report = effects(net, images=images)
    assert report.table["n_pairs"].tolist() == [2]
    assert report.metadata["pairs"][0]["n_unreadable"] == 2
    assert set(report.metadata["skipped"]) == {"0", "3"}
    with pytest.raises(InputError, match="Expected a pair of images of 'red' that can be read"):
        effects(net, {"red": (["0", "3"], ["1", "2"])}, images=images)
    with pytest.raises(UnreadableImageError):
        effects(net, images=Images(Damaged()))


# --- pairs


def test_pairs_are_the_nearest_of_all_ways_to_pair(scores: ConceptScores) -> None:
    matched = match_images(RED, scores)
    axis = scores.text_vectors[0].double().numpy()
    vectors = {id_: v - (v @ axis) / (axis @ axis) * axis for id_, v in zip(scores.ids, scores.image_vectors.double().numpy(), strict=True)}
    ways = itertools.permutations(RED.negatives, len(RED.positives))

    def length(way) -> float:
        return sum(np.linalg.norm(vectors[a] - vectors[b]) for a, b in zip(RED.positives, way, strict=True))

    assert matched.without == min(ways, key=length)
    assert matched.with_concept == RED.positives
    assert matched.distance == pytest.approx(length(matched.without) / 4)
    every = [np.linalg.norm(vectors[a] - vectors[b]) for a in RED.positives for b in RED.negatives]
    assert matched.any_distance == pytest.approx(np.mean(every))
    assert matched.distance < matched.any_distance


def test_how_much_of_the_concept_an_image_shows_does_not_matter(scores: ConceptScores) -> None:
    generator = np.random.default_rng(4)
    moved = scores.image_vectors.numpy() + generator.normal(size=(12, 1)).astype(np.float32) * 5 * scores.text_vectors[0].numpy()
    assert match_images(RED, scores_of(moved, scores.text_vectors.numpy())).without == match_images(RED, scores).without


def test_given_labels_are_matched_on_the_other_labels() -> None:
    red, big, old = [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 1, 1], [0, 1, 0, 0, 1, 0]
    table = pd.DataFrame({"red": red, "big": big, "old": old}, index=list("abcdef"))
    scores = GivenLabels(table).score(Images(list(noise_images(6)), ids=list("abcdef")))
    matched = match_images(ConceptSet("red", "", ("a", "b", "c"), ("d", "e", "f")), scores)
    assert dict(zip(matched.with_concept, matched.without, strict=True)) == {"a": "f", "b": "e", "c": "d"}
    assert matched.distance == 0


def test_as_many_pairs_as_the_smaller_side_has_images(scores: ConceptScores) -> None:
    few = ConceptSet("red", "", RED.negatives, RED.positives)
    for match in ("nearest", "random"):
        matched = match_images(few, scores, match=match)
        assert len(matched.with_concept) == 4
        assert sorted(matched.without) == sorted(RED.positives)
        assert len(set(matched.with_concept)) == 4
        assert matched.left_out == 2


def test_random_pairs_follow_the_seed_and_the_concept(scores: ConceptScores) -> None:
    first, again, other = (match_images(RED, match="random", seed=seed) for seed in (0, 0, 1))
    assert first.without == again.without != other.without
    assert match_images(ConceptSet("big", "", RED.positives, RED.negatives), match="random").without != first.without
    assert np.isnan(first.distance)
    assert match_images(RED, scores, match="random").distance > match_images(RED, scores).distance
    places = [match_images(RED, match="random", seed=seed).without[0] for seed in range(600)]
    counts = [places.count(id_) for id_ in RED.negatives]
    assert stats.chisquare(counts).pvalue > 0.001


def test_pairs_that_cannot_be_made_are_refused(scores: ConceptScores) -> None:
    many = ConceptSet("red", "", tuple(map(str, range(7000))), tuple(map(str, range(7000, 14000))))
    vectors = np.where(np.arange(12)[:, None] == 4, np.nan, scores.image_vectors.numpy())
    for concept_set, given, match, message in (
        (RED, None, "nearest", r"ConceptSource\.score.*Or take match='random'"),
        (RED, scores, "nearst", "'nearest' or 'random', but got 'nearst'"),
        (ConceptSet("rod", "", ("0",), ("1",)), scores, "nearest", r"scores of 'rod'.*Did you mean 'red'"),
        (ConceptSet("red", "", ("0",), ("x",)), scores, "nearest", "but 'x' has none"),
        (many, scores, "nearest", "7,000 images with it"),
        (RED, scores_of(vectors, scores.text_vectors.numpy()), "nearest", "finite scores to match images of 'red'"),
    ):
        with pytest.raises((InputError, UnknownNameError), match=message):
            match_images(concept_set, given, match=match)


# --- intervals


def test_the_interval_by_hand() -> None:
    low, high = paired_interval([1.0, 2, 3])
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))  # the table's t of 2 degrees
    assert np.isnan(paired_interval([[1.0, 2]])).all()
    assert paired_interval([[0.0, 1], [0, 2]])[0].shape == (2,)


@pytest.mark.parametrize(
    ("draw", "n", "least"),
    [
        (lambda g, shape: g.normal(3, 2, shape), 5, 0.94),
        (lambda g, shape: g.standard_t(3, shape) + 3, 20, 0.94),
        (lambda g, shape: g.exponential(3, shape), 100, 0.935),
        (lambda g, shape: np.where(g.random(shape) < 0.3, 10.0, 0.0), 100, 0.93),  # of images of which few change at all
    ],
)
def test_the_interval_covers_as_often_as_it_says(draw, n: int, least: float) -> None:
    low, high = paired_interval(draw(np.random.default_rng(0), (n, 20_000)))
    assert least < np.mean((low <= 3) & (high >= 3)) < 0.97


def test_the_middle_of_what_random_sets_do() -> None:
    changes = np.repeat(np.array([-30.0, *np.random.default_rng(0).permutation(20)])[:, None], 5, axis=1)  # of the units, then of 20 sets
    found = _effect(changes, np.zeros((21, 5)), 0.9)
    assert (found["random_low"], found["random_high"]) == (0, 18)  # the least and greatest twentieth are beyond, or the ends
    assert found["random"] == 9.5
    assert found["p_value"] == 1 / 21
    assert _effect(-changes, np.zeros((21, 5)), 0.9)["p_value"] == 1 / 21


# --- random units


def test_random_sets_are_of_other_units_and_all_different() -> None:
    sets = random_units(30, [3, 7, 9], n_random=50, seed=1)
    assert len(set(sets)) == len(sets) == 50
    assert all(len(set(one)) == 3 and not {3, 7, 9} & set(one) and max(one) < 30 for one in sets)
    assert sets == random_units(30, [3, 7, 9], n_random=50, seed=1) != random_units(30, [3, 7, 9], n_random=50, seed=2)
    counts = np.bincount([unit for one in random_units(30, [3, 7, 9], n_random=2000, seed=0) for unit in one], minlength=30)
    assert stats.chisquare(counts[[unit for unit in range(30) if unit not in (3, 7, 9)]]).pvalue > 0.001


def test_where_there_are_few_sets_all_are_taken() -> None:
    assert random_units(5, [1, 2], n_random=20, seed=0) == [(0, 3), (0, 4), (3, 4)]
    assert random_units(5, [1, 2], n_random=0, seed=0) == []
    assert random_units(5, [0, 1, 2], n_random=0, seed=0) == []
    with pytest.raises(InputError, match=r"at least 3 other units.*n_random=0"):
        random_units(5, [0, 1, 2], n_random=3, seed=0)


def test_units_that_are_as_active_are_drawn_if_asked_for(net: nn.Module) -> None:
    magnitudes = np.arange(100.0)
    sets = random_units(100, [20, 80], n_random=10, seed=0, magnitudes=magnitudes)
    assert all(one[0] in range(14, 27) and one[1] in range(74, 87) for one in sets)
    assert len(set(sets)) == 10
    drawn = {random_units(100, [50], n_random=1, seed=seed, magnitudes=magnitudes)[0] for seed in range(200)}
    assert drawn == {(unit,) for unit in range(45, 56) if unit != 50}  # of the ten nearest, however few sets are wanted
    recorder = ActivationRecorder(net, ["2"])
    activations = recorder.record(IMAGES, transform=transform)
    summary = recorder.summarize(IMAGES, transform=transform)
    tables = [effects(net, units=1, control="magnitude", activations=a, n_random=3) for a in (activations, summary)]
    assert tables[0].metadata["random_units"] == tables[1].metadata["random_units"]
    for recorded in (activations, summary):
        found = _magnitudes(as_site("2"), recorded, 8)
        np.testing.assert_allclose(found, np.sqrt((activations["2"].astype(float) ** 2).mean(axis=0)), rtol=1e-5)
        assert (found > 1.0001 * np.abs(activations["2"].mean(axis=0))).all()  # what varies counts too
    with pytest.raises(InputError, match="units that are as active"):
        effects(net, control="magnitude", n_random=3)


# --- what cannot be


def test_what_cannot_be_is_refused_before_any_image_is_read(net: nn.Module) -> None:
    class Unread:
        ids = IMAGES.ids

        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int):
            raise AssertionError("an image was read")

    for changed, error, message in (
        ({"units": []}, InputError, "units of '2' once, but got none"),
        ({"layer": "9"}, UnknownNameError, "'9'"),
        ({"value": "mean"}, InputError, "to take the means from"),
        ({"value": [1.0]}, InputError, "for each of 2 units"),
        ({"match": "nearest"}, InputError, "Expected `scores`"),
        *(({"outputs": wrong}, InputError, "Expected `outputs`") for wrong in ({}, True, [0])),
        ({"outputs": {0: 0, "0": 1}}, InputError, "as texts some are the same"),
        *(({"outputs": {"a": wrong}}, InputError, "Expected output 'a' as its number") for wrong in ("red", True, None)),
        ({"outputs": {"a": ("12", LinearProbe())}}, UnknownNameError, "'12'"),
        ({"control": "all"}, InputError, "'random' or 'magnitude'"),
        ({"concepts": ["0"]}, InputError, "Expected a concept set, or a mapping"),
        ({"concepts": {"red": "01"}}, InputError, "Expected a concept set or"),
        ({"concepts": {"red": (1, 2)}}, InputError, r"\(ids with, ids without\) for 'red'"),
        ({"concepts": {"red": (["0"], ["0"])}}, InputError, "on both sides"),
        ({"concepts": {"red": (["0"], [])}}, InputError, "a side is empty"),
        ({"concepts": {"red": (["0"], ["x"])}}, UnknownNameError, "'x'"),
    ):
        with pytest.raises(error, match=message):
            effects(net, images=Images(Unread()), **changed)
    with pytest.raises(InputError, match=r"as neuroprobe\.Images, but got list"):
        effects(net, images=[])


def test_what_shows_with_one_image_is_refused_before_the_pass(net: nn.Module) -> None:
    sizes = []

    def counted(image) -> torch.Tensor:
        sizes.append(1)
        return transform(image)

    for changed, message in (
        ({"units": [1, 8]}, "from 0 to 7 of '2', but got 8"),
        ({"outputs": {"red": 4}}, r"red = 4: the model returns \(1, 4\)"),
        ({"outputs": {"all": lambda y: y}}, "one number for each of 1 images"),
        ({"value": np.zeros((2, 3, 3))}, r"a map \(4, 4\)"),
        ({"units": range(5), "n_random": 3}, "at least 5 other units"),
    ):
        sizes.clear()
        with pytest.raises(InputError, match=message):
            effects(net, transform=counted, **changed)
        assert len(sizes) == 1


# --- the report


def report_of(effect: dict[str, tuple[float, float]], concept: str = "red") -> pd.DataFrame:
    rows = [
        {"layer": "fc", "units": "7", "intervention": "set to zero", "concept": concept, "output": name, "n_pairs": 9,
         "effect": (low + high) / 2, "low": low, "high": high, "random": 0.1, "random_low": -0.2, "random_high": 0.3}
        for name, (low, high) in effect.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_which_output_is_hurt_most() -> None:
    apart = EffectReport(report_of({"red": (-5, -3), "blue": (-2, 1), "green": (-2.9, 4)}), {})
    assert apart.hurts_most("red")
    assert not apart.hurts_most("blue")
    assert not EffectReport(report_of({"red": (-5, -3), "blue": (-3.1, 1)}), {}).hurts_most("red")
    assert not EffectReport(report_of({"red": (np.nan, np.nan), "blue": (1, 2)}), {}).hurts_most("red")
    assert not EffectReport(report_of({"red": (-5, -3), "blue": (-3, 1)}), {}).hurts_most("red")  # intervals that touch are not apart
    unknown = report_of({"red": (-5, -3), "blue": (np.nan, np.nan), "green": (1, 2)})
    assert not EffectReport(unknown, {}).hurts_most("red")
    both = EffectReport(pd.concat([apart.table, report_of({"red": (1, 2), "blue": (-3, 0)}, "blue")]), {})
    assert both.hurts_most("red", concept="red")
    assert both.hurts_most("blue", concept="blue")
    with pytest.raises(InputError, match="several: red, blue"):
        both.hurts_most("red")
    with pytest.raises(UnknownNameError, match="Did you mean 'green'"):
        apart.hurts_most("gren")
    with pytest.raises(InputError, match="a report on one intervention"):
        EffectReport(pd.concat([apart.table, apart.table.assign(layer="conv")]), {}).hurts_most("red")
    with pytest.raises(InputError, match="Expected other outputs"):
        EffectReport(report_of({"red": (1, 2)}), {}).hurts_most("red")


def test_a_report_is_saved_and_drawn(net: nn.Module, tmp_path: Path) -> None:
    report = effects(net, {"1": RED, "$a$ <b>\n": (["1"], ["2"])}, outputs={"1": 1, "NA": 0}, units=1, n_random=3)
    report.save(tmp_path)
    again = EffectReport.load(tmp_path)
    pd.testing.assert_frame_equal(again.table, report.table)
    assert again.metadata == report.metadata
    assert again.table["units"].tolist() == ["1"] * 4
    assert report.table["low"].isna().tolist() == [False, False, True, True]
    assert "<b>" not in (tmp_path / "effects.html").read_text()
    ax = report.plot()
    assert len(ax.get_yticks()) == 4
    assert report.summary().startswith("1 unit of 2 set to zero; 4 rows; most changed: output ")
    effects(net, outputs={"a": 0}).plot()
    assert EffectReport(report.table.head(0), {}).summary() == "0 rows"
    EffectReport(report.table.head(0), {}).plot()


def test_units_by_their_label() -> None:
    rows = {
        "layer": ["a", "a", "a", "b"],
        "unit": [0, 1, 2, 0],
        "concept": ["red", "", "red", "blue"],
        "candidate": ["red", "pink", "red", "blue"],
    }
    labels = LabelReport(pd.DataFrame({**rows, "score": 1.0, "status": "named"}), {})
    assert units_named(labels, "a", "red") == [0, 2]
    assert units_named(labels, "b", "red") == []
    assert units_named(labels, "a", "pink") == []
    with pytest.raises(UnknownNameError, match="'c'"):
        units_named(labels, "c", "red")
    with pytest.raises(UnknownNameError, match="Did you mean 'red'"):
        units_named(labels, "a", "reed")
    with pytest.raises(InputError, match="Expected a LabelReport"):
        units_named(labels.table, "a", "red")


# --- the world's target: labels from some images, effects on others

LATE = ("features.17", "features.18")
RED_OUTPUT = ATTRIBUTES.index("red")


@cache
def world_labels() -> tuple[LabelReport, Activations]:
    source = ConceptSource(ClipEncoder(CLIP_PATH, device="cpu"), world_vocabulary())
    recorder = ActivationRecorder(load_target(), LATE)
    activations, scores = collect(world_images(800, seed=41), [recorder.consumer(target_transform()), source.consumer()])
    return dissect(activations, scores), activations


@cache
def world_sets() -> tuple[Images, ConceptSets, ConceptScores]:
    data = WorldDataset(700, seed=42)
    images, table = Images(data), pd.DataFrame(data.truth(), index=data.ids, columns=list(ATTRIBUTES))
    scores = ConceptSource(ClipEncoder(CLIP_PATH, device="cpu"), world_vocabulary()).score(images)
    return images, ConceptSets.from_labels(table[list(COLORS)], n_positive=60, n_negative=120), scores


def world_effect(layer: str, color: str, **changed) -> EffectReport:
    labels, activations = world_labels()
    images, sets, scores = world_sets()
    return causal_effect(
        load_target(), images, sets, layer=layer, units=units_named(labels, layer, color), transform=target_transform(),
        outputs={c: ATTRIBUTES.index(c) for c in COLORS}, activations=activations, scores=scores, **changed,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "color"), [(LATE[0], "red"), *((LATE[1], color) for color in COLORS)])
def test_ablating_units_named_with_a_color_hurts_it_more_than_any_other(layer: str, color: str) -> None:
    report = world_effect(layer, color, n_random=0)
    # on images with the color, no other color's output falls as its own does
    assert report.hurts_most(color, concept=color)
    # and no other color suffers so on its own images
    own = report.table[report.table["concept"] == report.table["output"]].set_index("output")
    assert own.loc[color, "n_pairs"] == 60
    assert own.loc[color, "high"] < own.drop(color)["low"].min()


@pytest.mark.slow
def test_random_units_of_the_layer_do_not_do_what_the_named_ones_do() -> None:
    images, sets, scores = world_sets()
    labels, activations = world_labels()
    report = causal_effect(
        load_target(), images, sets["red"], layer="features.18", units=units_named(labels, "features.18", "red"), outputs=RED_OUTPUT,
        transform=target_transform(), activations=activations, scores=scores, control="magnitude",
    )  # fmt: skip
    row = report.table.iloc[0]
    assert row["high"] < 5 * row["random_low"] < 0
    assert row["p_value"] == 1 / 21


@pytest.mark.slow
def test_pairs_in_the_world_are_alike() -> None:
    data = WorldDataset(700, seed=42)
    _, sets, scores = world_sets()
    truth = dict(zip(data.ids, data.truth(), strict=True))

    def differing(match: str) -> float:
        matched = match_images(sets["red"], scores, match=match)
        return float(np.mean([(truth[a] != truth[b]).sum() - 1 for a, b in zip(matched.with_concept, matched.without, strict=True)]))

    assert differing("nearest") < 0.5 * differing("random")


def test_nothing_changes_where_nothing_is_ablated(net: nn.Module) -> None:
    rows = ActivationRecorder(net, ["1"], pooling="none").record(IMAGES, transform=transform)["1"]
    dead = nn.Sequential(*net[:2], nn.Threshold(1e9, 0.0), *net[2:]).eval()
    table = effects(dead, layer="2", units=[0], n_random=2).table
    assert rows.max() > 0
    assert (table[["effect", "low", "high", "random"]] == 0).all(axis=None)
    assert table["p_value"].tolist() == [1]
    with torch.no_grad(), ablate(dead, "2", 0, "zero"):
        dead(torch.zeros(1, 3, 8, 8))


def test_outputs_that_are_not_finite_are_told(net: nn.Module) -> None:
    with pytest.raises(InputError, match="finite outputs, but 'a' is nan"):
        effects(net, outputs={"a": lambda returned: returned[:, 0] * float("nan")})
    # where only random units make it so, p-values would say that none was as far from 0
    with pytest.raises(InputError, match="finite outputs, but 'a' is inf"):
        effects(net, outputs={"a": lambda returned: 1 / (returned[:, 0] - returned[:, 0])})


@pytest.mark.parametrize("n_units", [3, 11])
def test_activations_of_another_number_of_units_are_refused(net: nn.Module, n_units: int) -> None:
    other = Activations({"2": np.ones((2, n_units), np.float32)}, ("a", "b"), {})
    for changed in ({"value": "mean"}, {"control": "magnitude", "n_random": 3}):
        with pytest.raises(InputError, match=f"of the 8 units of '2', but got some of {n_units}"):
            effects(net, units=[0], activations=other, **changed)


def test_random_units_as_active_do_not_depend_on_the_order_of_units() -> None:
    magnitudes = np.random.default_rng(0).normal(size=60)
    for units in ([3, 41, 17], [41, 17, 3]):
        assert random_units(60, units, n_random=5, seed=0, magnitudes=magnitudes) == random_units(
            60, [3, 17, 41], n_random=5, seed=0, magnitudes=magnitudes
        )
