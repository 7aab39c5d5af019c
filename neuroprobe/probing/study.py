"""ProbingStudy: concepts x layers x checkpoints x probes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import ClassifierMixin, RegressorMixin, clone
from torch import nn

from neuroprobe._core import check_count, check_counts, fingerprint_architecture, fingerprint_model, is_whole
from neuroprobe.concepts import ConceptSet, ConceptSets
from neuroprobe.exceptions import InputError, UnknownNameError, suggest
from neuroprobe.images import Images, Transform, check_images
from neuroprobe.models import FEATURES, Checkpoint, Checkpoints, Layout, Pooling, Sites, device_of, placed, resolve_device
from neuroprobe.probing._estimators import EstimatorProbe
from neuroprobe.probing._layer import SCALINGS, Features, Scope, Task
from neuroprobe.probing._problems import AnyProbe, Split
from neuroprobe.probing._run import Plan, Run, RunSettings
from neuroprobe.probing._statistics import Options, check_needs
from neuroprobe.probing.probes import list_probes, make_probe
from neuroprobe.recording import ActivationRecorder
from neuroprobe.reports import ProbeReport

#: The three probes of the probing blog: its gap linear, gap non-linear and non-gap non-linear columns.
BLOG_PROBES: tuple[tuple[str, Features], ...] = (("linear", "pooled"), ("nonlinear", "pooled"), ("nonlinear", "spatial"))

#: The scopes, or which kinds of probes each of them takes.
Scopes: TypeAlias = Sequence[Scope] | Mapping[Scope, Sequence[str]]

_SCOPES = ("neuron", "layer", "full")


class ProbingStudy:
    """Measures how well probes read each concept from each layer, at each checkpoint, on images they have not seen.

    Parameters
    ----------
    model : torch.nn.Module, or a function without arguments that makes one
        Never changed: checkpoints are loaded into a copy.
    layers : sequence of str or Site, or callable
        As in `neuroprobe.ActivationRecorder`; tables call them by their `Site.key`.
    concept_sets : ConceptSets
    probes : sequence of (kind, features) or (probe, features), default the blog's three
        Kinds ("linear", "nonlinear", ...: all of `neuroprobe.probing.list_probes`), or a probe with other parameters such as
        ``LinearProbe(C=(0.01, 1.0))``, or any classifier of scikit-learn's kind (pooled features, scope layer; its `random_state`
        is the split's seed); features "pooled" (mean over positions) and "spatial" (all of them). Scaling goes with the
        features: per unit where they are pooled, by one number where they are spatial. A regression predicts the concept's likelihood.
    scopes : sequence of {"neuron", "layer", "full"}, or mapping from these to kinds of probes, default ("layer",)
        What one probe may read: every unit by itself (pooled features; kinds "linear", "nonlinear" and "mean_difference"), a layer, or all
        layers together, each with the same weight ("sparse" not). Each scope takes the probes that it can, or those of
        them that the mapping names: ``{"neuron": ["linear"], "layer": ["linear", "nonlinear"]}``.
    checkpoints : mapping from name to state dict or file, optional
        By default the model as it is, under the name "model". `neuroprobe.models.Checkpoints` are not read again.
    seeds : sequence of int, default range(5)
        Each is one split and one start of the nonlinear probe.
    held_out : float, default 0.3
        Share of the images of each class that is kept for the test.
    pooling : optional, default "mean"
        What pooled features are, as in `neuroprobe.ActivationRecorder`: "class_token" for a transformer's class token, for example.
    layout : optional
        As in `neuroprobe.ActivationRecorder`.
    controls : int, default 0
        Control labelings per split, for selectivity (Hewitt & Liang 2019); the sets must know their images' types.
    permutations : int, default 0
        Shuffled labelings per split, for a permutation p-value of the balanced accuracy.
    codelength : bool, default False
        Also measure the online codelength (Voita & Titov 2020), in bits, and the compression against sending the labels bare.
    keep_directions : bool, default False
        Keep the weights of linear and mean-difference probes of scope layer; see `ProbeReport.direction`.

    Raises
    ------
    UnknownNameError
        A layer, or a kind of probe, features or scope, that does not exist.
    InputError
        No concept, one with too few images for two classes in both parts, seeds that are none, or sets that do not know what is needed.
    CheckpointError
        Checkpoints that do not fit the model, or that have equal weights.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        layers: Sites,
        concept_sets: ConceptSets,
        *,
        probes: Sequence[tuple[str | ClassifierMixin | RegressorMixin, Features]] = BLOG_PROBES,
        scopes: Scopes = ("layer",),
        checkpoints: Mapping[str, Checkpoint] | Checkpoints | None = None,
        seeds: Sequence[int] = range(5),
        held_out: float = 0.3,
        pooling: Pooling = FEATURES["pooled"],
        layout: Layout | None = None,
        controls: int = 0,
        permutations: int = 0,
        codelength: bool = False,
        keep_directions: bool = False,
    ) -> None:
        self.model = model if isinstance(model, nn.Module) else _made(model)
        recorder = ActivationRecorder(self.model, layers, pooling=pooling, layout=layout)
        self.sites, self.pooling, self._reading = recorder.sites, recorder.pooling, recorder.metadata
        self.concept_sets = concept_sets
        self.tasks = make_tasks(probes, scopes)
        self.checkpoints = None if checkpoints is None else Checkpoints.of(self.model, checkpoints)
        self.seeds = check_seeds(seeds)
        self.held_out = held_out
        self.options = Options(controls, permutations, codelength, keep_directions)
        _check_sets(concept_sets, self.tasks, self.options)
        for concept_set in concept_sets.values():
            split(concept_set, held_out=held_out, seed=self.seeds[0])
        if self.checkpoints is not None:
            self.checkpoints.check_distinct()

    def run(
        self,
        images: Images,
        *,
        transform: Transform,
        store: str | Path | None = None,
        batch_size: int = 64,
        workers: int = 0,
        n_jobs: int | None = None,
        device: str | torch.device = "auto",
        memory: int = 2**31,
        progress: bool | None = None,
    ) -> ProbeReport:
        """Record what the probes need, in as few passes as fit into memory, and fit them.

        Parameters
        ----------
        images : Images
            The probing set that the concept sets' ids are of.
        transform : callable
            From a PIL image to the model's input.
        store : path, optional
            A folder for finished cells: a study that was cut off goes on from there, and one that is widened fits only what is
            new. A cell is taken from there only if all that it depends on is the same.
        batch_size, workers
            As in `neuroprobe.images.collect`.
        n_jobs : int, optional
            Threads that fit probes: None for one, -1 for one per processor. The result is the same for any number.
        device : str or torch.device, default "auto"
            Where to run the model, as in `neuroprobe.ActivationRecorder.record`, and fit the probes if it is a CUDA device.
        memory : int, default 2 GiB
            Bytes of activations that a pass may hold.
        progress : bool, optional
            Show a progress bar with the time left; by default only on a terminal.

        Returns
        -------
        ProbeReport
        """
        check_images(images)
        check_jobs(n_jobs)
        check_count("memory", memory)
        found = device_of(self.model)
        where = found if device == "auto" and found.type != "cpu" else resolve_device(device)
        run = Run(self._plan(), images, RunSettings(transform, store, batch_size, workers, n_jobs, where, memory, progress))
        for name, model in self.models():
            with placed(model, where):
                run.probe(name, model)
        return run.report()

    def models(self) -> Iterator[tuple[str, nn.Module]]:
        """Every checkpoint's name, and a model with its weights."""
        if self.checkpoints is None:
            yield "model", self.model
            return
        model = copy.deepcopy(self.model)
        for name in self.checkpoints:
            yield name, self.checkpoints.load(name, model)

    def _plan(self) -> Plan:
        return Plan(
            architecture=fingerprint_architecture(self.model),
            checkpoints={"model": fingerprint_model(self.model)} if self.checkpoints is None else self.checkpoints.fingerprints,
            sites=self.sites,
            reading=self._reading,
            poolings={"pooled": self.pooling, "spatial": FEATURES["spatial"]},
            concept_sets=self.concept_sets,
            tasks=self.tasks,
            splits={
                concept: {seed: split(concept_set, held_out=self.held_out, seed=seed) for seed in self.seeds}
                for concept, concept_set in self.concept_sets.items()
            },
            seeds=self.seeds,
            held_out=self.held_out,
            options=self.options,
        )


def _made(factory: Callable[[], nn.Module]) -> nn.Module:
    model = factory() if callable(factory) else factory
    if not isinstance(model, nn.Module):
        raise InputError(f"Expected a torch.nn.Module or a function that makes one, but got {type(model).__name__}.")
    return model


def split(concept_set: ConceptSet, *, held_out: float, seed: int) -> Split:
    """Hold out a share of each class; near-duplicates stay together.

    Raises
    ------
    InputError
        `held_out` is not between 0 and 1, or leaves a part with one class.
    """
    targets = concept_set.targets

    def ordered(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.asarray(rows[np.argsort(targets[rows], kind="stable")])

    train, test = concept_set.split(held_out=held_out, seed=seed)
    return Split(ordered(train), ordered(test))


def check_split(n_positive: int, n_negative: int, *, held_out: float) -> None:
    """Raise what `split` would for sets of these sizes, before there are any; an empty side is for the ranking to tell."""
    if n_positive > 0 and n_negative > 0:
        positives, negatives = (tuple(f"{side}{i}" for i in range(n)) for side, n in (("+", n_positive), ("-", n_negative)))
        split(ConceptSet("every concept", "", positives, negatives), held_out=held_out, seed=0)


def check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds as a tuple, if each is one that every generator takes.

    Raises
    ------
    InputError
    """
    given = list(seeds) if isinstance(seeds, Iterable) else []
    if not given or len(set(given)) < len(given) or not all(isinstance(seed, Integral) and 0 <= seed < 2**32 for seed in given):
        raise InputError(f"Expected `seeds` to be integers from 0 to 2**32 - 1, each once and at least one, but got {seeds!r}.")
    return tuple(int(seed) for seed in given)


def check_jobs(n_jobs: int | None) -> None:
    """Raise `InputError` for what is no number of threads."""
    if n_jobs is not None and (not is_whole(n_jobs) or (n_jobs < 1 and n_jobs != -1)):
        raise InputError(f"Expected `n_jobs` to be a number of threads, or -1 for one per processor, but got {n_jobs!r}.")


def make_tasks(probes: Sequence[tuple[str | ClassifierMixin | RegressorMixin, Features]], scopes: Scopes) -> tuple[Task, ...]:
    """Every probe, with the scaling that goes with its features, in every scope that can take it, and is to.

    Raises
    ------
    UnknownNameError, InputError
        Kinds, features or scopes that do not exist, none at all or one twice, parameters that no fit can use, or a scope that takes
        none of the probes.
    """
    checked = [_checked(pair) for pair in probes]
    if not checked:
        raise InputError("Expected at least one probe, but got none.")
    names = [(probe.kind, features) for probe, features in checked]
    if len(set(names)) < len(names):
        raise InputError(f"Expected every kind of probe once for each kind of features, but got {names}. Make a study for each.")
    if not scopes or len(set(scopes)) < len(scopes):
        raise InputError(f"Expected `scopes` to hold at least one scope, each once, but got {list(scopes)}.")
    tasks: list[Task] = []
    for scope in scopes:
        if scope not in _SCOPES:
            raise UnknownNameError(f"Expected a scope, but got {scope!r}. {suggest(str(scope), _SCOPES)}")
        kinds = scopes[scope] if isinstance(scopes, Mapping) else [probe.kind for probe, _ in checked]
        taken = [task for task in (Task(scope, *pair) for pair in checked if pair[0].kind in kinds) if task.fits]
        if not taken:
            units, rotating = (
                ", ".join(kind for kind, cls in list_probes().items() if getattr(cls, name)) for name in ("per_unit", "rotates")
            )
            raise InputError(
                f"Expected a probe that scope {scope!r} can take, but it takes none of these. Neuron: pooled features and one of "
                f"{units}; full: one of {rotating}; layer: these, and others and your own with pooled features."
            )
        tasks += taken
    return tuple(tasks)


def _checked(pair: tuple[str | ClassifierMixin | RegressorMixin, Features]) -> tuple[AnyProbe, Features]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputError(f"Expected every probe with its features, such as ('linear', 'pooled'), but got {pair!r}.")
    kind, features = pair
    probe = make_probe(kind) if isinstance(kind, str) else kind
    if features not in FEATURES:
        raise UnknownNameError(f"Expected features 'pooled' or 'spatial', but got {features!r}.")
    if type(probe) not in list_probes().values():
        return EstimatorProbe(probe), features
    probe.check()
    return clone(probe).set_params(scaling=SCALINGS[features]), features


def _check_sets(concept_sets: ConceptSets, tasks: Sequence[Task], options: Options) -> None:
    if not isinstance(concept_sets, ConceptSets):
        raise InputError(
            f"Expected a ConceptSets, as ConceptSource.rank, from_labels or from_folders give, but got {type(concept_sets).__name__}."
        )
    if not concept_sets:
        raise InputError("Expected at least one concept, but `concept_sets` is empty.")
    check_counts(low=0, controls=options.controls, permutations=options.permutations)
    for concept_set in concept_sets.values():
        for task in tasks:
            check_needs(concept_set, task.probe, options)
