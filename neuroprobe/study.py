"""ProbingStudy: concepts x layers x checkpoints x probes."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from sklearn.model_selection import train_test_split
from torch import nn
from tqdm import tqdm

from neuroprobe.activations import Activations
from neuroprobe.cells import Split, fit_cells
from neuroprobe.checkpoints import Checkpoint, fingerprint_checkpoints, load_checkpoint
from neuroprobe.collection import Transform, collect
from neuroprobe.concepts import ConceptSet, ConceptSets
from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.fingerprints import fingerprint_model
from neuroprobe.forward_pass import ForwardPass
from neuroprobe.functions import identify_function
from neuroprobe.images import Images
from neuroprobe.pooling import Layout
from neuroprobe.probe_report import ProbeReport
from neuroprobe.probes import make_probe
from neuroprobe.recorder import ActivationRecorder, check_layers
from neuroprobe.report import versions

Features: TypeAlias = Literal["pooled", "spatial"]

#: The three probes of the probing blog: its gap linear, gap non-linear and non-gap non-linear columns.
BLOG_PROBES: tuple[tuple[str, Features], ...] = (("linear", "pooled"), ("nonlinear", "pooled"), ("nonlinear", "spatial"))

#: How each kind of features is recorded.
POOLINGS: dict[str, Literal["mean", "none"]] = {"pooled": "mean", "spatial": "none"}


class ProbingStudy:
    """Measures how well probes read each concept from each layer, at each checkpoint, on images they have not seen.

    Parameters
    ----------
    model : torch.nn.Module
        Never changed: checkpoints are loaded into a copy.
    layers : sequence of str
        Exact module names.
    concept_sets : ConceptSets
    probes : sequence of (kind, features), default the blog's three
        Kinds "linear" and "nonlinear"; features "pooled" (mean over positions) and "spatial" (all of them).
    checkpoints : mapping from name to state dict or file, optional
        By default the model as it is, under the name "model".
    seeds : sequence of int, default (0,)
        Each is one split and one start of the nonlinear probe.
    held_out : float, default 0.3
        Share of the images of each class that is kept for the test.
    layout : optional
        As in `ActivationRecorder`.

    Raises
    ------
    UnknownNameError
        A layer, or a kind of probe or features, that does not exist.
    InputError
        No concept, one with too few images for two classes in both parts, or seeds that are none.
    CheckpointError
        Checkpoints that do not fit the model, or that have equal weights.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        concept_sets: ConceptSets,
        *,
        probes: Sequence[tuple[str, Features]] = BLOG_PROBES,
        checkpoints: Mapping[str, Checkpoint] | None = None,
        seeds: Sequence[int] = (0,),
        held_out: float = 0.3,
        layout: Layout | None = None,
    ) -> None:
        self.model = model
        self.layers = check_layers(model, layers)
        self.concept_sets = concept_sets
        self.probes = check_probes(probes)
        self.checkpoints = checkpoints
        self._fingerprints = {"model": fingerprint_model(model)} if checkpoints is None else fingerprint_checkpoints(model, checkpoints)
        self.seeds = check_seeds(seeds)
        self.held_out = held_out
        self.layout: Layout | None = layout
        if not concept_sets:
            raise InputError("Expected at least one concept, but `concept_sets` is empty.")
        for concept_set in concept_sets.values():
            split(concept_set, held_out=held_out, seed=self.seeds[0])

    def run(
        self,
        images: Images,
        *,
        transform: Transform,
        batch_size: int = 64,
        workers: int = 0,
        n_jobs: int | None = None,
        progress: bool | None = None,
    ) -> ProbeReport:
        """Record what the probes need, concept by concept, and fit them.

        Parameters
        ----------
        images : Images
            The probing set that the concept sets' ids are of.
        transform : callable
            From a PIL image to the model's input.
        batch_size, workers, progress
            As in `neuroprobe.collection.collect`.
        n_jobs : int, optional
            Processes that fit probes while this one records, as in scikit-learn: None for one, -1 for one per
            processor. The result is the same for any number.

        Returns
        -------
        ProbeReport
        """
        check_jobs(n_jobs)
        parts = {concept: images.subset(set_.ids) for concept, set_ in self.concept_sets.items()}
        silent = not (sys.stderr.isatty() if progress is None else progress)
        keys = [(checkpoint, concept) for checkpoint in self._fingerprints for concept in parts]
        jobs = self._jobs(parts, transform, batch_size, workers)
        fitted = Parallel(n_jobs=n_jobs, return_as="generator", pre_dispatch="n_jobs")(jobs)
        with tqdm(fitted, total=len(keys), unit="concept", desc="probe", disable=silent) as bar:
            rows = [
                {"concept": concept, "checkpoint": checkpoint, **cell}
                for (checkpoint, concept), cells in zip(keys, bar, strict=True)
                for cell in cells
            ]
        return ProbeReport(pd.DataFrame(rows), self._metadata(transform))

    def _jobs(self, parts: Mapping[str, Images], transform: Transform, batch_size: int, workers: int) -> Iterator[Any]:
        """What is to be fitted, recorded only when its turn comes: one concept's images are in memory at a time and job."""
        for _, model in self._models():
            for concept, part in parts.items():
                recorded = self._record(model, part, transform, batch_size, workers)
                concept_set = self.concept_sets[concept]
                _check_complete(concept_set, recorded)
                features = {name: dict(activations.arrays) for name, activations in recorded.items()}
                splits = {seed: split(concept_set, held_out=self.held_out, seed=seed) for seed in self.seeds}
                yield delayed(fit_cells)(features, concept_set.targets, splits, probes=self.probes)

    def _models(self) -> Iterator[tuple[str, nn.Module]]:
        """Every checkpoint's name, and a model with its weights."""
        if self.checkpoints is None:
            yield "model", self.model
            return
        model = copy.deepcopy(self.model)
        for name, checkpoint in self.checkpoints.items():
            yield name, load_checkpoint(model, checkpoint, name=name)

    def _record(self, model: nn.Module, images: Images, transform: Transform, batch_size: int, workers: int) -> dict[str, Activations]:
        wanted: list[str] = list(dict.fromkeys(features for _, features in self.probes))
        recorders = {f: ActivationRecorder(model, self.layers, pooling=POOLINGS[f], layout=self.layout) for f in wanted}
        (recorded,) = collect(images, [ForwardPass(recorders, transform)], batch_size=batch_size, workers=workers, progress=False)
        return recorded  # type: ignore[no-any-return]

    def _metadata(self, transform: Transform) -> dict[str, Any]:
        return {
            "checkpoints": self._fingerprints,
            "concept_sets": dict(self.concept_sets.metadata),
            "held_out": self.held_out,
            "seeds": list(self.seeds),
            "transform": identify_function(transform),
            "versions": versions(),
        }


def split(concept_set: ConceptSet, *, held_out: float, seed: int) -> Split:
    """Hold out a share of each class.

    Raises
    ------
    InputError
        `held_out` is not between 0 and 1, or leaves a part with one class.
    """
    if not 0 < held_out < 1:
        raise InputError(f"Expected `held_out` between 0 and 1, but got {held_out}.")
    targets = concept_set.targets
    rows = np.arange(len(targets))
    try:
        train, test = train_test_split(rows, test_size=held_out, stratify=targets, random_state=seed)
    except ValueError as error:
        raise InputError(_too_few(concept_set, held_out)) from error
    if len(set(targets[train])) < 2 or len(set(targets[test])) < 2:
        raise InputError(_too_few(concept_set, held_out))
    return Split(train, test)


def check_split(n_positive: int, n_negative: int, *, held_out: float) -> None:
    """Raise what `split` would for sets of these sizes, before there are any; an empty side is for the ranking to tell."""
    if n_positive > 0 and n_negative > 0:
        sides = (tuple(f"{side}{i}" for i in range(n)) for side, n in (("+", n_positive), ("-", n_negative)))
        split(ConceptSet("every concept", "", *sides), held_out=held_out, seed=0)


def _too_few(concept_set: ConceptSet, held_out: float) -> str:
    return (
        f"Expected both classes of {concept_set.concept!r} in the training and in the held-out part, but "
        f"{len(concept_set.positives)} positives and {len(concept_set.negatives)} negatives with {held_out:g} of them held out leave one "
        "with a single class. Give more images, or hold out another share."
    )


def _check_complete(concept_set: ConceptSet, recorded: Mapping[str, Activations]) -> None:
    for activations in recorded.values():
        missing = sorted(set(concept_set.ids) - set(activations.ids))
        if missing:
            raise InputError(
                f"Expected every image of {concept_set.concept!r} to be readable, but {missing[0]!r} is not. Make the sets again."
            )


def check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds as a tuple, if each is one that every generator takes.

    Raises
    ------
    InputError
    """
    if not len(seeds) or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
        raise InputError(f"Expected `seeds` to be integers from 0 to 2**32 - 1, each once and at least one, but got {list(seeds)}.")
    return tuple(seeds)


def check_jobs(n_jobs: int | None) -> None:
    """Raise `InputError` for no processes at all."""
    if n_jobs == 0:
        raise InputError("Expected `n_jobs` to be a number of processes, or -1 for one per processor, but got 0.")


def check_probes(probes: Sequence[tuple[str, Features]]) -> tuple[tuple[str, Features], ...]:
    """The probes as a tuple, if every kind and features exist.

    Raises
    ------
    UnknownNameError, InputError
    """
    for kind, features in probes:
        make_probe(kind)
        if features not in POOLINGS:
            raise UnknownNameError(f"Expected features 'pooled' or 'spatial', but got {features!r}.")
    if not probes:
        raise InputError("Expected at least one probe, but got none.")
    return tuple(probes)
