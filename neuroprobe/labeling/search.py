"""Text search over units: "which units look like stripes?".

A unit's semantic embedding is the mean of its top images' vectors minus the mean of the whole probing set, which is
what these images have in common and the others have not. A text is embedded by the same encoder. Units are ranked by
how much more their top images look like the text than random sets of as many images do.

References
----------
Dreyer et al., "Mechanistic understanding and validation of large AI models with SemanticLens", Nature Machine
Intelligence, 2025, arXiv 2501.05398 (search).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from neuroprobe._core import Floats, check_counts, check_seed, unit_length
from neuroprobe.concepts import ConceptScores, ImageTextEncoder, check_encoder, check_same_images
from neuroprobe.exceptions import InputError
from neuroprobe.labeling._products import Products
from neuroprobe.labeling.clarity import check_k, top_image_rows
from neuroprobe.recording import Recorded, check_layers
from neuroprobe.reports import Report
from neuroprobe.statistics import benjamini_hochberg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN_UNITS = 20
_UNITS = 1024  # worked on at a time


class UnitSearchReport(Report):
    """The units that look most like a text, as `neuroprobe.search_units` finds them.

    Columns: query, rank (1 is the best), layer, unit, similarity (cosine of text and semantic embedding), z (standard
    deviations above random sets of as many images), p_value (share of random sets that look at least as much like
    the text), q_value (Benjamini-Hochberg over all units that were searched for this query).
    """

    name = "unit_search"
    title = "Which units look like this"
    required = ("query", "rank", "layer", "unit", "similarity", "z", "p_value", "q_value")
    text_columns = ("query", "layer")

    def summary(self) -> str:
        first = self._table[self._table["rank"] == 1]
        shown = [f"{row.query!r}: unit {row.unit} of {row.layer} (z {row.z:.1f})" for row in first.head(3).itertuples()]
        return "; ".join(shown) + ("; ..." if len(first) > len(shown) else "")

    def plot(self, ax: Axes | None = None) -> Axes:
        """The best units of the first query, with their z."""
        from neuroprobe._core import axes_or_new, shortened

        query = self._table["query"].iloc[0]
        best = self._table[self._table["query"] == query].head(_SHOWN_UNITS)
        ax = axes_or_new(ax, 6.0, 1.4 + 0.24 * len(best))
        ax.barh(range(len(best)), best["z"])
        ax.set_yticks(range(len(best)), [shortened(f"{row.layer}, {row.unit}") for row in best.itertuples()])
        ax.invert_yaxis()
        ax.set_xlabel("standard deviations above random images")
        ax.set_title(f"Units like: {shortened(query, limit=60)}")
        return ax


def search_units(
    query: str | Sequence[str],
    activations: Recorded,
    scores: ConceptScores,
    *,
    encoder: ImageTextEncoder,
    templates: Sequence[str] = ("{}",),
    layers: Sequence[str] | None = None,
    k: int = 30,
    top: int | None = 20,
    n_null: int = 10_000,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> UnitSearchReport:
    """The units whose top images look most like a text, over all layers.

    z compares the mean similarity of a unit's k top images and the text with that of k images drawn at random
    without replacement from the probing set; mean and standard deviation of the latter are known in closed form. The
    p-value comes from `n_null` such draws, so it is never below 1 / (n_null + 1); it holds for one unit, and the
    q-value for the search through all of them. Units that never vary are left out.

    Parameters
    ----------
    query : str or sequence of str
    activations : Activations or ActivationSummary
    scores : ConceptScores
        Of the same images, by the same encoder; only its image vectors are used.
    encoder : ImageTextEncoder
        Embeds the queries.
    templates : sequence of str, default ("{}",)
        Prompt templates, each with one ``{}``; with several, the mean of the unit vectors is used.
    layers : sequence of str, optional
        By default all that were recorded.
    k : int, default 30
        Images per unit.
    top : int or None, default 20
        Units kept per query; None for all.
    n_null : int, default 10,000
    seed : int, default 0
        Of the random sets, which are the same for all units and queries.
    device : str or torch.device, default "auto"
        Where all images are compared with the queries.

    Returns
    -------
    UnitSearchReport
        Sorted by query and rank; units with the same z in the order of layers and units.

    Raises
    ------
    InputError
        An empty query or one given twice, another encoder's scores, different images, or k above what there is.
    UnknownNameError
        A layer that was not recorded.
    """
    queries = _checked_queries(query)
    check_same_images(activations, scores)
    check_encoder(encoder, scores)
    check_counts(n_null=n_null, top=1 if top is None else top)
    check_seed(seed)
    chosen = check_layers(activations, layers)
    for layer in chosen:
        check_k(activations, layer, k, most=len(scores.ids) - 1)
    texts = _embedded(queries, templates, encoder)
    vectors = scores.image_vectors.numpy().astype(np.float64)
    units, means = _semantic_embeddings(activations, scores, vectors, chosen, k=k)
    alike = Products(texts.T, device)(vectors)  # [n_images, n_queries]
    null = _random_means(alike, k=k, n=n_null, seed=seed)
    tables = [
        _query_table(name, units, means, texts[i], alike[:, i], null[:, i], k=k).head(top if top is not None else len(units))
        for i, name in enumerate(queries)
    ]
    metadata = {
        "queries": queries,
        "templates": list(templates),
        "k": k,
        "n_null": n_null,
        "seed": seed,
        "n_units": len(units),
        "n_images": len(scores.ids),
        "layers": chosen,
        "activations": dict(activations.metadata),
        "encoder": encoder.fingerprint,
    }
    return UnitSearchReport(pd.concat(tables, ignore_index=True), metadata)


def expected_and_spread(alike: npt.ArrayLike, *, k: int) -> tuple[Floats, Floats]:
    """Mean and standard deviation [...] of the mean of k of the values [n_images, ...] drawn without replacement, in closed form.

    It is sqrt(S^2 / k * (1 - k / n)), with S^2 the variance divided by n - 1; of all n_images there is no spread.
    """
    values = np.asarray(alike, np.float64)
    n = len(values)
    variance = values.var(axis=0, ddof=1) / k * (1 - k / n) if n > 1 else np.zeros(values.shape[1:])
    return values.mean(axis=0), np.sqrt(variance)


def _query_table(query: str, units: pd.DataFrame, means: Floats, text: Floats, alike: Floats, null: Floats, *, k: int) -> pd.DataFrame:
    """The units for one query, best first; `means` are relative to the probing set's mean."""
    _, spread = expected_and_spread(alike, k=k)
    projections = means @ text  # a unit's mean similarity minus that of all images
    z = projections / spread if spread > 0 else np.zeros(len(means))
    least = np.searchsorted(np.sort(null - alike.mean()), projections - 1e-12)  # sums in another order differ in their last bits
    p = (1 + len(null) - least) / (1 + len(null))
    table = units.assign(query=query, similarity=unit_length(means) @ text, z=z, p_value=p, q_value=benjamini_hochberg(p))
    table = table.iloc[np.argsort(-z, kind="stable")].assign(rank=np.arange(1, len(table) + 1))
    return table[list(UnitSearchReport.required)]


def _semantic_embeddings(
    recorded: Recorded, scores: ConceptScores, vectors: Floats, layers: Sequence[str], *, k: int
) -> tuple[pd.DataFrame, Floats]:
    """Layer and number of every unit that varies, and its top images' mean vector minus that of all images."""
    units, parts = [], []
    for layer in layers:
        rows, varies = top_image_rows(recorded, scores, layer, k=k)
        live = np.flatnonzero(varies)
        units.append(pd.DataFrame({"layer": layer, "unit": live}))
        parts += [vectors[rows[live[i : i + _UNITS]]].mean(axis=1) for i in range(0, len(live), _UNITS)]
    if not parts:
        raise InputError(f"Expected a unit that varies, but those of {', '.join(layers)} are the same on every image.")
    return pd.concat(units, ignore_index=True), np.concatenate(parts) - vectors.mean(axis=0)


def _random_means(alike: Floats, *, k: int, n: int, seed: int) -> Floats:
    """Mean similarity of k random images without replacement, [n, n_queries]."""
    generator = np.random.default_rng(seed)
    found = np.empty((n, alike.shape[1]))
    for i in range(n):
        found[i] = alike[generator.choice(len(alike), size=k, replace=False)].mean(axis=0)
    return found


def _embedded(queries: list[str], templates: Sequence[str], encoder: ImageTextEncoder) -> Floats:
    """One unit vector per query, [n_queries, d]: the mean over the templates."""
    if isinstance(templates, str) or not templates or any(template.count("{}") != 1 for template in templates):
        raise InputError(f"Expected a list of prompt templates, each with exactly one '{{}}', but got {templates!r:.200}.")
    prompts = [template.replace("{}", query) for query in queries for template in templates]
    vectors = torch.as_tensor(encoder.encode_texts(prompts)).detach().cpu().numpy()
    # [n_queries * n_templates, d] -> [n_queries, n_templates, d]
    return unit_length(unit_length(vectors).reshape(len(queries), len(templates), -1).mean(axis=1))


def _checked_queries(query: str | Sequence[str]) -> list[str]:
    queries = [query] if isinstance(query, str) or not isinstance(query, Iterable) else list(query)
    if not queries or len(set(queries)) < len(queries) or not all(isinstance(q, str) and q.strip() for q in queries):
        raise InputError(f"Expected a text, or several that differ and are not empty, but got {query!r:.200}.")
    return queries
