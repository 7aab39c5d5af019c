from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.labeling._formula_search import Formula, FormulaSearch, SearchNull, Term, centered_ranks, log_tail_bound

NAMES = ("a", "b", "c", "d", "e")


def chain(*terms: str) -> Formula:
    """From "a", "and b", "or not c", ..."""
    found = []
    for term in terms:
        words = term.split()
        operator = words.pop(0) if words[0] in ("and", "or") else ""
        found.append(Term(operator, words[-1], "not" in words))
    return Formula(tuple(found))


def labels_of(seed: int, n: int = 60, share: float = 0.4) -> np.ndarray:
    return np.random.default_rng(seed).random((n, len(NAMES))) < share


def table_of(labels: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(NAMES, labels.T, strict=False))


def every_formula(length: int, names: tuple[str, ...] = NAMES) -> list[Formula]:
    found = []
    for concepts in itertools.product(names, repeat=length):
        for negated in itertools.product((False, True), repeat=length):
            for operators in itertools.product(("and", "or"), repeat=length - 1):
                found.append(Formula(tuple(map(Term, ("", *operators), concepts, negated))))
    return found


def plain_auc(values: np.ndarray, mask: np.ndarray) -> float:
    """How often an image of the mask is above one of the others; ties count half."""
    inside, outside = values[mask][:, None], values[~mask]
    return float(((inside > outside) + 0.5 * (inside == outside)).mean())


def exhaustive(values: np.ndarray, labels: np.ndarray, *, names: tuple[str, ...], fractions: tuple[float, float]) -> float:
    """The best AUC of all formulas of up to three terms whose every beginning keeps the bounds."""
    table = table_of(labels)

    def allowed(formula: Formula) -> bool:
        mask = formula.mask(table)
        return fractions[0] <= mask.mean() <= fractions[1] and 0 < mask.sum() < len(mask)

    formulas = [formula for length in (1, 2, 3) for formula in every_formula(length, names)]
    kept: set[Formula] = set()
    for formula in formulas:  # shorter ones first
        if allowed(formula) and (len(formula) == 1 or Formula(formula.terms[:-1]) in kept):
            kept.add(formula)
    return max(plain_auc(values, formula.mask(table)) for formula in kept)


def search(labels: np.ndarray, **arguments) -> FormulaSearch:
    return FormulaSearch(labels, NAMES, **{"max_length": 3, "beam_width": 5, "fractions": (0.05, 0.5), **arguments})


def test_a_formula_is_worked_off_from_left_to_right() -> None:
    labels = np.array(list(itertools.product((False, True), repeat=3)))
    a, b, c = labels.T
    table = {"a": a, "b": b, "c": c}
    np.testing.assert_array_equal(chain("a", "or b", "and not c").mask(table), (a | b) & ~c)
    np.testing.assert_array_equal(chain("not a", "and b", "or c").mask(table), (~a & b) | c)
    np.testing.assert_array_equal(chain("a").mask(table), a)


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        (chain("red", "and not striped"), "red and not striped"),
        (chain("red", "and blue", "and not striped"), "red and blue and not striped"),
        (chain("red", "or blue", "and not striped"), "(red or blue) and not striped"),
        (chain("a", "and b", "or c", "and d"), "((a and b) or c) and d"),
        (chain("not a"), "not a"),
    ],
)
def test_the_text_of_a_formula(formula: Formula, text: str) -> None:
    assert str(formula) == text
    assert Formula.parse(text) == formula
    assert len(formula) == len(formula.terms)


HOSTILE = ["black and white", "not", "or", "(", 'say "hi"', "back\\slash", "two  spaces", " edge ", "andrew", "x\ny", "notes", "ü", "a)"]


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_survives_writing_and_reading(name: str) -> None:
    for formula in (
        Formula((Term("", name, False),)),
        Formula((Term("", "red", True), Term("or", name, True), Term("and", name, False))),
    ):
        assert Formula.parse(str(formula)) == formula


def test_every_formula_survives_writing_and_reading() -> None:
    texts = [str(formula) for formula in every_formula(3)]
    assert len(set(texts)) == len(texts) == 10**3 * 4
    assert [Formula.parse(text) for text in texts] == every_formula(3)


@pytest.mark.parametrize(
    "text", ["", "and", "red and", "(red", "red)", "red and (blue or green)", "not not red", "red or or blue", "(red) and blue"]
)
def test_what_is_no_formula_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="Expected a formula such as"):
        Formula.parse(text)


def test_a_chain_without_operators_is_refused() -> None:
    with pytest.raises(InputError, match="a first term with the operator ''"):
        Formula(())
    with pytest.raises(InputError, match="a first term with the operator ''"):
        Formula((Term("", "a", False), Term("xor", "b", False)))


def test_labels_that_are_missing_are_named() -> None:
    with pytest.raises(UnknownNameError, match=r"labels of 'stripd'. Did you mean 'striped'"):
        chain("stripd").mask({"striped": [True]})


# --- ranks and AUCs


def test_centered_ranks_are_whole_numbers_that_sum_to_zero() -> None:
    values = np.random.default_rng(0).integers(0, 7, (51, 4))
    ranks = centered_ranks(values)
    np.testing.assert_array_equal(ranks, 2 * np.stack([rankdata(v) for v in values.T], axis=1) - 52)
    assert (ranks.sum(axis=0) == 0).all()
    np.testing.assert_array_equal(centered_ranks([[3.0], [1.0], [3.0]]), [[1], [-2], [1]])


@pytest.mark.parametrize("ties", [False, True])
def test_aucs_are_those_of_the_formula_found(ties: bool) -> None:
    labels = labels_of(0)
    values = np.random.default_rng(1).normal(size=(60, 20))
    values = np.maximum(np.round(values, 1), 0) if ties else values
    for unit, found in zip(values.T, search(labels).best(centered_ranks(values)), strict=True):
        np.testing.assert_array_equal(found.mask, found.formula.mask(table_of(labels)))
        assert found.auc == pytest.approx(roc_auc_score(found.mask, unit), abs=1e-14)
        assert found.single_auc == pytest.approx(roc_auc_score(found.single.mask(table_of(labels)), unit), abs=1e-14)
        assert len(found.single) == 1
        assert 0.05 <= found.mask.mean() <= 0.5


def test_an_auc_by_hand() -> None:
    labels = np.array([[1, 1, 0, 0], [1, 0, 1, 0]], dtype=bool).T
    one = FormulaSearch(labels, ("x", "y"), max_length=2, beam_width=4, fractions=(0.1, 0.5))
    (found,) = one.best(centered_ranks([[9.0], [4.0], [3.0], [5.0]]))
    assert str(found.formula) == "x and y"
    assert found.auc == 1.0  # 9 above 4, 3 and 5
    assert str(found.single) == "x"
    assert found.single_auc == 0.75  # 9 above 3 and 5, 4 above 3 only


# --- the search


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fractions", [(0.05, 0.5), (0.2, 1.0)])
def test_a_wide_beam_finds_what_an_exhaustive_search_finds(seed: int, fractions: tuple[float, float]) -> None:
    names = NAMES[:4]
    labels = labels_of(seed, n=30)[:, :4]
    values = np.random.default_rng(seed + 100).normal(size=(30, 2)).round(1)
    wide = FormulaSearch(labels, names, max_length=3, beam_width=10_000, fractions=fractions)
    for unit, found in zip(values.T, wide.best(centered_ranks(values)), strict=True):
        assert found.auc == pytest.approx(exhaustive(unit, labels, names=names, fractions=fractions), abs=1e-12)


def test_a_beam_of_one_takes_the_best_step_every_time() -> None:
    labels, values = labels_of(5), np.random.default_rng(6).normal(size=60)

    def auc(formula: Formula) -> float:
        mask = formula.mask(table_of(labels))
        return roc_auc_score(mask, values) if 0.05 <= mask.mean() <= 0.5 else -np.inf

    best = max(every_formula(1), key=auc)
    for _ in range(2):
        longer = [Formula((*best.terms, Term(op, name, neg))) for op in ("and", "or") for neg in (False, True) for name in NAMES]
        best = max([best, *longer], key=auc)
    (found,) = search(labels, beam_width=1).best(centered_ranks(values[:, None]))
    assert str(found.formula) == str(best)


def test_other_units_blocks_and_the_order_of_the_images_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, values = labels_of(7), np.random.default_rng(8).normal(size=(60, 12))

    def best(labels: np.ndarray, values: np.ndarray) -> list:
        return [(found.formula, found.auc) for found in search(labels).best(centered_ranks(values))]

    whole, order = best(labels, values), np.random.default_rng(9).permutation(60)
    assert [best(labels, values[:, [unit]])[0] for unit in range(12)] == whole
    assert best(labels[order], values[order]) == whole
    monkeypatch.setattr("neuroprobe.labeling._formula_search._VALUES", 120)  # two concepts, one unit at a time
    assert best(labels, values) == whole


def test_of_equal_formulas_the_shorter_and_then_the_first_is_taken() -> None:
    labels = np.zeros((20, 5), dtype=bool)
    labels[:8, 0] = labels[:8, 1] = True  # a and b are the same
    labels[8:, 2] = True  # and c is neither
    (found,) = search(labels, max_length=3).best(centered_ranks(labels[:, [0]] * 1.0))
    assert str(found.formula) == "a"
    assert found.auc == 1.0


def test_a_longer_formula_has_to_gain_more_than_the_tolerance() -> None:
    labels, ranks = labels_of(7), centered_ranks(np.random.default_rng(8).normal(size=(60, 30)))
    best = search(labels).best(ranks)
    shorter = search(labels, tolerance=0.1).best(ranks)
    assert all(one.auc >= two.auc >= one.auc - 0.1 for one, two in zip(best, shorter, strict=True))
    assert sum(len(f.formula) for f in shorter) < sum(len(f.formula) for f in best)
    assert all(len(f.formula) == 1 for f in search(labels, tolerance=1.0).best(ranks))


def test_siblings_leave_room_for_what_leads_further() -> None:
    generator = np.random.default_rng(2)
    names = [f"c{i}" for i in range(30)]
    labels = generator.random((1000, 30)) < 0.15
    values = ((labels[:, 0] | labels[:, 1]) & ~labels[:, 2]) + 0.2 * generator.normal(size=1000)
    ranks = centered_ranks(values[:, None])
    (found,) = FormulaSearch(labels, names, max_length=3, beam_width=10, fractions=(0.01, 0.5), max_siblings=3).best(ranks)
    np.testing.assert_array_equal(found.mask, (labels[:, 0] | labels[:, 1]) & ~labels[:, 2])


def test_bounds_are_kept_to_the_image() -> None:
    labels = np.zeros((10, 5), dtype=bool)
    labels[:3, 0] = labels[:4, 1] = labels[:7, 2] = True
    ranks = centered_ranks(-np.arange(10.0)[:, None])
    for fractions, name in (((0.3, 0.3), "a"), ((0.31, 0.4), "b"), ((0.5, 0.7), "c")):
        (found,) = search(labels, fractions=fractions, max_length=1).best(ranks)
        assert str(found.formula) == name
    assert not search(labels, fractions=(0.45, 0.55)).has_start
    assert not search(np.zeros((10, 5), dtype=bool), fractions=(0, 1)).has_start  # true of none, or of all


# --- how surprising the best is


N = 120
FOUR = ["a", "b", "c", "d"]
FOUR_LABELS = np.random.default_rng(0).random((N, 4)) < 0.3


def small_search(**arguments) -> FormulaSearch:
    return FormulaSearch(FOUR_LABELS, FOUR, **{"max_length": 2, "beam_width": 4, "fractions": (0.05, 0.5), **arguments})


def ranks_of(values: np.ndarray) -> np.ndarray:
    return centered_ranks(np.asarray(values)[:, None])[:, 0]


NOISE = ranks_of(np.random.default_rng(1).normal(size=N))


def test_the_p_value_counts_random_orders() -> None:
    null = SearchNull(small_search(), n=50, seed=3)
    aucs = null.aucs(1)
    assert len(aucs) == 50
    assert (np.diff(aucs) >= 0).all()
    assert null.p_value(0.0, NOISE, FOUR_LABELS[:, 0]) == 1
    assert null.p_value(aucs[-3], NOISE, FOUR_LABELS[:, 0]) == 4 / 51
    assert null.p_value(aucs[-1], NOISE, FOUR_LABELS[:, 0]) == 2 / 51
    assert null.p_value(2.0, NOISE, FOUR_LABELS[:, 0]) == 1 / 51  # the bound of a noise unit is no better


def test_beyond_all_random_orders_the_bound_speaks() -> None:
    null = SearchNull(small_search(), n=50, seed=3)
    mask = FOUR_LABELS[:, 0]
    ranks = ranks_of(mask + np.arange(N) / (10 * N))
    assert null.p_value(1.0, ranks, mask) == pytest.approx(small_search().n_formulas * np.exp(log_tail_bound(ranks, mask)))
    assert null.p_value(1.0, ranks, mask) < 1e-10


def test_random_orders_are_searched_as_units_are() -> None:
    null = SearchNull(small_search(), n=300, seed=3).aucs(1)
    generator = np.random.default_rng(7)
    again = [found.auc for found in small_search().best(centered_ranks(generator.normal(size=(N, 300))))]
    assert np.abs(np.quantile(null, [0.1, 0.5, 0.9]) - np.quantile(again, [0.1, 0.5, 0.9])).max() < 0.02


def test_without_random_orders_there_is_no_p_value() -> None:
    assert np.isnan(SearchNull(small_search(), n=0, seed=0).p_value(1.0, NOISE, FOUR_LABELS[:, 0]))


def test_the_null_of_sparse_units_has_at_most_their_ties() -> None:
    null = SearchNull(small_search(max_length=1), n=30, seed=0)
    highest = [null.aucs(n_lowest)[-1] for n_lowest in (1, 80, 100, 115)]
    assert highest == sorted(highest, reverse=True)
    assert highest[0] > highest[-1]
    assert null.aucs(1) is null.aucs(20)  # near enough to no ties at all


@pytest.mark.parametrize("n_lowest", [0, 1, N - 1, N])
def test_any_number_of_ties_has_a_null(n_lowest: int) -> None:
    assert len(SearchNull(small_search(), n=5, seed=0).aucs(n_lowest)) == 5


@pytest.mark.parametrize("values", [np.arange(8.0), [0, 0, 0, 0, 0, 1, 2, 3], [0, 0, 1, 1, 1, 2, 2, 2]])
def test_the_bound_is_above_the_exact_probability(values) -> None:
    ranks = ranks_of(values)
    for m in range(1, 8):
        samples = list(itertools.combinations(range(8), m))
        sums = np.array([ranks[list(rows)].sum() for rows in samples])
        for rows, total in zip(samples, sums, strict=True):
            mask = np.isin(np.arange(8), rows)
            exact = (sums >= total - 1e-9).mean()
            bound = np.exp(log_tail_bound(ranks, mask))
            assert exact <= bound + 1e-9
            assert bound <= 1


def test_the_bound_by_hand() -> None:
    # the highest one of two: exp(t/2) and exp(-t/2) over exp(t/2), halved: toward 1/2 for great t
    assert np.exp(log_tail_bound(np.array([-1.0, 1.0]), np.array([False, True]))) == pytest.approx(0.5, abs=1e-6)
    assert log_tail_bound(np.array([-1.0, 1.0]), np.array([True, False])) == pytest.approx(0, abs=1e-3)


def test_the_bound_falls_about_as_a_normal_tail() -> None:
    ranks = ranks_of(np.arange(1000))
    mask = np.zeros(1000, dtype=bool)
    mask[np.random.default_rng(0).choice(np.arange(300, 1000), 100, replace=False)] = True
    z = ranks[mask].sum() / np.sqrt(100 * ranks.var())
    assert z > 4
    assert log_tail_bound(ranks, mask) == pytest.approx(-(z**2) / 2, rel=0.15)
