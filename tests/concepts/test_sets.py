"""Concept sets: sides, labels, folders, near-duplicates, and splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import noise
from sklearn.model_selection import train_test_split

from neuroprobe.concepts import ConceptSet, ConceptSets
from neuroprobe.exceptions import InputError, UnreadableImageError

IDS = [f"i{n}" for n in range(12)]


def labels() -> pd.DataFrame:
    return pd.DataFrame({"red": [True] * 5 + [False] * 7, "round": [1, 0] * 6}, index=IDS)


def plain_set(n_positive: int = 40, n_negative: int = 60, duplicates: tuple[int, ...] = ()) -> ConceptSet:
    return ConceptSet(
        "red", "g", tuple(f"+{i}" for i in range(n_positive)), tuple(f"-{i}" for i in range(n_negative)), duplicates=duplicates
    )


# --- what is known of each image


def test_what_is_known_of_an_image_stays_with_it() -> None:
    whole = ConceptSet(
        "c", "g", ("a", "b", "c"), ("d", "e"), duplicates=(0, 0, 1, 2, 3), types=(5, 6, 7, 8, 9), likelihoods=(0.9, 0.8, 0.7, 0.2, 0.1)
    )
    part = whole.without(["b", "d"])
    assert (part.positives, part.negatives) == (("a", "c"), ("e",))
    assert part.duplicates == (0, 1, 3)
    assert part.types == (5, 7, 9)
    assert part.likelihoods == (0.9, 0.7, 0.1)
    assert part.ranks == ()
    assert whole.without([]) == whole


@pytest.mark.parametrize(("gone", "side"), [(["a", "b"], "positives"), (["d"], "negatives")])
def test_a_side_is_never_emptied(gone, side: str) -> None:
    with pytest.raises(InputError, match=f"some of the {side} of 'c' to be left, but all {len(gone)} are to go"):
        ConceptSet("c", "g", ("a", "b"), ("d",)).without(gone)


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"one of the types of 'c' per image \(3\), but got 2"):
        ConceptSet("c", "g", ("a", "b"), ("d",), types=(1, 2))


def test_near_duplicates_on_both_sides_are_refused() -> None:
    with pytest.raises(InputError, match="near-duplicates on one side of 'c', but 'b' is a positive and 'e' a negative"):
        ConceptSet("c", "g", ("a", "b"), ("d", "e"), duplicates=(0, 4, 1, 4))


def test_a_set_shows_itself_in_a_line() -> None:
    assert repr(plain_set()) == "ConceptSet('red', 40 positives, 60 negatives)"
    assert repr(ConceptSets.from_labels(labels())) == "ConceptSets(2 concepts: red, round)"


# --- from labels


def test_sets_from_labels_take_every_image() -> None:
    sets = ConceptSets.from_labels(labels(), group="mine")
    assert list(sets) == ["red", "round"]
    assert sets["red"] == ConceptSet("red", "mine", tuple(IDS[:5]), tuple(IDS[5:]))
    assert sets["round"].positives == tuple(IDS[::2])


def test_a_draw_from_labels_is_seeded_and_depends_on_no_other_column() -> None:
    sizes = {"n_positive": 3, "n_negative": 4}
    first, again, other = (ConceptSets.from_labels(labels(), **sizes, seed=seed) for seed in (1, 1, 2))
    alone = ConceptSets.from_labels(labels()[["round"]], **sizes, seed=1)
    assert first["round"] == again["round"] == alone["round"] != other["round"]
    assert (len(first["round"].positives), len(first["round"].negatives)) == (3, 4)
    assert set(first["round"].positives) <= set(IDS[::2])
    assert set(first["round"].negatives) <= set(IDS[1::2])
    assert first.metadata["seed"] == 1


def test_concepts_of_one_name_in_two_groups_are_drawn_apart() -> None:
    table = pd.DataFrame({"red": [True, False] * 40}, index=[f"i{n}" for n in range(80)])
    first, other = (ConceptSets.from_labels(table, n_positive=9, n_negative=9, group=group)["red"] for group in ("color", "wine"))
    assert set(first.positives) != set(other.positives)
    assert set(first.negatives) != set(other.negatives)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"red": [True, False]}, index=["a", "a"]), "every image once in the labels, but 'a' occurs twice"),
        (pd.DataFrame({"red": [True, None]}, index=["a", "b"]), "a label for every image, but 'red' lacks that of 'b'"),
        (pd.DataFrame({"red": [1, 2]}, index=["a", "b"]), "all true or false, or 1 or 0, but 'b' has 2 for 'red'"),
        (pd.DataFrame({"red": [True, True]}, index=["a", "b"]), "at least 1 images that do not show 'red', but the labels have 0"),
        (pd.DataFrame({"red": [0, 0]}, index=["a", "b"]), "at least 1 images that show 'red', but the labels have 0"),
    ],
)
def test_labels_that_are_none_are_refused(table, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ConceptSets.from_labels(table)


def test_labels_give_no_more_images_than_they_have() -> None:
    with pytest.raises(InputError, match="at least 6 images that show 'red', but the labels have 5"):
        ConceptSets.from_labels(labels(), n_positive=6)


# --- from folders


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for side, seeds in (("with", range(3)), ("without", range(10, 14))):
        (tmp_path / side / "deep").mkdir(parents=True)
        for seed in seeds:
            noise(seed).save(tmp_path / side / "deep" / f"{seed % 10}.png")
    return tmp_path / "with", tmp_path / "without"


def test_two_folders_make_a_set_and_its_images(folders) -> None:
    sets, images = ConceptSets.from_folders(*folders, concept="striped")
    assert sets["striped"].positives == ("positives/deep/0.png", "positives/deep/1.png", "positives/deep/2.png")
    assert len(sets["striped"].negatives) == 4
    assert images.ids == sets["striped"].ids
    assert np.array_equal(np.asarray(images[3]), np.asarray(noise(10)))
    assert sets.metadata["images"] == images.fingerprint


def test_one_picture_in_both_folders_is_refused(folders) -> None:
    noise(1).save(folders[1] / "the_same.png")
    with pytest.raises(
        InputError, match=r"no picture in both folders, but 'the_same.png' of the negatives is 'deep.1.png' of the positives"
    ):
        ConceptSets.from_folders(*folders, concept="striped")


def test_a_missing_folder_and_a_damaged_image_are_refused(folders, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        ConceptSets.from_folders(tmp_path / "nowhere", folders[1], concept="striped")
    (folders[0] / "bad.png").write_text("no image")
    with pytest.raises(UnreadableImageError, match=r"bad\.png"):
        ConceptSets.from_folders(*folders, concept="striped")


# --- types and near-duplicates of sets that are there


def test_given_types() -> None:
    sets = ConceptSets.from_labels(labels()).with_types({id_: f"class {i % 3}" for i, id_ in enumerate(IDS)})
    for set_ in sets.values():
        by_image = dict(zip(set_.ids, set_.types, strict=True))
        assert all((by_image[a] == by_image[b]) == ((i - j) % 3 == 0) for i, a in enumerate(IDS) for j, b in enumerate(IDS))
    backwards = {id_: f"class {i % 3}" for i, id_ in reversed(list(enumerate(IDS)))}
    assert [s.types for s in ConceptSets.from_labels(labels()).with_types(backwards).values()] == [s.types for s in sets.values()]
    with pytest.raises(InputError, match="a type for every image of 'red', but 'i1' has none"):
        ConceptSets.from_labels(labels()).with_types({"i0": 1})


def test_negatives_that_nearly_equal_a_positive_are_left_out() -> None:
    groups = {id_: i for i, id_ in enumerate(IDS)} | {"i6": 0, "i8": 7}  # i6 is like i0; i8 is like i7
    sets = ConceptSets.from_labels(labels()[["red"]]).with_near_duplicates(groups)
    assert sets["red"].positives == tuple(IDS[:5])
    assert sets["red"].negatives == ("i5", "i7", "i8", "i9", "i10", "i11")
    assert sets["red"].duplicates == (0, 1, 2, 3, 4, 5, 7, 7, 9, 10, 11)
    assert sets.metadata["near_duplicates"] == {"left_out": {"red": ["i6"]}}
    again = sets.with_near_duplicates({id_: 1 if id_ == "i9" else groups[id_] for id_ in IDS})  # groups may be told anew
    assert "i9" not in again["red"].ids


# --- splits


@pytest.mark.parametrize(("held_out", "seed"), [(0.3, 0), (0.3, 5), (0.5, 1)])
def test_without_near_duplicates_the_split_is_the_stratified_one(held_out: float, seed: int) -> None:
    plain = plain_set()
    expected = train_test_split(np.arange(100), test_size=held_out, stratify=plain.targets, random_state=seed)
    for set_ in (plain, plain_set(duplicates=tuple(range(100)))):
        for part, rows in zip(set_.split(held_out=held_out, seed=seed), expected, strict=True):
            np.testing.assert_array_equal(part, rows)


def test_a_group_of_near_duplicates_is_never_in_two_parts() -> None:
    generator = np.random.default_rng(0)
    shares = []
    for seed in range(50):
        groups = (*generator.integers(0, 15, 40).tolist(), *generator.integers(15, 40, 60).tolist())
        set_ = plain_set(duplicates=groups)
        train, test = set_.split(held_out=0.3, seed=seed)
        assert sorted([*train.tolist(), *test.tolist()]) == list(range(100))
        assert not {groups[row] for row in train} & {groups[row] for row in test}
        shares.append([np.mean(test < 40) * len(test) / 40, np.mean(test >= 40) * len(test) / 60])
        assert max(shares[-1]) <= 0.3
    assert np.min(shares) > 0.2


@pytest.mark.parametrize("held_out", [0.1, 0.3, 0.34, 0.5, 0.77])
def test_the_held_out_share_of_each_class_is_rounded_and_never_passed(held_out: float) -> None:
    pairs = plain_set(24, 31, duplicates=(*np.repeat(range(12), 2).tolist(), *range(12, 43)))  # positives in pairs, negatives alone
    for seed in range(5):
        _, test = pairs.split(held_out=held_out, seed=seed)
        assert (test >= 24).sum() == round(held_out * 31)
        assert (test < 24).sum() == round(held_out * 24) // 2 * 2  # no pair is taken apart


def test_a_split_with_near_duplicates_is_seeded() -> None:
    set_ = plain_set(duplicates=(*np.repeat(range(20), 2).tolist(), *range(20, 80)))
    first, again, other = (set_.split(held_out=0.3, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert set(first[1]) != set(other[1])


def test_which_group_is_held_out_is_random() -> None:
    set_ = plain_set(10, 10, duplicates=(*np.repeat(range(5), 2).tolist(), *range(5, 15)))
    counts = np.zeros(20)
    for seed in range(300):
        counts[set_.split(held_out=0.4, seed=seed)[1]] += 1
    assert counts.min() > 0.3 * 300
    assert counts.max() < 0.5 * 300


def test_sets_that_cannot_be_split_are_refused() -> None:
    with pytest.raises(InputError, match="`held_out` to be a number, above 0 and below 1, but got 1"):
        plain_set().split(held_out=1, seed=0)
    with pytest.raises(InputError, match=r"1 positives and 60 negatives with 0\.3 of them held out leave one with a single class"):
        plain_set(1).split(held_out=0.3, seed=0)
    copies = plain_set(40, 60, duplicates=(*[0] * 40, *range(1, 61)))
    with pytest.raises(
        InputError, match=r"40 positives and 60 negatives \(in 1 and 60 groups of near-duplicates, which are not taken apart\)"
    ):
        copies.split(held_out=0.3, seed=0)
