"""One run of a study: recording in passes, fitting in threads, and what comes of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from neuroprobe._core import __version__, fingerprint_texts, identify_function
from neuroprobe.concepts import ConceptSets
from neuroprobe.exceptions import InputError
from neuroprobe.images import Images, Transform, collect, first_readable
from neuroprobe.models import Direction, Pooling, Site, one_thread_each
from neuroprobe.probing._cell_store import CellStore
from neuroprobe.probing._layer import CellResult, Features, FullScope, Sample, Task, fit_layer, layer_grams
from neuroprobe.probing._problems import Split
from neuroprobe.probing._statistics import Options
from neuroprobe.recording import ActivationRecorder, ForwardPass
from neuroprobe.reports import ProbeReport
from neuroprobe.statistics import benjamini_hochberg

#: What stands in the column `layer` for scope full.
ALL_LAYERS = "all layers"


@dataclass(frozen=True, eq=False)
class Plan:
    """What a study measures, as in `neuroprobe.probing.ProbingStudy`; architecture and checkpoints by their fingerprints.

    `reading` is what tells the recorder of pooled features from others.
    """

    architecture: str
    checkpoints: Mapping[str, str]
    sites: Sequence[Site]
    reading: Mapping[str, Any]
    poolings: Mapping[Features, Pooling]
    concept_sets: ConceptSets
    tasks: Sequence[Task]
    splits: Mapping[str, Mapping[int, Split]]
    seeds: Sequence[int]
    held_out: float
    options: Options

    @property
    def layers(self) -> tuple[str, ...]:
        """The sites' keys."""
        return tuple(site.key for site in self.sites)


@dataclass(frozen=True)
class RunSettings:
    """As in `neuroprobe.probing.ProbingStudy.run`."""

    transform: Transform
    store: str | Path | None
    batch_size: int
    workers: int
    n_jobs: int | None
    device: torch.device
    memory: int
    progress: bool | None


@dataclass(frozen=True)
class Cell:
    """One concept, layer (or all layers) and task, at one checkpoint."""

    checkpoint: str
    concept: str
    layer: str
    task: Task

    @property
    def facts(self) -> dict[str, Any]:
        """As they stand in the tables."""
        names = {"concept": self.concept, "checkpoint": self.checkpoint, "layer": self.layer}
        return {**names, "probe": self.task.name, "kind": self.task.probe.kind}


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a thread found in one layer's features: finished cells, and the layer's part in scope full."""

    cells: Mapping[Cell, CellResult]
    grams: Mapping[tuple[str, Features], list[torch.Tensor]]
    n_features: int


class Run:
    """One run of a study."""

    def __init__(self, plan: Plan, images: Images, settings: RunSettings) -> None:
        self.plan, self.images, self.settings = plan, images, settings
        self.cells = [
            Cell(checkpoint, concept, layer, task)
            for checkpoint in plan.checkpoints
            for concept in plan.concept_sets
            for task in plan.tasks
            for layer in ([ALL_LAYERS] if task.scope == "full" else plan.layers)
        ]
        subsets = {concept: images.subset(concept_set.ids) for concept, concept_set in plan.concept_sets.items()}
        self.store = None if settings.store is None else CellStore(settings.store)
        self.keys = {} if self.store is None else self._keys({concept: subset.fingerprint for concept, subset in subsets.items()})
        kept = {} if self.store is None else {cell: self.store.get(key) for cell, key in self.keys.items()}
        self.done = {cell: result for cell, result in kept.items() if result is not None}
        self.device = settings.device if settings.device.type == "cuda" else torch.device("cpu")  # others have no float64
        silent = not (sys.stderr.isatty() if settings.progress is None else settings.progress)
        self.bar = tqdm(total=len(self.cells), initial=len(self.done), unit="cell", desc="probe", disable=silent)

    # --- recording and fitting

    def probe(self, checkpoint: str, model: nn.Module) -> None:
        """Record and fit everything of one checkpoint that is not done yet."""
        cells = [cell for cell in self.cells if cell.checkpoint == checkpoint and cell not in self.done]
        if not cells:
            return
        full = {(cell.concept, cell.task.features): FullScope() for cell in cells if cell.task.scope == "full"}
        wanted: dict[str, list[str]] = {}  # the layers where something is to be fitted for each concept
        for cell in cells:
            wanted.setdefault(cell.concept, []).extend(self.plan.layers if cell.layer == ALL_LAYERS else [cell.layer])
        ids = {concept: concept_set.ids for concept, concept_set in self.plan.concept_sets.items()}
        for part in plan_passes(self._sizes(model, cells), ids, wanted, memory=self.settings.memory):
            self._run_pass(part, model, [cell for cell in cells if cell.concept in part.concepts], full)
        with one_thread_each():
            for cell in cells:
                if cell.task.scope == "full":
                    nothing = np.empty((0, 0), dtype=np.float32)  # but the sums of Gram matrices
                    sample = self._sample(cell.concept, nothing, np.empty(0, dtype=np.int64))
                    self._finish(cell, full[cell.concept, cell.task.features].fit(sample, cell.task, options=self.plan.options))

    def _sample(self, concept: str, X: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> Sample:
        return Sample(self.plan.concept_sets[concept], self.plan.splits[concept], X, rows)

    def _forward(self, model: nn.Module, cells: Sequence[Cell], layers: Sequence[str]) -> ForwardPass:
        sites = [site for site in self.plan.sites if site.key in layers]
        kinds = dict.fromkeys(cell.task.features for cell in cells)
        recorders = {str(kind): ActivationRecorder(model, sites, pooling=self.plan.poolings[kind]) for kind in kinds}
        return ForwardPass(recorders, self.settings.transform, fingerprint=self.plan.checkpoints[cells[0].checkpoint])

    def _sizes(self, model: nn.Module, cells: Sequence[Cell]) -> dict[str, int]:
        """Bytes that an image takes in every layer, from one that is recorded to see."""
        image = first_readable(self.images.subset(self.plan.concept_sets[cells[0].concept].ids))
        (found,) = collect(image, [self._forward(model, cells, self.plan.layers)], progress=False)
        return {layer: sum(4 * activations[layer].shape[1] for activations in found.values()) for layer in self.plan.layers}

    def _run_pass(self, part: Pass, model: nn.Module, cells: Sequence[Cell], full: Mapping[tuple[str, Features], FullScope]) -> None:
        settings = self.settings
        images = self.images.subset(list(dict.fromkeys(id_ for concept in part.concepts for id_ in self.plan.concept_sets[concept].ids)))
        consumer = self._forward(model, cells, part.layers)
        (found,) = collect(images, [consumer], batch_size=settings.batch_size, workers=settings.workers, progress=False)
        rows = self._rows(part, next(iter(found.values())).ids)
        with (
            one_thread_each(),
            ThreadPoolExecutor(_n_threads(settings.n_jobs, self.device), initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            jobs = []
            for layer in part.layers:
                for features, activations in found.items():
                    mine = [cell for cell in cells if cell.task.features == features and cell.layer in (layer, ALL_LAYERS)]
                    if mine:
                        jobs.append(pool.submit(self._fit, mine, layer, activations.arrays[layer], rows))
            try:
                for job in jobs:  # in the order of the layers, so that sums over them have one order
                    self._take_over(job.result(), full)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _rows(self, part: Pass, ids: Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
        """Where each concept's images are among those recorded."""
        places = {id_: i for i, id_ in enumerate(ids)}
        for concept in part.concepts:
            missing = sorted(set(self.plan.concept_sets[concept].ids) - set(places))
            if missing:
                raise InputError(f"Expected every image of {concept!r} to be readable, but {missing[0]!r} is not. Make the sets again.")
        return {c: np.array([places[id_] for id_ in self.plan.concept_sets[c].ids]) for c in part.concepts}

    def _fit(self, cells: Sequence[Cell], layer: str, X: npt.NDArray[np.float32], rows: Mapping[str, npt.NDArray[np.int64]]) -> Fitted:
        """What a thread does: all concepts of a layer together."""
        samples = {concept: self._sample(concept, X, rows[concept]) for concept in dict.fromkeys(cell.concept for cell in cells)}
        own = [cell for cell in cells if cell.layer == layer]
        tasks: dict[Task, list[str]] = {}
        for cell in own:
            tasks.setdefault(cell.task, []).append(cell.concept)
        results = fit_layer(list(samples.values()), list(tasks.items()), options=self.plan.options, device=self.device)
        shared = dict.fromkeys((cell.concept, cell.task.features) for cell in cells if cell.layer == ALL_LAYERS)
        grams = {(concept, features): layer_grams(samples[concept], features, self.device) for concept, features in shared}
        return Fitted({cell: results[cell.concept, cell.task] for cell in own}, grams, X.shape[1])

    def _take_over(self, fitted: Fitted, full: Mapping[tuple[str, Features], FullScope]) -> None:
        for cell, result in fitted.cells.items():
            self._finish(cell, result)
        for key, grams in fitted.grams.items():
            full[key].add(grams, fitted.n_features)

    def _finish(self, cell: Cell, result: CellResult) -> None:
        if self.store:
            self.store.put(self.keys[cell], result)
        self.done[cell] = result
        self.bar.update()

    def _keys(self, images: Mapping[str, str]) -> dict[Cell, dict[str, Any]]:
        """Everything that each cell depends on."""
        plan, settings = self.plan, self.settings
        shared = {
            "architecture": plan.architecture,
            "transform": identify_function(settings.transform),
            "batch_size": settings.batch_size,
            "device": settings.device.type,
            "held_out": plan.held_out,
            "seeds": list(plan.seeds),
            "options": asdict(plan.options),
            "neuroprobe": __version__,
        }
        sets = {
            concept: fingerprint_texts(repr(fact) for fact in (s.positives, s.negatives, s.duplicates, s.types, s.likelihoods))
            for concept, s in plan.concept_sets.items()
        }
        identities = plan.reading["sites"]
        return {
            cell: {
                **shared,
                "images": images[cell.concept],
                "set": sets[cell.concept],
                "model": plan.checkpoints[cell.checkpoint],
                "sites": list(identities.values()) if cell.layer == ALL_LAYERS else [identities[cell.layer]],
                "pooling": plan.reading["pooling"] if cell.task.features == "pooled" else plan.poolings[cell.task.features],
                "task": [cell.task.name, cell.task.features, cell.task.probe.identity],
            }
            for cell in self.cells
        }

    # --- the report

    def report(self) -> ProbeReport:
        """Everything that was measured."""
        self.bar.close()
        units = self._units()
        rows = [
            {**cell.facts, "scope": cell.task.scope, "features": cell.task.features, **row}
            for cell in self.cells
            for row in self.done[cell].rows
        ]
        table = pd.DataFrame(rows)
        if units is not None:
            named = ["concept", "checkpoint", "layer", "probe", "unit"]
            table = table.merge(units[[*named, "q_value"]], on=named, how="left", sort=False)
        directions = [
            Direction(cell.concept, cell.checkpoint, cell.layer, cell.task.features, cell.task.probe.kind, seed, weights, bias)
            for cell in self.cells
            for seed, (weights, bias) in self.done[cell].directions.items()
        ]
        return ProbeReport(table, self._metadata(), directions=directions, units=units)

    def _units(self) -> pd.DataFrame | None:
        parts = []
        for cell in self.cells:
            units = self.done[cell].units
            if units is not None:
                baseline = float(np.mean([row["baseline"] for row in self.done[cell].rows]))
                parts.append(pd.DataFrame({**cell.facts, "unit": range(len(units.auroc)), **vars(units), "baseline": baseline}))
        if not parts:
            return None
        table = pd.concat(parts, ignore_index=True)
        family = table.groupby(["concept", "checkpoint", "kind"], sort=False)["p_value"]
        table["q_value"] = family.transform(lambda p: benjamini_hochberg(p.to_numpy()))
        return table

    def _metadata(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "checkpoints": dict(plan.checkpoints),
            **plan.reading,
            "concept_sets": dict(plan.concept_sets.metadata),
            "held_out": plan.held_out,
            "seeds": list(plan.seeds),
            "probes": {f"{t.name}, {t.features}": {k: repr(v) for k, v in t.probe.get_params().items()} for t in plan.tasks},
            "options": asdict(plan.options),
            "transform": identify_function(self.settings.transform),
        }


def _n_threads(n_jobs: int | None, device: torch.device) -> int:
    if device.type == "cuda" or n_jobs is None:
        return 1  # on a GPU one batch after the other fills it
    return n_jobs if n_jobs > 0 else max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


# --- passes over the images


@dataclass(frozen=True)
class Pass:
    """One pass: these layers, on the images of these concepts."""

    layers: tuple[str, ...]
    concepts: tuple[str, ...]


def plan_passes(
    layers: Mapping[str, int], concepts: Mapping[str, Sequence[str]], wanted: Mapping[str, Sequence[str]], *, memory: int
) -> list[Pass]:
    """One pass for everything if it fits; else one for some of the concepts; else one for some of the layers, too.

    `layers` are the bytes that an image takes in each, `concepts` the ids of each one's images, and `wanted` the layers where something
    is to be fitted for each. One layer on one concept's images is recorded at once, even where it needs more than `memory` bytes.
    """
    largest = max((len(ids) for concept, ids in concepts.items() if wanted.get(concept)), default=0)

    def size_of_layers(part: Sequence[str]) -> int:
        return largest * sum(layers[layer] for layer in part)

    passes = []
    for part in _grouped([layer for layer in layers if any(layer in one for one in wanted.values())], size_of_layers, memory):

        def size_of_concepts(group: Sequence[str], part: Sequence[str] = part) -> int:
            return len({id_ for concept in group for id_ in concepts[concept]}) * sum(layers[layer] for layer in part)

        mine = [concept for concept in concepts if set(part) & set(wanted.get(concept, ()))]
        passes += [Pass(tuple(part), tuple(group)) for group in _grouped(mine, size_of_concepts, memory)]
    return passes


def _grouped(names: Sequence[str], size: Callable[[Sequence[str]], int], memory: int) -> list[list[str]]:
    """Names in their order, as many together as fit into memory."""
    groups: list[list[str]] = []
    for name in names:
        if groups and size([*groups[-1], name]) <= memory:
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups
