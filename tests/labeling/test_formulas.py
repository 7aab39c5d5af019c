from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from embedded_world import recorded_world, summary_of
from helpers import activations_of
from scipy.stats import kstest, mannwhitneyu

from neuroprobe.concepts import GivenLabels
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.labeling import FormulaReport, dissect_formulas
from neuroprobe.labeling._formula_search import Formula, centered_ranks
from neuroprobe.recording import Activations
from neuroprobe.statistics import benjamini_hochberg
from neuroprobe.world import ATTRIBUTES, WorldDataset

N = 200
NAMES = ["red", "blue", "striped", "hot dog", "NA", "black and white"]
LABELS = np.random.default_rng(0).random((N, len(NAMES))) < 0.2
RED, BLUE, STRIPED = LABELS[:, 0], LABELS[:, 1], LABELS[:, 2]


def units(*signals: np.ndarray, noise: float = 0.1, n_noise: int = 0, seed: int = 1) -> Activations:
    generator = np.random.default_rng(seed)
    columns = [signal + noise * generator.normal(size=N) for signal in signals] + [generator.normal(size=N) for _ in range(n_noise)]
    return activations_of({"a": np.stack(columns, axis=1)})


def label(activations: Activations, labels=LABELS, **arguments) -> FormulaReport:
    concepts = None if isinstance(labels, (pd.DataFrame, GivenLabels)) else NAMES
    return dissect_formulas(activations, labels, **{"concepts": concepts, "n_null": 99, **arguments})


# --- what is found


def test_planted_formulas_are_found() -> None:
    planted = [RED & STRIPED, RED & ~STRIPED, (RED | BLUE) & ~STRIPED, BLUE, LABELS[:, 5] | RED]
    texts = ["red and striped", "red and not striped", "(red or blue) and not striped", "blue", 'red or "black and white"']
    report = label(units(*planted))
    for unit, (mask, text) in enumerate(zip(planted, texts, strict=True)):
        formula = report.formula("a", unit)
        assert formula is not None
        np.testing.assert_array_equal(formula.mask(pd.DataFrame(LABELS, columns=NAMES)), mask)
        assert len(formula) == len(Formula.parse(text))
    table = report.table
    assert set(table["status"]) == {"named"}
    assert (table["auc"] > 0.99).all()
    np.testing.assert_allclose(table["positive_fraction"], [mask.mean() for mask in planted])
    assert table["length"].tolist() == [2, 2, 3, 1, 2]
    assert (table["concept_auc"] <= table["auc"]).all()


def test_noise_units_get_no_name_but_keep_their_candidate() -> None:
    table = label(units(RED, n_noise=40)).table
    noise = table[table["unit"] > 0]
    assert set(noise["status"]) == {"not significant"}
    assert set(noise["formula"]) == {""}
    assert all(len(Formula.parse(text)) > 0 for text in noise["candidate"])
    assert (noise["p_single"] < 0.05).mean() > 0.2  # as if nothing had been searched
    assert table.loc[0, "formula"] == table.loc[0, "candidate"] == "red"


def test_p_values_are_those_of_the_columns() -> None:
    activations = units(RED & BLUE, n_noise=6)
    table = label(activations).table
    for row in table.itertuples():
        mask = Formula.parse(row.candidate).mask(pd.DataFrame(LABELS, columns=NAMES))
        values = activations["a"][:, row.unit].astype(float)
        assert row.p_single == pytest.approx(mannwhitneyu(values[mask], values[~mask]).pvalue)
    np.testing.assert_allclose(table["q_value"], benjamini_hochberg(table["p_value"]))
    assert table["p_value"][0] < 1e-6
    assert table["p_value"][1:].min() >= 1 / 100


def _p_of_noise(values: np.ndarray) -> np.ndarray:
    return label(activations_of({"a": values}), n_null=400, max_length=2, beam_width=3).table["p_value"].to_numpy()


def test_p_values_are_uniform_under_the_null() -> None:
    p = _p_of_noise(np.random.default_rng(5).normal(size=(N, 400)))
    # 400 units against one null of 400 random orders: two samples, at a level of 0.001
    assert kstest(p, "uniform").statistic < 1.95 * np.sqrt(2 / 400)


@pytest.mark.parametrize("threshold", [0.0, 1.0, 1.8])
def test_p_values_of_sparse_noise_are_not_too_small_and_not_much_too_large(threshold: float) -> None:
    values = np.maximum(np.random.default_rng(6).normal(size=(N, 400)), threshold)
    p = _p_of_noise(values)
    for level in (0.05, 0.1, 0.2, 0.5):
        assert (p <= level).mean() < level + 3 * np.sqrt(level * (1 - level) / 400) + 0.02
    assert p.mean() < 0.65


# --- whole layers


def test_every_layer_and_unit_has_a_row_and_its_own_result() -> None:
    generator = np.random.default_rng(3)
    values = {"a": generator.normal(size=(N, 5)), "b.0": generator.normal(size=(N, 3))}
    table = label(activations_of(values)).table
    assert list(zip(table["layer"], table["unit"], strict=True)) == [("a", u) for u in range(5)] + [("b.0", u) for u in range(3)]
    alone = label(activations_of({"a": values["a"][:, [3]]})).table
    columns = ["auc", "positive_fraction", "length", "concept", "concept_auc", "p_value", "p_single", "candidate"]
    pd.testing.assert_frame_equal(table.loc[[3], columns].reset_index(drop=True), alone[columns])
    only = label(activations_of(values), layers=["b.0"]).table
    pd.testing.assert_frame_equal(only, table[table["layer"] == "b.0"].reset_index(drop=True))


def test_dead_units_have_a_status_and_nothing_else() -> None:
    values = units(RED, BLUE)["a"].copy()
    values[:, 1] = -3
    row = label(activations_of({"a": values})).table.loc[1]
    assert (row["status"], row["formula"], row["candidate"], row["concept"], row["length"]) == ("never varies", "", "", "", 0)
    assert row[["auc", "positive_fraction", "concept_auc", "p_value", "q_value", "p_single"]].isna().all()


def test_a_layer_of_dead_units_alone(tmp_path) -> None:
    report = label(activations_of({"a": np.zeros((N, 3))}))
    report.save(tmp_path)
    assert FormulaReport.load(tmp_path).formula("a", 2) is None


def test_without_random_orders_every_unit_has_a_name_and_no_p_value() -> None:
    table = label(units(RED, n_noise=3), n_null=0).table
    assert set(table["status"]) == {"named"}
    assert table[["p_value", "q_value"]].isna().all(axis=None)


def test_seeds_change_random_orders_only() -> None:
    activations = units(RED, n_noise=20)
    one, again, other = (label(activations, seed=seed).table for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one, again)
    assert (one["p_value"] != other["p_value"]).any()
    pd.testing.assert_series_equal(one["candidate"], other["candidate"])


def test_a_table_is_brought_into_the_order_of_the_images() -> None:
    activations = units(RED & STRIPED, n_noise=4)
    table = pd.DataFrame(LABELS, index=list(activations.ids), columns=NAMES)
    shuffled = table.sample(frac=1, random_state=0)
    more = pd.concat([shuffled, pd.DataFrame(True, index=["another"], columns=NAMES)])
    pd.testing.assert_frame_equal(label(activations, LABELS.astype(int)).table, label(activations).table)
    pd.testing.assert_frame_equal(label(activations, more).table, label(activations).table)
    pd.testing.assert_frame_equal(label(activations, GivenLabels(more)).table, label(activations).table)


def test_the_report_is_saved_and_read(tmp_path) -> None:
    report = label(units(RED & STRIPED, LABELS[:, 4], n_noise=2), false_discovery_rate=0.001)
    assert all(path.is_file() for path in report.save(tmp_path))
    again = FormulaReport.load(tmp_path)
    pd.testing.assert_frame_equal(again.table, report.table)
    assert str(again.formula("a", 1)) == "NA"
    assert report.summary().startswith("2 of 4 units named, in 1 layers; mean AUC 1.000, of single concepts 0.")
    assert report.metadata["n_null"] == 99
    with pytest.raises(InputError, match="a unit of this report, but got unit 9 of 'a'"):
        report.formula("a", 9)


# --- what is refused


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": LABELS * 0.5}, InputError, r"labels that are all true or false, or 1 or 0, but 'image .*' has 0\.5"),
        ({"labels": LABELS[1:]}, InputError, "a row for each of the 200 images in their order, but got 199 rows without ids"),
        ({"labels": LABELS.T}, InputError, r"that name its columns, but got \(6, 200\)"),
        ({"concepts": None}, InputError, "`concepts` that name its columns"),
        ({"concepts": ["x"] * 6}, InputError, "every concept once"),
        ({"concepts": ["", *"abcde"]}, InputError, "names that are not empty"),
        ({"labels": pd.DataFrame(LABELS, columns=NAMES, index=["image 0"] * N)}, InputError, "every image once in the labels"),
        ({"min_fraction": 0.4, "max_fraction": 0.5}, InputError, "a concept, or a negation, that is true of 0.4 to 0.5 of the 200"),
        ({"labels": np.zeros((N, 6), dtype=bool), "min_fraction": 0.0}, InputError, "there is none to begin with"),
        ({"min_fraction": 0.6}, InputError, "`min_fraction` to be a number, at least 0 and at most 0.5"),
        ({"max_fraction": 1.5}, InputError, "`max_fraction` to be a number, above 0 and at most 1"),
        ({"max_length": 0}, InputError, "`max_length` to be a whole number of at least 1, but got 0"),
        ({"beam_width": 0}, InputError, "`beam_width` to be a whole number of at least 1, but got 0"),
        ({"max_siblings": 0}, InputError, "`max_siblings` to be a whole number of at least 1, but got 0"),
        ({"layers": ["c"]}, UnknownNameError, "a recorded layer, but got 'c'"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, error: type[Exception], message: str) -> None:
    labels = change.pop("labels", LABELS)
    with pytest.raises(error, match=message):
        label(units(RED), labels, **change)


# --- known truth


def test_the_worlds_combinations_are_found() -> None:
    world = WorldDataset(600, seed=5)
    truth = pd.DataFrame(world.truth(), index=world.ids, columns=list(ATTRIBUTES))
    planted = {
        "red and striped": truth["red"] & truth["striped"],
        "circle and not red": truth["circle"] & ~truth["red"],
        "star or heart": truth["star"] | truth["heart"],
        "dotted": truth["dotted"],
    }
    generator = np.random.default_rng(0)
    values = np.stack([*planted.values(), *np.zeros((4, 600))], axis=1) + 0.3 * generator.normal(size=(600, 8))
    activations = Activations({"units": values.astype(np.float32)}, tuple(world.ids), {})
    report = dissect_formulas(activations, truth, n_null=200)
    for unit, (text, mask) in enumerate(planted.items()):
        formula = report.formula("units", unit)
        assert formula is not None, text
        np.testing.assert_array_equal(formula.mask(truth), mask)
    assert set(report.table["status"][4:]) == {"not significant"}
    assert report.table.loc[0, "formula"] == "red and striped"


def test_ranks_of_a_store_are_those_of_its_float32_values() -> None:
    values = np.array([[0.1], [np.float32(0.1)], [0.2], [0.0]], dtype=np.float32)
    np.testing.assert_array_equal(centered_ranks(values)[:, 0], [0, 0, 3, -3])


def test_a_summary_is_refused() -> None:
    recorded, _ = recorded_world()
    labels = np.zeros((len(recorded.ids), 1), dtype=bool)
    with pytest.raises(InputError, match="recorded activations, all of which formulas need, but got ActivationSummary"):
        dissect_formulas(summary_of(recorded, k=5), labels, concepts=["red"])
