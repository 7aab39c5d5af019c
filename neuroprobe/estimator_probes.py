"""Any classifier with scikit-learn's interface as a probe of a study."""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, clone

from neuroprobe.exceptions import InputError
from neuroprobe.fingerprints import fingerprint_texts
from neuroprobe.functions import identify_function
from neuroprobe.probes import PROBES

#: Probabilities closer to 0 and 1 have log-odds that no sum of bits holds.
_SMALLEST = 1e-12


@dataclass(frozen=True, eq=False)
class EstimatorProbe:
    """A classifier of the user's as a probe: pooled features, scaled per unit by the training part, in scope layer.

    Parameters
    ----------
    estimator : scikit-learn classifier
        With `fit`, and `decision_function` or `predict_proba`; `sklearn.base.clone` must work. Its `random_state`, if it has one,
        is set to the seed of the split. It is never fitted itself.

    Raises
    ------
    InputError
        No such classifier, or one whose kind has the name of one of ours.
    """

    estimator: Any

    def __post_init__(self) -> None:
        decides = any(hasattr(self.estimator, name) for name in ("decision_function", "predict_proba"))
        if not isinstance(self.estimator, BaseEstimator) or not decides:
            raise InputError(
                f"Expected a kind of probe, one of {', '.join(c.__name__ for c in PROBES.values())}, or a scikit-learn classifier with "
                f"decision_function or predict_proba, but got {self.estimator!r:.80}."
            )
        if self.kind in PROBES:
            raise InputError(
                f"Expected a kind that is none of neuroprobe's own, but {type(self.estimator).__name__} calls itself {self.kind!r}. "
                "Give its class another `kind`."
            )

    @property
    def kind(self) -> str:
        """The estimator's own `kind`, or the name of its class."""
        return str(getattr(self.estimator, "kind", type(self.estimator).__name__))

    def get_params(self) -> dict[str, Any]:
        """The estimator's parameters."""
        return dict(self.estimator.get_params())

    def decide(
        self, Z: npt.NDArray[np.float64], targets: npt.NDArray[np.int64], train: npt.NDArray[np.int64], seed: int
    ) -> npt.NDArray[np.float64]:
        """The log-odds of every image, after a fit on the training part.

        Parameters
        ----------
        Z : ndarray, [n_images, n_units]
        targets : ndarray, [n_images]
        train : ndarray, [n_train]
        seed : int

        Returns
        -------
        ndarray, [n_images]
        """
        fitted = clone(self.estimator)
        if "random_state" in fitted.get_params():
            fitted.set_params(random_state=seed)
        fitted.fit(Z[train], targets[train])
        values = np.asarray(_log_odds(fitted, Z), dtype=np.float64)
        if values.shape != targets.shape or not np.isfinite(values).all():
            raise InputError(f"Expected {type(fitted).__name__} to give a finite number per image, but got {values.dtype} {values.shape}.")
        return values

    @property
    def identity(self) -> str:
        """What tells it from others: its parameters, and the code of its class where that is no library's."""
        classes = [c for c in type(self.estimator).__mro__ if not c.__module__.startswith(("sklearn.", "builtins"))]
        code = [identify_function(f) for c in classes for f in vars(c).values() if isinstance(f, types.FunctionType)]
        return fingerprint_texts([type(self.estimator).__qualname__, repr(sorted(self.get_params().items(), key=str)), *code])


def _log_odds(fitted: Any, Z: npt.NDArray[np.float64]) -> Any:
    if hasattr(fitted, "decision_function"):
        return fitted.decision_function(Z)
    share = np.clip(fitted.predict_proba(Z)[:, 1], _SMALLEST, 1 - _SMALLEST)
    return np.log(share) - np.log1p(-share)
