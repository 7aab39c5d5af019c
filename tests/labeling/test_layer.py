from __future__ import annotations

import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import activations_of, scores_of
from similarities import scorer_of

from neuroprobe.concepts import ConceptScores
from neuroprobe.exceptions import InputError
from neuroprobe.labeling import Scorer, dissect, get_similarity, list_similarities
from neuroprobe.labeling._layer import RIVALS, RecordedUnits, SummarizedUnits, label_layer
from neuroprobe.recording import ActivationSummary
from neuroprobe.recording.summaries import LayerSummary
from neuroprobe.statistics import decorrelated

N, D = 90, 12


def scores(concepts: int = 200, *, n: int = N, seed: int = 0) -> ConceptScores:
    return scores_of(n, [f"word {i}" for i in range(concepts)], d=D, seed=seed)


def values(units: int = 10, *, n: int = N, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, units)).astype(np.float32)


def summarized(arrays: np.ndarray, ids: tuple[str, ...], *, k: int) -> ActivationSummary:
    summary = LayerSummary("layer", arrays.shape[1], k=k)
    summary.update(torch.from_numpy(arrays), rows=np.arange(len(arrays)), batch=0)
    return ActivationSummary({"layer": summary.statistics(lambda row: ids[row])}, {"images": "these images"})


@pytest.mark.parametrize("size", [7, 64, 199, 200])
@pytest.mark.parametrize("name", list_similarities())
def test_the_size_of_the_blocks_does_not_matter(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def run():
        return label_layer("layer", RecordedUnits(values()), scorer_of(name, scores()), top=5, n_null=100, n_bootstrap=0, seed=0)

    def blocks(scorer: Scorer, n_rows: int):
        return (slice(start, min(start + size, scorer.n_concepts)) for start in range(0, scorer.n_concepts, size))

    expected = run()
    monkeypatch.setattr(Scorer, "blocks", blocks)
    found = run()
    np.testing.assert_array_equal(found.concepts, expected.concepts)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.p_values, expected.p_values, rtol=0.05)


@pytest.mark.parametrize("name", list_similarities())
def test_the_best_are_those_of_the_whole_matrix(name: str) -> None:
    given, units = scores(1500), values()
    parameters = {"decorrelate": False} if name.startswith("peak") else {}
    found = label_layer("layer", RecordedUnits(units), scorer_of(name, given, **parameters), top=7, n_null=0, n_bootstrap=0, seed=0)
    expected = get_similarity(name)[1](torch.from_numpy(units), given.similarities()).numpy()
    assert found.scores.shape == found.concepts.shape == (10, 7)
    np.testing.assert_allclose(found.scores, -np.sort(-expected, axis=1)[:, :7], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(expected, found.concepts, axis=1), found.scores, rtol=1e-4, atol=1e-4)
    assert np.isnan(found.p_values).all()
    assert np.isnan(found.stability).all()


@pytest.mark.parametrize("name", list_similarities())
def test_of_concepts_with_the_same_vector_the_first_comes_first(name: str) -> None:
    given = scores(1300)
    texts = given.text_vectors.clone()
    texts[[640, 1029, 1299]] = texts[3].clone()
    given = ConceptScores(given.image_vectors, texts, given.vocabulary, given.ids, given.temperature, given.metadata)
    unit = given.similarities()[:, 3:4].numpy() + np.linspace(0, 0.2, 5)[None] * values(5)
    parameters = {"prior": None} if name == "soft_wpmi" else {}
    found = label_layer("layer", RecordedUnits(unit), scorer_of(name, given, **parameters), top=6, n_null=0, n_bootstrap=3, seed=0)
    for concepts, best in zip(found.concepts.tolist(), found.scores, strict=True):
        for here, after, high, low in zip(concepts, concepts[1:], best, best[1:], strict=False):
            assert high > low or here < after
    if name not in ("average_precision", "rank_reorder"):  # which know of few images, and find several words as good
        assert found.concepts[0, :4].tolist() == [3, 640, 1029, 1299]


@pytest.mark.parametrize("name", ["peak_correlation", "peak_mean", "pearson", "cos_similarity_cubed", "mean_difference", "auc"])
def test_a_tie_costs_no_stability(name: str) -> None:
    given = scores(8)
    texts = given.text_vectors.clone()
    texts[5] = texts[3].clone()
    given = ConceptScores(decorrelated(given.image_vectors), texts, given.vocabulary, given.ids, given.temperature, given.metadata)
    found = label_layer(
        "layer", RecordedUnits(given.similarities().numpy()), scorer_of(name, given), top=2, n_null=0, n_bootstrap=20, seed=0
    )
    assert found.concepts[3].tolist() == found.concepts[5].tolist() == [3, 5]
    assert found.stability.min() == 1


def test_a_scorer_with_scores_that_are_not_finite_is_refused() -> None:
    class Broken(Scorer):
        def units(self, activations):
            return (activations.T,)

        def block(self, units, columns):
            return torch.full((len(units[0]), len(self.text_vectors[columns])), torch.nan)

    with pytest.raises(InputError, match="finite similarities, but Broken returned some that are not"):
        label_layer("layer", RecordedUnits(values()), Broken(scores()), top=5, n_null=0, n_bootstrap=0, seed=0)


def test_a_scorer_of_ones_own_has_p_values_and_stability() -> None:
    class Largest(Scorer):
        """The concept's score on the unit's highest image."""

        def units(self, activations):
            return (activations.argmax(dim=0),)

        def block(self, units, columns):
            return self.matrix(columns)[units[0]]

    given = scores()
    table = dissect(activations_of({"layer": values()}), given, similarity=Largest, n_null=200, n_bootstrap=3).table
    rows = values().argmax(axis=0)
    assert table["candidate"].tolist() == [given.concepts[int(i)] for i in given.similarities()[rows].argmax(dim=1)]
    assert table["p_value"].between(0, 1).all()
    assert table["stability"].between(0, 1).all()


# --- one unit, one concept


@pytest.mark.parametrize("name", list_similarities())
def test_a_layer_of_one_unit(name: str) -> None:
    planted = scores().similarities()[:, [17]].numpy()
    if name == "soft_wpmi":
        with pytest.raises(InputError, match=r"more than one unit in 'layer', since the prior .*parameters=\{'prior': None\}"):
            dissect(activations_of({"layer": planted}), scores(), similarity=name)
    parameters = {"prior": None} if name == "soft_wpmi" else {}
    table = dissect(activations_of({"layer": planted}), scores(), similarity=name, parameters=parameters, n_bootstrap=3).table
    assert table["p_value"].between(0, 1).all()
    assert table["candidate"].tolist() != [""]
    if name in ("peak_correlation", "pearson", "cos_similarity_cubed", "mean_difference", "auc", "average_precision", "peak_mean"):
        assert table["concept"].tolist() == ["word 17"]


@pytest.mark.parametrize("name", list_similarities())
def test_a_vocabulary_of_one_word(name: str) -> None:
    given = scores(1)
    activations = np.concatenate([given.similarities().numpy(), -given.similarities().numpy(), values(30)], axis=1)
    table = dissect(activations_of({"layer": activations}), given, similarity=name, n_bootstrap=2).table
    assert (table["candidate"] == "word 0").all()
    assert table["margin"].isna().all()
    assert (table["stability"] == 1).all()
    if name not in ("wpmi", "soft_wpmi", "rank_reorder"):  # of one word, the softmax is 1 on every image
        assert table["status"][0] == "named"
    assert table["status"][1] != "named"


# --- stability


def test_stability_is_high_for_a_clean_unit_and_low_between_two_concepts() -> None:
    given = scores(12)
    matrix = (decorrelated(given.image_vectors) @ given.text_vectors.T).numpy()
    z = (matrix - matrix.mean(axis=0)) / matrix.std(axis=0)
    units = np.column_stack([z[:, 5], z[:, 8] + z[:, 10], values(40, seed=7)])
    table = dissect(activations_of({"layer": units}), given, n_bootstrap=100).table
    assert table["candidate"][0] == "word 5"
    assert table["stability"][0] == 1
    assert table["stability"][1] < 0.9
    assert table["stability"][2:].mean() < 0.7


def slow_stability(
    units: np.ndarray, given: ConceptScores, name: str, winners: list[int], rivals: list[list[int]], draws: list[np.ndarray]
) -> list[float]:
    kept = np.zeros(len(winners))
    for rows in draws:
        again = get_similarity(name)[1](units[rows], given.similarities().numpy()[rows])
        kept += [again[u, w] >= again[u, r].max() for u, (w, r) in enumerate(zip(winners, rivals, strict=True))]
    return (kept / len(draws)).tolist()


def test_p_values_do_not_depend_on_a_layers_name() -> None:
    given, units = scores(40), values(6)
    found = [
        label_layer(layer, RecordedUnits(units), scorer_of("pearson", given), top=1, n_null=200, n_bootstrap=0, seed=5) for layer in "ab"
    ]
    np.testing.assert_allclose(found[0].p_values, found[1].p_values, rtol=1e-4)


@pytest.mark.parametrize("name", ["pearson", "mean_difference", "cos_similarity"])
def test_stability_is_the_share_of_resamples_that_keep_the_label(name: str) -> None:
    given, units = scores(40), values(6)
    found = label_layer("layer", RecordedUnits(units), scorer_of(name, given), top=RIVALS, n_null=0, n_bootstrap=30, seed=5)
    generator = np.random.default_rng((5, 1))
    draws = [generator.integers(N, size=N) for _ in range(30)]
    expected = slow_stability(units, given, name, found.concepts[:, 0].tolist(), found.concepts.tolist(), draws)
    np.testing.assert_allclose(found.stability, expected, atol=1 / 30 + 1e-9)  # a tie may fall either way
    assert 0.05 < found.stability.mean() < 0.95


def slow_stability_with_a_prior(
    raw: np.ndarray, draws: list[np.ndarray], winners: np.ndarray, rivals: np.ndarray, *, weight: float, temperature: float, relative: bool
) -> np.ndarray:
    """Each unit by itself: its raw scores change with the images, the other units' stay as they are on all of them."""
    scale, kept = raw.max(axis=1) if relative else np.ones(len(raw)), np.zeros(len(raw))
    for drawn in draws:
        for u, (winner, others) in enumerate(zip(winners, rivals, strict=True)):
            layer = raw / scale[:, None]
            layer[u] = drawn[u] / scale[u]
            prior = weight * temperature * np.log(np.exp(layer / temperature).mean(axis=0))
            score = scale[u] * (layer[u] - prior)
            kept[u] += score[winner] >= score[others].max() - 1e-6
    return kept / len(draws)


@pytest.mark.parametrize(
    ("name", "alone", "prior"),
    [
        ("peak_correlation", {"competition": 0}, {"weight": 0.75, "temperature": 0.1, "relative": True}),
        ("wpmi", {"prior": None}, {"weight": 0.6, "temperature": 1.0, "relative": False}),
    ],
)
def test_stability_counts_the_prior_among_the_other_units(name: str, alone: dict, prior: dict) -> None:
    given, units = scores(40), values(30)
    units[:, 15:] = units[:, :15] + 0.7 * values(15, seed=9)  # units that agree, so that the prior decides
    parameters = {"decorrelate": False} if name == "peak_correlation" else {}
    found = label_layer("layer", RecordedUnits(units), scorer_of(name, given, **parameters), top=RIVALS, n_null=0, n_bootstrap=30, seed=5)
    generator, function, matrix = np.random.default_rng((5, 1)), get_similarity(name)[1], given.similarities().numpy()
    draws = [generator.integers(N, size=N) for _ in range(30)]
    drawn = [function(units[rows], matrix[rows], **alone).astype(float) for rows in draws]
    raw = function(units, matrix, **alone).astype(float)
    expected = slow_stability_with_a_prior(raw, drawn, found.concepts[:, 0], found.concepts, **prior)
    without = slow_stability_with_a_prior(raw, drawn, found.concepts[:, 0], found.concepts, **{**prior, "weight": 0.0})
    np.testing.assert_allclose(found.stability, expected, atol=1 / 30 + 1e-9)  # a tie may fall either way
    assert np.abs(without - expected).max() > 2 / 30  # and the prior matters


def test_a_control_unit_stands_in_the_place_of_the_unit_of_its_number() -> None:
    given, units = scores(40), values(6)
    units[:, 3] = given.similarities()[:, 7].numpy() + 0.01 * units[:, 3]  # likes a concept alone, which no other then gets cheaply
    controls = [values(6, seed=11), values(6, seed=12)]
    controls[1][:, 3] = units[:, 3] + 0.2 * controls[1][:, 3]
    scorer = scorer_of("peak_correlation", given, decorrelate=False)
    found = label_layer(
        "layer", RecordedUnits(units), scorer, top=1, n_null=100, n_bootstrap=0, seed=0, controls=[RecordedUnits(c) for c in controls]
    )
    function, matrix = get_similarity("peak_correlation")[1], given.similarities().numpy()
    null_best = []
    for control in controls:
        for unit in range(6):
            layer = units.copy()
            layer[:, unit] = control[:, unit]
            null_best.append(function(layer, matrix)[unit].max())
    best = function(units, matrix).max(axis=1)
    expected = [(1 + (np.array(null_best) >= own - 1e-5).sum()) / (1 + len(null_best)) for own in best]
    np.testing.assert_allclose(found.p_values, expected)
    assert len(set(expected)) > 2


# --- summaries


@pytest.mark.parametrize(("name", "parameters", "k"), [("wpmi", {}, 28), ("soft_wpmi", {"k": 20}, 20), ("rank_reorder", {}, 4)])
def test_a_summary_gives_the_labels_of_the_activations(name: str, parameters: dict[str, int], k: int) -> None:
    given, units = scores(), np.round(values(12), 1)  # with ties
    expected = dissect(activations_of({"layer": units}), given, similarity=name, parameters=parameters, n_bootstrap=0).table
    for kept in (k, k + 5, N):
        found = dissect(summarized(units, given.ids, k=kept), given, similarity=name, parameters=parameters, n_bootstrap=3).table
        columns = [column for column in expected if column.startswith(("concept", "score", "candidate", "margin"))]
        for column in columns:
            if expected[column].dtype == object or column.startswith(("concept", "candidate")):
                if column != "concept":
                    assert found[column].tolist() == expected[column].tolist()
            else:
                np.testing.assert_allclose(found[column], expected[column], rtol=1e-5, atol=1e-5)
        assert found["stability"].isna().all()
        assert found["p_value"].between(0, 1).all()
        # other permutations of the same null
        np.testing.assert_allclose(found["p_value"], expected["p_value"], atol=0.17)


def test_peak_mean_from_a_summary_of_all_images_is_that_of_the_activations() -> None:
    given, units = scores(), np.exp(values(12))
    expected = dissect(activations_of({"layer": units}), given, similarity="peak_mean", n_bootstrap=0).table
    found = dissect(summarized(units, given.ids, k=N), given, similarity="peak_mean", n_bootstrap=0).table
    assert found["candidate"].tolist() == expected["candidate"].tolist()
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-4)
    few = dissect(summarized(units, given.ids, k=15), given, similarity="peak_mean", n_bootstrap=0).table
    assert (few["candidate"] == expected["candidate"]).mean() > 0.8


@pytest.mark.parametrize("name", ["wpmi", "soft_wpmi"])
def test_null_units_of_a_summary_are_tied_as_their_sources_are(name: str) -> None:
    # of units that are zero on most images, more are kept than are above zero
    units = np.maximum(values(400, n=150) - 1.5, 0)
    given = scores(31, n=150)
    p = dissect(summarized(units, given.ids, k=100), given, similarity=name, n_bootstrap=0).table["p_value"]
    assert abs(p.mean() - 0.5) < 0.08
    assert 0.01 < (p <= 0.05).mean() < 0.1


def test_a_dead_unit_of_a_summary_has_no_label() -> None:
    units = values(4)
    units[:, 2] = 1.5
    table = dissect(summarized(units, scores().ids, k=30), scores(), similarity="wpmi", n_null=100).table
    assert table["status"].tolist()[2] == "never varies"
    assert table["candidate"].tolist()[2] == ""
    assert (table["status"].drop(2) != "never varies").all()


def test_summaries_that_do_not_fit_are_refused() -> None:
    given, units = scores(), values()
    with pytest.raises(InputError, match="the 28 highest images of every unit, but the summary kept 27"):
        dissect(summarized(units, given.ids, k=27), given, similarity="wpmi")
    with pytest.raises(InputError, match="only a unit's highest activations, but PeakCorrelationScorer needs all"):
        dissect(summarized(units, given.ids, k=30), given)
    with pytest.raises(InputError):
        dissect(summarized(units, given.ids, k=30), given, similarity="average_precision")
    others = tuple(f"other {i}" for i in range(N))
    with pytest.raises(InputError, match=r"same images in the same order, but got a summary with fingerprint these images and 90 images"):
        dissect(summarized(units, others, k=30), given, similarity="wpmi")
    with pytest.raises(InputError, match=r"summary of the 91 images that were scored, but it is of 90 images"):
        dissect(summarized(units, given.ids, k=30), scores(n=91), similarity="wpmi")
    with pytest.raises(InputError, match="similarity function of your own, but got a summary"):
        dissect(summarized(units, given.ids, k=30), given, similarity=lambda a, c: a.T @ c)


def test_a_summary_whose_rows_are_numbered_otherwise() -> None:
    # the same images, recorded in another order: found by their ids
    given, units = scores(), values()
    order = np.random.default_rng(0).permutation(N)
    turned = SummarizedUnits(
        summarized(units[order], tuple(given.ids[i] for i in order), k=30)["layer"], {id_: i for i, id_ in enumerate(given.ids)}
    )
    scorer = scorer_of("wpmi", given)
    torch.testing.assert_close(
        scorer.block(turned.parts(scorer), slice(None)),
        scorer.block(scorer.units(torch.from_numpy(units)), slice(None)),
        rtol=1e-5,
        atol=1e-4,
    )


# --- memory


@pytest.mark.parametrize("name", list_similarities())
def test_no_block_is_the_whole_matrix(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, plain = [], Scorer.matrix

    def spied(self: Scorer, columns) -> torch.Tensor:
        found = plain(self, columns)
        seen.append(tuple(found.shape))
        return found

    monkeypatch.setattr(Scorer, "matrix", spied)
    monkeypatch.setattr(ConceptScores, "similarities", lambda *_: pytest.fail("the whole matrix was asked for"))
    table = dissect(activations_of({"layer": values(4)}), scores(3000), similarity=name, n_null=100, n_bootstrap=2).table
    assert len(table) == 4
    assert max((columns for _, columns in seen), default=0) <= 1024


_SCRIPT = """
import resource, sys, numpy as np, torch
sys.path.insert(0, sys.argv[2])
torch.set_num_threads(1)
from helpers import activations_of, scores_of
from neuroprobe.labeling import dissect
scores = scores_of(4000, [f"word {i}" for i in range(20000)], d=64)
activations = activations_of({"layer": np.random.default_rng(0).normal(size=(4000, 64))})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
dissect(activations, scores, similarity=sys.argv[1], n_bootstrap=3, n_null=1000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "getrusage"), reason="no measure of memory here")
@pytest.mark.parametrize("name", ["peak_correlation", "wpmi"])
def test_the_memory_of_dissect_is_far_below_that_of_the_matrix(name: str) -> None:
    from pathlib import Path

    made = subprocess.run(
        [sys.executable, "-c", _SCRIPT, name, str(Path(__file__).parents[1] / "worlds")], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    assert int(made.stdout) < 0.8 * 4000 * 20000 * 4
