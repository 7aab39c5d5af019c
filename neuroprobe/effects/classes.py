"""What composes a class: a score that is a weighted sum of units, taken apart by what the units are named.

A unit contributes its weight times how far its activation is from its mean over the images. Units with one label add up, so
a class's score is the sum of its concepts' contributions, a constant, and what comes from units without a label.

References
----------
Goh et al., "Multimodal Neurons in Artificial Neural Networks", Distill 2021: classes and emotions as sparse sums of neurons.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import nn

from neuroprobe._core import Floats, Rows, as_numbers, check_count, check_counts, check_level, check_seed
from neuroprobe.effects._groups import UnitGroup, Unnamed, forward_order, group_sums, unit_groups
from neuroprobe.exceptions import InputError, UnknownNameError, shown, suggest
from neuroprobe.models import Direction, Site, find_site
from neuroprobe.recording import Activations
from neuroprobe.reports import JudgmentReport, Labels, check_label_sites, metadata_of, quantity
from neuroprobe.statistics import Quality, correlations, draw_counts, explained_shares, interval, permutation_p_value, quality, split_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: A linear layer (alone, or the only one in a Sequential), weights with a bias or None, a fitted linear probe, or a direction.
HeadLike: TypeAlias = "nn.Linear | nn.Sequential | tuple[Any, Any] | Direction | Any"

_DOES_NOTHING = (nn.Dropout, nn.Identity, nn.Flatten)  # in evaluation, to rows of units

#: The share of the images that stand for a class if none are given: those with its highest scores.
_TOP_SHARE = 0.1

#: The share of the images over which the lowest and highest contributions are averaged, so that no single image decides.
_FEW = 0.05


class CompositionReport(JudgmentReport):
    """What a class's score is made of, as `explain_class` finds it; how much the first concepts explain is in `overall`.

    Columns: rank (the order in which concepts are taken), concept, named (False for what is no concept: "(unnamed)", or
    "(unit 7)"), units (numbers), n_units, contribution (mean over the class's images; low and high: its interval), lowest and
    highest (mean over the twentieth of all images where it takes most from the score, and where it adds most), share (of the
    score's variance; all rows add up to 1), then, on held-out images, for the sum of all contributions up to this row: r2,
    correlation, and their intervals (r2_low, r2_high, correlation_low, correlation_high).
    """

    name = "composition"
    title = "What composes a class"
    required = (
        "rank", "concept", "named", "units", "n_units", "contribution", "low", "high", "lowest", "highest",
        "share", "r2", "r2_low", "r2_high", "correlation", "correlation_low", "correlation_high",
    )  # fmt: skip
    text_columns = ("concept", "units")

    def leading(self, n: int = 5) -> pd.DataFrame:
        """The `n` rows that add most to the score and the `n` that take most from it, where they do most, the first of them first.

        A row is one that takes from the score if its `lowest` is further from 0 than its `highest`.
        """
        check_count("n", n)
        most = np.where(self._table["highest"] >= -self._table["lowest"], self._table["highest"], self._table["lowest"])
        order = np.argsort(-most, kind="stable")
        adding, taking = order[most[order] > 0][:n], order[most[order] < 0][-n:]
        return self._table.iloc[np.concatenate([adding, taking])].reset_index(drop=True)

    def plot(self, ax: Axes | None = None) -> Axes:
        """What leading concepts add and take, and a point with its interval for the mean over the class's images."""
        from neuroprobe.effects._figures import plot_contributions

        return plot_contributions(self.leading(6), title=f"What composes {self.metadata['target']!r}", ax=ax)

    def plot_explained(self, ax: Axes | None = None) -> Axes:
        """How much of the score the first 1, 2, 3, ... concepts explain on held-out images."""
        from neuroprobe.effects._figures import plot_explained

        return plot_explained(self._table, k=self.metadata["k"], title=f"Explained of {self.metadata['target']!r}", ax=ax)


def explain_class(
    head: HeadLike,
    labels: Labels,
    target: Any,
    *,
    activations: Activations,
    layer: str | Site | None = None,
    classes: Sequence[Any] | None = None,
    members: npt.ArrayLike | None = None,
    k: int = 5,
    unnamed: Unnamed = "together",
    held_out: float | Iterable[str] = 0.3,
    near_duplicates: Mapping[str, int] | None = None,
    n_shuffles: int = 100,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> CompositionReport:
    """Which named units make up a class's score, and how much of it the first k concepts explain.

    Concepts are put in order on the training images alone: the next one is that whose contribution leaves the least of the
    score's variance unexplained. Nothing is fitted to do so: weights are the head's own. What no unit is named for comes after all
    concepts.

    Parameters
    ----------
    head : nn.Linear, nn.Sequential with one, (weights, bias), fitted linear probe, or Direction
        What reads the class from the layer's units; see `resolve_head`. A `SparseProbe` tells a class from few units.
    labels : LabelReport, or mapping from (layer, unit) to a concept
    target : int or name
        One of the head's classes.
    activations : Activations
        Of a set of images: what the head gets, so pooled as the model does it.
    layer : str or Site, optional
        Whose units the head reads; by default the only one of `activations`.
    classes : sequence, optional
        Names of the head's classes; a probe and a direction know theirs.
    members : array of bool, [n_images], optional
        The images of the class, over which contributions are averaged; by default the tenth with its highest scores.
    k : int, default 5
        Concepts that `overall` is about; all of them, if there are fewer.
    unnamed : {"together", "apart"}, default "together"
        One line for all units without a label, or one for each.
    held_out : float or iterable of str, default 0.3
        Share of the images to judge on, or their ids.
    near_duplicates : mapping from id to group, optional
        Kept on one side; as from `neuroprobe.images.near_duplicates`.
    n_shuffles : int, default 100
        Of the labels among the layer's units: what as many and as large groups of any units explain. Most of the time goes into them.
    n_resamples : int, default 1000
        Of the bootstrap over images.
    level : float, default 0.95
    seed : int, default 0
        Of what is held out, shuffled and drawn again.

    Returns
    -------
    CompositionReport
        `overall`: r2 and correlation of the first k concepts with the score on held-out images, r2_named (of all concepts), each with
        its interval over images; r2_shuffled (mean, and the interval that holds `level` of the shuffles) and p_value (the share of
        shuffles with an r2 at least as high).

    Raises
    ------
    InputError
        A head that does not fit the site, no labels of it or some of another one, a score that does not vary, too few images, or
        parameters that make no sense.
    UnknownNameError
        No such class or layer.

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    >>> activations = Activations({"fc": rows}, tuple(map(str, range(100))), {})
    >>> report = explain_class(([[2, 1, 0.1]], None), {("fc", 0): "red", ("fc", 1): "big"}, 0, activations=activations)
    >>> report.table["concept"].tolist()
    ['red', 'big', '(unnamed)']
    """
    check_level(level)
    check_seed(seed)
    check_counts(k=k, n_shuffles=n_shuffles, n_resamples=n_resamples)
    resolved, layer = resolve_head(head, classes=classes), _the_layer(activations, layer)
    number, values = resolved.number(target), activations[layer]
    _check_fit(values.shape[1], resolved, layer)
    check_label_sites(labels, {layer: activations.sites[layer]})
    groups = unit_groups(labels, layer, n_units=values.shape[1], unnamed=unnamed)
    train, test = split_images(activations.ids, held_out=held_out, near_duplicates=near_duplicates, seed=seed)
    name, first = resolved.names[number], min(k, sum(group.named for group in groups))
    score = _Score(group_sums(values, resolved.weights[number], groups), train, test)
    of_class = _class_rows(score.whole, members)
    if np.ptp(score.whole[train]) == 0 or np.ptp(score.measured) == 0:
        raise InputError(f"Expected a score of {name!r} that varies over the images, but it does not: there is nothing to explain.")
    draws = _Draws(n_resamples, level, seed)
    order = _order(score.parts[train], groups)
    explained = _explained(score, order, draws)
    shuffled = _shuffled(values, resolved.weights[number], groups, (train, test), first=first, n_shuffles=n_shuffles, seed=seed)
    metadata = {
        "target": name if isinstance(name, (str, int, float)) else str(name), "layer": layer, "k": first, "asked_k": k, "unnamed": unnamed,
        "mean_score": float(score.whole.mean() + resolved.bias[number]), "n_train": len(train), "n_held_out": len(test),
        "n_of_class": len(of_class), "members": "given" if members is not None else f"the {_TOP_SHARE:.0%} with the highest scores",
        "n_shuffles": n_shuffles, **draws._asdict(), "activations": dict(activations.metadata),
        "labels": metadata_of(labels),
    }  # fmt: skip
    table = _table(score, [groups[i] for i in order], order, of_class, explained, draws)
    return CompositionReport(table, metadata, overall=_overall(explained, shuffled, groups, first=first, n=len(test), level=level))


@dataclass(frozen=True, eq=False)
class _Score:
    """A class's score, less the bias, as a sum of one part per group, [n_images, n_groups]; and which images are held out."""

    parts: Floats
    train: Rows
    test: Rows

    @property
    def whole(self) -> Floats:
        return np.asarray(self.parts.sum(axis=1))

    @property
    def measured(self) -> Floats:
        """The score of the held-out images, [n_test, 1]."""
        return np.asarray(self.whole[self.test][:, None])

    def predicted(self, order: Sequence[int]) -> Floats:
        """The same from the first 1, 2, ... groups, [n_test, n_groups]; all others are taken for their mean in the training part."""
        centered = self.parts[self.test][:, order] - self.parts[self.train][:, order].mean(axis=0)
        return np.asarray(self.whole[self.train].mean() + centered.cumsum(axis=1))


class _Draws(NamedTuple):
    """How images are drawn again, and what interval is made of it."""

    n_resamples: int
    level: float
    seed: int

    def counts(self, n_images: int) -> Floats:
        return draw_counts(n_images, n_resamples=self.n_resamples, seed=self.seed)


def _order(parts: Floats, groups: Sequence[UnitGroup]) -> list[int]:
    """All concepts, and then the rest, which explains what they have left."""
    named, rest = ([i for i, group in enumerate(groups) if group.named is which] for which in (True, False))
    return [*forward_order(parts, named), *(rest[i] for i in forward_order(parts[:, rest], range(len(rest))))]


def _explained(score: _Score, order: Sequence[int], draws: _Draws) -> dict[str, Quality]:
    """Agreement with the score on held-out images, of the first 1, 2, ... groups."""
    predicted, counts = score.predicted(order), draws.counts(len(score.test))
    measures = {"r2": explained_shares, "correlation": correlations}
    return {name: quality(measure, predicted, score.measured, counts=counts, level=draws.level) for name, measure in measures.items()}


def _shuffled(
    values: npt.NDArray[Any], weights: Floats, groups: Sequence[UnitGroup], rows: tuple[Rows, Rows], *, first: int,
    n_shuffles: int, seed: int,
) -> Floats:  # fmt: skip
    """R2 of the first concepts with the labels shuffled among the units, [n_shuffles]."""
    generator, found = np.random.default_rng((seed, 1)), []
    named = [i for i, group in enumerate(groups) if group.named]
    for _ in range(n_shuffles):
        places = generator.permutation(len(weights))
        elsewhere = [group._replace(units=tuple(places[list(group.units)])) for group in groups]
        score = _Score(group_sums(values, weights, elsewhere), *rows)
        order = forward_order(score.parts[score.train], named, first=first)
        found.append(explained_shares(score.predicted(order)[:, -1:], score.measured)[0])
    return np.array(found)


def _table(
    score: _Score, ordered: Sequence[UnitGroup], order: Sequence[int], of_class: Rows, explained: Mapping[str, Quality], draws: _Draws
) -> pd.DataFrame:  # fmt: skip
    contributions = (score.parts - score.parts[0])[:, order]  # first less one image, so that what never varies is exactly 0
    contributions -= contributions.mean(axis=0)
    distance = score.whole - score.whole.mean()
    own, inorder, n_few = contributions[of_class], np.sort(contributions, axis=0), max(1, round(_FEW * len(contributions)))
    low, high = interval(draws.counts(len(own)) @ own / len(own), level=draws.level)
    columns = {
        "rank": range(1, len(order) + 1), "concept": [group.name for group in ordered], "named": [group.named for group in ordered],
        "units": [" ".join(map(str, group.units)) for group in ordered], "n_units": [len(group.units) for group in ordered],
        "contribution": own.mean(axis=0), "low": low, "high": high,
        "lowest": inorder[:n_few].mean(axis=0), "highest": inorder[-n_few:].mean(axis=0),
        "share": contributions.T @ distance / (distance @ distance),
    }  # fmt: skip
    for name, found in explained.items():
        columns |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return pd.DataFrame(columns)


def _overall(
    explained: Mapping[str, Quality], shuffled: Floats, groups: Sequence[UnitGroup], *, first: int, n: int, level: float
) -> list[dict[str, Any]]:  # fmt: skip
    def row(name: str, found: Quality, n_groups: int) -> dict[str, Any]:
        return quantity(name, found.value[n_groups - 1], interval=(found.low[n_groups - 1], found.high[n_groups - 1]), n=n)

    low, high = interval(shuffled[:, None], level=level)
    return [
        row("r2", explained["r2"], first),
        row("correlation", explained["correlation"], first),
        row("r2_named", explained["r2"], sum(group.named for group in groups)),
        quantity("r2_shuffled", float(shuffled.mean()), interval=(low[0], high[0]), n=len(shuffled)),
        quantity("p_value", float(permutation_p_value(explained["r2"].value[first - 1], shuffled)), n=len(shuffled)),
    ]


def _the_layer(activations: Any, layer: str | Site | None) -> str:
    if not isinstance(activations, Activations):
        raise InputError(f"Expected `activations` as ActivationRecorder makes them, with every value kept, but got {shown(activations)}.")
    if layer is None and len(activations.layers) != 1:
        raise InputError(
            f"Expected `layer`, the one whose units the head reads, as there are {len(activations.layers)} in the activations."
        )
    return activations.layers[0] if layer is None else find_site(layer, activations.sites)


def _check_fit(n_units: int, head: Head, layer: str) -> None:
    if head.weights.shape[1] != n_units:
        raise InputError(
            f"Expected a head that reads the {n_units} units of {layer!r}, but it reads {head.weights.shape[1]}. Give the layer that feeds "
            "it, recorded with the pooling that the model itself has between the two."
        )


def _class_rows(score: Floats, members: npt.ArrayLike | None) -> Rows:
    if members is None:
        n = max(1, round(_TOP_SHARE * len(score)))
        return np.sort(np.argsort(-score, kind="stable")[:n])
    mask = np.asarray(members)
    if mask.dtype != bool or mask.shape != score.shape or not mask.any():
        raise InputError(
            f"Expected `members` as a truth value for each of the {len(score)} images, true for at least one, "
            f"but got {mask.dtype} {mask.shape}."
        )
    return np.flatnonzero(mask)


@dataclass(frozen=True, eq=False)
class Head:
    """Scores of classes as weighted sums of units: ``activations @ weights.T + bias``.

    Attributes
    ----------
    weights : ndarray, [n_classes, n_units]
    bias : ndarray, [n_classes]
    names : tuple, [n_classes]
        What the classes are called: by default their numbers, of a probe its ``classes_``.
    """

    weights: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]
    names: tuple[Any, ...]

    def number(self, target: Any) -> int:
        """The row of a class, given by its name or its number; a name comes first.

        Raises
        ------
        UnknownNameError
            No such class.
        """
        if isinstance(target, Hashable) and target in self.names:
            return self.names.index(target)
        numbers_are_names = any(isinstance(name, Integral) for name in self.names)
        if isinstance(target, Integral) and not numbers_are_names and 0 <= int(target) < len(self.names):
            return int(target)
        known = [str(name) for name in self.names]
        raise UnknownNameError(
            f"Expected a class of the head by its name or its number from 0 to {len(known) - 1}, but got {target!r}. "
            f"{suggest(str(target), known)}"
        )


def resolve_head(head: HeadLike, *, classes: Sequence[Any] | None = None) -> Head:
    """A head from whatever holds its weights.

    Parameters
    ----------
    head : nn.Linear, nn.Sequential, (weights, bias), probe or Direction
        - A linear layer, or a Sequential that has but one and dropout or flattening beside it.
        - Weights [n_classes, n_units] (of a 1x1 convolution too) and a bias [n_classes], or None.
        - A fitted linear probe with a class to tell: `LinearProbe`, `SparseProbe`, `MeanDifferenceProbe`, or a classifier of
          scikit-learn's with ``coef_``. Of two classes, the scores are the log-odds of the one and of the other.
        - A `Direction` of pooled features.
    classes : sequence, optional
        Names of the classes; of a probe and a direction they are known.

    Raises
    ------
    InputError
        Something else, a probe that is not fitted, or names or weights that do not fit.
    """
    weights, bias, names = _parts(head)
    if names is not None and classes is not None:
        raise InputError(f"Expected no `classes` beside a head that knows its own, {list(names)[:5]}.")
    rows = _rows(weights)
    offset = np.zeros(len(rows)) if bias is None else as_numbers("bias", bias).reshape(-1)
    given: Any = names if classes is None else classes
    if given is not None and (isinstance(given, str) or not isinstance(given, Iterable)):
        raise InputError(f"Expected `classes` as a list of names, but got {shown(given)}.")
    known = tuple(range(len(rows)) if given is None else given)
    if len(offset) != len(rows) or not np.isfinite(offset).all():
        raise InputError(f"Expected a finite bias for each of the {len(rows)} classes, but got {offset.shape}.")
    if len(known) != len(rows) or not all(isinstance(name, Hashable) for name in known) or len(set(known)) < len(known):
        raise InputError(f"Expected a name of its own for each of the head's {len(rows)} classes, but got {len(known)}: {known[:5]}.")
    return Head(rows, offset, known)


def _parts(head: Any) -> tuple[Any, Any, tuple[Any, ...] | None]:
    if isinstance(head, nn.Module):
        linear = _only_linear(head)
        return linear.weight, linear.bias, None
    if isinstance(head, Direction):
        if head.features != "pooled":
            raise InputError(f"Expected a direction of pooled features, a weight per unit, but got one of {head.features} features.")
        return head.weights[None], [head.bias], (head.concept,)
    if isinstance(head, tuple) and len(head) == 2:
        return head[0], head[1], None
    if hasattr(head, "get_params"):
        return _of_probe(head)
    raise InputError(
        f"Expected a head as a linear layer, (weights, bias), a fitted linear probe or a Direction, but got {shown(head)}. "
        "Of a model, give the linear layer that makes its scores, such as model.fc."
    )


def _only_linear(head: nn.Module) -> nn.Linear:
    modules = [m for m in (head if isinstance(head, nn.Sequential) else [head]) if not isinstance(m, _DOES_NOTHING)]
    if len(modules) != 1 or not isinstance(modules[0], nn.Linear):
        names = ", ".join(type(module).__name__ for module in modules)
        raise InputError(
            f"Expected one linear layer as the head, but got {type(head).__name__} with {names or 'none'}. Of several layers give the "
            "last one, and the activations of the layer before it; for what is not linear, see neuroprobe.effects.attribute_units."
        )
    return modules[0]


def _of_probe(probe: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    if not all(hasattr(probe, name) for name in ("coef_", "intercept_", "classes_")):
        raise InputError(
            f"Expected a fitted probe with a weight per unit and classes, but got {shown(probe)}. Call its fit(), or take a LinearProbe "
            "or SparseProbe."
        )
    weights, bias = np.atleast_2d(probe.coef_), np.atleast_1d(probe.intercept_)
    if len(probe.classes_) == 2 and len(weights) == 1:  # the log-odds of the second class
        weights, bias = np.concatenate([-weights, weights]), np.concatenate([-bias, bias])
    return weights, bias, tuple(name.item() if isinstance(name, np.generic) else name for name in probe.classes_)


def _rows(weights: Any) -> npt.NDArray[np.float64]:
    matrix = as_numbers("weights", weights)
    if matrix.ndim > 2 and matrix.shape[2:] == (1,) * (matrix.ndim - 2):
        matrix = matrix.reshape(matrix.shape[:2])
    if matrix.ndim != 2 or matrix.size == 0 or not np.isfinite(matrix).all():
        raise InputError(f"Expected finite weights [n_classes, n_units], but got {matrix.shape}.")
    return matrix
