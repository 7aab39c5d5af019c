"""Logical formulas over labeled concepts, and the beam search for those that a unit tells apart best.

A formula is a chain: a concept or its negation, then "and" or "or" another, and so on, worked off from left to right.
Its measure is the AUC of the unit's activations as a detector of the images of which the formula is true.

How surprising an AUC is, given that it is the best that a search has found: the null is that images are exchangeable, that the
unit's activations in any other order would have been as likely. Two things follow. Searching random orders in the same way
shows what the search reaches by chance; its smallest p-value is one over their number. Beyond all of them, a bound holds: the
number of formulas there are, times a bound on the tail of one formula's rank sum, which is that of a sample without replacement.

References
----------
Bykov et al., "Labeling Neural Representations with Inverse Recognition", NeurIPS 2023, arXiv 2311.13594.
Hoeffding, "Probability inequalities for sums of bounded random variables", JASA 1963, theorem 4: a sum of a
sample without replacement has no greater moments than one with replacement, so Chernoff's bound for the latter holds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from neuroprobe._core import BoolArray, Floats
from neuroprobe.exceptions import InputError, UnknownNameError, suggest
from neuroprobe.labeling._products import Products

_OPERATORS = ("and", "or")
_KEYWORD = re.compile(r'\b(and|or|not)\b|[()"\\]')
_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|([()])|\b(and|or|not)\b(?!\S)')
_VALUES = 1 << 23  # float64 values in a matrix worked on at a time: 64 MB
_ORDERS = 64  # random orders made at a time


class Term(NamedTuple):
    """A concept or its negation, and how it joins what stands before it ("and", "or"; "" for the first)."""

    operator: str
    concept: str
    negated: bool


@dataclass(frozen=True)
class Formula:
    """A chain of terms, worked off from left to right: ((first op second) op third) ...

    Raises
    ------
    InputError
        No terms, or operators that do not form a chain.

    Examples
    --------
    >>> formula = Formula((Term("", "red", False), Term("or", "blue", False), Term("and", "striped", True)))
    >>> str(formula)
    '(red or blue) and not striped'
    >>> Formula.parse(str(formula)) == formula
    True
    """

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        operators = [term.operator for term in self.terms]
        if not operators or operators[0] != "" or any(operator not in _OPERATORS for operator in operators[1:]):
            raise InputError(f"Expected a first term with the operator '' and then 'and' or 'or', but got {operators}.")

    def __len__(self) -> int:
        return len(self.terms)

    def __str__(self) -> str:
        text, last = "", ""
        for operator, concept, negated in self.terms:
            if last and operator != last:  # what was joined otherwise belongs together
                text = f"({text})"
            last = operator
            text += (f" {operator} " if operator else "") + ("not " if negated else "") + _quoted(concept)
        return text

    @classmethod
    def parse(cls, text: str) -> Formula:
        """The formula that `str` wrote.

        Raises
        ------
        InputError
            A text that is no formula.
        """
        tokens = list(_tokens(text))
        depth = 0
        while depth < len(tokens) and tokens[depth] == ("mark", "("):
            depth += 1
        terms, place, operator = [], depth, ""
        while place < len(tokens):
            negated = tokens[place] == ("word", "not")
            place += negated
            if place >= len(tokens) or tokens[place][0] != "name":
                raise _no_formula(text)
            terms.append(Term(operator, tokens[place][1], negated))
            place += 1
            if place < len(tokens) and tokens[place] == ("mark", ")"):
                depth, place = depth - 1, place + 1
            if place < len(tokens):
                kind, operator = tokens[place]
                if kind != "word" or operator not in _OPERATORS or place + 1 == len(tokens):
                    raise _no_formula(text)
                place += 1
        formula = cls(tuple(terms)) if terms and not depth else None
        if formula is None or str(formula) != text:
            raise _no_formula(text)
        return formula

    def mask(self, labels: Mapping[str, npt.ArrayLike]) -> BoolArray:
        """Of which images the formula is true, [n_images].

        Parameters
        ----------
        labels : mapping from concept to booleans [n_images]
            Such as a DataFrame with a column per concept.

        Raises
        ------
        UnknownNameError
            A concept without labels.
        """
        found: Any = None
        for operator, concept, negated in self.terms:
            if concept not in labels:
                raise UnknownNameError(f"Expected labels of {concept!r}. {suggest(concept, labels)}")
            values = np.asarray(labels[concept], dtype=bool) ^ negated
            found = values if not operator else (found & values if operator == "and" else found | values)
        return np.array(found, dtype=bool)


class Found(NamedTuple):
    """The best formula of a unit, the best of a single term, and their AUCs; `mask` are the images it is true of."""

    formula: Formula
    auc: float
    mask: BoolArray
    single: Formula
    single_auc: float


class _Candidate(NamedTuple):
    """A formula in a beam: codes of its terms, how often it is true, its rank sum, its AUC."""

    codes: tuple[tuple[int, int, bool], ...]  # operator (0 and, 1 or), concept, negated
    mask: BoolArray
    n_true: int
    total: float
    auc: float


class FormulaSearch:
    """A beam search over formulas for any number of units.

    Sums of doubled, centered ranks are whole numbers that float64 holds exactly, so AUCs are exact, and equal ones
    are told to be equal. Of equal ones the shorter formula comes first, then the one whose beginning ranks higher,
    then "and" before "or", no negation before negation, and the concept that comes first. Of formulas true of the
    same images only the first stays in the beam.

    A plain beam fills up with variants of one formula ("red and not striped", "red and not dotted", ...), and "red or
    blue", which would lead further, is lost; so only the best few ways to continue a formula by one operator are kept.

    Parameters
    ----------
    labels : ndarray of bool, [n_images, n_concepts]
    concepts : sequence of str
        Their names.
    fractions : (float, float)
        A formula is true of at least and at most these fractions of the images.
    max_length, beam_width, max_siblings, tolerance, device
        As in `neuroprobe.dissect_formulas`; by default any number of siblings, and no tolerance.
    """

    def __init__(
        self,
        labels: BoolArray,
        concepts: Sequence[str],
        *,
        max_length: int,
        beam_width: int,
        fractions: tuple[float, float],
        max_siblings: int | None = None,
        tolerance: float = 0.0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.labels, self.concepts = labels, tuple(concepts)
        self._products = Products(labels, device)  # exact, as everything is a whole number
        self.max_length, self.beam_width = max_length, beam_width
        self.max_siblings, self.tolerance = max_siblings or beam_width, tolerance
        self.n_images, self.n_concepts = labels.shape
        # a formula true of all or none has no AUC; 1e-9: 0.3 * 10 images are 3, whatever the rounding
        self.fewest = max(1, int(np.ceil(fractions[0] * self.n_images - 1e-9)))
        self.most = min(self.n_images - 1, int(np.floor(fractions[1] * self.n_images + 1e-9)))
        self.counts = labels.sum(axis=0, dtype=np.int64)

    @property
    def has_start(self) -> bool:
        """Whether any concept or negation keeps the bounds; without one nothing can be found."""
        return any(((self.fewest <= counts) & (counts <= self.most)).any() for counts in (self.counts, self.n_images - self.counts))

    @property
    def n_formulas(self) -> int:
        """How many formulas of at most `max_length` terms there are, whatever they are true of."""
        return sum((2 * self.n_concepts) ** length * 2 ** (length - 1) for length in range(1, self.max_length + 1))

    def best(self, ranks: Floats) -> list[Found]:
        """The best formula of every unit, from doubled centered ranks [n_images, n_units] (see `centered_ranks`)."""
        size = max(1, _VALUES // (self.n_images * self.beam_width))
        found: list[Found] = []
        for start in range(0, ranks.shape[1], size):
            found += self._search(np.ascontiguousarray(ranks[:, start : start + size].T))
        return found

    def _search(self, ranks: Floats) -> list[Found]:
        totals = self._products(ranks)  # [n_units, n_concepts]
        beams = [self._selected([], self._first(unit)) for unit in totals]
        best = [[beam[0]] for beam in beams]  # of every unit, by length
        for _ in range(1, self.max_length):
            beams = self._extended(beams, ranks, totals)
            for found, beam in zip(best, beams, strict=True):
                found.append(beam[0])
        return [self._found(found) for found in best]

    def _found(self, best: list[_Candidate]) -> Found:
        """What is reported, from the best formula of at most one term, two, three, ..."""
        taken = next(candidate for candidate in best if candidate.auc >= best[-1].auc - self.tolerance)
        return Found(self._formula(taken), taken.auc, taken.mask, self._formula(best[0]), best[0].auc)

    def _extended(self, beams: list[list[_Candidate]], ranks: Floats, totals: Floats) -> list[list[_Candidate]]:
        """The beams with every formula joined to every concept and negation; one product for all units and formulas."""
        masks = np.stack([candidate.mask for beam in beams for candidate in beam])
        unit_of = np.repeat(np.arange(len(beams)), [len(beam) for beam in beams])
        both = self._products(masks * ranks[unit_of])
        counts = self._products(masks.astype(np.float64))
        found, start = [], 0
        for beam, unit in zip(beams, totals, strict=True):
            rows = slice(start, start + len(beam))
            found.append(self._selected(beam, self._joined(beam, unit, both[rows], counts[rows])))
            start += len(beam)
        return found

    def _first(self, totals: Floats) -> tuple[Floats, Floats]:
        """Counts and rank sums of all concepts, then of all negations, [1, 2, n_concepts]."""
        return np.stack([self.counts, self.n_images - self.counts])[None].astype(float), np.stack([totals, -totals])[None]

    def _joined(self, beam: list[_Candidate], totals: Floats, both: Floats, counts: Floats) -> tuple[Floats, Floats]:
        """Counts and rank sums of "f and g", "f and not g", "f or g", "f or not g", [n_beam, 4, n_concepts].

        From those of f, of g and of "f and g" alone; all ranks sum to zero. What changes nothing gets the count 0.
        """
        count = np.array([candidate.n_true for candidate in beam], float)[:, None]
        total = np.array([candidate.total for candidate in beam])[:, None]
        all_counts = np.stack([counts, count - counts, count + self.counts - counts, self.n_images - self.counts + counts], axis=1)
        all_totals = np.stack([both, total - both, total + totals - both, both - totals], axis=1)
        all_counts[all_counts == count[:, None]] = 0
        return all_counts, all_totals

    def _selected(self, beam: list[_Candidate], new: tuple[Floats, Floats]) -> list[_Candidate]:
        """The next beam, from the last one and the counts and rank sums [n_beam, kinds, n_concepts] of what continues it."""
        counts, sums = new
        aucs = np.concatenate([[candidate.auc for candidate in beam], self._aucs(counts, sums).ravel()])
        chosen: dict[bytes, _Candidate] = {}
        siblings: Counter[int] = Counter()
        for place in np.argsort(-aucs, kind="stable").tolist():
            if aucs[place] == -np.inf or len(chosen) == self.beam_width:
                break
            number = place - len(beam)
            family = number // (2 * self.n_concepts)  # continues the same formula by the same operator
            is_new = bool(beam) and number >= 0
            if is_new and siblings[family] == self.max_siblings:
                continue
            candidate = self._made(beam, number, counts, sums, float(aucs[place])) if number >= 0 else beam[place]
            key = np.packbits(candidate.mask).tobytes()
            if key not in chosen:
                chosen[key] = candidate
                siblings[family] += is_new
        return list(chosen.values())

    def _aucs(self, counts: Floats, sums: Floats) -> Floats:
        """The AUCs of formulas; minus infinity where the bounds are not kept."""
        allowed = (counts >= self.fewest) & (counts <= self.most)
        return np.where(allowed, 0.5 + sums / np.where(allowed, 2 * counts * (self.n_images - counts), 1), -np.inf)

    def _made(self, beam: list[_Candidate], place: int, counts: Floats, sums: Floats, auc: float) -> _Candidate:
        parent, kind, concept = (int(i) for i in np.unravel_index(place, counts.shape))
        operator, negated = divmod(kind, 2)
        values = self.labels[:, concept] ^ bool(negated)
        before: tuple[tuple[int, int, bool], ...] = ()
        if beam:
            before = beam[parent].codes
            values = beam[parent].mask | values if operator else beam[parent].mask & values
        codes = (*before, (operator, concept, bool(negated)))
        return _Candidate(codes, values, int(counts.flat[place]), float(sums.flat[place]), auc)

    def _formula(self, candidate: _Candidate) -> Formula:
        """Terms whose order makes no difference are put in the concepts' order, negations last."""
        codes = list(candidate.codes)
        if len(codes) > 1:  # the first term has no operator of its own and belongs to the run of the next
            codes[0] = (codes[1][0], *codes[0][1:])
        runs = [sorted(run, key=lambda code: (code[2], code[1])) for _, run in groupby(codes, key=lambda code: code[0])]
        ordered = [code for run in runs for code in run]
        return Formula(tuple(Term(_OPERATORS[op] if i else "", self.concepts[c], neg) for i, (op, c, neg) in enumerate(ordered)))


def centered_ranks(values: npt.ArrayLike) -> Floats:
    """Twice the rank of every value [n_images, n_units] among its column's, ties shared, minus n + 1: whole numbers that sum to zero."""
    from scipy.stats import rankdata

    array = np.asarray(values)
    found: Floats = 2 * rankdata(array, axis=0) - (len(array) + 1)
    return found


def _quoted(concept: str) -> str:
    """A name as it stands in a formula; in quotation marks where it could be read as something else."""
    if concept and concept == " ".join(concept.split()) and not _KEYWORD.search(concept):
        return concept
    return '"' + concept.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    place = 0
    for match in _TOKEN.finditer(text):
        if between := text[place : match.start()].strip():
            yield "name", between
        quoted, mark, word = match.groups()
        if quoted is not None:
            yield "name", re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL)
        else:
            yield ("mark", mark) if mark else ("word", word)
        place = match.end()
    if rest := text[place:].strip():
        yield "name", rest


def _no_formula(text: str) -> InputError:
    return InputError(f"Expected a formula such as '(red or blue) and not striped', but got {text!r:.200}.")


class SearchNull:
    """The best AUCs that a search finds in `n` random orders of the images, for units with as many equal lowest activations.

    AUC reads ranks only, so one null serves all units without equal activations, exactly. Units that share their
    lowest value on many images (zeros after a ReLU) get a null with nearly as many, never more. That is conservative: sharing
    ranks averages over the orders that the ties leave open.
    """

    def __init__(self, search: FormulaSearch, *, n: int, seed: int) -> None:
        self._search, self._n, self._seed = search, n, seed
        self._found: dict[int, Floats] = {}

    def p_value(self, auc: float, ranks: Floats, mask: BoolArray) -> float:
        """The share of random orders whose best formula reaches an AUC; beyond them all, the bound if that is less.

        Valid as it is: below 1 / (n + 1) only the bound speaks, above it only the random orders; NaN without these. The unit's ranks are
        doubled and centered, the mask is where the formula is true, both [n_images].
        """
        if not self._n:
            return float("nan")
        null = self.aucs(int((ranks == ranks.min()).sum()))
        n_as_good = len(null) - int(np.searchsorted(null, auc))
        share = (1 + n_as_good) / (1 + len(null))
        if n_as_good:
            return share
        log_bound = np.log(self._search.n_formulas) + log_tail_bound(ranks, mask)
        return min(share, float(np.exp(min(log_bound, 0.0))))

    def aucs(self, n_lowest: int) -> Floats:
        """The null for units with that many equal lowest activations, ascending, [n]."""
        n_images = self._search.n_images
        # variance of the ranks with the ties and without, about 1 - share^3: in steps of a quarter
        step = int(np.log(max(1 - (n_lowest / n_images) ** 3, 1 / n_images)) / np.log(0.75)) if n_lowest > 1 else 0
        if step not in self._found:
            n_tied = int((1 - 0.75**step) ** (1 / 3) * n_images)
            self._found[step] = np.sort(self._searched(n_tied, np.random.default_rng((self._seed, step))))
        return self._found[step]

    def _searched(self, n_tied: int, generator: np.random.Generator) -> list[float]:
        values = np.maximum(np.arange(self._search.n_images), n_tied - 1)[:, None]
        found: list[float] = []
        for start in range(0, self._n, _ORDERS):
            orders = generator.permuted(np.repeat(values, min(_ORDERS, self._n - start), axis=1), axis=0)
            found += [one.auc for one in self._search.best(centered_ranks(orders))]
        return found


def log_tail_bound(ranks: Floats, mask: BoolArray) -> float:
    """Logarithm of a bound on the probability that as many random images have at least the rank sum of the mask's.

    It is the least over t of ``m log(mean_i exp(t r_i)) - t sum_{i in mask} r_i``, with m the images of the mask, or of the
    rest if they are fewer. It holds for any centered ranks, ties included; every t > 0 gives a bound, so the minimum need not be exact.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    few, sign = (mask, 1.0) if 2 * mask.sum() <= len(mask) else (~mask, -1.0)
    scaled, m = sign * ranks / len(ranks), int(few.sum())
    values, counts = np.unique(scaled, return_counts=True)
    total = scaled[few].sum()

    def bound(t: float) -> float:
        return float(m * (logsumexp(t * values, b=counts) - np.log(len(ranks))) - t * total)

    found = minimize_scalar(bound, bounds=(0, 50 * len(ranks) / m), method="bounded")
    return min(float(found.fun), 0.0)
