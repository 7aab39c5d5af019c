"""The whole path in two calls: what the command line, the demo and the examples run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neuroprobe._core import check_counts, check_writable
from neuroprobe.concepts import ConceptSource, Negatives
from neuroprobe.exceptions import InputError, shown
from neuroprobe.images import Images, Transform, check_images, collect, first_readable, rank_and_size
from neuroprobe.labeling import (
    DEFAULT_SIMILARITY,
    FALSE_DISCOVERY_RATE,
    N_BOOTSTRAP,
    SimilarityOrScorer,
    check_numbers,
    check_similarity,
    dissect,
)
from neuroprobe.models import FEATURES, Checkpoint, Checkpoints, Layout, Pooling, Sites, check_sites, resolve_device
from neuroprobe.probing import BLOG_PROBES, Features, ProbingStudy, Scopes, check_jobs, check_seeds, check_split, make_tasks
from neuroprobe.recording import ActivationRecorder, ForwardPass, record_beside
from neuroprobe.reports import LabelReport, ProbeReport

_log = logging.getLogger(__name__)


def dissect_model(
    model: nn.Module,
    images: Images,
    source: ConceptSource,
    *,
    layers: Sites,
    transform: Transform,
    pooling: Pooling = "mean",
    layout: Layout | None = None,
    similarity: SimilarityOrScorer = DEFAULT_SIMILARITY,
    parameters: Mapping[str, Any] | None = None,
    false_discovery_rate: float = FALSE_DISCOVERY_RATE,
    n_null: int | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
    device: str | torch.device = "auto",
    store: str | Path | None = None,
    page: str | Path | None = None,
    batch_size: int = 64,
    workers: int = 0,
    distributed: bool = False,
    progress: bool | None = None,
) -> LabelReport:
    """Record the layers and score the concepts in one pass over the images, and label every unit.

    Parameters
    ----------
    model : torch.nn.Module
    images : Images
    source : ConceptSource
    layers : sequence of str or Site, or callable
        As in `neuroprobe.ActivationRecorder`.
    transform : callable
        From a PIL image to the model's input.
    pooling, layout
        As in `neuroprobe.ActivationRecorder`.
    similarity, parameters, false_discovery_rate, n_null, n_bootstrap, seed, device
        As in `neuroprobe.dissect`; the model stays on its own device.
    store : path, optional
        A folder for the activations, as in `neuroprobe.ActivationRecorder.record`; by default they stay in memory.
    page : path, optional
        A folder for a page with every unit's examples (`LabelReport.to_html`), for which these images are read once more.
    batch_size, workers, distributed, progress
        As in `neuroprobe.images.collect`.

    Returns
    -------
    LabelReport
    """
    check_images(images)  # all of this before the long run
    _check_source(source, "consumer")
    check_similarity(similarity, parameters or {})
    check_numbers(top=1, false_discovery_rate=false_discovery_rate, n_null=n_null, n_bootstrap=n_bootstrap, seed=seed)
    resolve_device(device)
    _check_page(page, images)
    recorder = ActivationRecorder(model, layers, pooling=pooling, layout=layout)
    _log.info("recording %d layers, and scoring concepts", len(recorder.layers))
    activations, scores = record_beside(
        recorder,
        images,
        [source.consumer()],
        transform=transform,
        store=store,
        batch_size=batch_size,
        workers=workers,
        distributed=distributed,
        progress=progress,
    )
    _log.info("labeling the units of %d images", len(activations.ids))
    report = dissect(
        activations,
        scores,
        similarity=similarity,
        parameters=parameters,
        false_discovery_rate=false_discovery_rate,
        n_null=n_null,
        n_bootstrap=n_bootstrap,
        seed=seed,
        device=device,
    )
    if page is not None and rank_and_size(distributed)[0] == 0:
        _log.info("writing the page of %d units", len(report))
        report.to_html(page, images=images, activations=activations)
    return report


def probe_model(
    model: nn.Module,
    images: Images,
    source: ConceptSource,
    *,
    layers: Sites,
    transform: Transform,
    n_positive: int = 100,
    n_negative: int = 200,
    negatives: Negatives = "random",
    gap: int = 0,
    probes: Sequence[tuple[str, Features]] = BLOG_PROBES,
    scopes: Scopes = ("layer",),
    checkpoints: Mapping[str, Checkpoint] | Checkpoints | None = None,
    seeds: Sequence[int] = range(5),
    held_out: float = 0.3,
    controls: int = 0,
    keep_directions: bool = False,
    pooling: Pooling = FEATURES["pooled"],
    layout: Layout | None = None,
    store: str | Path | None = None,
    batch_size: int = 64,
    workers: int = 0,
    n_jobs: int | None = None,
    progress: bool | None = None,
) -> ProbeReport:
    """Make concept sets with the source, and probe every layer for every concept.

    Parameters
    ----------
    model, images, source, layers, transform
        As in `dissect_model`.
    n_positive, n_negative, negatives, gap
        As in `neuroprobe.ConceptSource.rank`; its seed is the first of `seeds`.
    probes, scopes, checkpoints, seeds, held_out, controls, keep_directions, pooling, layout
        As in `neuroprobe.ProbingStudy`.
    store : path, optional
        As in `neuroprobe.ProbingStudy.run`.
    batch_size, workers, progress
        As in `neuroprobe.images.collect`.
    n_jobs : int, optional
        As in `neuroprobe.ProbingStudy.run`.

    Returns
    -------
    ProbeReport
    """
    # what is wrong with these shows before the ranking, which can take long
    check_images(images)
    _check_source(source, "rank")
    sites = check_sites(model, layers)
    make_tasks(probes, scopes)
    check_seeds(seeds)
    check_counts(n_positive=n_positive, n_negative=n_negative)
    check_split(n_positive, n_negative, held_out=held_out)
    check_jobs(n_jobs)
    series = None if checkpoints is None else Checkpoints.of(model, checkpoints)
    if series is not None:
        series.check_distinct()
    _try_out(
        {
            features: ActivationRecorder(model, sites, pooling=pooling if features == "pooled" else FEATURES[features], layout=layout)
            for _, features in probes
        },
        images,
        transform,
    )
    _log.info("ranking the images")
    concept_sets = source.rank(
        images,
        n_positive=n_positive,
        n_negative=n_negative,
        negatives=negatives,
        gap=gap,
        seed=seeds[0],
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    _log.info("probing %d layers for %d concepts", len(sites), len(concept_sets))
    study = ProbingStudy(
        model,
        sites,
        concept_sets,
        probes=probes,
        scopes=scopes,
        checkpoints=series,
        seeds=seeds,
        held_out=held_out,
        controls=controls,
        keep_directions=keep_directions,
        pooling=pooling,
        layout=layout,
    )
    return study.run(images, transform=transform, store=store, batch_size=batch_size, workers=workers, n_jobs=n_jobs, progress=progress)


def _check_source(source: Any, method: str) -> None:
    if not callable(getattr(source, method, None)):
        raise InputError(f"Expected a source of concepts such as ConceptSource(encoder, vocabulary), but got {shown(source)}.")


def _check_page(page: str | Path | None, images: Images) -> None:
    """Raise what writing the page would, as far as it can be known before the long run."""
    if page is None:
        return
    check_writable(page)
    if images.is_stream:
        raise InputError("Expected images that can be read again for a page, but a stream cannot. Leave `page` out.")


def _try_out(recorders: Mapping[str, ActivationRecorder], images: Images, transform: Transform) -> None:
    """Record one image, so that a layer that is never reached or gives no tensor shows before the long run."""
    collect(first_readable(images), [ForwardPass(recorders, transform, fingerprint="of no result")], progress=False)
