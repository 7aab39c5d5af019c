from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from embedded_world import planted, recorded_world, summary_of, world_encoder, world_truth
from helpers import PixelEncoder, activations_of, scores_of

from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.labeling import UnitSearchReport, search_units
from neuroprobe.labeling.search import expected_and_spread
from neuroprobe.recording import Activations
from neuroprobe.world import ATTRIBUTES

N, D = 40, 12


class OtherEncoder(PixelEncoder):
    fingerprint = "other pixels"


ENCODER = PixelEncoder(D)
SCORES = scores_of(N, ["red"], d=D)
SCORES.metadata["encoder"] = ENCODER.fingerprint


def random_activations() -> Activations:
    generator = np.random.default_rng(3)
    return activations_of({"a": generator.normal(size=(N, 6)), "b.0": generator.normal(size=(N, 4))})


def search(query="stripes", activations: Activations | None = None, **arguments) -> UnitSearchReport:
    activations = random_activations() if activations is None else activations
    return search_units(query, activations, SCORES, **{"encoder": ENCODER, "k": 5, "n_null": 200, **arguments})


def text_vector(text: str) -> np.ndarray:
    return ENCODER.encode_texts([text])[0].numpy().astype(float)


# --- the formulas


def test_mean_and_spread_are_those_of_all_sets() -> None:
    values = np.random.default_rng(0).normal(size=(8, 2))
    means = np.array([values[list(rows)].mean(axis=0) for rows in itertools.combinations(range(8), 3)])
    mean, spread = expected_and_spread(values, k=3)
    np.testing.assert_allclose(mean, means.mean(axis=0))
    np.testing.assert_allclose(spread, means.std(axis=0))


def test_mean_and_spread_by_hand() -> None:
    assert expected_and_spread([0.0, 1.0, 2.0], k=1) == (1, pytest.approx(np.sqrt(2 / 3)))
    assert expected_and_spread([0.0, 1.0, 2.0], k=3) == (1, 0)


def test_every_unit_against_a_slow_loop() -> None:
    activations = random_activations()
    table = search(top=None).table.set_index(["layer", "unit"])
    vectors, text = SCORES.image_vectors.numpy().astype(float), text_vector("stripes")
    alike = vectors @ text
    sets = [alike[np.random.default_rng(i).choice(N, 5, replace=False)].mean() for i in range(20_000)]
    assert len(table) == 10
    for (layer, unit), row in table.iterrows():
        top = np.argsort(-activations[layer][:, unit])[:5]
        embedding = vectors[top].mean(axis=0) - vectors.mean(axis=0)
        assert row["similarity"] == pytest.approx(embedding @ text / np.linalg.norm(embedding))
        assert row["z"] == pytest.approx((alike[top].mean() - np.mean(sets)) / np.std(sets), abs=0.05)
        assert row["p_value"] == pytest.approx(np.mean(np.array(sets) >= alike[top].mean()), abs=0.12)  # of 200 draws


def test_z_has_the_closed_form() -> None:
    row = search(top=1).table.iloc[0]
    alike = SCORES.image_vectors.numpy().astype(float) @ text_vector("stripes")
    top = np.argsort(-random_activations()[row["layer"]][:, row["unit"]])[:5]
    spread = np.sqrt(alike.var(ddof=1) / 5 * (1 - 5 / N))
    assert row["z"] == pytest.approx((alike[top].mean() - alike.mean()) / spread)


def test_p_values_of_random_units_are_uniform() -> None:
    activations = activations_of({"a": np.random.default_rng(1).normal(size=(N, 2000))})
    p = np.sort(search(activations=activations, n_null=2000, top=None).table["p_value"])
    assert np.abs(p - np.linspace(0, 1, 2000)).max() < 0.06
    assert (search(activations=activations, n_null=2000, top=None).table["q_value"] > 0.05).all()


# --- the ranking


def test_units_are_ranked_by_z_over_all_layers() -> None:
    table = search(top=None).table
    assert table["z"].is_monotonic_decreasing
    assert table["rank"].tolist() == list(range(1, 11))
    assert set(table["layer"]) == {"a", "b.0"}
    pd.testing.assert_frame_equal(search(top=3).table, table.head(3))


def test_queries_do_not_depend_on_each_other() -> None:
    both = search(["stripes", "dots"], top=4).table
    for name in ("stripes", "dots"):
        pd.testing.assert_frame_equal(both[both["query"] == name].reset_index(drop=True), search(name, top=4).table)


def test_templates_are_averaged() -> None:
    found = search("red", templates=("a {} thing", "{}"), top=None).table.set_index(["layer", "unit"])["similarity"]
    text = text_vector("a red thing") + text_vector("red")
    vectors = SCORES.image_vectors.numpy().astype(float)
    top = np.argsort(-random_activations()["a"][:, 2])[:5]
    embedding = vectors[top].mean(axis=0) - vectors.mean(axis=0)
    assert found[("a", 2)] == pytest.approx(embedding @ text / np.linalg.norm(embedding) / np.linalg.norm(text))


def test_a_summary_gives_the_same() -> None:
    activations = random_activations()
    pd.testing.assert_frame_equal(search(activations=summary_of(activations, k=6)).table, search(activations=activations).table)


def test_equal_units_stand_in_their_order_and_dead_ones_not_at_all() -> None:
    values = random_activations()["a"].copy()
    values[:, 4], values[:, 1] = values[:, 2], 3.0
    table = search(activations=activations_of({"a": values}), top=None).table
    assert sorted(table["unit"]) == [0, 2, 3, 4, 5]
    place = table["unit"].tolist().index(2)
    assert table["unit"].tolist()[place + 1] == 4
    assert table["z"].iloc[place] == table["z"].iloc[place + 1]


def test_the_report_is_saved_and_read(tmp_path) -> None:
    report = search(["stripes", "$x$ <b>"], top=2)
    assert all(path.is_file() for path in report.save(tmp_path))
    pd.testing.assert_frame_equal(UnitSearchReport.load(tmp_path).table, report.table)
    assert report.summary().startswith("'stripes': unit ")


# --- what is refused


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": ""}, InputError, "a text, or several that differ and are not empty"),
        ({"query": 3}, InputError, "a text, or several that differ and are not empty, but got 3"),
        ({"query": ["a", "a"]}, InputError, "a text, or several that differ and are not empty"),
        ({"k": N}, InputError, f"`k` to be at most {N - 1}, as there are {N} images"),
        ({"k": 0}, InputError, "`k` to be a whole number of at least 1, but got 0"),
        ({"encoder": None}, InputError, "the image-text encoder of the scores, but got NoneType"),
        ({"activations": SCORES}, InputError, "activations as ActivationRecorder makes them, but got ConceptScores"),
        ({"top": 0}, InputError, "`top` to be a whole number of at least 1, but got 0"),
        ({"templates": "{}"}, InputError, "a list of prompt templates"),
        ({"templates": ["red"]}, InputError, "exactly one '{}'"),
        ({"layers": ["c"]}, UnknownNameError, "a recorded layer, but got 'c'"),
        ({"encoder": OtherEncoder()}, InputError, "the encoder of the scores, whose fingerprint is pixels-7"),
        ({"activations": activations_of({"a": np.zeros((N, 2))})}, InputError, "a unit that varies"),
        ({"activations": activations_of({"a": np.zeros((N, 2))}, images="others")}, InputError, "of the same images"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        search(**change)


# --- known truth


def test_the_heads_units_are_found_by_their_names() -> None:
    activations, scores = recorded_world()
    report = search_units(ATTRIBUTES, activations, scores, encoder=world_encoder(), layers=["classifier"], top=1)
    found = dict(zip(report.table["query"], report.table["unit"], strict=True))
    assert found["striped"] == ATTRIBUTES.index("striped")
    assert sum(found[name] == unit for unit, name in enumerate(ATTRIBUTES)) >= 30  # of 31
    assert (report.table["q_value"] < 0.01).all()


def test_what_is_found_in_a_hidden_layer_shows_what_was_asked_for() -> None:
    activations, scores = recorded_world()
    table = search_units(ATTRIBUTES, activations, scores, encoder=world_encoder(), layers=["features.18"], top=1).table
    truth = world_truth().truth()
    shares = [
        truth[np.argsort(-activations["features.18"][:, row.unit], kind="stable")[:30], ATTRIBUTES.index(row.query)].mean()
        for row in table.itertuples()
    ]
    assert np.median(shares) > 0.9
    assert np.mean(np.array(shares) > 0.6) > 0.9


def test_noise_units_are_found_by_no_query() -> None:
    n = len(recorded_world()[1].ids)
    noise = np.random.default_rng(4).normal(size=(30, n))
    table = search_units(ATTRIBUTES, planted(*noise), recorded_world()[1], encoder=world_encoder(), top=None).table
    assert (table["q_value"] < 0.05).mean() < 0.01


def test_a_random_set_of_the_units_own_images_is_as_much_like_the_text() -> None:
    # 5 of 6 images are 6 sets: the best of them is drawn in a sixth of all draws, and its sum is rounded in many orders
    scores = scores_of(6, ["red"], d=D)
    scores.metadata["encoder"] = ENCODER.fingerprint
    alike = scores.image_vectors.numpy() @ text_vector("stripes")
    activations = activations_of({"a": np.column_stack([alike, -alike]).astype(np.float32)})
    for seed in range(3):
        table = search_units("stripes", activations, scores, encoder=ENCODER, k=5, n_null=1200, seed=seed).table
        assert table.loc[table["unit"] == 0, "p_value"].item() == pytest.approx(1 / 6, abs=0.05)
        assert table.loc[table["unit"] == 1, "p_value"].item() == 1
