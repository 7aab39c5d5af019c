"""Probes: scikit-learn estimators that read a concept from a layer's units.

All but the sparse one are unchanged by a rotation of the units: all they can use of n images with more than n units is the
images' inner products. So they are solved in at most n dimensions, exactly (representer theorem), and the weights are
given back for the units. Two classes or several; every one scales by its training part alone.

A kind of probe is one class: `solve` fits a whole batch of training parts, for the estimator's own `fit` (a batch of one) and for the
cells of a study alike, and the class says what a study may do with it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from types import FunctionType
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from neuroprobe._core import check_choice, check_count, check_number, check_seed, identify_function
from neuroprobe.exceptions import InputError, UnknownNameError, suggest
from neuroprobe.probing._coordinates import Coordinates, Scaling, as_tensor, column_blocks
from neuroprobe.probing._hidden import first_weights, fit_hidden_layer
from neuroprobe.probing._linear import (
    choose_C,
    class_means,
    least_C,
    solve_logistic,
    solve_ridge,
    solve_sparse,
)

_Array = npt.NDArray[Any]

#: Strengths that an L1 path goes through, from the one at which the first weight appears, as multiples of its C.
PATH = tuple(float(factor) for factor in np.logspace(0.1, 1.9, 8))

#: Strengths that a ridge regression chooses from.
ALPHAS = tuple(float(alpha) for alpha in np.logspace(-2, 5, 15))


# --- what a kind of probe is


@dataclass(frozen=True, eq=False)
class Training:
    """The training parts of a batch of problems; each has its own solution.

    Attributes
    ----------
    Z : Tensor, [n_problems, n_train, r]
        Features, scaled; rotated, where the probe may be.
    targets : Tensor, [n_problems, n_train]
        Numbers of the classes from 0, or the numbers that a regression predicts.
    seeds : tuple of int, [n_problems]
        Of what is drawn at the start.
    n_features : float
        How many features the r coordinates stand for.
    n_classes : int, default 2
    """

    Z: torch.Tensor
    targets: torch.Tensor
    seeds: tuple[int, ...]
    n_features: float
    n_classes: int = 2


@dataclass(frozen=True, eq=False)
class Solution:
    """What `Probe.solve` found.

    Attributes
    ----------
    function
        Has ``values(Z)``: from coordinates of images [n_problems, n_images, r] to values [n_problems, n_images, n_outputs].
    learned : mapping from an attribute of the estimator to Tensor, [n_problems]
        What else was learned.
    """

    function: Any
    learned: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Probe(BaseEstimator, ABC):  # type: ignore[misc]
    """A kind of probe: an estimator whose `solve` fits a batch of training parts at once.

    Attributes
    ----------
    kind : str
        Its name in studies and tables; `register_probe` makes it known there.
    linear : bool
        Whether its weights lie in the span of the training images, so that they are a direction that a study can keep.
    per_unit : bool
        Whether it can read every unit by itself.
    predicts : {"class", "number"}
    rotates : bool
        Whether it stays the same when the units are rotated; else it must see the units themselves.
    dtype : torch.dtype
        What a study fits its many problems in; `fit` uses float64.
    """

    kind: ClassVar[str]
    linear: ClassVar[bool] = False
    per_unit: ClassVar[bool] = False
    predicts: ClassVar[Literal["class", "number"]] = "class"
    rotates: ClassVar[bool] = True
    dtype: ClassVar[torch.dtype] = torch.float64
    scaling: Scaling

    @abstractmethod
    def solve(self, training: Training) -> Solution:
        """Fit every problem of a batch; a problem never feels the others."""

    def check(self) -> None:
        """Raise `InputError` for parameters with which a fit would go wrong, or silently do nothing."""
        check_choice("scaling", self.scaling, ("unit", "layer"))
        self._seed()

    @property
    def identity(self) -> str:
        """What tells it from other probes: its parameters, and the code of a class that is not ours."""
        return repr([*sorted(self.get_params().items()), *own_code(type(self))])

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on [n_images, n_units] and a class, or of a regression a number, per image."""
        self.check()
        X, targets, n_classes = self._validated(X, y)
        coordinates = Coordinates(X, self.scaling, rotate=self.rotates)
        training = Training(coordinates.Z[None], targets[None], (self._seed(),), X.shape[1], n_classes)
        solution = self.solve(training)
        for name, values in solution.learned.items():
            setattr(self, name, values[0].item())
        self._take_over(coordinates, training, solution)
        return self

    @abstractmethod
    def _validated(self, X: Any, y: Any) -> tuple[_Array, torch.Tensor, int]:
        """Units [n_images, n_units], targets [n_images] and the number of classes."""

    @abstractmethod
    def _take_over(self, coordinates: Coordinates, training: Training, solution: Solution) -> None:
        """Keep the function of a batch of one, for the units as they came."""

    def _checked(self, X: Any) -> _Array:
        check_is_fitted(self)
        return np.asarray(validate_data(self, X, dtype=[np.float64, np.float32], reset=False))

    def _seed(self) -> int:
        given = getattr(self, "random_state", 0)
        if given is None or isinstance(given, np.random.RandomState):
            return int(check_random_state(given).randint(2**31))
        check_seed(given, "random_state")
        return int(given)


def own_code(cls: type) -> list[str]:
    """Fingerprints of the methods of a class and its bases, as far as they are the user's."""
    classes = [c for c in cls.__mro__ if c.__module__.partition(".")[0] not in ("neuroprobe", "sklearn", "builtins", "abc")]
    return [identify_function(method) for c in classes for method in vars(c).values() if isinstance(method, FunctionType)]


_Class = TypeVar("_Class", bound=type[Probe])
_KINDS: dict[str, type[Probe]] = {}


def register_probe(cls: _Class) -> _Class:
    """Make a class of probes known by its `kind`; to be written above the class.

    Raises
    ------
    InputError
        There is another probe of this kind.
    """
    if _KINDS.setdefault(cls.kind, cls) is not cls:
        taken = _KINDS[cls.kind].__name__
        raise InputError(f"Expected a new kind of probe, but {cls.kind!r} is {taken}. Give the class another `kind`.")
    return cls


def list_probes() -> dict[str, type[Probe]]:
    """The classes of probes by their kinds."""
    return dict(_KINDS)


def make_probe(kind: str, *, scaling: Scaling = "unit", seed: int = 0) -> Probe:
    """A probe by its kind: "linear", "nonlinear", "sparse", "mean_difference", "regression", or one that was registered.

    Raises
    ------
    UnknownNameError
    """
    if kind not in _KINDS:
        raise UnknownNameError(f"Expected a kind of probe, but got {kind!r}. {suggest(str(kind), _KINDS)}")
    check_seed(seed)
    drawn = {"random_state": seed} if "random_state" in _KINDS[kind]._get_param_names() else {}
    return _KINDS[kind](scaling=scaling, **drawn)


# --- classifiers


class _Classifier(ClassifierMixin, Probe):  # type: ignore[misc]
    """What the classifiers share: classes, and predictions from decision values."""

    def _validated(self, X: Any, y: Any) -> tuple[_Array, torch.Tensor, int]:
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) == 1:
            raise InputError(f"Expected two classes or more, but all {len(y)} targets have one class: {self.classes_[0]!r}.")
        return X, torch.from_numpy(numbers), len(self.classes_)

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

    def _take_over(self, coordinates: Coordinates, training: Training, solution: Solution) -> None:
        self.coef_, self.intercept_ = coordinates.in_units(solution.function.weights[0], solution.function.offsets[0])

    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        """Log-odds of the second of two classes, [n_images]; or a value per class, [n_images, n_classes]."""
        values = self._checked(X).astype(np.float64) @ self.coef_.T + self.intercept_
        return np.asarray(values[:, 0] if len(self.coef_) == 1 else values)


def _strengths(given: float | Sequence[float], name: str) -> tuple[float, ...]:
    """One strength of regularization, or several to choose from, as a tuple; `InputError` for one that is no finite number above 0."""
    values = list(given) if isinstance(given, (Sequence, np.ndarray)) and not isinstance(given, str) else [given]
    if not values or not all(isinstance(value, Real) and not isinstance(value, bool) and 0 < value < math.inf for value in values):
        raise InputError(f"Expected `{name}` to be a number above 0, or several to choose from, but got {given!r}.")
    return tuple(float(value) for value in values)


@register_probe
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
    n_iter_ : int
    coef_ : ndarray, [1 or n_classes, n_units]
        Weights for the units as they came (not scaled).
    intercept_ : ndarray, [1 or n_classes]

    Raises
    ------
    InputError
        A single class, or a C that is not above 0.
    """

    kind = "linear"
    linear = per_unit = True

    def __init__(self, *, C: float | Sequence[float] = 1.0, scaling: Scaling = "unit", cv: int = 5, random_state: int = 0) -> None:
        self.C = C
        self.scaling = scaling
        self.cv = cv
        self.random_state = random_state

    def check(self) -> None:
        super().check()
        _strengths(self.C, "C")
        check_count("cv", self.cv, low=2)

    def solve(self, training: Training) -> Solution:
        Z, targets = training.Z, training.targets
        candidates = Z.new_tensor(_strengths(self.C, "C")).expand(len(Z), -1)
        solve = partial(solve_logistic, n_classes=training.n_classes)
        C = choose_C(Z, targets, candidates, solve, n_folds=self.cv, seed=self._seed())
        function, n_iter = solve(Z, targets, C)
        return Solution(function, {"C_": C, "n_iter_": n_iter})


@register_probe
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
    n_iter_ : int
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
    rotates = False  # the sum of absolute weights is another one in rotated coordinates

    def __init__(self, *, path: Sequence[float] = PATH, scaling: Scaling = "unit", cv: int = 5, random_state: int = 0) -> None:
        self.path = path
        self.scaling = scaling
        self.cv = cv
        self.random_state = random_state

    def check(self) -> None:
        super().check()
        _strengths(self.path, "path")
        check_count("cv", self.cv, low=2)

    def solve(self, training: Training) -> Solution:
        Z, targets, n_classes = training.Z, training.targets, training.n_classes
        rough = partial(solve_sparse, n_classes=n_classes, max_iter=300, tol=1e-3)  # as well as it takes to compare strengths
        C = choose_C(Z, targets, self._path_of(training), rough, n_folds=self.cv, seed=self._seed())
        function, n_iter = solve_sparse(Z, targets, C, n_classes=n_classes)
        return Solution(function, {"C_": C, "n_iter_": n_iter})

    def _path_of(self, training: Training) -> torch.Tensor:
        """The values of C that are tried, [n_problems, n_strengths]."""
        least = least_C(training.Z, training.targets, training.n_classes)
        return least[:, None] * training.Z.new_tensor(_strengths(self.path, "path"))

    def _take_over(self, coordinates: Coordinates, training: Training, solution: Solution) -> None:
        super()._take_over(coordinates, training, solution)
        path = self._path_of(training)[0]
        Z, targets = training.Z.expand(len(path), -1, -1), training.targets.expand(len(path), -1)
        along, _ = solve_sparse(Z, targets, path, n_classes=training.n_classes)
        self.path_ = path.numpy()
        self.path_coef_ = np.stack([coordinates.in_units(w, o)[0] for w, o in zip(along.weights, along.offsets, strict=True)])


@register_probe
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
    linear = per_unit = True

    def __init__(self, *, scaling: Scaling = "unit") -> None:
        self.scaling = scaling

    def solve(self, training: Training) -> Solution:
        return Solution(class_means(training.Z, training.targets, n_classes=training.n_classes))


@register_probe
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
    random_state : int, RandomState or None, default 0
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
    per_unit = True
    dtype = torch.float32

    def __init__(
        self, *, hidden: int = 32, alpha: float = 0.02, scaling: Scaling = "unit", max_iter: int = 8, random_state: Any = 0
    ) -> None:
        self.hidden = hidden
        self.alpha = alpha
        self.scaling = scaling
        self.max_iter = max_iter
        self.random_state = random_state

    def check(self) -> None:
        super().check()
        check_count("hidden", self.hidden)
        check_number("alpha", self.alpha, low=0)
        check_count("max_iter", self.max_iter)

    def solve(self, training: Training) -> Solution:
        n_outputs = 1 if training.n_classes == 2 else training.n_classes
        start = first_weights(training.Z, self.hidden, training.seeds, n_features=training.n_features, n_outputs=n_outputs)
        layer, loss, n_iter = fit_hidden_layer(training.Z, training.targets, start, alpha=self.alpha, max_iter=self.max_iter)
        return Solution(layer, {"loss_": loss, "n_iter_": n_iter.clamp(min=1)})

    def _take_over(self, coordinates: Coordinates, training: Training, solution: Solution) -> None:
        layer, rank = solution.function, training.Z.shape[2]
        first = coordinates.in_scaled_units(layer.first[0, :rank])
        if layer.first.shape[1] > rank:  # the weights across the images' span: of their length, in random directions
            generator = torch.Generator().manual_seed(training.seeds[0])
            across = coordinates.across(torch.randn(first.shape, generator=generator, dtype=first.dtype))
            first += across / across.norm(dim=0) * layer.first[0, rank]
        self._scaler, self._first = coordinates.scaler, first
        self._bias, self._second, self._offset = layer.bias[0], layer.second[0], layer.offset[0]

    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        """Log-odds of the second of two classes, [n_images]; or a value per class, [n_images, n_classes]."""
        X = as_tensor(self._checked(X))
        before = sum(self._scaler(X, columns) @ self._first[columns] for columns in column_blocks(X.shape[1]))
        values = ((before + self._bias).relu() @ self._second + self._offset).numpy()
        return np.asarray(values[:, 0] if values.shape[1] == 1 else values)


# --- regression


@register_probe
class RegressionProbe(RegressorMixin, Probe):  # type: ignore[misc]
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
    predicts = "number"

    def __init__(self, *, alpha: float | Sequence[float] = ALPHAS, scaling: Scaling = "unit") -> None:
        self.alpha = alpha
        self.scaling = scaling

    def check(self) -> None:
        super().check()
        _strengths(self.alpha, "alpha")

    def solve(self, training: Training) -> Solution:
        function, alpha = solve_ridge(training.Z, training.targets, _strengths(self.alpha, "alpha"))
        return Solution(function, {"alpha_": alpha})

    def _validated(self, X: Any, y: Any) -> tuple[_Array, torch.Tensor, int]:
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], y_numeric=True, ensure_min_samples=2)
        return X, torch.from_numpy(np.array(y, dtype=np.float64)), 0

    def _take_over(self, coordinates: Coordinates, training: Training, solution: Solution) -> None:
        (self.coef_,), (intercept,) = coordinates.in_units(solution.function.weights[0], solution.function.offsets[0])
        self.intercept_ = float(intercept)

    def predict(self, X: Any) -> npt.NDArray[np.float64]:
        """The number expected of every image, [n_images]."""
        return np.asarray(self._checked(X).astype(np.float64) @ self.coef_ + self.intercept_)

    def rank_correlation(self, X: Any, y: Any) -> float:
        """Spearman's correlation of predictions and numbers, beside `score`, which is R2."""
        return float(spearmanr(self.predict(X), y).statistic)
