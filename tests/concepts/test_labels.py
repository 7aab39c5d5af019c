from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import PixelEncoder, noise_images

from neuroprobe.concepts import ConceptSets, ConceptSource, GivenLabels, Vocabulary, as_labels, set_quality, shown_concepts
from neuroprobe.exceptions import InputError
from neuroprobe.images import Images, collect
from neuroprobe.labeling import dissect
from neuroprobe.pipeline import dissect_model
from neuroprobe.recording import ActivationRecorder, Activations
from neuroprobe.world import ATTRIBUTES, WorldDataset, load_target, target_transform

TABLE = pd.DataFrame({"red": [0.5, 0.0, 1.0], "big": [0.25, -2.0, 3.0]}, index=["2", "0", "1"])
IMAGES = noise_images(3)


def shown(scores: Any) -> list[list[float]]:
    return scores.similarities().tolist()  # type: ignore[no-any-return]


# --- what labels are made from


def csv(folder: Path, text: str | bytes) -> Path:
    path = folder / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_every_kind_of_table_is_one(tmp_path: Path) -> None:
    rows = {id_: dict(row) for id_, row in TABLE.iterrows()}
    made = [
        GivenLabels(TABLE),
        GivenLabels(rows),
        GivenLabels(TABLE.to_numpy(), ids=list(TABLE.index), concepts=["red", "big"]),
        GivenLabels(csv(tmp_path, "image,red,big\r\n2,0.5,0.25\r\n0,0,-2\r\n1,1,3\r\n")),
        GivenLabels(str(csv(tmp_path, "\ufeffimage,red,big\n2,0.5,0.25\n0,0,-2\n1,1,3"))),
    ]
    for labels in made:
        assert (labels.ids, labels.concepts, labels.is_boolean) == (("2", "0", "1"), ("red", "big"), False)
        assert shown(labels.score(IMAGES)) == [[0, -2], [1, 3], [0.5, 0.25]]  # in the images' order
    assert len({labels.fingerprint for labels in made}) == 1


def test_ids_of_a_file_stay_as_they_are_written(tmp_path: Path) -> None:
    labels = GivenLabels(csv(tmp_path, "image,red\n001,1\nNA,0\n1e3,1\nphotos/a b.png,0\n"))
    assert labels.ids == ("001", "NA", "1e3", "photos/a b.png")


@pytest.mark.parametrize("yes_and_no", [[True, False], [1, 0], [1.0, 0.0], np.array([True, False])])
def test_booleans(yes_and_no) -> None:
    labels = GivenLabels(pd.DataFrame({"red": yes_and_no, "big": [0, 0]}, index=["a", "b"]))
    assert labels.is_boolean
    assert labels.truth.dtype == bool
    assert labels.truth.tolist() == [[True, False], [False, False]]


def test_scores_are_no_truth() -> None:
    with pytest.raises(InputError, match=r"true or false, or 1 or 0, but '2' has 0\.5 for 'red'"):
        GivenLabels(TABLE).truth  # noqa: B018
    with pytest.raises(InputError, match=r"true or false, or 1 or 0, but '0' has -2\.0 for 'big'"):
        GivenLabels(TABLE).score(IMAGES).truth  # noqa: B018
    with pytest.raises(InputError, match=r"these are given labels\. For sets: ConceptSets\.from_labels\(labels\)"):
        GivenLabels(TABLE).score(IMAGES).likelihoods("labels")
    with pytest.raises(InputError, match=r"given labels, but got scores of an encoder\. Make them with GivenLabels"):
        ConceptSource(PixelEncoder(), Vocabulary.from_words(["red"])).score(IMAGES).truth  # noqa: B018


def test_concepts_and_groups_choose_and_order_the_columns() -> None:
    assert shown(GivenLabels(TABLE, concepts=["big"]).score(IMAGES)) == [[-2], [3], [0.25]]
    labels = GivenLabels(TABLE, groups={"size": ["big"], "color": ["red"]})
    assert labels.concepts == ("big", "red")
    assert [group.name for group in labels.vocabulary.groups] == ["size", "color"]
    assert shown(labels.score(IMAGES)) == [[-2, 0], [3, 1], [0.25, 0.5]]
    assert GivenLabels(TABLE).vocabulary.groups[0].name == "labels"


def test_a_table_without_ids_is_in_the_order_of_the_images(damaged_folder: Path) -> None:
    values = TABLE.reset_index(drop=True)
    for table in (values, values.to_dict("list"), GivenLabels(values)):
        assert GivenLabels(table).ids == ("0", "1", "2")
        assert as_labels(table, ["c", "a", "b"]).table.equals(TABLE.set_axis(["c", "a", "b"]))
    assert as_labels(values.to_numpy(), ["2", "0", "1"], concepts=["red", "big"]).table.equals(TABLE)  # an array's ids are those given
    with pytest.raises(InputError, match=r"a row for each of the 2 images in their order, but got 3 rows without ids\. Give the table the"):
        as_labels(values, ["c", "a"])
    with pytest.raises(InputError, match="a row for each of the 3 images"):  # by number, or in this order?
        as_labels(values, ["2", "0", "1"])
    images = Images(damaged_folder, on_error="skip")  # an image that cannot be read has a row too
    scores = GivenLabels({"n": range(len(images.ids))}).score(images)
    assert shown(scores) == [[images.ids.index(id_)] for id_ in scores.ids]


def test_ids_choose_and_order_the_rows_of_a_table_with_ids() -> None:
    labels = as_labels(TABLE, ["1", "2"])
    assert (labels.ids, labels.table["big"].tolist()) == (("1", "2"), [3.0, 0.25])
    assert as_labels(labels) is labels
    assert as_labels(labels, ["2"], concepts=["big"]).table.to_numpy().tolist() == [[0.25]]


BOOLEANS = pd.DataFrame({"red": [True, True, False], "big": [False, True, False]}, index=["a", "b", "c"])


@pytest.mark.parametrize("kind", ["booleans", "numbers", "in order", "mapping", "rows", "given", "scores", "file"])
def test_every_reader_takes_every_kind_of_table(tmp_path: Path, kind: str) -> None:
    recorded = Activations({"layer": np.eye(3, 2, dtype=np.float32)}, ("a", "b", "c"), {"images": "theirs"})
    BOOLEANS.to_csv(tmp_path / "labels.csv")
    table: Any = {
        "booleans": BOOLEANS[::-1],
        "numbers": BOOLEANS.astype(float),
        "in order": BOOLEANS.reset_index(drop=True),
        "mapping": {name: BOOLEANS[name].tolist() for name in BOOLEANS},
        "rows": BOOLEANS.to_dict("index"),
        "given": GivenLabels(BOOLEANS),
        "scores": GivenLabels(BOOLEANS).score_like(recorded),
        "file": tmp_path / "labels.csv",
    }[kind]
    sets = ConceptSets.from_labels(table, ids=recorded.ids)
    assert (sets["red"].positives, sets["big"].positives) == (("a", "b"), ("b",))
    masks = shown_concepts(table, recorded.ids)
    assert {name: mask.tolist() for name, (mask, _) in masks.items()} == BOOLEANS.to_dict("list")
    assert all((mask != control).all() for mask, control in masks.values())
    assert as_labels(table, recorded.ids).truth.tolist() == BOOLEANS.to_numpy().tolist()
    if kind not in ("in order", "mapping"):  # the images of sets are in no order
        assert set_quality(sets, table)["precision"].tolist() == [1, 1, 1, 1]
    else:
        with pytest.raises(InputError, match="have none, such as 'a'"):
            set_quality(sets, table)


# --- scores


def test_scores_are_the_labels_in_blocks_too() -> None:
    values = np.random.default_rng(0).normal(size=(20, 7)).astype(np.float32)
    images = noise_images(20)
    scores = GivenLabels(values[::-1].copy(), ids=images.ids[::-1], concepts=list("abcdefg")).score(images)
    assert torch.equal(scores.similarities(), torch.from_numpy(values))
    assert torch.equal(torch.cat([block for _, block in scores.blocks(3)], dim=1), torch.from_numpy(values))
    assert torch.equal(scores.similarities(slice(2, 4)), torch.from_numpy(values[:, 2:4]))
    assert (scores.ids, scores.concepts) == (images.ids, tuple("abcdefg"))


def test_metadata_say_what_was_labeled() -> None:
    first, metadata = GivenLabels(TABLE), GivenLabels(TABLE).score(IMAGES).metadata
    assert (metadata["images"], metadata["labels"]) == (IMAGES.fingerprint, first.fingerprint)
    assert metadata["boolean_labels"] is False
    for change in (TABLE * 2, TABLE.rename(columns={"red": "blue"}), TABLE.rename(index={"2": "3"}), TABLE[::-1]):
        assert GivenLabels(change).fingerprint != first.fingerprint


def test_damaged_images_are_left_out_of_the_rows(damaged_folder: Path) -> None:
    images = Images(damaged_folder, on_error="skip")
    labels = GivenLabels(pd.DataFrame({"n": range(len(images.ids))}, index=list(images.ids)))
    scores = labels.score(images)
    assert scores.ids == ("a_good.png", "d_misnamed.jpg", "g_good.jpg")
    assert shown(scores) == [[images.ids.index(id_)] for id_ in scores.ids]
    assert set(scores.metadata["skipped"]) == set(images.ids) - set(scores.ids)


def test_labels_of_a_stream(world: Images) -> None:
    stream = Images(lambda: iter([(id_, world[i]) for i, id_ in enumerate(world.ids)]))
    values = pd.DataFrame({"n": range(12)}, index=list(world.ids))
    assert shown(GivenLabels(values).score(stream, batch_size=5)) == [[i] for i in range(12)]
    with pytest.raises(InputError, match="2 have none"):
        GivenLabels(values[2:]).score(stream, batch_size=5)


def test_labels_come_in_one_pass_with_others_and_from_workers(world: Images) -> None:
    labels = GivenLabels(pd.DataFrame({"n": range(12)}, index=list(world.ids)))
    encoder = PixelEncoder()
    both = collect(world, [labels.consumer(), ConceptSource(encoder, Vocabulary.from_words(["red"])).consumer()], batch_size=5)
    assert (both[0].ids, both[0].metadata["images"]) == (both[1].ids, both[1].metadata["images"])
    assert shown(labels.score(world, batch_size=5, workers=1)) == shown(both[0]) == [[i] for i in range(12)]
    pickle.loads(pickle.dumps(labels.consumer().transform))  # noqa: S301


def test_labels_of_what_was_recorded_need_no_images() -> None:
    activations = Activations({"layer": np.zeros((2, 3), dtype=np.float32)}, ("1", "2"), {"images": "theirs", "skipped": {"0": "gone"}})
    scores = GivenLabels(TABLE).score_like(activations)
    assert (shown(scores), scores.ids) == ([[1, 3], [0.5, 0.25]], ("1", "2"))
    assert (scores.metadata["images"], scores.metadata["skipped"]) == ("theirs", {"0": "gone"})
    assert torch.equal(GivenLabels(TABLE).score_like(scores).similarities(), scores.similarities())
    with pytest.raises(InputError, match=r"(?s)activations or concept scores, but got DataFrame .*labels\.score\(images\)"):
        GivenLabels(TABLE).score_like(TABLE)


def test_the_worlds_own_truth_names_its_units() -> None:
    dataset = WorldDataset(150, seed=5)
    images = Images(dataset)
    labels = GivenLabels(dataset.truth(), ids=images.ids, concepts=list(ATTRIBUTES))
    activations = ActivationRecorder(load_target(), ["classifier"]).record(images, transform=target_transform())
    scores = labels.score_like(activations)
    assert scores.truth.numpy().tolist() == dataset.truth().tolist()
    for similarity in ("cos_similarity", "soft_wpmi"):
        table = dissect(activations, scores, similarity=similarity).table
        assert list(table.concept) == list(ATTRIBUTES)  # its head has a unit for each attribute, in their order


# --- what is refused


@pytest.mark.parametrize(
    ("table", "shown"),
    [
        (pd.DataFrame({"a": [1, None]}, index=["x", "y"]), "a label for every image, but 'a' lacks that of 'y'. Fill it or drop it"),
        ({"x": {"a": 1}, "y": {"b": 2}}, "'a' lacks that of 'y'"),
        (pd.DataFrame({"a": ["yes", "no"]}), "booleans or numbers, but 'a' has 'yes'"),
        (pd.DataFrame({"a": [1, "no"]}), "booleans or numbers, but 'a' has 'no'"),
        (pd.DataFrame({"a": [1j]}), "booleans or numbers, but 'a' has 1j"),
        (pd.DataFrame({"a": [np.inf]}), "finite labels"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "every concept once in the labels, but 'a' occurs twice"),
        (pd.DataFrame({"a": [1, 2]}, index=[1, "1"]), "every image once in the labels, but '1' occurs twice"),
        (pd.DataFrame({" ": [1]}), "names that are not empty"),
        (pd.DataFrame(), "labels of at least one image"),
        ({}, "labels of at least one image"),
        ({"a": 1}, "from concept to one value per image, but got {'a': 1}"),
        ({"a": [1, 0], "b": [1]}, "from concept to one value per image, but got {'a'"),
        ([[1, 0]], "an array, or a mapping from id to {concept: value} or from concept to one value per image, but got [[1, 0]]"),
        (np.eye(2), "`concepts` that name its columns, but got (2, 2) and 0 names"),
        (np.ones(2), "an array [n_images, n_concepts]"),
    ],
)
def test_tables_that_are_no_labels(table, shown: str) -> None:
    with pytest.raises(InputError) as caught:
        GivenLabels(table)
    assert shown in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", "is none: No columns"),
        ("image,red,red\na,1,0\n", "every concept once in the labels, but 'red' occurs twice"),
        ("image,red\na,1\nb,1,2\n", "is none: Error tokenizing data"),
        ("image,red\na,1,2\nb,1,2\n", "is none: Length mismatch"),
        ("image,red\na,\n", "'red' lacks that of 'a'"),
        ("image,red\na,yes\n", "'red' has 'yes'"),
        ("image,red\n", "at least one image"),
        ("image\na\n", "at least one concept"),
        (b"\xff\xfe\x00", "is none: 'utf-8' codec"),
    ],
)
def test_files_that_are_no_labels(tmp_path: Path, text: str | bytes, shown: str) -> None:
    with pytest.raises(InputError, match=r"a CSV file of labels, but .*nothing\.csv' cannot be read: No such file"):
        GivenLabels(tmp_path / "nothing.csv")
    with pytest.raises(InputError) as caught:
        GivenLabels(csv(tmp_path, text))
    assert shown in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({"ids": ["a"]}, "labels of all 1 images, but 1 have none, such as 'a'"),
        ({"ids": "2"}, "a list of ids, but got the single id '2'"),
        ({"concepts": ["blue"]}, "`concepts` of the table, but got 'blue'"),
        ({"concepts": "red"}, "a list of `concepts`, but got the single text 'red'"),
        ({"groups": {"color": ["red"]}}, "every concept of the labels once and no other, but 'big'"),
        ({"groups": {"color": ["red", "big", "blue"]}}, "no other, but 'blue'"),
        ({"groups": {"color": ["red", "big"], "size": ["big"]}}, "'big' occurs twice"),
    ],
)
def test_arguments_that_do_not_fit(arguments: Mapping[str, Any], shown: str) -> None:
    with pytest.raises(InputError, match=shown):
        GivenLabels(TABLE, **arguments)


@pytest.mark.parametrize(
    ("ids", "concepts", "message"),
    [
        ("abc", ["red"], r"that name its columns, but got \(3, 2\) and 1 names"),
        ("ab", ["red", "big"], "a row for each of the 2 images in their order, but got 3 rows without ids"),
        ("abb", ["red", "big"], "every image once in the labels, but 'b' occurs twice"),
    ],
)
def test_an_array_that_does_not_fit(ids: str, concepts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GivenLabels(np.ones((3, 2)), ids=list(ids), concepts=concepts)


def test_images_without_labels_are_told_before_any_is_read() -> None:
    class Unread(list):  # type: ignore[type-arg]
        def __getitem__(self, index):
            raise AssertionError("read")

    images = Images(Unread(range(5)), ids=["0", "1", "a", "2", "b"])
    with pytest.raises(InputError, match=r"labels of all 5 images, but 2 have none, such as 'a'\. The table has 3 ids, such as '2'"):
        GivenLabels(TABLE).score(images)


def test_the_whole_path_asks_a_source_for_its_consumer_alone(world: Images) -> None:
    class Source:
        """Somebody's own."""

        def consumer(self) -> Any:
            return GivenLabels({id_: {"even": i % 2 == 0, "late": i > 5} for i, id_ in enumerate(world.ids)}).consumer()

    transform = target_transform()
    report = dissect_model(load_target(), world, Source(), layers=["classifier"], transform=transform, n_null=100, n_bootstrap=0)
    assert set(report.table["candidate"]) <= {"even", "late"}
