"""Testing with concept activation vectors: does an output of the model depend on a concept, and where?

A probe shows that a layer knows a concept. Whether the model uses it is another question: how does an output change when a
layer's activations are moved along the concept's direction?
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats
from torch import nn

from neuroprobe._core import check_seed
from neuroprobe.effects._gradients import Output, directional_derivatives
from neuroprobe.exceptions import InputError, UnknownNameError, suggest
from neuroprobe.images import Images, Transform
from neuroprobe.models import Direction, Layout
from neuroprobe.probing import make_probe
from neuroprobe.recording import ActivationRecorder
from neuroprobe.statistics import benjamini_hochberg

_FEWEST_RANDOM = 20
_TESTS = ("derivative", "share")
_POOLINGS: dict[str, Literal["mean", "none"]] = {"pooled": "mean", "spatial": "none"}
_GROUP = ("concept", "checkpoint", "layer", "features", "kind")


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
    test: Literal["derivative", "share"] = "derivative",
    seed: int = 0,
    layout: Layout | None = None,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool | None = None,
) -> pd.DataFrame:
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
        As in `neuroprobe.images.passes.collect`.

    Returns
    -------
    DataFrame
        A row per concept (its checkpoint, layer, features, kind) and output: n_images, n_directions, `score` (the share of positive
        derivatives, mean over seeds), `derivative` (their mean), the random concepts' random_score (mean), random_score_std,
        random_derivative_std, `p_value`, and `q_value` (Benjamini & Hochberg over all rows).

    Raises
    ------
    InputError
        Fewer than 20 random concepts, too few images for them, directions of several checkpoints (the model has the weights of one),
        that do not fit their layer or have no coefficients to give, or for "share" a concept with one direction.
    UnknownNameError
        A layer that the model does not have, or another test.

    References
    ----------
    Kim et al., Interpretability beyond feature attribution: quantitative testing with concept activation vectors, ICML 2018.
    """
    given = [directions] if isinstance(directions, Direction) else list(directions)
    _check_test(test, given, n_random)
    _check_one_model(given)
    names = _named(outputs)
    random = _random_directions(
        model, random_images, given, transform=transform, n_random=n_random, sizes=(n_positive, n_negative), seed=seed,
        layout=layout, batch_size=batch_size, workers=workers, progress=progress,
    )  # fmt: skip
    found = directional_derivatives(
        model, images, [*given, *random], outputs=names, transform=transform,
        layout=layout, batch_size=batch_size, workers=workers, progress=progress,
    )  # fmt: skip
    rows = []
    for group in dict.fromkeys(_group(direction) for direction in given):
        ours = [i for i, direction in enumerate(given) if _group(direction) == group]
        null = [len(given) + i for i, direction in enumerate(random) if _group(direction)[2:] == group[2:]]
        for o, name in enumerate(names):
            facts = dict(zip(_GROUP, group, strict=True)) | {"output": name}
            rows.append(facts | _tested(found[ours, o], found[null, o], test))
    table = pd.DataFrame(rows)
    return table.assign(q_value=benjamini_hochberg(table["p_value"].to_numpy()))


def _group(direction: Direction) -> tuple[str, ...]:
    return tuple(getattr(direction, name) for name in _GROUP)


def _check_test(test: str, directions: Sequence[Direction], n_random: int) -> None:
    if test not in _TESTS:
        raise UnknownNameError(f"Expected a test, but got {test!r}. {suggest(str(test), _TESTS)}")
    if n_random < _FEWEST_RANDOM:
        raise InputError(f"Expected at least {_FEWEST_RANDOM} random concepts to test against, but got n_random={n_random}.")
    groups = [_group(direction) for direction in directions]
    alone = [group for group in groups if groups.count(group) == 1]
    if test == "share" and alone:
        raise InputError(
            f"Expected several directions of {alone[0][0]!r} in {alone[0][2]!r}, one per seed, for test='share', but got one. "
            "Give those of all seeds (`report.directions`), or take test='derivative'."
        )


def _check_one_model(directions: Sequence[Direction]) -> None:
    checkpoints = sorted({direction.checkpoint for direction in directions})
    if len(checkpoints) > 1:
        raise InputError(
            f"Expected directions of one checkpoint, the model's, but got some of {checkpoints[0]!r} and {checkpoints[1]!r}. "
            "Call tcav once for each, with its model."
        )


def _named(outputs: int | Mapping[str, Output]) -> dict[str, Output]:
    if isinstance(outputs, Integral):
        return {str(outputs): int(outputs)}
    if not isinstance(outputs, Mapping):
        raise InputError(f"Expected `outputs` to be the number of an output, or a mapping from names to outputs, but got {outputs!r}.")
    return dict(outputs)


def _tested(ours: npt.NDArray[np.float64], null: npt.NDArray[np.float64], test: str) -> dict[str, Any]:
    """Scores and their test, from derivatives [n_directions, n_images] of a concept and of random concepts."""
    shares, random_shares = (ours > 0).mean(axis=1), (null > 0).mean(axis=1)
    means, random_means = ours.mean(axis=1), null.mean(axis=1)
    spread = float(random_means.std(ddof=1))
    p_value = _p_of_new_draw(float(means.mean()), random_means) if test == "derivative" else _welch(shares, random_shares)
    return {
        "n_images": ours.shape[1], "n_directions": len(ours), "score": float(shares.mean()), "derivative": float(means.mean()),
        "random_score": float(random_shares.mean()), "random_score_std": float(random_shares.std(ddof=1)),
        "random_derivative_std": spread, "p_value": p_value,
    }  # fmt: skip


def _p_of_new_draw(observed: float, null: npt.NDArray[np.float64]) -> float:
    """Two-sided: could this be one more draw from where the null values come from?"""
    spread = null.std(ddof=1) * np.sqrt(1 + 1 / len(null))
    if spread == 0:
        return 1.0 if observed == null[0] else 0.0
    return float(2 * stats.t.sf(abs(observed - null.mean()) / spread, len(null) - 1))


def _welch(values: npt.NDArray[np.float64], null: npt.NDArray[np.float64]) -> float:
    if values.std() == 0 and null.std() == 0:
        return 1.0 if values[0] == null[0] else 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of seeds that agree to the last digit
        return float(stats.ttest_ind(values, null, equal_var=False).pvalue)


def _random_directions(
    model: nn.Module,
    images: Images,
    directions: Sequence[Direction],
    *,
    transform: Transform,
    n_random: int,
    sizes: tuple[int, int],
    seed: int,
    layout: Layout | None,
    **reading: Any,
) -> list[Direction]:
    """Directions of random concepts for every layer, features and kind among `directions`; the same choices in all."""
    check_seed(seed)
    if min(sizes) < 1:
        raise InputError(f"Expected random concepts of at least one image a side, but got {sizes}.")
    if sum(sizes) > len(images):
        raise InputError(f"Expected at least {sum(sizes)} images for random concepts of {sizes[0]} and {sizes[1]}, but got {len(images)}.")
    orders = [np.random.default_rng((seed, i)).permutation(len(images))[: sum(sizes)] for i in range(n_random)]
    targets = np.arange(sum(sizes)) < sizes[0]
    found = []
    for features in dict.fromkeys(direction.features for direction in directions):
        wanted = [direction for direction in directions if direction.features == features]
        layers = list(dict.fromkeys(direction.layer for direction in wanted))
        recorder = ActivationRecorder(model, layers, pooling=_POOLINGS[features], layout=layout)
        recorded = recorder.record(images, transform=transform, **reading)
        for layer, kind in dict.fromkeys((direction.layer, direction.kind) for direction in wanted):
            for i, order in enumerate(orders):
                probe: Any = make_probe(kind, scaling="unit" if features == "pooled" else "layer", seed=seed).fit(
                    recorded[layer][order], targets
                )
                weights, bias = _coefficients(probe, kind)
                found.append(Direction(f"random {i}", "", layer, features, kind, seed, weights, bias))
    return found


def _coefficients(probe: Any, kind: str) -> tuple[npt.NDArray[np.float32], float]:
    if not hasattr(probe, "coef_"):
        raise InputError(f"Expected directions of a linear kind of probe, but got {kind!r}, whose probes have no coefficients.")
    return np.asarray(probe.coef_, dtype=np.float32).reshape(-1), float(np.ravel(probe.intercept_)[0])
