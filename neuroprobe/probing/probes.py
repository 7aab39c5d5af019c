"""Probes: scikit-learn estimators that read a concept from a layer's units.

All but the sparse one are unchanged by a rotation of the units: all they can use of n images with more than n units is the
images' inner products. So they are solved in at most n dimensions, exactly (representer theorem), and the weights are
given back for the units. Two classes or several; every one scales by its training part alone.
"""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from neuroprobe.exceptions import InputError, UnknownNameError, suggest
from neuroprobe.probing._linear_models import choose_C, class_means, least_C, roughly_sparse, solve_linear, solve_ridge, solve_sparse
from neuroprobe.probing._logistic import HiddenLayer, fit_hidden_layer
from neuroprobe.probing._probe_parameters import check_parameters, strengths
from neuroprobe.probing._unit_coordinates import Coordinates, Scaling, column_blocks

_Array: TypeAlias = npt.NDArray[Any]

#: Strengths that an L1 path goes through, from the one at which the first weight appears, as multiples of its C.
PATH = tuple(float(factor) for factor in np.logspace(0.1, 1.9, 8))

#: Strengths that a ridge regression chooses from.
ALPHAS = tuple(float(alpha) for alpha in np.logspace(-2, 5, 15))


class _Probe(BaseEstimator, metaclass=ABCMeta):  # type: ignore[misc]
    """What all probes share: coordinates of the units, learned from the training part."""

    kind: ClassVar[str]
    scaling: Scaling
    _rotates = True

    def _enter(self, X: Any) -> torch.Tensor:
        """The training part in its coordinates, as a batch of one problem."""
        check_parameters(self.get_params())
        self._coordinates = Coordinates(X, self.scaling, rotate=self._rotates)
        return torch.from_numpy(np.ascontiguousarray(self._coordinates.training, dtype=np.float64))[None]

    def _checked(self, X: Any) -> _Array:
        check_is_fitted(self)
        return np.asarray(validate_data(self, X, dtype=[np.float64, np.float32], reset=False))


class _Classifier(ClassifierMixin, _Probe):  # type: ignore[misc]
    """What the classifiers share: classes, and predictions from decision values."""

    def _begin(self, X: Any, y: Any) -> tuple[torch.Tensor, torch.Tensor]:
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) == 1:
            raise InputError(f"Expected two classes or more, but all {len(y)} targets have one class: {self.classes_[0]!r}.")
        return self._enter(X), torch.from_numpy(numbers)[None]

    @abstractmethod
    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        """Log-odds of the second of two classes, [n_images]; or a value per class, [n_images, n_classes]."""

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Probabilities of the classes, [n_images, n_classes]."""
        values = self.decision_function(X)
        if values.ndim == 1:
            positive = 1 / (1 + np.exp(-np.clip(values, -500, 500)))
            return np.column_stack([1 - positive, positive])
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def predict(self, X: Any) -> _Array:
        """The likeliest class of every image, [n_images]."""
        values = self.decision_function(X)
        return np.asarray(self.classes_[(values > 0).astype(int) if values.ndim == 1 else values.argmax(axis=1)])


class _Linear(_Classifier):
    """What the classifiers with a weight per unit share."""

    def _finish(self, weights: torch.Tensor, offsets: torch.Tensor) -> None:
        """Take over [1, rank, n_outputs] and [1, n_outputs] of the coordinates."""
        self.coef_ = self._coordinates.in_units(weights[0].T.numpy())
        self.intercept_ = offsets[0].numpy() - self.coef_ @ self._coordinates.mean

    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        """Log-odds of the second of two classes, [n_images]; or a value per class, [n_images, n_classes]."""
        values = self._checked(X).astype(np.float64) @ self.coef_.T + self.intercept_
        return np.asarray(values[:, 0] if len(self.coef_) == 1 else values)


class LinearProbe(_Linear):
    """L2-regularized logistic regression; for several classes, multinomial.

    Parameters
    ----------
    C : float or sequence of float, default 1.0
        Inverse strength of the regularization, as in scikit-learn. Of several, the one with the least log-loss in a
        cross-validation inside the training part.
    scaling : {"unit", "layer"}, default "unit"
        Divide every unit by its own standard deviation, or all of them by one number (for spatial features); from
        the training part alone.
    cv : int, default 5
        Folds of the cross-validation.
    random_state : int, default 0
        Of the folds.

    Attributes
    ----------
    classes_ : ndarray, [n_classes]
    C_ : float
    coef_ : ndarray, [1 or n_classes, n_units]
        Weights for the units as they came (not scaled).
    intercept_ : ndarray, [1 or n_classes]

    Raises
    ------
    InputError
        A single class, or a C that is not above 0.
    """

    kind = "linear"

    def __init__(self, *, C: float | Sequence[float] = 1.0, scaling: Scaling = "unit", cv: int = 5, random_state: int = 0) -> None:
        self.C = C
        self.scaling = scaling
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on [n_images, n_units] and two classes or more."""
        Z, targets = self._begin(X, y)

        def solve(Z: torch.Tensor, targets: torch.Tensor, C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return solve_linear(Z, targets, C, n_classes=len(self.classes_))

        C, _ = choose_C(Z, targets, strengths(self.C, "C"), solve, n_folds=self.cv, seed=self.random_state)
        self.C_ = float(C[0])
        self._finish(*solve(Z, targets, C))
        return self


class SparseProbe(_Linear):
    """L1-regularized logistic regression along a path of strengths: which few units carry a concept.

    Parameters
    ----------
    path : sequence of float, default 8 from 1.3 to 79
        Multiples of the least C at which any unit has a weight; the one with the least log-loss in a cross-validation inside
        the training part is taken.
    scaling : {"unit", "layer"}, default "unit"
        As in `LinearProbe`.
    cv : int, default 5
    random_state : int, default 0
        Of the folds.

    Attributes
    ----------
    classes_, coef_, intercept_
        As in `LinearProbe`; most weights are exactly 0.
    C_ : float
    path_ : ndarray, [n_strengths]
        The values of C that were tried.
    path_coef_ : ndarray, [n_strengths, 1 or n_classes, n_units]
        The weights at each of them, fitted on the whole training part.

    Raises
    ------
    InputError
        A single class, or a factor that is not above 0.
    """

    kind = "sparse"
    _rotates = False  # the sum of absolute weights is another one in rotated coordinates

    def __init__(self, *, path: Sequence[float] = PATH, scaling: Scaling = "unit", cv: int = 5, random_state: int = 0) -> None:
        self.path = path
        self.scaling = scaling
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on [n_images, n_units] and two classes or more."""
        factors = strengths(self.path, "path")
        Z, targets = self._begin(X, y)
        n_classes = len(self.classes_)

        def solve(Z: torch.Tensor, targets: torch.Tensor, C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return solve_sparse(Z, targets, C, n_classes=n_classes)

        self.path_ = np.array([factor * least_C(Z, targets, n_classes) for factor in factors])
        C, _ = choose_C(Z, targets, tuple(self.path_), roughly_sparse(n_classes), n_folds=self.cv, seed=self.random_state)
        self.C_ = float(C[0])
        n = len(self.path_)
        weights, offsets = solve(Z.expand(n, -1, -1), targets.expand(n, -1), torch.from_numpy(self.path_))
        self.path_coef_ = self._coordinates.in_units(weights.mT.numpy())
        chosen = int(np.argmin(np.abs(self.path_ - self.C_)))
        self._finish(weights[chosen : chosen + 1], offsets[chosen : chosen + 1])
        return self


class MeanDifferenceProbe(_Linear):
    """The nearest class mean: the direction from one class's mean to the other's, with the threshold in their middle.

    A concept activation vector at the cost of two means, as in FastCAV.

    Parameters
    ----------
    scaling : {"unit", "layer"}, default "unit"
        As in `LinearProbe`.

    Attributes
    ----------
    classes_, coef_, intercept_
        As in `LinearProbe`.

    Raises
    ------
    InputError
        A single class.

    References
    ----------
    Schmalwasser et al., FastCAV: Efficient Computation of Concept Activation Vectors for Explaining Deep Neural Networks, ICML 2025.
    """

    kind = "mean_difference"

    def __init__(self, *, scaling: Scaling = "unit") -> None:
        self.scaling = scaling

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on [n_images, n_units] and two classes or more."""
        Z, targets = self._begin(X, y)
        self._finish(*class_means(Z, targets, n_classes=len(self.classes_)))
        return self


class NonlinearProbe(_Classifier):
    """One hidden ReLU layer, fitted by L-BFGS with L2 regularization.

    The first weights start Gaussian with variance 1 / n_units of the scaled units; a Gaussian is the same in rotated
    coordinates, and L-BFGS takes the same steps there. In directions that the training images do not span, weights only shrink.

    Parameters
    ----------
    hidden : int, default 32
        Width of the hidden layer.
    alpha : float, default 0.02
        Strength of the L2 regularization: the loss is the mean log-loss plus alpha / 2 times the sum of the
        squared weights (biases left out).
    scaling : {"unit", "layer"}, default "unit"
        As in `LinearProbe`.
    max_iter : int, default 8
        Steps of L-BFGS; few, so that the training part is not learned by heart. With this and `alpha` as they are, held-out accuracy
        is that of scikit-learn's MLPClassifier of the same width and scaling on average over layers (see benchmarks/probing.py).
    random_state : int, RandomState or None, default None
        Of the first weights.

    Attributes
    ----------
    classes_ : ndarray, [n_classes]
    loss_ : float
        At the end.
    n_iter_ : int

    Raises
    ------
    InputError
        A single class.
    """

    kind = "nonlinear"

    def __init__(
        self, *, hidden: int = 32, alpha: float = 0.02, scaling: Scaling = "unit", max_iter: int = 8, random_state: Any = None
    ) -> None:
        self.hidden = hidden
        self.alpha = alpha
        self.scaling = scaling
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on [n_images, n_units] and two classes or more."""
        Z, targets = self._begin(X, y)
        generator = check_random_state(self.random_state)
        first = generator.normal(size=(self.n_features_in_, self.hidden)) / np.sqrt(self.n_features_in_)
        n_outputs = 1 if len(self.classes_) == 2 else len(self.classes_)
        second = generator.normal(size=(self.hidden, n_outputs)) / np.sqrt(self.hidden)
        zeros = torch.zeros(1, self.hidden + n_outputs, dtype=torch.float64)
        along, across, lengths = self._parted(first)
        if self._coordinates.basis is not None:  # one more coordinate, in which no training image varies
            Z = torch.cat([Z, torch.zeros_like(Z[:, :, :1])], dim=2)
            along = np.concatenate([along, lengths[None]])
        start = HiddenLayer(torch.from_numpy(along)[None], zeros[:, : self.hidden], torch.from_numpy(second)[None], zeros[:, self.hidden :])
        layer, loss, n_iter = fit_hidden_layer(Z, targets, start, alpha=self.alpha, max_iter=self.max_iter)
        self._take_over(layer, across, lengths)
        self.loss_, self.n_iter_ = float(loss[0]), max(int(n_iter[0]), 1)
        return self

    def _parted(self, first: _Array) -> tuple[_Array, _Array, _Array]:
        """First weights [n_units, hidden] in the coordinates, what is left of them across, and the lengths of that."""
        basis = self._coordinates.basis
        if basis is None:
            return first, np.zeros_like(first), np.zeros(self.hidden)
        along = basis.T.astype(np.float64) @ first
        across = first - basis @ along
        return along, across, np.linalg.norm(across, axis=0)

    def _take_over(self, layer: HiddenLayer, across: _Array, lengths: _Array) -> None:
        first, basis = layer.first[0].numpy(), self._coordinates.basis
        if basis is not None:
            first = basis @ first[:-1] + across * (first[-1] / np.maximum(lengths, np.finfo(float).tiny))
        self._first, self._bias = first, layer.bias[0].numpy()
        self._second, self._offset = layer.second[0].numpy(), layer.offset[0].numpy()

    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        """Log-odds of the second of two classes, [n_images]; or a value per class, [n_images, n_classes]."""
        X = self._checked(X)
        before = sum(self._coordinates.part(X, columns) @ self._first[columns] for columns in column_blocks(X.shape[1]))
        values = np.maximum(before + self._bias, 0) @ self._second + self._offset
        return np.asarray(values[:, 0] if values.shape[1] == 1 else values)


class RegressionProbe(RegressorMixin, _Probe):  # type: ignore[misc]
    """Ridge regression of a number, such as the concept's likelihood.

    Parameters
    ----------
    alpha : float or sequence of float, default 15 from 0.01 to 100,000
        Strength of the regularization. Of several, the one with the least squared error of leaving each training image out.
    scaling : {"unit", "layer"}, default "unit"
        As in `LinearProbe`.

    Attributes
    ----------
    alpha_ : float
    coef_ : ndarray, [n_units]
        Weights for the units as they came (not scaled).
    intercept_ : float

    Raises
    ------
    InputError
        An alpha that is not above 0.
    """

    kind = "regression"

    def __init__(self, *, alpha: float | Sequence[float] = ALPHAS, scaling: Scaling = "unit") -> None:
        self.alpha = alpha
        self.scaling = scaling

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on [n_images, n_units] and a number per image."""
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], y_numeric=True, ensure_min_samples=2)
        Z = self._enter(X)
        weights, offsets, alpha = solve_ridge(Z, torch.from_numpy(np.array(y, dtype=np.float64))[None], strengths(self.alpha, "alpha"))
        self.alpha_ = float(alpha[0])
        self.coef_ = self._coordinates.in_units(weights.numpy())[0]
        self.intercept_ = float(offsets[0]) - float(self.coef_ @ self._coordinates.mean)
        return self

    def predict(self, X: Any) -> npt.NDArray[np.float64]:
        """The number expected of every image, [n_images]."""
        return np.asarray(self._checked(X).astype(np.float64) @ self.coef_ + self.intercept_)

    def rank_correlation(self, X: Any, y: Any) -> float:
        """Spearman's correlation of predictions and numbers, beside `score`, which is R2."""
        return float(spearmanr(self.predict(X), y).statistic)


Probe: TypeAlias = LinearProbe | NonlinearProbe | SparseProbe | MeanDifferenceProbe | RegressionProbe

#: The classes of probes by their kinds.
PROBES: dict[str, type[Any]] = {c.kind: c for c in (LinearProbe, NonlinearProbe, SparseProbe, MeanDifferenceProbe, RegressionProbe)}


def make_probe(kind: str, *, scaling: Scaling = "unit", seed: int = 0) -> Probe:
    """A probe by its kind: "linear", "nonlinear", "sparse", "mean_difference" or "regression".

    Raises
    ------
    UnknownNameError
    """
    if kind not in PROBES:
        raise UnknownNameError(f"Expected a kind of probe, but got {kind!r}. {suggest(str(kind), PROBES)}")
    probe: Probe = PROBES[kind](scaling=scaling, **({"random_state": seed} if kind == "nonlinear" else {}))
    return probe
