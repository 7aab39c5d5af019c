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
import pandas as pd
import torch
from scipy import stats
from torch import nn

from neuroprobe._core import Floats, check_choice, check_count, check_counts, check_seed, fingerprint_model
from neuroprobe.effects._outputs import Output, gradients, moved, named_outputs, output_values
from neuroprobe.exceptions import InputError, shown
from neuroprobe.images import BatchRecord, Collected, Images, Transform, collect
from neuroprobe.models import FEATURES, Direction, Site, check_sites, device_of, evaluating
from neuroprobe.probing import make_probe
from neuroprobe.recording import ActivationRecorder
from neuroprobe.reports import Report
from neuroprobe.statistics import benjamini_hochberg

Test: TypeAlias = Literal["derivative", "share"]

_FEWEST_RANDOM = 20
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
    sites: Sequence[str | Site] = (),
    batch_size: int = 64,
    workers: int = 0,
    progress: bool | None = None,
) -> Floats:
    """How fast each output rises when a layer's activations move along a direction, at the activations of every image.

    A direction of pooled features moves every position alike; one of spatial features moves each position by its own weights.
    In evaluation mode; the model is left as it was found, its gradients too.

    Parameters
    ----------
    model, images, directions, outputs, transform, sites, batch_size, workers, progress
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
    consumer = _Derivatives(model, directions, _sites_of(model, directions, sites), named_outputs(outputs), transform)
    ((found, _),) = collect(images, [consumer], batch_size=batch_size, workers=workers, progress=progress, description="gradients")
    return np.asarray(found)


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
    sites: Sequence[str | Site] = (),
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
    sites : sequence of str or Site, optional
        The sites that directions are of, by their keys as the directions' `layer`; what is not among them is a module's name. A basis
        must have `decode`.
    transform, batch_size, workers, progress
        As in `neuroprobe.ActivationRecorder.record`.

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
    names, by_key = named_outputs(outputs), _sites_of(model, given, sites)
    reading: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
    random, random_fingerprint = _random_directions(
        model, random_images, given, by_key, sizes=(n_positive, n_negative), n_random=n_random, seed=seed, transform=transform, **reading
    )  # fmt: skip
    consumer = _Derivatives(model, [*given, *random], by_key, names, transform)
    ((found, collected),) = collect(images, [consumer], description="gradients", **reading)
    rows = []
    for group in dict.fromkeys(_group(direction) for direction in given):
        ours = [i for i, direction in enumerate(given) if _group(direction) == group]
        null = [len(given) + i for i, direction in enumerate(random) if _group(direction)[2:] == group[2:]]
        for o, name in enumerate(names):
            facts = dict(zip(_GROUP, group, strict=True)) | {"output": name}
            rows.append(facts | _tested(found[ours, o], found[null, o], test))
    table = pd.DataFrame(rows)
    metadata = {
        "model": fingerprint_model(model), "sites": {key: site.identity for key, site in by_key.items()},
        "images": collected.fingerprint, "skipped": dict(collected.skipped), "random_images": random_fingerprint,
        "n_random": n_random, "n_positive": n_positive, "n_negative": n_negative, "test": test, "seed": seed,
    }  # fmt: skip
    return TcavReport(table.assign(q_value=benjamini_hochberg(table["p_value"].to_numpy())), metadata)


class _Derivatives:
    """A consumer that takes the gradients of the outputs with respect to layers, and multiplies them with the directions."""

    def __init__(
        self, model: nn.Module, directions: Sequence[Direction], sites: Mapping[str, Site], outputs: Mapping[str, Output],
        transform: Transform,
    ) -> None:  # fmt: skip
        self.transform = transform
        self._model, self._outputs, self._sites, self._n = model, dict(outputs), sites, len(directions)
        self._places: dict[tuple[str, str], list[int]] = {}
        for i, direction in enumerate(directions):
            self._places.setdefault((direction.layer, direction.features), []).append(i)
        self._vectors = {key: _stacked([directions[i] for i in places]) for key, places in self._places.items()}
        self._found: list[Floats] = []

    def consume(self, batch: torch.Tensor, record: BatchRecord) -> None:
        found = np.empty((self._n, len(self._outputs), len(batch)))
        sites = list(self._sites.values())
        modules = [module for site in sites for module in site.modules]
        with torch.inference_mode(False), torch.enable_grad(), evaluating(self._model, *modules):
            with moved(self._model, sites) as (taps, added), taps.forward():
                # a batch made in inference mode cannot be saved for a gradient
                returned = self._model((batch.clone() if batch.is_inference() else batch).to(device_of(self._model)))
            for o, (name, output) in enumerate(self._outputs.items()):
                value = output_values(returned, output, name, len(batch))
                for site, gradient in gradients(value, added).items():
                    self._multiply(site.key, gradient, found[:, o])
        self._found.append(found)

    def _multiply(self, layer: str, gradient: torch.Tensor, found: Floats) -> None:
        """The derivatives along the directions of one site from its gradient, [n_images, n_units, *positions]."""
        for (of, features), places in self._places.items():
            if of != layer:
                continue
            part = gradient.reshape(*gradient.shape[:2], -1).sum(-1) if features == "pooled" else gradient.flatten(1)
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


def _sites_of(model: nn.Module, directions: Sequence[Direction], sites: Sequence[str | Site]) -> dict[str, Site]:
    """The site of every direction, by its key."""
    known = {site.key: site for site in check_sites(model, sites, parameter="sites")} if len(sites) else {}
    keys = dict.fromkeys(direction.layer for direction in directions)
    return {site.key: site for site in check_sites(model, [known.get(key, key) for key in keys])}


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
    model: nn.Module, images: Images, directions: Sequence[Direction], sites: Mapping[str, Site], *, sizes: tuple[int, int], n_random: int,
    seed: int, transform: Transform, **reading: Any,
) -> tuple[list[Direction], str]:  # fmt: skip
    """Directions of random concepts, the same choices of images for every site, features and kind; and the images' fingerprint."""
    n_chosen = sum(sizes)
    if n_chosen > len(images):
        raise InputError(f"Expected at least {n_chosen} images for random concepts of {sizes[0]} and {sizes[1]}, but got {len(images)}.")
    orders = [np.random.default_rng((seed, i)).permutation(len(images))[:n_chosen] for i in range(n_random)]
    targets, found = np.arange(n_chosen) < sizes[0], []
    for features in dict.fromkeys(direction.features for direction in directions):
        wanted = [direction for direction in directions if direction.features == features]
        layers = [sites[layer] for layer in dict.fromkeys(direction.layer for direction in wanted)]
        recorder = ActivationRecorder(model, layers, pooling=FEATURES[features])
        activations = recorder.record(images, transform=transform, device=device_of(model), **reading)
        for layer, kind in dict.fromkeys((direction.layer, direction.kind) for direction in wanted):
            for i, order in enumerate(orders):
                probe: Any = make_probe(kind, scaling="unit" if features == "pooled" else "layer", seed=seed)
                probe.fit(activations[layer][order], targets)
                if not hasattr(probe, "coef_"):
                    raise InputError(f"Expected directions of a linear kind of probe, but got {kind!r}, whose probes have no coefficients.")
                weights, bias = np.asarray(probe.coef_, dtype=np.float32).reshape(-1), float(np.ravel(probe.intercept_)[0])
                found.append(Direction(f"random {i}", "", layer, features, kind, seed, weights, bias))
    return found, activations.metadata["images"]


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
