"""Facets: units of one and of several concepts made from the truth, clusters against scikit-learn's, labels by hand."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from helpers import activations_of, scores_of
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from neuroprobe import Activations, ClipEncoder, ConceptScores, ConceptSource, Images, Vocabulary
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.recording import ActivationSummary
from neuroprobe.recording.summaries import LayerSummary
from neuroprobe.visualization import facets, layer_facets
from neuroprobe.visualization._clusters import Clustering, ClusterSpace, k_means, mean_silhouettes
from neuroprobe.visualization._facets import FacetConcept, UnitFacets, active_examples
from neuroprobe.world import ATTRIBUTES, CLIP_PATH, WorldDataset, world_vocabulary

N = 1000
UNITS = [("red", "striped"), ("yellow", "circle"), ("zigzagged", "heart"), ("red",), ("striped",), ("ring",), ("grey",)]


@pytest.fixture(scope="module")
def dataset() -> WorldDataset:
    return WorldDataset(N, seed=21)


@pytest.fixture(scope="module")
def scores(dataset: WorldDataset) -> ConceptScores:
    return ConceptSource(ClipEncoder(CLIP_PATH, device="cpu"), world_vocabulary()).score(Images(dataset), progress=False)


@pytest.fixture(scope="module")
def made(dataset: WorldDataset, scores: ConceptScores) -> Activations:
    """Units that fire for any of their concepts, with noise; then one of noise, and one that never varies."""
    generator, truth = np.random.default_rng(0), dataset.truth()
    columns = [truth[:, [ATTRIBUTES.index(c) for c in concepts]].any(axis=1) + 0.3 * generator.normal(size=N) for concepts in UNITS]
    values = np.stack([*columns, generator.normal(size=N), np.ones(N)], axis=1).astype(np.float32)
    return Activations({"made": values}, scores.ids, {"images": scores.metadata["images"]})


@pytest.fixture(scope="module")
def found(made: Activations, scores: ConceptScores) -> list[UnitFacets]:
    return layer_facets(made, scores, "made", n_null=39)


def test_units_of_two_concepts_have_two_facets_with_both_names(found: list[UnitFacets]) -> None:
    for one, concepts in zip(found[:3], UNITS[:3], strict=True):
        assert one.status == "several facets"
        assert one.p_value in (1 / 40, 2 / 40)
        assert sorted(one.labels) == sorted(concepts)


def test_units_of_one_concept_have_one_facet(found: list[UnitFacets]) -> None:
    for one, concepts in zip(found[3:7], UNITS[3:7], strict=True):
        assert one.labels == concepts
        assert one.status in ("one facet", "one concept")
        assert repr(one.common) == repr(one[0].concepts)
        assert one[0].share == 1
        assert np.isnan(one[0].concepts[0].against_others)


def test_noise_is_one_facet_and_a_constant_says_so(found: list[UnitFacets]) -> None:
    assert (len(found[7]), found[7].status) == (1, "one facet")
    assert (found[8].facets, found[8].common, found[8].status) == ((), (), "never varies")
    assert np.isnan(found[8].p_value)


def test_facets_hold_a_units_strongest_images(found: list[UnitFacets], made: Activations, dataset: WorldDataset) -> None:
    one = found[0]
    rows = sorted(example.row for facet in one for example in facet.examples)
    assert rows == sorted(np.argsort(-made["made"][:, 0], kind="stable")[: len(rows)].tolist())
    assert sum(facet.share for facet in one) == pytest.approx(1)
    assert [facet.share for facet in one] == sorted((facet.share for facet in one), reverse=True)
    truth = dataset.truth()
    for facet in one:
        values = [example.value for example in facet.examples]
        assert values == sorted(values, reverse=True)
        own = truth[[example.row for example in facet.examples], ATTRIBUTES.index(facet.label)]
        assert own.mean() > 0.9


def test_labels_by_hand(found: list[UnitFacets], scores: ConceptScores) -> None:
    from neuroprobe.statistics import decorrelated

    values = (decorrelated(scores.image_vectors) @ scores.text_vectors.T).double().numpy()
    spread = values.std(axis=0)
    one = found[0]
    unit = [example.row for facet in one for example in facet.examples]
    rest = np.setdiff1d(np.arange(N), unit)
    for facet in one:
        own = [example.row for example in facet.examples]
        others = np.setdiff1d(unit, own)
        against_set = (values[own].mean(axis=0) - values[rest].mean(axis=0)) / spread
        against_others = (values[own].mean(axis=0) - values[others].mean(axis=0)) / spread
        best = np.minimum(against_set, against_others).argsort()[::-1][:5]
        assert [concept.concept for concept in facet.concepts] == [scores.concepts[i] for i in best]
        assert facet.concepts[0].against_set == pytest.approx(against_set[best[0]], rel=1e-4)
        assert facet.concepts[0].against_others == pytest.approx(against_others[best[0]], rel=1e-4)
        assert facet.concepts[0].score == min(facet.concepts[0].against_set, facet.concepts[0].against_others)
    assert FacetConcept("red", 2.0, float("nan")).score == 2


@pytest.mark.parametrize("seed", [0, 1])
def test_the_p_value_by_hand(made: Activations, scores: ConceptScores, seed: int) -> None:
    """Slowly: one random set after the other, and the highest standing over the numbers of clusters."""
    from neuroprobe.statistics import decorrelated

    vectors = decorrelated(scores.image_vectors).double().numpy()
    one = facets(made, scores, "made", 3, n_null=19, max_facets=3, seed=seed)
    rows = np.array([example.row for facet in one for example in facet.examples])

    def silhouettes(of: np.ndarray) -> list[float]:
        centered = vectors[of] - vectors[of].mean(axis=0)
        points = (centered @ np.linalg.svd(centered, full_matrices=False)[2].T)[:, :8]
        labels = [k_means(points[None], m, seed=seed)[0] for m in (2, 3)]
        return [silhouette_score(points, each) if np.bincount(each).min() >= 4 else np.nan for each in labels]

    generator = np.random.default_rng((seed, len(rows)))
    null = np.array([silhouettes(generator.choice(N, len(rows), replace=False)) for _ in range(19)])
    mean, spread = np.nanmean(null, axis=0), np.nanstd(null, axis=0)
    observed = (np.array(silhouettes(np.sort(rows)[np.argsort(-made["made"][np.sort(rows), 3])])) - mean) / spread
    np.testing.assert_allclose([one.standings[2], one.standings[3]], observed, rtol=1e-3, atol=1e-3)
    by_chance = np.nanmax((null - mean) / spread, axis=1)
    assert one.p_value == pytest.approx((1 + np.sum(by_chance >= np.nanmax(observed))) / 20)


def test_nothing_depends_on_what_else_was_asked(
    found: list[UnitFacets],
    made: Activations,
    scores: ConceptScores,
    same_random_states: Callable[[], AbstractContextManager[None]],
) -> None:
    with same_random_states():
        alone = facets(made, scores, "made", 1, n_null=39)
    assert [facet.examples for facet in alone] == [facet.examples for facet in found[1]]
    assert [facet.concepts for facet in alone] == [facet.concepts for facet in found[1]]
    assert (alone.standings, alone.silhouettes, alone.p_value) == (found[1].standings, found[1].silhouettes, found[1].p_value)
    assert repr(alone).startswith(f"UnitFacets(made, unit 1: several facets: {alone[0].label} (")
    other = facets(made, scores, "made", 1, seed=5, n_null=39)
    assert sorted(other.labels) == sorted(alone.labels)
    assert other.standings != alone.standings


def test_a_summary_gives_the_same(found: list[UnitFacets], made: Activations, scores: ConceptScores) -> None:
    layer = LayerSummary("made", made["made"].shape[1], k=100)
    layer.update(torch.from_numpy(made["made"]), rows=np.arange(N), batch=0)
    summary = ActivationSummary({"made": layer.statistics(made.ids.__getitem__)}, made.metadata)
    for unit in (0, 8):
        one = facets(summary, scores, "made", unit, n_null=39)
        assert (one.labels, one.status) == (found[unit].labels, found[unit].status)
        assert [e.row for f in one for e in f.examples] == [e.row for f in found[unit] for e in f.examples]


def test_a_number_of_facets_that_is_asked_for(made: Activations, scores: ConceptScores) -> None:
    three = facets(made, scores, "made", 0, n_facets=3)
    assert (len(three), three.status) == (3, "as asked")
    assert np.isnan(three.p_value)
    assert list(three.silhouettes) == [3]
    assert len(facets(made, scores, "made", 0, n_facets=1)) == 1


def test_only_images_on_which_the_unit_fires_count() -> None:
    values = np.zeros(400)
    values[:20] = 10 + np.arange(20) / 10
    values[20:40] = 3
    activations, scores = activations_of({"fc": values[:, None]}), scores_of(400, ["a", "b", "c"])
    assert sorted(e.row for e in active_examples(activations, "fc", 0, k=100)) == list(range(20))
    high = activations_of({"fc": np.r_[np.full(20, 10.0), np.full(20, 7.0), np.full(360, 5.0)][:, None]})  # its mean is 5.35
    assert sorted(e.row for e in active_examples(high, "fc", 0, k=100)) == list(range(20))
    for n, most in ((200, 30), (600, 60), (2000, 100)):  # a tenth of the images, or 30 if that is more, and at most k
        half = activations_of({"fc": (np.arange(n) % 2)[:, None].astype(float)})
        assert len(active_examples(half, "fc", 0, k=100)) == most
    few = activations_of({"fc": (np.arange(400) < 5)[:, None].astype(float)})
    one = facets(few, scores, "fc", 0)
    assert (one.status, len(one), len(one[0].examples)) == ("too few images", 1, 5)


def test_one_image_over_and_over_is_one_facet() -> None:
    scores = scores_of(100, ["a", "b"])
    scores.image_vectors[:40] = scores.image_vectors[0]
    activations = activations_of({"fc": (np.arange(100) < 30)[:, None].astype(float)})
    assert len(facets(activations, scores, "fc", 0)) == 1


# --- clusters


@pytest.mark.parametrize("m", [2, 3, 5])
def test_clusters_are_as_good_as_scikit_learns(m: int) -> None:
    points = np.random.default_rng(m).normal(size=(12, 50, 8))
    labels = k_means(points, m)

    def spread(one: np.ndarray, of: np.ndarray) -> float:
        return sum(((one[of == c] - one[of == c].mean(axis=0)) ** 2).sum() for c in range(m))

    ratios = [spread(p, of) / KMeans(m, n_init=10, random_state=0).fit(p).inertia_ for p, of in zip(points, labels, strict=True)]
    assert np.mean(ratios) < 1.01
    assert max(ratios) < 1.04
    np.testing.assert_array_equal(labels[3:4], k_means(points[3:4], m))  # one set or many


def test_clusters_by_hand() -> None:
    points = np.array([[[0.0], [1.0], [10.0], [11.0], [12.0]]])
    labels = k_means(points, 2)[0]
    assert labels[0] == labels[1] != labels[2] == labels[3] == labels[4]
    assert set(labels.tolist()) == {0, 1}


def test_silhouettes_against_scikit_learn_and_by_hand() -> None:
    points = np.random.default_rng(0).normal(size=(6, 40, 3))
    labels = np.random.default_rng(1).integers(0, 3, (6, 40))
    expected = [silhouette_score(p, of) for p, of in zip(points, labels, strict=True)]
    np.testing.assert_allclose(mean_silhouettes(points, labels, 3), expected, atol=1e-12)
    hand = mean_silhouettes([[[0.0], [2.0], [10.0], [12.0]]], np.array([[0, 0, 1, 1]]), 2, smallest=2)
    assert hand[0] == pytest.approx((9 / 11 + 7 / 9) / 2)  # (11 - 2) / 11 of the outer two, (9 - 2) / 9 of the inner two
    assert np.isnan(mean_silhouettes(points, labels, 3, smallest=30)).all()
    assert np.isnan(mean_silhouettes(points, np.zeros((6, 40), int), 1)).all()


def test_a_concept_that_never_varies_stands_out_nowhere() -> None:
    scores = scores_of(50, ["a", "b"])
    scores.text_vectors[1] = 0
    space = ClusterSpace(scores, [2], n_null=19, seed=0)
    against_set, _ = space.standing_out(np.arange(10), np.arange(10, 15))
    assert against_set[1] == 0
    assert against_set[0] != 0


def test_what_cannot_be_done_is_refused(made: Activations, scores: ConceptScores) -> None:
    with pytest.raises(InputError, match="of the same images"):
        facets(made, scores_of(N, ["a"]), "made", 0)
    with pytest.raises(InputError, match="Expected a unit from 0 to 8"):
        facets(made, scores, "made", 9)
    with pytest.raises(InputError, match="Expected a unit from 0 to 8 of 'made', but got '12'"):
        layer_facets(made, scores, "made", "12")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="made"):
        facets(made, scores, "mode", 0)
    for options in ({"k": 5}, {"n_facets": 0}, {"max_facets": 1}, {"max_p_value": 0.0}, {"n_null": 5}, {"seed": -1}, {"n_facets": 13}):
        with pytest.raises(InputError, match=next(iter(options))):
            facets(made, scores, "made", 0, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 12 images"):
        facets(activations_of({"fc": np.ones((5, 1))}), scores_of(5, ["a"]), "fc", 0)


def test_the_fewest_clusters_that_stand_nearly_as_high_are_chosen() -> None:
    labels = {m: np.arange(12) % m for m in (2, 3, 4)}
    for standings, chosen in (({2: 9.0, 3: 10.0, 4: np.nan}, 2), ({2: 8.9, 3: 10.0, 4: 9.1}, 3), ({2: np.nan, 3: 1.0, 4: 1.2}, 4)):
        clusters, status = Clustering(labels, {}, standings, 0.05).chosen(0.05, 12)
        assert (clusters.max() + 1, status) == (chosen, "several facets")
    assert Clustering(labels, {}, {2: 9.0}, 0.06).chosen(0.05, 12)[1] == "one facet"


@pytest.mark.parametrize(("one_for_all", "status"), [(3.9, "one concept"), (2.9, "several facets")])
def test_several_facets_say_more_than_one_concept_by_their_shares(monkeypatch: pytest.MonkeyPatch, one_for_all: float, status: str) -> None:
    """Three quarters of the images stand out by 1, a quarter by 9: 3 on average."""

    def standing_out(self: ClusterSpace, inside: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        score = one_for_all if not len(others) else (1.0 if len(inside) > len(others) else 9.0)
        return np.array([score]), np.array([score if len(others) else np.nan])

    clusters = (np.arange(16) % 4 == 0).astype(np.int64)
    monkeypatch.setattr(ClusterSpace, "cluster", lambda self, rows: Clustering({2: clusters}, {2: 0.5}, {2: 5.0}, 0.01))
    monkeypatch.setattr(ClusterSpace, "standing_out", standing_out)
    assert facets(activations_of({"fc": (np.arange(200) < 16)[:, None].astype(float)}), scores_of(200, ["a"]), "fc", 0).status == status


def test_random_sets_that_fall_apart_just_as_clearly_count() -> None:
    space, rows = ClusterSpace(scores_of(60, ["a"]), [2], n_null=4, seed=0), np.arange(20)
    as_clear = space.cluster(rows).silhouettes[2]
    space._nulls[20] = np.array([[as_clear], [as_clear], [as_clear - 0.1], [as_clear - 0.2]])
    assert space.cluster(rows).p_value == 3 / 5


def test_words_do_not_decide_the_clusters(found: list[UnitFacets], made: Activations, scores: ConceptScores) -> None:
    """With other words, the same images in the facets, as far as there are several."""
    words = ConceptScores(
        scores.image_vectors, scores.text_vectors[:5], Vocabulary.from_words(scores.concepts[:5]), scores.ids, None, scores.metadata
    )
    one = facets(made, words, "made", 0, n_null=39)
    assert one.standings == found[0].standings
    assert one.p_value == found[0].p_value
