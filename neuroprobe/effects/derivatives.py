"""Derivatives along directions: does an output of the model depend on a concept, and where?

A probe shows that a layer knows a concept. Whether the model uses it is another question: how does an output change when a
layer's activations are moved along the concept's direction? Testing with concept activation vectors (TCAV) compares that with
the directions of random concepts.

References
----------
Kim et al., "Interpretability beyond feature attribution: quantitative testing with concept activation vectors", ICML 2018.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy import stats
from torch import nn

from neuroprobe._core import Floats, check_choice, check_count, check_counts, check_seed, fingerprint_model
from neuroprobe.effects._gradients import MovedOutputs
from neuroprobe.effects._outputs import Output, named_outputs, output_values
from neuroprobe.exceptions import InputError, UnknownNameError, shown
from neuroprobe.images import BatchRecord, Collected, Images, Transform, collect
from neuroprobe.models import Axes, Direction, Layout, check_layers, check_layout, device_of, evaluating, pool
from neuroprobe.probing import make_probe
from neuroprobe.recording import ActivationRecorder, Activations
from neuroprobe.reports import Report
from neuroprobe.statistics import benjamini_hochberg

Test: TypeAlias = Literal["derivative", "share"]

_FEWEST_RANDOM = 20
_POOLINGS: dict[str, Literal["mean", "none"]] = {"pooled": "mean", "spatial": "none"}
_GROUP = ("concept", "checkpoint", "layer", "features", "kind")


class TcavReport(Report):
    """How outputs change along concepts' directions, beside random concepts', as `tcav` finds it.

    Columns: concept, checkpoint, layer, features, kind (of the direction), output; n_images, n_directions (seeds); `score` (the share
    of images whose output rises, mean over seeds), `derivative` (the mean derivative); the random concepts' random_score (mean),
    random_score_std and random_derivative_std; `p_value`, and `q_value` (Benjamini & Hochberg over all rows).
    """

    name = "tcav"
    title = "What outputs depend on"
    required = (*_GROUP, "output", "n_images", "n_directions", "score", "derivative", "random_score", "p_value", "q_value")
    text_columns = (*_GROUP, "output")

    def summary(self) -> str:
        found = int((self._table["q_value"] <= 0.05).sum())
        return f"{len(self)} rows, {self._table['concept'].nunique()} concepts; {found} rows with a false discovery rate of at most 0.05"


def directional_derivatives(
    model: nn.Module,
    images: Images,
    directions: Sequence[Direction],
    *,
    outputs: Mapping[str, Output],
    transform: Transform,
    layout: Layout | None = None,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool | None = None,
) -> Floats:
    """How fast each output rises when a layer's activations move along a direction, at the activations of every image.

    A direction of pooled features moves every position alike; one of spatial features moves each position by its own weights.
    In evaluation mode; the model is left as it was found, its gradients too.

    Parameters
    ----------
    model, images, directions, outputs, transform, layout, batch_size, workers, progress
        As in `tcav`.

    Returns
    -------
    ndarray, [n_directions, n_outputs, n_images]
        Of the directions at length 1.

    Raises
    ------
    InputError
        Directions that do not fit their layer, a layer that runs never or several times or gives no tensor, an output that does
        not depend on it, or outputs that the model does not have.
    UnknownNameError
        A layer that the model does not have.
    """
    _check_some(directions)
    if layout is not None:
        check_layout(layout)
    reading = {"batch_size": batch_size, "workers": workers, "progress": progress}
    return _derivatives(model, images, directions, named_outputs(outputs), transform, layout, reading)[0]


def tcav(
    model: nn.Module,
    images: Images,
    directions: Direction | Sequence[Direction],
    *,
    outputs: int | Mapping[str, Output],
    transform: Transform,
    random_images: Images,
    n_random: int = 50,
    n_positive: int = 100,
    n_negative: int = 200,
    test: Test = "derivative",
    seed: int = 0,
    layout: Layout | None = None,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool | None = None,
) -> TcavReport:
    """The share of images whose output rises along each concept's direction, tested against random concepts.

    A random concept is a random choice of positives and negatives among `random_images`; the same kind of probe gives its
    direction in the same layer. All directions have the length 1.

    Parameters
    ----------
    model : torch.nn.Module
        With the weights that the directions were found with. It is left as it was found.
    images : Images
        What the output is looked at on; in the paper, images of the output's class.
    directions : Direction or sequence of Direction
        Such as `ProbeReport.direction` gives; those that differ in the seed only are one concept's.
    outputs : int or mapping from name to int or callable
        The model's outputs: their numbers (before any softmax), or functions of what it returns that give one number per image.
    transform : callable
        From a PIL image to the model's input.
    random_images : Images
        What random concepts are made of: images like those of the concept sets.
    n_random : int, default 50
        Random concepts, at least 20.
    n_positive, n_negative : int, default 100 and 200
        Size of a random concept; as of the concepts themselves.
    test : {"derivative", "share"}, default "derivative"
        What is compared with the random concepts, two-sided. "derivative": the mean derivative, by a t-test of one new draw
        from the random concepts' distribution. "share": the shares of a concept's several seeds with those of the random
        concepts by Welch's t-test, as in the paper; it takes seeds of one concept for independent, and in late layers, where
        shares are nearly 0 or 1 for any direction, it calls many random concepts significant.
    seed : int, default 0
        Of the random concepts.
    layout : optional
        As in `neuroprobe.ActivationRecorder`.
    batch_size, workers, progress
        As in `neuroprobe.images.collect`.

    Returns
    -------
    TcavReport
        A row per concept (its checkpoint, layer, features, kind) and output.

    Raises
    ------
    InputError
        Another test, fewer than 20 random concepts, too few images for them, directions of several checkpoints (the model has the
        weights of one), that do not fit their layer or have no coefficients to give, or for "share" a concept with one direction.
    UnknownNameError
        A layer that the model does not have.
    """
    given = [directions] if isinstance(directions, Direction) else list(directions)
    _check_some(given)
    _check_test(test, given, n_random)
    check_counts(n_positive=n_positive, n_negative=n_negative)
    check_seed(seed)
    names = named_outputs(outputs)
    reading: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
    if n_positive + n_negative > len(random_images):
        raise InputError(
            f"Expected at least {n_positive + n_negative} images for random concepts of {n_positive} and {n_negative}, but got "
            f"{len(random_images)}."
        )
    orders = [np.random.default_rng((seed, i)).permutation(len(random_images))[: n_positive + n_negative] for i in range(n_random)]
    targets = np.arange(n_positive + n_negative) < n_positive
    random: list[Direction] = []
    for features in dict.fromkeys(direction.features for direction in given):
        wanted = [direction for direction in given if direction.features == features]
        layers = list(dict.fromkeys(direction.layer for direction in wanted))
        recorder = ActivationRecorder(model, layers, pooling=_POOLINGS[features], layout=layout)
        activations = recorder.record(random_images, transform=transform, **reading)
        for layer, kind in dict.fromkeys((direction.layer, direction.kind) for direction in wanted):
            random += _random_directions(activations, layer, features, kind, orders, targets, seed)
    found, collected = _derivatives(model, images, [*given, *random], names, transform, layout, reading)
    rows = []
    for group in dict.fromkeys(_group(direction) for direction in given):
        ours = [i for i, direction in enumerate(given) if _group(direction) == group]
        null = [len(given) + i for i, direction in enumerate(random) if _group(direction)[2:] == group[2:]]
        for o, name in enumerate(names):
            facts = dict(zip(_GROUP, group, strict=True)) | {"output": name}
            rows.append(facts | _tested(found[ours, o], found[null, o], test))
    table = pd.DataFrame(rows)
    metadata = {
        "model": fingerprint_model(model), "images": collected.fingerprint, "skipped": dict(collected.skipped),
        "random_images": activations.metadata["images"], "n_random": n_random, "n_positive": n_positive, "n_negative": n_negative,
        "test": test, "seed": seed,
    }  # fmt: skip
    return TcavReport(table.assign(q_value=benjamini_hochberg(table["p_value"].to_numpy())), metadata)


def _derivatives(
    model: nn.Module, images: Images, directions: Sequence[Direction], outputs: Mapping[str, Output], transform: Transform,
    layout: Layout | None, reading: Mapping[str, Any],
) -> tuple[Floats, Collected]:  # fmt: skip
    (found,) = collect(images, [_Derivatives(model, directions, outputs, transform, layout)], description="gradients", **reading)
    return found  # type: ignore[no-any-return]


class _Derivatives:
    """A consumer that takes the gradients of the outputs with respect to layers, and multiplies them with the directions."""

    def __init__(
        self, model: nn.Module, directions: Sequence[Direction], outputs: Mapping[str, Output], transform: Transform, layout: Layout | None
    ) -> None:
        self.transform = transform
        self._model, self._outputs, self._layout, self._n = model, dict(outputs), layout, len(directions)
        self._layers = check_layers(model, list(dict.fromkeys(direction.layer for direction in directions)))
        self._places: dict[tuple[str, str], list[int]] = {}
        for i, direction in enumerate(directions):
            if direction.features not in _POOLINGS:
                raise UnknownNameError(f"Expected features 'pooled' or 'spatial', but got {direction.features!r}.")
            self._places.setdefault((direction.layer, direction.features), []).append(i)
        self._vectors = {key: _stacked([directions[i] for i in places]) for key, places in self._places.items()}
        self._found: list[Floats] = []

    def consume(self, batch: torch.Tensor, record: BatchRecord) -> None:
        found = np.empty((self._n, len(self._outputs), len(batch)))
        with torch.inference_mode(False), torch.enable_grad(), evaluating(self._model):
            moved = MovedOutputs(self._model, self._layers, self._layout)
            with moved.following():
                # a batch made in inference mode cannot be saved for a gradient
                returned = self._model((batch.clone() if batch.is_inference() else batch).to(device_of(self._model)))
            for o, (name, output) in enumerate(self._outputs.items()):
                value = output_values(returned, output, name, len(batch))
                for layer, gradient in moved.gradients(value).items():
                    self._multiply(layer, gradient, moved.axes[layer], found[:, o])
        self._found.append(found)

    def _multiply(self, layer: str, gradient: torch.Tensor, axes: Axes, found: Floats) -> None:
        rows = pool(gradient, "none", unit_axis=axes.units, image_axis=axes.images, layer=layer)  # [n, units * positions]
        n_units = gradient.shape[axes.units]
        for (of, features), places in self._places.items():
            if of != layer:
                continue
            part = rows.reshape(len(rows), n_units, -1).sum(-1) if features == "pooled" else rows
            vectors = self._vectors[of, features].to(part)
            if vectors.shape[1] != part.shape[1]:
                raise InputError(
                    f"Expected directions of {layer!r} with {part.shape[1]} {features} features, but got one with {vectors.shape[1]}: "
                    "they are of another layer, another model or another size of image."
                )
            found[places] = (vectors @ part.T).double().cpu().numpy()

    def finish(self, collected: Collected) -> tuple[Floats, Collected]:
        return np.concatenate(self._found, axis=2), collected


def _check_some(directions: Sequence[Direction]) -> None:
    if not directions or not all(isinstance(direction, Direction) for direction in directions):
        raise InputError(f"Expected at least one Direction, such as `ProbeReport.direction` gives, but got {shown(directions)}.")


def _stacked(directions: Sequence[Direction]) -> torch.Tensor:
    """Unit vectors [n_directions, n_features]."""
    lengths = {len(direction.weights) for direction in directions}
    if len(lengths) > 1:
        one = directions[0]
        raise InputError(f"Expected directions of {one.layer!r} with equally many {one.features} features, but got {sorted(lengths)}.")
    return torch.from_numpy(np.stack([direction.unit_vector for direction in directions]))


def _group(direction: Direction) -> tuple[str, ...]:
    return tuple(getattr(direction, name) for name in _GROUP)


def _check_test(test: str, directions: Sequence[Direction], n_random: int) -> None:
    check_choice("test", test, get_args(Test))
    check_count("n_random", n_random, low=_FEWEST_RANDOM)
    groups = [_group(direction) for direction in directions]
    alone = [group for group in groups if groups.count(group) == 1]
    if test == "share" and alone:
        raise InputError(
            f"Expected several directions of {alone[0][0]!r} in {alone[0][2]!r}, one per seed, for test='share', but got one. "
            "Give those of all seeds (`report.directions`), or take test='derivative'."
        )
    checkpoints = sorted({direction.checkpoint for direction in directions})
    if len(checkpoints) > 1:
        raise InputError(
            f"Expected directions of one checkpoint, the model's, but got some of {checkpoints[0]!r} and {checkpoints[1]!r}. "
            "Call tcav once for each, with its model."
        )


def _random_directions(
    activations: Activations, layer: str, features: str, kind: str, orders: Sequence[npt.NDArray[np.int64]], targets: npt.NDArray[np.bool_],
    seed: int,
) -> list[Direction]:  # fmt: skip
    """Directions of random concepts: a probe for every choice of images."""
    found = []
    for i, order in enumerate(orders):
        probe: Any = make_probe(kind, scaling="unit" if features == "pooled" else "layer", seed=seed)
        probe.fit(activations[layer][order], targets)
        if not hasattr(probe, "coef_"):
            raise InputError(f"Expected directions of a linear kind of probe, but got {kind!r}, whose probes have no coefficients.")
        weights = np.asarray(probe.coef_, dtype=np.float32).reshape(-1)
        found.append(Direction(f"random {i}", "", layer, features, kind, seed, weights, float(np.ravel(probe.intercept_)[0])))
    return found


def _tested(ours: Floats, null: Floats, test: str) -> dict[str, Any]:
    """Scores and their test, from derivatives [n_directions, n_images] of a concept and of random concepts."""
    shares, random_shares = (ours > 0).mean(axis=1), (null > 0).mean(axis=1)
    means, random_means = ours.mean(axis=1), null.mean(axis=1)
    p_value = _p_of_new_draw(float(means.mean()), random_means) if test == "derivative" else _welch(shares, random_shares)
    return {
        "n_images": ours.shape[1], "n_directions": len(ours), "score": float(shares.mean()), "derivative": float(means.mean()),
        "random_score": float(random_shares.mean()), "random_score_std": float(random_shares.std(ddof=1)),
        "random_derivative_std": float(random_means.std(ddof=1)), "p_value": p_value,
    }  # fmt: skip


def _p_of_new_draw(observed: float, null: Floats) -> float:
    """Two-sided: could this be one more draw from where the null values come from?"""
    spread = null.std(ddof=1) * np.sqrt(1 + 1 / len(null))
    if spread == 0:
        return 1.0 if observed == null[0] else 0.0
    return float(2 * stats.t.sf(abs(observed - null.mean()) / spread, len(null) - 1))


def _welch(values: Floats, null: Floats) -> float:
    if values.std() == 0 and null.std() == 0:
        return 1.0 if values[0] == null[0] else 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of seeds that agree to the last digit
        return float(stats.ttest_ind(values, null, equal_var=False).pvalue)
