"""Probes: scikit-learn classifiers that read one concept from a layer's units.

Both are unchanged by a rotation of the units: all they can use of n images with more than n units is the images'
inner products. So they are solved in at most n dimensions, exactly (representer theorem), and the weights are
given back for the units.
"""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from typing_extensions import Self

from neuroprobe.exceptions import InputError, UnknownNameError, suggest

Scaling: TypeAlias = Literal["unit", "layer"]

_Array: TypeAlias = npt.NDArray[Any]

#: Eigenvalues (squared singular values) below this share of the greatest are rounding.
_RELATIVE_RANK = 1e-10


class _Coordinates:
    """Centred and scaled units, rotated into the span of the training images if there are fewer images than units.

    Everything is learned from the training part alone, and computed in float64, some columns at a time: spatial
    features are large, and a float64 copy of them all would be twice as large.
    """

    def __init__(self, X: _Array, scaling: Scaling) -> None:
        if scaling not in ("unit", "layer"):
            raise InputError(f"Expected `scaling` to be 'unit' or 'layer', but got {scaling!r}.")
        self.mean: _Array = X.mean(axis=0, dtype=np.float64)
        self.scale: _Array = np.ones(X.shape[1])
        self.scale = self._spread(X, scaling)
        self.basis: _Array | None = None
        self.training = self._rotate(X) if X.shape[1] > X.shape[0] else self(X)

    def _spread(self, X: _Array, scaling: Scaling) -> _Array:
        squares = np.concatenate([np.square(self._part(X, columns)).mean(axis=0) for columns in _blocks(X.shape[1])])
        if scaling == "layer":
            squares, size = np.full_like(squares, squares.mean()), np.sqrt(np.mean(self.mean**2))
        else:
            size = np.abs(self.mean)
        varies = np.sqrt(squares) > len(X) * np.finfo(float).eps * size  # what is left of a constant is rounding
        return np.where(varies, np.sqrt(squares), 1)

    def _rotate(self, X: _Array) -> _Array:
        """Find the basis, and return the coordinates of the training images."""
        gram = sum(part @ part.T for part in (self._part(X, columns) for columns in _blocks(X.shape[1])))
        values, vectors = np.linalg.eigh(gram)
        kept = values > max(values[-1], np.finfo(float).tiny) * _RELATIVE_RANK
        if not kept.any():
            return self(X)
        values, vectors = values[kept], vectors[:, kept]
        self.basis = np.empty((X.shape[1], len(values)), dtype=X.dtype)  # orthonormal
        for columns in _blocks(X.shape[1]):
            self.basis[columns] = self._part(X, columns).T @ (vectors / np.sqrt(values))
        return np.asarray(vectors * np.sqrt(values))

    def _part(self, X: _Array, columns: slice) -> _Array:
        return np.asarray((X[:, columns].astype(np.float64) - self.mean[columns]) / self.scale[columns])

    def __call__(self, X: _Array) -> _Array:
        if self.basis is None:
            return self._part(X, slice(None))
        return np.asarray(sum(self._part(X, columns) @ self.basis[columns] for columns in _blocks(X.shape[1])))

    def in_units(self, weights: _Array) -> _Array:
        """Weights [k, rank] of these coordinates as weights [k, n_units] of the units as they came."""
        return np.asarray((weights if self.basis is None else weights @ self.basis.T) / self.scale)


def _blocks(n_units: int, size: int = 8192) -> list[slice]:
    return [slice(start, min(start + size, n_units)) for start in range(0, n_units, size)]


class _Probe(ClassifierMixin, BaseEstimator, metaclass=ABCMeta):  # type: ignore[misc]
    """What both probes share: binary targets, coordinates, prediction from one decision value."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def _prepare(self, X: Any, y: Any) -> tuple[_Array, npt.NDArray[np.float64]]:
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) == 1:
            raise InputError(f"Expected two classes, but all {len(y)} targets have one class: {self.classes_[0]!r}.")
        if len(self.classes_) > 2:
            raise InputError(
                f"Only binary classification is supported. The type of the target is multiclass: {len(self.classes_)} classes."
            )
        self._coordinates = _Coordinates(X, self.scaling)
        return self._coordinates.training, (y == self.classes_[1]).astype(np.float64)

    def _in_coordinates(self, X: Any) -> _Array:
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return self._coordinates(rows)

    @abstractmethod
    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        """Log-odds of the second class, [n_images]."""

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Probabilities of both classes, [n_images, 2]."""
        positive = 1 / (1 + np.exp(-np.clip(self.decision_function(X), -500, 500)))
        return np.column_stack([1 - positive, positive])

    def predict(self, X: Any) -> _Array:
        """The likelier class of every image, [n_images]."""
        decision = self.decision_function(X)
        return np.asarray(self.classes_[(decision > 0).astype(int)])


class LinearProbe(_Probe):
    """L2-regularised logistic regression.

    Parameters
    ----------
    C : float, default 1.0
        Inverse strength of the regularisation, as in scikit-learn.
    scaling : {"unit", "layer"}, default "unit"
        Divide every unit by its own standard deviation, or all of them by one number (for spatial features); from
        the training part alone.
    max_iter : int, default 1000

    Attributes
    ----------
    classes_ : ndarray, [2]
    coef_ : ndarray, [1, n_units]
        Weights for the units as they came (not scaled).
    intercept_ : ndarray, [1]

    Raises
    ------
    InputError
        Other than two classes.
    """

    def __init__(self, *, C: float = 1.0, scaling: Scaling = "unit", max_iter: int = 1000) -> None:
        self.C = C
        self.scaling = scaling
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on [n_images, n_units] and two classes."""
        Z, targets = self._prepare(X, y)
        solved = LogisticRegression(C=self.C, max_iter=self.max_iter, tol=1e-8).fit(Z, targets)
        self.n_iter_ = solved.n_iter_
        self.coef_ = self._coordinates.in_units(solved.coef_)
        self.intercept_ = solved.intercept_ - self.coef_ @ self._coordinates.mean
        return self

    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        """Log-odds of the second class, [n_images]."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return np.asarray(X @ self.coef_[0] + self.intercept_[0])


class NonlinearProbe(_Probe):
    """One hidden ReLU layer, fitted by L-BFGS with L2 regularisation.

    The first weights start Gaussian with variance 1 / n_units of the scaled units; a Gaussian is the same in
    rotated coordinates, and L-BFGS takes the same steps there.

    Parameters
    ----------
    hidden : int, default 32
        Width of the hidden layer.
    alpha : float, default 0.01
        Strength of the L2 regularisation: the loss is the mean log-loss plus alpha / 2 times the sum of the
        squared weights (biases left out).
    scaling : {"unit", "layer"}, default "unit"
        As in `LinearProbe`.
    max_iter : int, default 100
    random_state : int, RandomState or None, default None
        Of the first weights.

    Attributes
    ----------
    classes_ : ndarray, [2]
    loss_ : float
        At the end.
    n_iter_ : int

    Raises
    ------
    InputError
        Other than two classes.
    """

    def __init__(
        self, *, hidden: int = 32, alpha: float = 0.01, scaling: Scaling = "unit", max_iter: int = 100, random_state: Any = None
    ) -> None:
        self.hidden = hidden
        self.alpha = alpha
        self.scaling = scaling
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on [n_images, n_units] and two classes."""
        Z, targets = self._prepare(X, y)
        generator = check_random_state(self.random_state)
        start = np.concatenate(
            [
                generator.normal(size=Z.shape[1] * self.hidden) / np.sqrt(self.n_features_in_),
                np.zeros(self.hidden),
                generator.normal(size=self.hidden) / np.sqrt(self.hidden),
                np.zeros(1),
            ]
        )
        solved = minimize(
            _loss_and_gradient, start, (Z, targets, self.hidden, self.alpha), jac=True, method="L-BFGS-B",
            options={"maxiter": self.max_iter, "gtol": 1e-4, "ftol": 1e-7},
        )  # fmt: skip
        self._weights: _Array = solved.x
        self.loss_ = float(solved.fun)
        self.n_iter_ = max(int(solved.nit), 1)
        return self

    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        """Log-odds of the second class, [n_images]."""
        Z = self._in_coordinates(X)
        first, bias, second, offset = _split(self._weights, Z.shape[1], self.hidden)
        return np.asarray(np.maximum(Z @ first + bias, 0) @ second + offset)


def _split(weights: _Array, d: int, hidden: int) -> tuple[_Array, _Array, _Array, Any]:
    first, bias, second, offset = np.split(weights, np.cumsum([d * hidden, hidden, hidden]))
    return first.reshape(d, hidden), bias, second, offset[0]


def _loss_and_gradient(weights: _Array, Z: _Array, targets: _Array, hidden: int, alpha: float) -> tuple[float, _Array]:
    """Mean log-loss plus L2 of one hidden ReLU layer, and its gradient."""
    first, bias, second, offset = _split(weights, Z.shape[1], hidden)
    before = Z @ first + bias  # [n, hidden]
    active = np.maximum(before, 0)
    logits = active @ second + offset
    loss = np.mean(np.logaddexp(0, logits) - targets * logits) + alpha / 2 * (np.sum(first**2) + np.sum(second**2))
    error = (1 / (1 + np.exp(-np.clip(logits, -500, 500))) - targets) / len(targets)
    back = np.outer(error, second) * (before > 0)
    gradient = [(Z.T @ back + alpha * first).ravel(), back.sum(axis=0), active.T @ error + alpha * second, [error.sum()]]
    return float(loss), np.concatenate(gradient)


_PROBES: dict[str, type[_Probe]] = {"linear": LinearProbe, "nonlinear": NonlinearProbe}


def make_probe(kind: str, *, scaling: Scaling = "unit", seed: int = 0) -> LinearProbe | NonlinearProbe:
    """A probe by its kind, "linear" or "nonlinear".

    Raises
    ------
    UnknownNameError
    """
    if kind not in _PROBES:
        raise UnknownNameError(f"Expected a kind of probe, but got {kind!r}. {suggest(str(kind), _PROBES)}")
    return LinearProbe(scaling=scaling) if kind == "linear" else NonlinearProbe(scaling=scaling, random_state=seed)
