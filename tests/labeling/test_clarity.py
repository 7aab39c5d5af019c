from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from embedded_world import planted, recorded_world, summary_of, world_truth
from helpers import activations_of, scores_of

from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.labeling import UnitScoreReport, score_units
from neuroprobe.labeling.clarity import SCORES, clarity, monosemanticity, polysemanticity, redundancy, top_image_rows
from neuroprobe.recording import Activations
from neuroprobe.world import ATTRIBUTES

N = 60
CONCEPT_SCORES = scores_of(N, ["red", "blue"])
GENERATOR = np.random.default_rng(0)
TOPS = GENERATOR.normal(size=(7, 12, 5)) + 0.4


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_clarity_is_the_mean_cosine_of_all_pairs() -> None:
    slow = [np.mean([cosine(v[i], v[j]) for i in range(12) for j in range(12) if i != j]) for v in TOPS]
    np.testing.assert_allclose(clarity(TOPS), slow, rtol=1e-12)


def test_clarity_by_hand() -> None:
    same, opposite, square = [[3, 0], [1, 0]], [[1, 0], [-2, 0]], [[0, 1], [1, 0]]
    np.testing.assert_allclose(clarity([same, opposite, square]), [1, -1, 0], atol=1e-12)


def test_polysemanticity_by_hand() -> None:
    two = [[1, 0.1], [1, -0.1], [0.1, 1], [-0.1, 1]]  # clusters around (1, 0) and (0, 1): at a right angle
    one = [[1, 0], [1, 0], [1, 0], [1, 0]]
    opposite = [[1, 0], [1, 0.1], [-1, 0], [-1, -0.1]]
    np.testing.assert_allclose(polysemanticity([two, one, opposite]), [1, 0, 2], atol=1e-12)


def test_a_cluster_of_one_image_says_nothing() -> None:
    tops = np.array([[1, 0.0], [1, 0.1], [1, -0.1], [0, 5.0]])
    expected = 1 - np.mean([cosine(tops.mean(axis=0), image) for image in tops])
    np.testing.assert_allclose(polysemanticity(tops[None]), [expected], rtol=1e-12)


def test_redundancy_is_the_highest_cosine_with_another_unit() -> None:
    means = GENERATOR.normal(size=(300, 6))  # more than are worked on at a time
    slow = [max(cosine(means[i], means[j]) for j in range(300) if j != i) for i in range(300)]
    np.testing.assert_allclose(redundancy(means), slow, rtol=1e-12)


def test_redundancy_by_hand() -> None:
    np.testing.assert_allclose(redundancy([[1, 0], [2, 0], [0, 1]]), [1, 1, 0], atol=1e-12)
    assert np.isnan(redundancy([[1, 0]])).all()


def test_monosemanticity_is_the_weighted_mean_cosine_of_all_pairs() -> None:
    activations, vectors = GENERATOR.normal(size=(20, 9)), GENERATOR.normal(size=(20, 4))
    slow = []
    for unit in activations.T:
        w = (unit - unit.min()) / (unit.max() - unit.min())
        pairs = [(w[i] * w[j], cosine(vectors[i], vectors[j])) for i in range(20) for j in range(20) if i != j]
        slow.append(sum(weight * alike for weight, alike in pairs) / sum(weight for weight, _ in pairs))
    np.testing.assert_allclose(monosemanticity(activations, vectors), slow, rtol=1e-10)


def test_monosemanticity_by_hand() -> None:
    vectors = [[1, 0], [0, 1], [1, 0]]
    # weights 1, 0.5, 0: one pair, at a right angle; 1, 0, 0.5: one pair, alike; negative values count from the lowest
    activations = np.array([[4, 1, -1], [2, 0, -3], [0, 0.5, -2]], dtype=np.float32)
    np.testing.assert_allclose(monosemanticity(activations, vectors), [0, 1, 1], atol=1e-12)
    # weights 1, 1, 0.5: pairs of weight 1 (0), 0.5 (1) and 0.5 (0)
    np.testing.assert_allclose(monosemanticity(np.array([[2.0], [2.0], [1.0]]) - 0, vectors), [0], atol=1e-12)
    np.testing.assert_allclose(monosemanticity(np.array([[2.0], [2.0], [1.0], [0.0]]), [*vectors, [5, 5]]), [0.25], atol=1e-12)


def test_one_image_with_weight_has_no_monosemanticity() -> None:
    activations = np.array([[0, 1.0], [0, 1.0], [3, 1.0]])
    assert np.isnan(monosemanticity(activations, np.eye(3))).all()


def test_the_scores_are_those_of_semanticlens() -> None:
    published = pytest.importorskip("semanticlens.scores")
    tensor = torch.from_numpy(TOPS)
    np.testing.assert_allclose(clarity(TOPS), published.clarity_score(tensor), rtol=1e-10)
    np.testing.assert_allclose(polysemanticity(TOPS, seed=123), published.polysemanticity_score(tensor), rtol=1e-10)
    means = TOPS.mean(axis=1)
    np.testing.assert_allclose(redundancy(means).mean(), published.redundancy_score(torch.from_numpy(means)), rtol=1e-10)
    lonely = np.array([[[1, 0.0], [1, 0.1], [1, -0.1], [0, 5.0]]])
    found = polysemanticity(lonely, seed=123)
    np.testing.assert_allclose(found, published.polysemanticity_score(torch.from_numpy(lonely)), rtol=1e-10)


def test_top_images_are_the_highest_and_of_equal_ones_the_first() -> None:
    values = np.round(GENERATOR.normal(size=(N, 40)), 1)  # many ties
    activations = activations_of({"a": values})
    rows, varies = top_image_rows(activations, CONCEPT_SCORES, "a", k=9)
    slow = [sorted(range(N), key=lambda i: (-np.float32(unit[i]), i))[:9] for unit in values.T]
    assert rows.tolist() == slow
    assert varies.all()
    from_summary, _ = top_image_rows(summary_of(activations, k=12), CONCEPT_SCORES, "a", k=9)
    assert from_summary.tolist() == slow


def test_dead_units_do_not_vary() -> None:
    values = GENERATOR.normal(size=(N, 3))
    values[:, 1] = -2
    activations = activations_of({"a": values})
    for recorded in (activations, summary_of(activations, k=5)):
        assert top_image_rows(recorded, CONCEPT_SCORES, "a", k=5)[1].tolist() == [True, False, True]


def random_activations() -> Activations:
    generator = np.random.default_rng(3)
    return activations_of({"a": generator.normal(size=(N, 9)), "b.0": generator.normal(size=(N, 4))})


def test_every_unit_gets_the_scores_of_its_images() -> None:
    activations = random_activations()
    table = score_units(activations, CONCEPT_SCORES, k=8).table
    assert list(zip(table["layer"], table["unit"], strict=True)) == [("a", u) for u in range(9)] + [("b.0", u) for u in range(4)]
    vectors = CONCEPT_SCORES.image_vectors.numpy()
    for layer in activations.layers:
        rows = table[table["layer"] == layer]
        tops = np.stack([vectors[np.argsort(-unit)[:8]] for unit in activations[layer].T])
        np.testing.assert_allclose(rows["clarity"], clarity(tops), rtol=1e-6)
        np.testing.assert_allclose(rows["polysemanticity"], polysemanticity(tops), rtol=1e-4)
        np.testing.assert_allclose(rows["redundancy"], redundancy(tops.mean(axis=1)), atol=1e-6)
        np.testing.assert_allclose(rows["monosemanticity"], monosemanticity(activations[layer], vectors), rtol=1e-6, atol=1e-9)


def test_a_summary_gives_the_same_but_monosemanticity() -> None:
    activations = random_activations()
    whole = score_units(activations, CONCEPT_SCORES, k=8).table
    found = score_units(summary_of(activations, k=8), CONCEPT_SCORES, k=8).table
    pd.testing.assert_frame_equal(found.drop(columns="monosemanticity"), whole.drop(columns="monosemanticity"))
    assert found["monosemanticity"].isna().all()


def test_dead_units_have_a_status_and_change_nothing() -> None:
    values = random_activations()["a"].copy()
    without = score_units(activations_of({"a": np.delete(values, 2, axis=1)}), CONCEPT_SCORES, k=8).table
    values[:, 2] = 0
    table = score_units(activations_of({"a": values}), CONCEPT_SCORES, k=8).table
    assert table["status"].tolist() == ["scored"] * 2 + ["never varies"] + ["scored"] * 6
    assert table.loc[2, list(SCORES)].isna().all()
    np.testing.assert_allclose(table.drop(index=2)[list(SCORES)], without[list(SCORES)], rtol=0, atol=1e-12)


def test_a_layer_of_dead_units_alone(tmp_path) -> None:
    report = score_units(activations_of({"a": np.zeros((N, 2))}), CONCEPT_SCORES, k=5)
    report.save(tmp_path)
    assert UnitScoreReport.load(tmp_path).table[list(SCORES)].isna().all(axis=None)


def test_the_report_is_saved_and_read(tmp_path) -> None:
    report = score_units(random_activations(), CONCEPT_SCORES, k=8, layers=["b.0"])
    assert all(path.is_file() for path in report.save(tmp_path))
    pd.testing.assert_frame_equal(UnitScoreReport.load(tmp_path).table, report.table)
    assert report.summary().startswith("4 units in 1 layers; means: clarity ")
    assert report.metadata["k"] == 8


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 1}, InputError, "`k` to be a whole number of at least 2, but got 1"),
        ({"k": 61}, InputError, "`k` to be at most 60, as there are 60 images, but got 61"),
        ({"layers": ["c"]}, UnknownNameError, "a recorded layer, but got 'c'"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        score_units(random_activations(), CONCEPT_SCORES, **change)


def test_a_summary_that_keeps_too_few_is_refused() -> None:
    with pytest.raises(InputError, match="`k` to be at most 4, as there are 4 highest images of every unit in the summary, but got 5"):
        score_units(summary_of(random_activations(), k=4), CONCEPT_SCORES, k=5)


@pytest.mark.parametrize("other", [scores_of(N, ["red"], images="others"), scores_of(N - 1, ["red"])])
def test_other_images_are_refused(other) -> None:
    for recorded in (random_activations(), summary_of(random_activations(), k=8)):
        with pytest.raises(InputError, match="of the same images in the same order"):
            score_units(recorded, other, k=8)


def test_a_planted_clear_unit_is_told_from_a_noise_unit_and_a_mixed_one() -> None:
    truth = world_truth().truth()
    red, female = (truth[:, ATTRIBUTES.index(name)] for name in ("red", "female"))
    activations = planted(red, female, red | female, np.zeros(len(truth)))
    table = score_units(activations, recorded_world()[1]).table.set_index("unit")
    assert table.loc[:1, "clarity"].min() > table.loc[2, "clarity"] > table.loc[3, "clarity"]
    assert table.loc[:1, "monosemanticity"].min() > table.loc[3, "monosemanticity"]
    assert table.loc[2, "polysemanticity"] > table.loc[:1, "polysemanticity"].max()
