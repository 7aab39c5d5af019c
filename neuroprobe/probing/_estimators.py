"""Any classifier with scikit-learn's interface as a probe of a study."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, clone

from neuroprobe._core import fingerprint_bytes, fingerprint_texts, identify_function
from neuroprobe.exceptions import InputError
from neuroprobe.probing.probes import Solution, Training, list_probes, own_code

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
    linear: ClassVar[bool] = False
    per_unit: ClassVar[bool] = False
    predicts: ClassVar[str] = "class"
    rotates: ClassVar[bool] = False
    dtype: ClassVar[torch.dtype] = torch.float64

    def __post_init__(self) -> None:
        decides = any(hasattr(self.estimator, name) for name in ("decision_function", "predict_proba"))
        if not isinstance(self.estimator, BaseEstimator) or not decides:
            raise InputError(
                f"Expected a kind of probe, one of {', '.join(c.__name__ for c in list_probes().values())}, or a scikit-learn classifier "
                f"with decision_function or predict_proba, but got {self.estimator!r:.80}."
            )
        if self.kind in list_probes():
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

    def solve(self, training: Training) -> Solution:
        """Fit a clone to every problem of a batch."""
        fitted = []
        for Z, targets, seed in zip(training.Z.cpu().numpy(), training.targets.cpu().numpy(), training.seeds, strict=True):
            one = clone(self.estimator)
            one.set_params(**{name: seed for name in one.get_params() if name.rpartition("__")[2] == "random_state"})
            fitted.append(one.fit(Z, targets))
        return Solution(_Fitted(tuple(fitted)))

    @property
    def identity(self) -> str:
        """What tells it from others: its parameters, and the code of its class where that is no library's; of those in it too."""
        return fingerprint_texts(_contents(self.estimator))


def _contents(value: Any) -> Iterator[str]:
    """Texts that together tell an estimator, or a parameter of one, from others; without addresses."""
    if isinstance(value, BaseEstimator):
        yield type(value).__qualname__
        yield from own_code(type(value))
        yield from _contents({name: one for name, one in value.get_params(deep=False).items() if name != "random_state"})
    elif isinstance(value, (dict, list, tuple)):
        yield f"{type(value).__name__} of {len(value)}"
        for one in sorted(value.items(), key=str) if isinstance(value, dict) else value:
            yield from _contents(one)
    elif isinstance(value, np.ndarray):
        yield from (str(value.dtype), str(value.shape), fingerprint_bytes(np.ascontiguousarray(value).tobytes()))
    else:
        yield identify_function(value) if callable(value) and not isinstance(value, type) else repr(value)


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A fitted classifier for every problem of a batch."""

    estimators: tuple[Any, ...]

    def values(self, Z: torch.Tensor) -> torch.Tensor:
        """The log-odds of every image, [n_problems, n_images, r] -> [n_problems, n_images, 1]"""
        found = [_log_odds(one, rows) for one, rows in zip(self.estimators, Z.cpu().numpy(), strict=True)]
        return torch.from_numpy(np.stack(found))[..., None]


def _log_odds(fitted: Any, Z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if hasattr(fitted, "decision_function"):
        values = np.asarray(fitted.decision_function(Z), dtype=np.float64)
    else:
        share = np.clip(fitted.predict_proba(Z)[:, 1], _SMALLEST, 1 - _SMALLEST)
        values = np.asarray(np.log(share) - np.log1p(-share), dtype=np.float64)
    if values.shape != Z.shape[:1] or not np.isfinite(values).all():
        raise InputError(f"Expected {type(fitted).__name__} to give a finite number per image, but got {values.dtype} {values.shape}.")
    return values
