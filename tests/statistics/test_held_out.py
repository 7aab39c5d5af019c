from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import r2_score

from neuroprobe.exceptions import InputError
from neuroprobe.statistics import correlations, draw_counts, explained_shares, interval, quality, split_images

IDS = [f"image {i}" for i in range(40)]


def test_a_share_is_held_out_by_the_seed() -> None:
    train, test = split_images(IDS, held_out=0.25, seed=3)
    assert (len(train), len(test)) == (30, 10)
    assert sorted([*train, *test]) == list(range(40))
    np.testing.assert_array_equal(test, split_images(IDS, held_out=0.25, seed=3)[1])
    assert test.tolist() != split_images(IDS, held_out=0.25, seed=4)[1].tolist()
    assert (np.diff(train) > 0).all()
    assert (np.diff(test) > 0).all()


def test_ids_asked_for_are_held_out_in_the_images_order() -> None:
    assert split_images(IDS, held_out=["image 7", "image 0", "image 3"])[1].tolist() == [0, 3, 7]
    assert split_images(IDS, held_out=(name for name in IDS[:9]))[1].tolist() == list(range(9))


def test_near_duplicates_are_not_taken_apart() -> None:
    groups = {name: i // 4 for i, name in enumerate(IDS)}
    for seed in range(5):
        train, test = split_images(IDS, held_out=0.3, near_duplicates=groups, seed=seed)
        assert not {row // 4 for row in train} & {row // 4 for row in test}
        assert len(test) == 12


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"held_out": 0}, "`held_out` to be a number, above 0 and below 1"),
        ({"held_out": 1.0}, "`held_out` to be a number, above 0 and below 1"),
        ({"held_out": True}, "`held_out` to be a number, above 0 and below 1"),
        ({"held_out": np.nan}, "`held_out` to be a number, above 0 and below 1"),
        ({"held_out": "image 1"}, "as a share, or as ids"),
        ({"held_out": None}, "as a share, or as ids"),
        ({"held_out": ["image 1", "image 99"]}, "1 are not, such as 'image 99'"),
        ({"held_out": ["image 1", "image 2"]}, "there are 38 and 2"),
        ({"held_out": IDS[2:]}, "there are 2 and 38"),
        ({"held_out": 0.01}, "there are 40 and 0"),
        ({"near_duplicates": {"image 0": 1}}, "'image 1' has none"),
        ({"held_out": IDS[:9], "near_duplicates": dict.fromkeys(IDS, 1)}, "without `near_duplicates`"),
    ],
)
def test_what_cannot_be_split_is_refused(given, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_images(IDS, **given)


def test_agreement_is_numpys_and_sklearns() -> None:
    generator = np.random.default_rng(0)
    predicted, measured = generator.normal(size=(30, 4)) + 1000, generator.normal(size=(30, 4)) + 1000
    measured[:, 1] = predicted[:, 1]
    for found, slow in (
        (correlations(predicted, measured), [np.corrcoef(p, m)[0, 1] for p, m in zip(predicted.T, measured.T, strict=True)]),
        (explained_shares(predicted, measured), [r2_score(m, p) for p, m in zip(predicted.T, measured.T, strict=True)]),
    ):
        np.testing.assert_allclose(found, slow, atol=1e-9)
    one = measured[:, :1]
    np.testing.assert_allclose(correlations(predicted, one)[2], np.corrcoef(predicted[:, 2], one[:, 0])[0, 1], atol=1e-9)


def test_agreement_worked_by_hand() -> None:
    # mean 2; distances -1, 0, 1; predicted 1, 2, 4: errors 0, 0, 1; R2 = 1 - 1 / 2; r = (1 + 5 / 3) / sqrt(2 * 14 / 3)
    predicted, measured = np.array([[1.0], [2], [4]]), np.array([[1.0], [2], [3]])
    assert explained_shares(predicted, measured) == pytest.approx([0.5])
    assert correlations(predicted, measured) == pytest.approx([3 / np.sqrt(2 * 14 / 3)])


def test_a_draw_counts_images_as_often_as_it_has_them() -> None:
    generator = np.random.default_rng(1)
    predicted, measured = generator.normal(size=(12, 3)), generator.normal(size=(12, 3))
    counts = draw_counts(12, n_resamples=5, seed=2)
    assert (counts.sum(axis=1) == 12).all()
    for measure in (correlations, explained_shares):
        for draw, found in zip(counts, measure(predicted, measured, counts), strict=True):
            rows = np.repeat(np.arange(12), draw.astype(int))
            np.testing.assert_allclose(found, measure(predicted[rows], measured[rows]), atol=1e-9)


def test_what_never_varies_has_no_correlation() -> None:
    flat, moving = np.full((8, 1), 0.1), np.arange(8.0)[:, None]
    assert np.isnan(correlations(flat, moving)).all()
    assert np.isnan(correlations(moving, flat)).all()
    assert np.isnan(explained_shares(moving, flat)).all()
    assert explained_shares(np.full((8, 1), 3.5), moving) == pytest.approx([0])  # the mean explains nothing
    found = quality(correlations, flat, moving, counts=draw_counts(8, n_resamples=20, seed=0))
    assert np.isnan([found.value[0], found.low[0], found.high[0]]).all()


def test_intervals_hold_the_true_correlation_about_as_often_as_they_say() -> None:
    generator, hits = np.random.default_rng(5), []
    shared = generator.normal(size=(200, 60))
    x, y = (0.8 * shared + 0.6 * generator.normal(size=shared.shape) for _ in range(2))  # r = .64
    found = quality(correlations, x, y, counts=draw_counts(200, n_resamples=400, seed=0), level=0.9)
    hits = (found.low < 0.64) & (found.high > 0.64)
    assert 0.75 < hits.mean() < 1
    assert ((found.low < found.value) & (found.value < found.high)).all()


def test_draws_without_a_value_are_left_out() -> None:
    draws = np.array([[0.0, np.nan], [1.0, np.nan], [np.nan, np.nan]])
    low, high = interval(draws, level=0.5)
    assert (low[0], high[0]) == (0.25, 0.75)
    assert np.isnan([low[1], high[1]]).all()


def test_groups_of_near_duplicates_may_have_names() -> None:
    ids = [f"image {i}" for i in range(20)]
    numbered = {name: i // 2 for i, name in enumerate(ids)}
    named = {name: f"group {group:02d}" for name, group in numbered.items()}
    for found, expected in zip(split_images(ids, near_duplicates=named), split_images(ids, near_duplicates=numbered), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_draws_follow_their_seed() -> None:
    first, again, other = (draw_counts(30, n_resamples=4, seed=seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert (first.sum(axis=1) == 30).all()
