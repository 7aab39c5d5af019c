"""Any classifier with scikit-learn's interface as a probe of a study."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, clone

from neuroprobe._core import fingerprint_bytes, fingerprint_texts, identify_function
from neuroprobe.exceptions import InputError
from neuroprobe.probing.probes import PROBES

#: Probabilities closer to 0 and 1 have log-odds that no sum of bits holds.
_SMALLEST = 1e-12


@dataclass(frozen=True, eq=False)
class EstimatorProbe:
    """A classifier of the user's as a probe: pooled features, scaled per unit by the training part, in scope layer.

    Parameters
    ----------
    estimator : scikit-learn classifier
        With `fit`, and `decision_function` or `predict_proba`; `sklearn.base.clone` must work. Its `random_state`, if it has one,
        and those of estimators in it (a pipeline's steps) are set to the seed of the split. It is never fitted itself.

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
        fitted.set_params(**{name: seed for name in fitted.get_params() if name.rpartition("__")[2] == "random_state"})
        fitted.fit(Z[train], targets[train])
        values = np.asarray(_log_odds(fitted, Z), dtype=np.float64)
        if values.shape != targets.shape or not np.isfinite(values).all():
            raise InputError(f"Expected {type(fitted).__name__} to give a finite number per image, but got {values.dtype} {values.shape}.")
        return values

    @property
    def identity(self) -> str:
        """What tells it from others: its parameters, and the code of its class where that is no library's; of those in it too."""
        return fingerprint_texts(_contents(self.estimator))


def _contents(value: Any) -> Iterator[str]:
    """Texts that together tell an estimator, or a parameter of one, from others; without addresses."""
    if isinstance(value, BaseEstimator):
        yield type(value).__qualname__
        classes = [c for c in type(value).__mro__ if not c.__module__.startswith(("sklearn.", "builtins"))]
        yield from (identify_function(f) for c in classes for f in vars(c).values() if isinstance(f, types.FunctionType))
        yield from _contents({name: one for name, one in value.get_params(deep=False).items() if name != "random_state"})
    elif isinstance(value, (dict, list, tuple)):
        yield f"{type(value).__name__} of {len(value)}"
        for one in sorted(value.items(), key=str) if isinstance(value, dict) else value:
            yield from _contents(one)
    elif isinstance(value, np.ndarray):
        yield from (str(value.dtype), str(value.shape), fingerprint_bytes(np.ascontiguousarray(value).tobytes()))
    else:
        yield identify_function(value) if callable(value) and not isinstance(value, type) else repr(value)


def _log_odds(fitted: Any, Z: npt.NDArray[np.float64]) -> Any:
    if hasattr(fitted, "decision_function"):
        return fitted.decision_function(Z)
    share = np.clip(fitted.predict_proba(Z)[:, 1], _SMALLEST, 1 - _SMALLEST)
    return np.log(share) - np.log1p(-share)
