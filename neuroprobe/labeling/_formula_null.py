"""How surprising a formula's AUC is, given that it is the best that a search has found.

The null is that images are exchangeable: the unit's activations in any other order would have been as likely. Two things
follow. Searching random orders in the same way shows what the search reaches by chance; its smallest p-value is one over
their number. Beyond all of them, a bound holds: the number of formulas there are, times a bound on the tail of
one formula's rank sum, which is that of a sample without replacement.

References
----------
Hoeffding, "Probability inequalities for sums of bounded random variables", JASA 1963, theorem 4: a sum of a
sample without replacement has no greater moments than one with replacement, so Chernoff's bound for the latter holds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from neuroprobe.labeling._formula_search import FormulaSearch, centered_ranks

_ORDERS = 64  # random orders made at a time


class SearchNull:
    """The best AUCs that a search finds in random orders of the images, for units with as many equal lowest activations.

    AUC reads ranks only, so one null serves all units without equal activations, exactly. Units that share their
    lowest value on many images (zeros after a ReLU) get a null with nearly as many, never more. That is conservative: sharing
    ranks averages over the orders that the ties leave open.

    Parameters
    ----------
    search : FormulaSearch
    n : int
        Random orders.
    seed : int
    """

    def __init__(self, search: FormulaSearch, *, n: int, seed: int) -> None:
        self._search, self._n, self._seed = search, n, seed
        self._found: dict[int, npt.NDArray[np.float64]] = {}

    def p_value(self, auc: float, ranks: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_]) -> float:
        """The share of random orders whose best formula reaches an AUC; beyond them all, the bound if that is less.

        Valid as it is: below 1 / (n + 1) only the bound speaks, above it only the random orders.

        Parameters
        ----------
        auc : float
            Of the formula found.
        ranks : ndarray, [n_images]
            Doubled centered ranks of the unit's activations.
        mask : ndarray of bool, [n_images]
            Where the formula is true.

        Returns
        -------
        float
            NaN without random orders.
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

    def aucs(self, n_lowest: int) -> npt.NDArray[np.float64]:
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


def log_tail_bound(ranks: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_]) -> float:
    """Logarithm of a bound on the probability that as many random images have at least the rank sum of the mask's.

    It is the least over t of ``m log(mean_i exp(t r_i)) - t sum_{i in mask} r_i``, with m the images of the mask, or of the
    rest if they are fewer. It holds for any ranks, ties included; every t > 0 gives a bound, so the minimum need not be exact.

    Parameters
    ----------
    ranks : ndarray, [n_images]
        Centered; they sum to zero.
    mask : ndarray of bool, [n_images]
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
