"""Dataset examples: the images on which a unit is most active, and those at quantiles of its activation.

The strongest images alone mislead: a unit that fires for a thing on its nine best images may fire for quite another on most
of those that it likes (Goh et al., 2021, look at ranges of activation for this reason). So the images at the 99 %, 90 % and 50 %
quantiles are shown beside the top.

References
----------
Goh et al., "Multimodal Neurons in Artificial Neural Networks", Distill, 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuroprobe._core import check_count, check_number, check_unit, places_at
from neuroprobe.exceptions import InputError, shown
from neuroprobe.models import Site, find_site
from neuroprobe.recording import Activations, ActivationSummary, Recorded

#: The top, and what lies below it.
QUANTILES = (1.0, 0.99, 0.9, 0.5)


@dataclass(frozen=True)
class Example:
    """An image as an example of what a unit does.

    Attributes
    ----------
    layer : str
        The site's key: for a plain one the layer's name.
    unit : int
    row : int
        In the activations. An example of a summary has the image's place in the probing set, where images that were skipped count too.
    image_id : str
    value : float
        The unit's activation, pooled as it was recorded.
    quantile : float
        Share of the images on which the unit is at most so active; 1 for the strongest.
    tied : int or None
        On how many images, this one included, the unit has this very value; None where a summary cannot tell.
    n_images : int
        Of the probing set.
    site : str
        The site's identity.
    """

    layer: str
    unit: int
    row: int
    image_id: str
    value: float
    quantile: float
    tied: int | None
    n_images: int
    site: str

    @property
    def varies(self) -> bool:
        """Whether the unit varies at all; if not, the image is an example of nothing, as any other is."""
        return self.tied != self.n_images


def top_images(activations: Recorded, layer: str | Site, unit: int, k: int = 9) -> list[Example]:
    """The images on which a unit is most active, strongest first; of equal ones those that come first.

    Parameters
    ----------
    activations : Activations or ActivationSummary
    layer : str or Site
    unit : int
    k : int, default 9

    Returns
    -------
    list of Example
        Of a unit that never varies, the first k images; their `Example.varies` is false.

    Raises
    ------
    UnknownNameError
        A layer that was not recorded.
    InputError
        Another site, a unit that it does not have, or k above the number of images, or above what a summary keeps.

    Examples
    --------
    >>> activations = Activations({"fc": np.array([[0.0], [2.0], [1.0]], np.float32)}, ("a", "b", "c"), {})
    >>> [(example.image_id, example.value) for example in top_images(activations, "fc", 0, k=2)]
    [('b', 2.0), ('c', 1.0)]
    """
    if isinstance(activations, ActivationSummary):
        return _top_of_summary(activations, find_site(layer, activations.sites), unit, k)
    return _examples(activations, layer, unit, [1.0], k)[0]


def quantile_examples(
    activations: Activations, layer: str | Site, unit: int, *, quantiles: Sequence[float] = QUANTILES, k: int = 3
) -> dict[float, list[Example]]:
    """Images at quantiles of a unit's activation, so that one sees its whole range and not only the peak.

    With the n images ranked from 0, weakest, to n - 1, those at the quantile q are the k whose ranks are nearest to q (n - 1).
    Images on which the unit is equally active share their ranks; if only some of them are wanted, they are taken evenly
    over their rows, as neighbors in a folder are often alike. On few images, one may be at two quantiles.

    Parameters
    ----------
    activations : Activations
        A summary has the ends only.
    layer : str or Site
    unit : int
    quantiles : sequence of float, default (1, 0.99, 0.9, 0.5)
        From 0, the weakest images, to 1, the same as `top_images`.
    k : int, default 3
        Images per quantile.

    Returns
    -------
    dict from quantile to list of Example
        In the order asked for, each list strongest first. Of a unit that never varies, all are ties: `Example.varies` is false.

    Raises
    ------
    UnknownNameError
        A layer that was not recorded.
    InputError
        A summary, another site, a unit that it does not have, k above the number of images, or a quantile outside of [0, 1] or twice.
    """
    chosen = _checked_quantiles(quantiles)
    return dict(zip(chosen, _examples(activations, layer, unit, chosen, k), strict=True))


def check_examples(examples: Any) -> list[Example]:
    """The examples of a sequence, or of a mapping from quantile to them.

    Raises
    ------
    InputError
        No examples, something else, or those of several units.
    """
    lists = list(examples.values()) if isinstance(examples, Mapping) else [examples]
    chosen = [example for part in lists if isinstance(part, (list, tuple)) for example in part]
    sequences = all(isinstance(part, (list, tuple)) for part in lists)
    if not sequences or not chosen or not all(isinstance(example, Example) for example in chosen):
        raise InputError(f"Expected examples as top_images or quantile_examples find them, but got {shown(examples)}.")
    units = {(example.site, example.unit): (example.layer, example.unit) for example in chosen}
    if len(units) > 1:
        raise InputError(f"Expected examples of one unit, but got those of {list(units.values())[:3]}. Take each by itself.")
    return chosen


def _top_of_summary(summary: ActivationSummary, layer: str, unit: int, k: int) -> list[Example]:
    found = summary[layer]
    check_unit(layer, unit, len(found.mean))
    check_count("k", k)
    values, rows = found.top_values[unit], found.top_rows[unit]
    if k > len(values):
        raise InputError(
            f"Expected `k` from 1 to {len(values)}, the images that the summary keeps of a unit, but got {k}. Summarize with k={k}."
        )
    constant = bool(found.maximum[unit] == found.minimum[unit])
    examples = []
    for value, row in zip(values[:k], rows[:k], strict=True):
        above, tied = int((values > value).sum()), int((values == value).sum())
        cut_off = bool(value == values[-1]) and len(values) < found.count  # more of them may have been left out
        known = found.count if constant else (None if cut_off else tied)
        facts = int(row), found.image_ids[int(row)], float(value), (found.count - above) / found.count, known, found.count
        examples.append(Example(layer, int(unit), *facts, summary.sites[layer]))
    return examples


def _examples(activations: Activations, layer: str | Site, unit: int, quantiles: Sequence[float], k: int) -> list[list[Example]]:
    """The k images at each quantile, strongest first."""
    if not isinstance(activations, Activations):
        what = "a summary, which has a unit's ends only" if isinstance(activations, ActivationSummary) else shown(activations)
        raise InputError(f"Expected activations of every image, but got {what}. Make them with ActivationRecorder(...).record(images).")
    key = find_site(layer, activations.sites)
    array = activations[key]
    check_unit(key, unit, array.shape[1])
    values = np.array(array[:, unit], np.float32) + np.float32(0)  # negative zero is zero
    check_count("k", k)
    n, descending, ascending = len(values), np.argsort(-values, kind="stable"), np.sort(values)
    if k > n:
        raise InputError(f"Expected `k` from 1 to {n}, the number of images, but got {k}.")

    def example(row: int) -> Example:
        low, high = (int(np.searchsorted(ascending, values[row], side=side)) for side in ("left", "right"))
        return Example(key, int(unit), row, activations.ids[row], float(values[row]), high / n, high - low, n, activations.sites[key])

    return [[example(int(descending[place])) for place in places_at(ascending, quantile, k)] for quantile in quantiles]


def _checked_quantiles(quantiles: Sequence[float]) -> list[float]:
    chosen = list(quantiles) if isinstance(quantiles, (list, tuple, np.ndarray)) else []
    for q in chosen:
        check_number("quantiles", q, low=0, high=1)
    if not chosen or len(set(chosen)) < len(chosen):
        raise InputError(f"Expected `quantiles` to be a list of numbers from 0 to 1, each once, but got {quantiles!r}.")
    return [float(q) for q in chosen]
