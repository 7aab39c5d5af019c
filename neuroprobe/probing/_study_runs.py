"""One run of a study: recording in passes, fitting in threads, and what comes of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from neuroprobe._core import __version__, fingerprint_architecture, fingerprint_texts, identify_function
from neuroprobe.exceptions import InputError
from neuroprobe.images import Images, Transform, collect, first_readable
from neuroprobe.models import POOLINGS, Direction, one_thread_each, resolve_device
from neuroprobe.probing._cell_store import CellStore
from neuroprobe.probing._cells import AnyProbe
from neuroprobe.probing._estimators import EstimatorProbe
from neuroprobe.probing._layer import CellResult, Features, FullScope, Sample, Task, fit_layer, layer_grams
from neuroprobe.probing._passes import Pass, plan_passes
from neuroprobe.recording import ActivationRecorder, ForwardPass
from neuroprobe.reports import ProbeReport
from neuroprobe.statistics import benjamini_hochberg

if TYPE_CHECKING:
    from neuroprobe.probing.study import ProbingStudy


#: What stands in the column `layer` for scope full.
ALL_LAYERS = "all layers"

_Arrays = dict[str, dict[str, npt.NDArray[np.float32]]]


@dataclass(frozen=True)
class RunSettings:
    """As in `ProbingStudy.run`."""

    transform: Transform
    store: str | Path | None
    batch_size: int
    workers: int
    n_jobs: int | None
    device: str | None
    memory: int
    progress: bool | None


@dataclass(frozen=True)
class Cell:
    """One concept, layer (or all layers) and task, at one checkpoint."""

    checkpoint: str
    concept: str
    layer: str
    task: Task


class Run:
    """One run of a study."""

    def __init__(self, study: ProbingStudy, images: Images, settings: RunSettings) -> None:
        self.study, self.settings = study, settings
        self.images = {concept: images.subset(set_.ids) for concept, set_ in study.concept_sets.items()}
        self.whole = images
        self.splits = {concept: study.splits(concept) for concept in study.concept_sets}
        self.cells = [
            Cell(checkpoint, concept, layer, task)
            for checkpoint in study.fingerprints
            for concept in study.concept_sets
            for task in study.tasks
            for layer in ([ALL_LAYERS] if task.scope == "full" else study.layers)
        ]
        self.done: dict[Cell, CellResult] = {}
        self.store = None if settings.store is None else CellStore(settings.store)
        self.keys = self._keys() if self.store else {}
        self._reopen()
        device = resolve_device(settings.device) if settings.device else torch.device("cpu")
        self.device = device if device.type == "cuda" else torch.device("cpu")  # others have no float64
        silent = not (sys.stderr.isatty() if settings.progress is None else settings.progress)
        self.bar = tqdm(total=len(self.cells), initial=len(self.done), unit="cell", desc="probe", disable=silent)

    def _reopen(self) -> None:
        for cell, key in self.keys.items():
            found = self.store.get(key) if self.store else None
            if found is not None:
                self.done[cell] = found

    def probe(self, checkpoint: str, model: nn.Module) -> None:
        """Record and fit everything of one checkpoint that is not done yet."""
        cells = [cell for cell in self.cells if cell.checkpoint == checkpoint and cell not in self.done]
        if not cells:
            return
        full: dict[tuple[str, Features], FullScope] = {
            (cell.concept, cell.task.features): FullScope() for cell in cells if cell.task.scope == "full"
        }
        sizes = self._sizes(model, cells)
        for part in plan_passes(
            sizes, {c: s.ids for c, s in self.study.concept_sets.items()}, self._wanted(cells), memory=self.settings.memory
        ):
            self._run_pass(part, model, cells, full)
        with one_thread_each():
            for cell in cells:
                if cell.task.scope == "full":
                    nothing = np.empty((0, 0), dtype=np.float32)  # but the sums of Gram matrices
                    sample = Sample(self.study.concept_sets[cell.concept], self.splits[cell.concept], nothing, np.empty(0, dtype=np.int64))
                    self._finish(cell, full[cell.concept, cell.task.features].fit(sample, cell.task, options=self.study.options))

    def _wanted(self, cells: Sequence[Cell]) -> dict[str, list[str]]:
        """The layers where something is to be fitted for each concept."""
        wanted: dict[str, list[str]] = {}
        for cell in cells:
            wanted.setdefault(cell.concept, []).extend(self.study.layers if cell.layer == ALL_LAYERS else [cell.layer])
        return wanted

    def _recorders(self, model: nn.Module, cells: Sequence[Cell], layers: Sequence[str]) -> dict[str, ActivationRecorder]:
        kinds = list(dict.fromkeys(cell.task.features for cell in cells))
        return {kind: ActivationRecorder(model, layers, pooling=POOLINGS[kind], layout=self.study.layout) for kind in kinds}

    def _sizes(self, model: nn.Module, cells: Sequence[Cell]) -> dict[str, int]:
        """Bytes that an image takes in every layer, from one that is recorded to see."""
        recorders = self._recorders(model, cells, self.study.layers)
        image = first_readable(self.images[cells[0].concept])
        (found,) = collect(image, [ForwardPass(recorders, self.settings.transform)], progress=False)
        return {layer: sum(4 * recorded[layer].shape[1] for recorded in found.values()) for layer in self.study.layers}

    def _run_pass(self, part: Pass, model: nn.Module, cells: Sequence[Cell], full: Mapping[tuple[str, Features], FullScope]) -> None:
        ids = list(dict.fromkeys(id_ for concept in part.concepts for id_ in self.study.concept_sets[concept].ids))
        consumer = ForwardPass(self._recorders(model, cells, part.layers), self.settings.transform)
        (recorded,) = collect(
            self.whole.subset(ids), [consumer], batch_size=self.settings.batch_size, workers=self.settings.workers, progress=False
        )
        rows = self._rows(part, next(iter(recorded.values())).ids)
        arrays: _Arrays = {kind: dict(activations.arrays) for kind, activations in recorded.items()}
        mine = [cell for cell in cells if cell.concept in part.concepts]
        with one_thread_each(), ThreadPoolExecutor(_n_threads(self.settings.n_jobs, self.device), initializer=_one_thread) as pool:
            jobs = [pool.submit(job) for job in self._jobs(part, mine, arrays, rows, full)]
            try:
                for job in jobs:  # in the order of the layers, so that sums over them have one order
                    job.result()()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _rows(self, part: Pass, ids: Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
        """Where each concept's images are among those recorded."""
        places = {id_: i for i, id_ in enumerate(ids)}
        for concept in part.concepts:
            missing = sorted(set(self.study.concept_sets[concept].ids) - set(places))
            if missing:
                raise InputError(f"Expected every image of {concept!r} to be readable, but {missing[0]!r} is not. Make the sets again.")
        return {c: np.array([places[id_] for id_ in self.study.concept_sets[c].ids]) for c in part.concepts}

    def _jobs(
        self, part: Pass, cells: Sequence[Cell], arrays: _Arrays, rows: Mapping[str, npt.NDArray[np.int64]],
        full: Mapping[tuple[str, Features], FullScope],
    ) -> Iterator[Callable[[], Callable[[], None]]]:  # fmt: skip
        """What a thread does: all concepts of a layer together."""
        for layer in part.layers:
            for features, recorded in arrays.items():
                mine = [cell for cell in cells if cell.task.features == features and cell.layer in (layer, ALL_LAYERS)]
                if mine:
                    yield self._job(mine, recorded[layer], layer, rows, full)

    def _job(
        self, cells: Sequence[Cell], X: npt.NDArray[np.float32], layer: str, rows: Mapping[str, npt.NDArray[np.int64]],
        full: Mapping[tuple[str, Features], FullScope],
    ) -> Callable[[], Callable[[], None]]:  # fmt: skip
        def fit() -> Callable[[], None]:
            concepts = dict.fromkeys(cell.concept for cell in cells)
            samples = {c: Sample(self.study.concept_sets[c], self.splits[c], X, rows[c]) for c in concepts}
            found, grams = self._fit(cells, samples, layer)

            def take_over() -> None:
                for cell, result in found.items():
                    self._finish(cell, result)
                for (concept, features), parts in grams.items():
                    full[concept, features].add(parts, X.shape[1])

            return take_over

        return fit

    def _fit(
        self, cells: Sequence[Cell], samples: Mapping[str, Sample], layer: str
    ) -> tuple[dict[Cell, CellResult], dict[tuple[str, Features], list[torch.Tensor]]]:
        tasks: dict[Task, list[str]] = {}
        for cell in cells:
            if cell.layer == layer:
                tasks.setdefault(cell.task, []).append(cell.concept)
        results = fit_layer(list(samples.values()), list(tasks.items()), options=self.study.options, device=self.device)
        found = {cell: results[cell.concept, cell.task] for cell in cells if cell.layer == layer}
        wanted = dict.fromkeys((cell.concept, cell.task.features) for cell in cells if cell.layer == ALL_LAYERS)
        return found, {(c, features): layer_grams(samples[c], features, self.device) for c, features in wanted}

    def _finish(self, cell: Cell, result: CellResult) -> None:
        if self.store:
            self.store.put(self.keys[cell], result)
        self.done[cell] = result
        self.bar.update()

    def _keys(self) -> dict[Cell, dict[str, Any]]:
        """Everything that each cell depends on."""
        study, settings = self.study, self.settings
        shared = {
            "architecture": fingerprint_architecture(study.model),
            "transform": identify_function(settings.transform),
            "layout": study.layout,
            "batch_size": settings.batch_size,
            "device": settings.device,
            "held_out": study.held_out,
            "seeds": list(study.seeds),
            "options": asdict(study.options),
            "neuroprobe": __version__,
        }
        sets = {concept: self._identity(concept) for concept in study.concept_sets}
        return {
            cell: {
                **shared,
                **sets[cell.concept],
                "model": study.fingerprints[cell.checkpoint],
                "layers": list(study.layers) if cell.layer == ALL_LAYERS else [cell.layer],
                "task": [cell.task.name, cell.task.features, _probe_identity(cell.task.probe)],
            }
            for cell in self.cells
        }

    def _identity(self, concept: str) -> dict[str, str]:
        set_ = self.study.concept_sets[concept]
        facts = [set_.positives, set_.negatives, set_.duplicates, set_.types, set_.likelihoods]
        return {"images": self.images[concept].fingerprint, "set": fingerprint_texts(repr(fact) for fact in facts)}

    def report(self) -> ProbeReport:
        """Everything that was measured."""
        self.bar.close()
        units = self._units()
        table = pd.DataFrame([row for cell in self.cells for row in self._table_rows(cell)])
        if units is not None:
            named = ["concept", "checkpoint", "layer", "probe", "unit"]
            table = table.merge(units[[*named, "q_value"]], on=named, how="left", sort=False)
        return ProbeReport(table, self._metadata(), directions=self._directions(), units=units)

    def _table_rows(self, cell: Cell) -> Iterator[dict[str, Any]]:
        for row in self.done[cell].rows:
            yield {**_facts(cell), "scope": cell.task.scope, "features": cell.task.features, **row}

    def _units(self) -> pd.DataFrame | None:
        parts = []
        for cell in self.cells:
            units = self.done[cell].units
            if units is not None:
                baseline = float(np.mean([row["baseline"] for row in self.done[cell].rows]))
                parts.append(pd.DataFrame({**_facts(cell), "unit": range(len(units.auroc)), **vars(units), "baseline": baseline}))
        if not parts:
            return None
        table = pd.concat(parts, ignore_index=True)
        family = table.groupby(["concept", "checkpoint", "kind"], sort=False)["p_value"]
        table["q_value"] = family.transform(lambda p: benjamini_hochberg(p.to_numpy()))
        return table

    def _directions(self) -> list[Direction]:
        return [
            Direction(cell.concept, cell.checkpoint, cell.layer, cell.task.features, cell.task.probe.kind, seed, weights, bias)
            for cell in self.cells
            for seed, (weights, bias) in self.done[cell].directions.items()
        ]

    def _metadata(self) -> dict[str, Any]:
        study = self.study
        return {
            "checkpoints": study.fingerprints,
            "concept_sets": dict(study.concept_sets.metadata),
            "held_out": study.held_out,
            "seeds": list(study.seeds),
            "probes": {f"{t.name}, {t.features}": {k: repr(v) for k, v in t.probe.get_params().items()} for t in study.tasks},
            "options": asdict(study.options),
            "transform": identify_function(self.settings.transform),
        }


def _probe_identity(probe: AnyProbe) -> str:
    return probe.identity if isinstance(probe, EstimatorProbe) else repr(sorted(probe.get_params().items()))


def _facts(cell: Cell) -> dict[str, Any]:
    return {
        "concept": cell.concept,
        "checkpoint": cell.checkpoint,
        "layer": cell.layer,
        "probe": cell.task.name,
        "kind": cell.task.probe.kind,
    }


def _n_threads(n_jobs: int | None, device: torch.device) -> int:
    if device.type == "cuda":
        return 1  # one batch after the other fills it
    if n_jobs is None:
        return 1
    return n_jobs if n_jobs > 0 else max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _one_thread() -> None:
    torch.set_num_threads(1)
