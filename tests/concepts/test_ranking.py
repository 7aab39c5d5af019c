"""Ranking: hard negatives, the gap, near-duplicates and types; what is random is tested with the concept scores."""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np
import pytest
import torch
from helpers import PixelEncoder, noise_images, scores_of
from torch.nn import functional as F

from neuroprobe.concepts import ConceptGroup, ConceptScores, ConceptSource, Ranking, Vocabulary
from neuroprobe.concepts._ranking import embedding_types, rank_groups
from neuroprobe.exceptions import InputError

GROUP = ConceptGroup("g", ("a", "b", "c"), none="none")
VOCABULARY = Vocabulary([GROUP])
IDS = [f"i{n}" for n in range(10)]
#: Columns a, b, c, none; the ranking of a is i0, i1, ..., i9.
LIKELIHOODS = {
    "g": np.array(
        [
            [0.90, 0.05, 0.05, 0.00],
            [0.80, 0.10, 0.10, 0.00],
            [0.60, 0.40, 0.00, 0.00],
            [0.40, 0.00, 0.60, 0.00],
            [0.30, 0.10, 0.10, 0.50],
            [0.20, 0.70, 0.10, 0.00],
            [0.15, 0.80, 0.05, 0.00],
            [0.10, 0.00, 0.90, 0.00],
            [0.05, 0.05, 0.10, 0.80],
            [0.01, 0.01, 0.95, 0.03],
        ]
    )
}


def ranked(**parameters):
    ranking = Ranking(**{"n_positive": 2, "n_negative": 3, "n_types": 0, **parameters})
    return rank_groups(VOCABULARY, LIKELIHOODS, IDS, np.eye(10, dtype=np.float32), ranking)["a"]


def test_the_least_likely_are_the_last_of_the_ranking() -> None:
    assert ranked(negatives="least_likely").negatives == ("i9", "i8", "i7")


def test_hard_negatives_are_the_likeliest_of_the_other_concepts_in_turns() -> None:
    # b: i6, i5, i2, ...; c: i9, i7, i3, ...; "none" (i8, i4) is no concept of the group
    found = ranked(negatives="group", n_negative=6)
    assert found.positives == ("i0", "i1")
    assert found.negatives == ("i6", "i9", "i5", "i7", "i2", "i3")


def test_hard_negatives_never_hold_an_image_twice() -> None:
    assert len(set(ranked(negatives="group", n_negative=8).negatives)) == 8


@pytest.mark.parametrize("negatives", ["random", "least_likely", "group"])
def test_images_in_the_gap_are_in_neither_set(negatives) -> None:
    for seed in range(20):
        found = ranked(negatives=negatives, gap=4, n_negative=4, seed=seed)
        assert found.positives == ("i0", "i1")
        assert set(found.negatives) == {"i6", "i7", "i8", "i9"}


def test_ranks_and_likelihoods_are_the_images_own_and_equal_ones_rank_in_the_order_of_the_images() -> None:
    sets = rank_groups(VOCABULARY, LIKELIHOODS, IDS, np.eye(10, dtype=np.float32), Ranking(n_positive=2, n_negative=8, n_types=0))
    for column, found in enumerate(sets.values()):
        likelihoods = LIKELIHOODS["g"][:, column].tolist()
        ranking = sorted(range(10), key=lambda i, values=likelihoods: (-values[i], i))  # b has equal ones: i1 and i4, i0 and i8, ...
        assert found.positives == tuple(IDS[i] for i in ranking[:2])
        assert found.ranks == tuple(ranking.index(IDS.index(id_)) for id_ in found.ids)
        assert found.likelihoods == tuple(likelihoods[IDS.index(id_)] for id_ in found.ids)


@pytest.mark.parametrize("negatives", ["random", "least_likely", "group"])
def test_no_near_duplicate_of_a_positive_is_a_negative(negatives) -> None:
    duplicates = {id_: i for i, id_ in enumerate(IDS)} | {"i9": 0, "i6": 1, "i5": 4}
    for seed in range(20):
        found = ranked(negatives=negatives, seed=seed, near_duplicates=duplicates, n_negative=4)
        assert not {"i9", "i6"} & set(found.ids)
        assert found.duplicates == tuple(duplicates[id_] for id_ in found.ids)


def test_too_few_images_beside_near_duplicates_are_refused() -> None:
    duplicates = dict.fromkeys(IDS[:7], 0) | dict.fromkeys(IDS[7:], 1)
    with pytest.raises(InputError, match="at least 4 images that are no near-duplicates of the positives of 'a', but 3 are left"):
        ranked(near_duplicates=duplicates, n_negative=4)
    with pytest.raises(InputError, match="a group of near-duplicates for every image, but 'i1' has none"):
        ranked(near_duplicates={"i0": 0})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"negatives": "group_"}, "`negatives` to be 'random', 'least_likely' or 'group', but got 'group_'"),
        ({"near_duplicates": "0.9"}, "`near_duplicates` to be a number, above 0 and below 1, but got '0.9'"),
    ],
)
def test_bad_parameters_are_refused(parameters, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Ranking(**parameters)


def test_the_gap_counts_among_the_images_needed() -> None:
    with pytest.raises(InputError, match=r"at least 11 images \(2 positives, a gap of 6 and 3 negatives\), but got 10"):
        ranked(gap=6)


def test_hard_negatives_need_another_concept() -> None:
    two = Vocabulary([ConceptGroup("size", ("big",), none="small")])
    source = ConceptSource(PixelEncoder(), two)
    with pytest.raises(InputError, match=r"at least two concepts in a group for negatives='group', but 'size' has only 'big'"):
        source.rank(noise_images(9), n_positive=2, n_negative=2, negatives="group")


def test_a_bad_cosine_is_refused_before_an_image_is_read() -> None:
    class Unreadable(PixelEncoder):
        def encode_images(self, batch):
            raise AssertionError

    source = ConceptSource(Unreadable(), VOCABULARY)
    for wrong in (97, 1.0, float("nan"), True):
        with pytest.raises(InputError, match="`near_duplicates` to be a number, above 0 and below 1, but got"):
            source.rank(noise_images(9), n_positive=2, n_negative=2, near_duplicates=wrong)


# --- through the concept scores


def test_every_way_of_ranking_keeps_the_sides_apart() -> None:
    scores = scores_of(60, ["a", "b", "c"])
    for negatives, gap in product(["random", "least_likely", "group"], [0, 7]):
        sets = scores.rank(n_positive=10, n_negative=30, negatives=negatives, gap=gap)
        for set_ in sets.values():
            assert len(set(set_.ids)) == 40
        assert (sets.metadata["negatives"], sets.metadata["gap"]) == (negatives, gap)


def test_near_duplicates_by_cosine() -> None:
    scores = scores_of(60, ["a", "b"])
    near = F.normalize(scores.image_vectors + 1e-3 * torch.randn(60, 12, generator=torch.Generator().manual_seed(1)), dim=1)
    twice = ConceptScores(
        torch.cat([scores.image_vectors, near]), scores.text_vectors, scores.vocabulary, tuple(f"image {i}" for i in range(120)), 0.05, {}
    )
    alone = twice.rank(n_positive=21, n_negative=99)["a"]
    assert any(f"image {(int(i.split()[1]) + 60) % 120}" in alone.negatives for i in alone.positives)  # without: a picture on both sides
    found = twice.rank(n_positive=21, n_negative=60, near_duplicates=0.999)
    assert found.metadata["near_duplicates"] == 0.999
    for set_ in found.values():
        assert not {int(i.split()[1]) % 60 for i in set_.positives} & {int(i.split()[1]) % 60 for i in set_.negatives}
        pictures = [int(i.split()[1]) % 60 for i in set_.ids]
        assert all((pictures[i] == pictures[j]) == (set_.duplicates[i] == set_.duplicates[j]) for i in range(81) for j in range(81))


def test_the_source_ranks_as_its_scores_do() -> None:
    source, images = ConceptSource(PixelEncoder(), VOCABULARY), noise_images(40)
    parameters = {"n_positive": 8, "n_negative": 12, "negatives": "group", "gap": 3, "near_duplicates": 0.99, "n_types": 4}
    first, second = source.rank(images, **parameters), source.score(images).rank(**parameters)
    assert dict(first) == dict(second)
    assert [s.types for s in first.values()] == [s.types for s in second.values()]
    assert first.metadata == second.metadata


# --- types


def blobs(n: int = 40, k: int = 4) -> np.ndarray:
    generator = np.random.default_rng(0)
    return (10 * np.eye(k, 6)[np.arange(n) % k] + generator.normal(size=(n, 6))).astype(np.float32)


def test_types_are_clusters_of_the_embeddings_whatever_the_order() -> None:
    rows = np.random.default_rng(1).permutation(40)
    types = embedding_types(blobs(), rows, n_types=4, seed=0)
    assert len(set(zip(types, (rows % 4).tolist(), strict=True))) == 4  # one type for one blob
    backward = embedding_types(blobs(), rows[::-1], n_types=4, seed=0)
    assert backward == types[::-1]


@pytest.mark.parametrize(("n", "n_types", "expected"), [(40, 20, 8), (40, 3, 3), (10, 20, 2), (9, 20, 0), (40, 0, 0), (40, 1, 0)])
def test_types_hold_five_images_on_average(n: int, n_types: int, expected: int) -> None:
    types = embedding_types(blobs(), np.arange(n), n_types=n_types, seed=0)
    assert len(set(types)) == expected
    assert len(types) == (n if expected else 0)


def test_types_are_seeded() -> None:
    vectors = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)  # no blobs: what is found depends on the start
    found = [embedding_types(vectors, np.arange(60), n_types=8, seed=seed) for seed in (0, 0, 1, 2)]
    assert found[0] == found[1]
    pairs = [np.equal.outer(types, types) for types in (found[0], found[2], found[3])]  # whatever the types' numbers
    assert (pairs[0] != pairs[1]).any()
    assert (pairs[0] != pairs[2]).any()


def test_copies_of_one_image_are_one_type() -> None:
    assert embedding_types(np.ones((40, 3), dtype=np.float32), np.arange(40), n_types=4, seed=0) == ()
    two = embedding_types(np.repeat(np.eye(2, 3, dtype=np.float32), 20, axis=0), np.arange(40), n_types=4, seed=0)
    assert len(set(two)) == 2


def test_a_concepts_types_do_not_depend_on_the_other_concepts() -> None:
    scores = scores_of(60, ["a", "b", "c"])
    fewer = dataclasses.replace(scores, vocabulary=Vocabulary([ConceptGroup("words", ("a", "b"), none="c", templates=("{}",))]))
    whole, part = (s.rank(n_positive=10, n_negative=30) for s in (scores, fewer))
    for concept in "ab":
        assert whole[concept].ids == part[concept].ids
        assert whole[concept].types == part[concept].types != ()
