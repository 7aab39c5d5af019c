"""How good sets are: counted by hand, estimated from margins, and made worse on purpose."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import scores_of
from torch.nn import functional as F

from neuroprobe.concepts import (
    ClipEncoder,
    ConceptGroup,
    ConceptScores,
    ConceptSet,
    ConceptSets,
    ConceptSource,
    Vocabulary,
    estimate_set_quality,
    set_quality,
    with_label_noise,
)
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.images import Images
from neuroprobe.statistics import wilson_interval
from neuroprobe.world import ATTRIBUTES, CLIP_PATH, WorldDataset


def plain_sets(n_positive: int = 30, n_negative: int = 60, **known) -> ConceptSets:
    ids = [f"i{k}" for k in range(n_positive + n_negative)]
    return ConceptSets({"red": ConceptSet("red", "g", tuple(ids[:n_positive]), tuple(ids[n_positive:]), **known)}, {"made": "by hand"})


# --- measured


def test_precision_counted_by_hand() -> None:
    sets = ConceptSets({"red": ConceptSet("red", "g", ("a", "b", "c"), ("d", "e")), "big": ConceptSet("big", "g", ("d",), ("b",))}, {})
    truth = pd.DataFrame({"big": [0, 0, 0, 1, 1, 0], "red": [1, 1, 0, 1, 0, 0]}, index=list("abcdef"))
    table = set_quality(sets, truth)
    assert table["concept"].tolist() == ["red", "red", "big", "big"]
    assert table["side"].tolist() == ["positives", "negatives"] * 2
    assert table["n"].tolist() == [3, 2, 1, 1]
    assert table["n_right"].tolist() == [2, 1, 1, 1]
    assert table["precision"].tolist() == [2 / 3, 1 / 2, 1, 1]
    low, high = wilson_interval(2, 3, level=0.95)
    assert (table["low"][0], table["high"][0]) == (low, high)
    wider = set_quality(sets, truth, level=0.99)
    assert (wider["low"] < table["low"]).all()


def test_a_truth_that_does_not_fit_is_refused() -> None:
    truth = pd.DataFrame({"red": [True] * 89}, index=[f"i{k}" for k in range(89)])
    with pytest.raises(InputError, match="labels of all 90 images, but 1 have none, such as 'i89'"):
        set_quality(plain_sets(), truth)
    with pytest.raises(InputError, match="`concepts` of the table, but got 'red'"):
        set_quality(plain_sets(), truth.rename(columns={"red": "read"}))
    with pytest.raises(InputError, match="a label for every image, but 'red' lacks that of 'i0'"):
        set_quality(plain_sets(), truth.astype(float) * np.nan)


# --- estimated


def two_kinds(n: int, share: float, gap: float, *, seed: int = 0) -> tuple[ConceptScores, np.ndarray]:
    """Scores in whose plane the margin is Gaussian, `gap` standard deviations higher for the images that show the concept."""
    generator = np.random.default_rng(seed)
    shown = generator.random(n) < share
    angles = np.radians(45 - 4 * (generator.normal(size=n) + gap * shown - gap / 2))  # a lies at 0 degrees, b at 90
    vectors = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], axis=1)).float()
    vocabulary = Vocabulary([ConceptGroup("g", ("a", "b"))])
    return ConceptScores(vectors, torch.eye(2), vocabulary, tuple(f"i{k}" for k in range(n)), 0.05, {}), shown


@pytest.mark.parametrize(("share", "gap"), [(0.2, 4.0), (0.4, 3.0), (0.5, 2.5)])
def test_the_estimate_is_near_where_margins_are_two_gaussians(share: float, gap: float) -> None:
    scores, shown = two_kinds(4000, share, gap)
    sets = ConceptSets({"a": scores.rank(n_positive=int(4000 * share), n_negative=1000)["a"]}, {})
    truth = set_quality(sets, pd.DataFrame({"a": shown}, index=scores.ids))
    estimate = estimate_set_quality(sets, scores)
    np.testing.assert_allclose(estimate["estimated_precision"], truth["precision"], atol=0.04)
    assert truth["precision"].min() < 0.98  # there is something to estimate


def test_the_mean_likelihood_is_the_softmax() -> None:
    scores = scores_of(60, ["a", "b", "c"])
    sets = scores.rank(n_positive=10, n_negative=30)
    table = estimate_set_quality(sets, scores)
    assert table["n"].tolist() == [10, 30] * 3
    for row in table.itertuples():
        likelihoods = dict(zip(sets[row.concept].ids, sets[row.concept].likelihoods, strict=True))
        expected = np.mean([likelihoods[id_] for id_ in getattr(sets[row.concept], row.side)])
        assert row.mean_likelihood == pytest.approx(expected, rel=1e-4)


def test_scores_that_do_not_fit_are_refused() -> None:
    scores = scores_of(60, ["a", "b"])
    sets = scores.rank(n_positive=10, n_negative=30)
    with pytest.raises(InputError, match="the scores that the sets were ranked from, but they have no image 'image "):
        estimate_set_quality(sets, scores_of(5, ["a", "b"]))
    with pytest.raises(InputError, match="'words' has no 'b'"):
        estimate_set_quality(sets, scores_of(60, ["a", "c"]))
    with pytest.raises(UnknownNameError, match="a group of the vocabulary, but got 'g'"):
        estimate_set_quality(plain_sets(3, 3), dataclasses.replace(scores, ids=tuple(f"i{k}" for k in range(60))))
    with pytest.raises(InputError, match="margins that differ"):
        estimate_set_quality(sets, dataclasses.replace(scores, image_vectors=scores.image_vectors[:1].repeat(60, 1)))


def test_on_the_world_the_truth_and_the_estimate() -> None:
    dataset = WorldDataset(300, seed=3)
    source = ConceptSource(ClipEncoder(CLIP_PATH, device="cpu"), Vocabulary.probing_blog())
    scores = source.score(Images(dataset))
    truth = pd.DataFrame(dataset.truth(), index=dataset.ids, columns=ATTRIBUTES)
    sizes = {"n_positive": 25, "n_negative": 60}
    by_side = {
        negatives: set_quality(scores.rank(**sizes, negatives=negatives), truth).groupby("side")["precision"].mean()
        for negatives in ("random", "least_likely", "group")
    }
    assert all(found["positives"] > 0.98 for found in by_side.values())
    assert by_side["random"]["negatives"] < 0.95  # random others show the concept too, as often as any image that is left
    assert by_side["least_likely"]["negatives"] > 0.98
    assert by_side["group"]["negatives"] > 0.98
    sets = scores.rank(**sizes)
    off = estimate_set_quality(sets, scores)["estimated_precision"] - set_quality(sets, truth)["precision"]
    assert off.abs().max() < 0.15
    noise = torch.randn(scores.image_vectors.shape, generator=torch.Generator().manual_seed(0)) / 8
    worse = dataclasses.replace(scores, image_vectors=F.normalize(scores.image_vectors + 2 * noise, dim=1))
    found = set_quality(worse.rank(**sizes), truth).groupby("side")["precision"].mean()
    assert found["positives"] < 0.9  # a degraded encoder shows


@pytest.mark.slow
def test_the_page_on_concept_sets_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "concept_sets.md"
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
    assert (tmp_path / "striped.png").is_file()
    assert len(names["sets"]["striped"].duplicates) == 150
    assert len(names["labeled"]["red"].ids) == 150


# --- made worse


@pytest.mark.parametrize("rate", [0, 0.1, 0.25, 1])
def test_a_share_of_each_side_changes_sides(rate: float) -> None:
    before, after = plain_sets()["red"], with_label_noise(plain_sets(), rate, seed=0)["red"]
    assert set(after.ids) == set(before.ids)
    assert len(set(before.positives) & set(after.negatives)) == round(rate * 30)
    assert len(set(before.negatives) & set(after.positives)) == round(rate * 60)


def test_noise_is_seeded_and_told() -> None:
    first, again, other = (with_label_noise(plain_sets(), 0.2, seed=seed) for seed in (1, 1, 2))
    assert dict(first) == dict(again) != dict(other)
    assert first.metadata == {"made": "by hand", "label_noise": {"rate": 0.2, "seed": 1}}


def test_what_is_known_of_an_image_goes_with_it_and_near_duplicates_stay_together() -> None:
    duplicates = (*np.repeat(range(10), 3).tolist(), *np.repeat(range(10, 40), 2).tolist())
    sets = plain_sets(duplicates=duplicates, types=tuple(range(90)))
    after = with_label_noise(sets, 0.35, seed=0)["red"]
    assert all(type_ == int(id_[1:]) for id_, type_ in zip(after.ids, after.types, strict=True))
    moved = set(sets["red"].positives) & set(after.negatives)
    assert len(moved) == 9  # 10.5 rounded to 10, in groups of three
    assert {duplicates[int(i[1:])] for i in moved}.isdisjoint(after.duplicates[: len(after.positives)])
