"""Attribution: how much each unit of a layer adds to an output of the model, on single images.

Of a weighted sum, that is weight times activation. Of anything else, a gradient says what a weight would be: at the image itself
(gradient times activation), or averaged on the way from a baseline to it (integrated gradients), which adds up to what the output
has gained on the way.

References
----------
Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017: integrated gradients, completeness.
Shrikumar et al., "Not Just a Black Box", 2016, arXiv 1605.01713: gradient times input.
Kokhlikyan et al., "Captum", 2020, arXiv 2009.07896: the implementation of integrated gradients.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from torch import nn

from neuroprobe._core import Floats, as_numbers, check_choice, check_counts
from neuroprobe.effects._groups import Unnamed, group_sums, unit_groups
from neuroprobe.effects._outputs import Output, check_output, gradients, moved, output_values
from neuroprobe.exceptions import InputError, MissingDependencyError, UnknownNameError, shown, suggest
from neuroprobe.images import BatchRecord, Collected, Images, Transform, collect
from neuroprobe.models import Site, check_site, device_of, evaluating, tapped
from neuroprobe.reports import Labels, Report, check_label_sites, metadata_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Method: TypeAlias = Literal["gradient_times_activation", "integrated_gradients"]


class AttributionReport(Report):
    """What one image's output is made of, by `UnitAttributions.by_concept`.

    Columns: concept, named (False for what is no concept), units (numbers), n_units, attribution; the greatest first.
    """

    name = "attribution"
    title = "What one image's score is made of"
    required = ("concept", "named", "units", "n_units", "attribution")
    text_columns = ("concept", "units")

    def summary(self) -> str:
        """The score, the baseline's, and what the units add."""
        facts = self.metadata
        return (
            f"{facts['image']}: score {facts['score']:.3g}, of which {facts['baseline_score']:.3g} is the baseline's and "
            f"{self._table['attribution'].sum():.3g} is attributed to {self._table['n_units'].sum()} units"
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """A bar for each of the 8 greatest attributions above 0 and the 8 lowest below."""
        from neuroprobe.effects._figures import plot_attributions

        above, below = self._table[self._table["attribution"] > 0].head(8), self._table[self._table["attribution"] < 0].tail(8)
        return plot_attributions(pd.concat([above, below]), title=f"{self.title}: {self.metadata['image']}", ax=ax)


@dataclass(frozen=True, eq=False)
class UnitAttributions:
    """How much every unit of a layer adds to an output, image by image.

    Attributes
    ----------
    values : ndarray, [n_images, n_units], float64
        In units of the output; all positions of a unit added up.
    scores, baseline_scores : ndarray, [n_images]
        The output on the image, and where the layer gives the baseline instead.
    ids : tuple of str
        The images: the rows.
    layer : str
        The site's key.
    metadata : mapping
        The method, the baseline, the images, the site.
    """

    values: Floats
    scores: Floats
    baseline_scores: Floats
    ids: tuple[str, ...]
    layer: str
    metadata: Mapping[str, Any]

    @property
    def gaps(self) -> Floats:
        """What of the output's gain over the baseline is attributed to no unit, [n_images]; near 0 where attribution is complete."""
        return np.asarray(self.scores - self.baseline_scores - self.values.sum(axis=1))

    def by_concept(self, image: int | str, labels: Labels, *, unnamed: Unnamed = "together") -> AttributionReport:
        """One image's attributions, units with one label added up.

        Parameters
        ----------
        image : int or str
            Its row, or its id.
        labels : LabelReport, or mapping from (layer, unit) to a concept
        unnamed : {"together", "apart"}, default "together"
            One line for all units without a label, or one for each.

        Raises
        ------
        InputError
            No labels of the site, some of another one, or of units that it does not have.
        UnknownNameError
            No such image.
        """
        row, n_units = self._row(image), self.values.shape[1]
        check_label_sites(labels, self.metadata.get("sites", {}))
        groups = unit_groups(labels, self.layer, n_units=n_units, unnamed=unnamed)
        columns = {
            "concept": [group.name for group in groups], "named": [group.named for group in groups],
            "units": [" ".join(map(str, group.units)) for group in groups], "n_units": [len(group.units) for group in groups],
            "attribution": group_sums(self.values[row : row + 1], np.ones(n_units), groups)[0],
        }  # fmt: skip
        facts = {"score": float(self.scores[row]), "baseline_score": float(self.baseline_scores[row]), "gap": float(self.gaps[row])}
        metadata = {"image": self.ids[row], "layer": self.layer, **facts, **self.metadata, "unnamed": unnamed}
        metadata["labels"] = metadata_of(labels)
        return AttributionReport(pd.DataFrame(columns).sort_values("attribution", ascending=False, kind="stable"), metadata)

    def _row(self, image: int | str) -> int:
        if isinstance(image, str) and image in self.ids:
            return self.ids.index(image)
        if isinstance(image, (int, np.integer)) and not isinstance(image, bool) and 0 <= image < len(self.ids):
            return int(image)
        raise UnknownNameError(
            f"Expected one of the {len(self.ids)} images by its row or id, but got {image!r}. {suggest(str(image), self.ids)}"
        )


def attribute_units(
    model: nn.Module,
    images: Images | Image.Image | Sequence[Image.Image],
    layer: str | Site,
    output: Output,
    *,
    transform: Transform,
    method: Method = "gradient_times_activation",
    baseline: npt.ArrayLike | None = None,
    n_steps: int = 50,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool | None = None,
) -> UnitAttributions:
    """How much every unit of a layer adds to an output of the model, on each of some images.

    With g the gradient of the output with respect to the layer's activations a, and b the baseline, a unit gets the sum over its
    positions of g * (a - b). For gradient times activation g is taken at a; for integrated gradients it is the mean on the straight
    line from b to a, so that the units' attributions add up to the output less the baseline's output. Where the output is a
    weighted sum of the layer's means over positions, both are the same: with the baseline at the units' means over a set of images,
    the contributions of `neuroprobe.effects.explain_class`.

    Parameters
    ----------
    model : torch.nn.Module
        It is left as it was found, its gradients too.
    images : Images, PIL image, or sequence of PIL images
    layer : str or Site
        A module that runs once and gives a tensor, or a site; a basis must have `decode`.
    output : int or callable
        Number of the output (before any softmax), or a function of what the model returns that gives one number per image, each from
        that image alone.
    method : {"gradient_times_activation", "integrated_gradients"}, default "gradient_times_activation"
        The latter needs captum.
    baseline : array, [n_units], optional
        The value of each unit, at all positions, that stands for "nothing there"; by default 0. The units' mean over images,
        ``activations[layer].mean(axis=0)``, asks what makes this image different from others. Take it where a layer norm follows:
        what that gives changes only just before 0, where integrated gradients have too few points.
    n_steps : int, default 50
        Of integrated gradients: points on the line (Gauss-Legendre).
    transform, batch_size, workers, progress
        As in `neuroprobe.ActivationRecorder.record`.

    Raises
    ------
    InputError
        Another method, a baseline that does not fit, a layer that runs never or several times or gives no tensor, an output that does
        not depend on it, that the model does not have or that is not finite, a model that hooks do not work in, or what is no image.
    UnknownNameError
        No such layer.
    MissingDependencyError
        Integrated gradients without captum.
    """
    check_choice("method", method, get_args(Method))
    check_counts(n_steps=n_steps)
    check_output("output", output)
    start, steps = _checked_baseline(baseline), int(n_steps) if method == "integrated_gradients" else None
    if steps is not None:
        _captum()
    probing_set = _as_images(images)
    consumer = _Attributions(model, check_site(model, layer), output, transform, start, steps)
    (found,) = collect(probing_set, [consumer], batch_size=batch_size, workers=workers, progress=progress, description="attributions")
    return found  # type: ignore[no-any-return]


class _Attributions:
    """A consumer that attributes an output to the units of a site; `n_steps` None is gradient times activation."""

    def __init__(
        self, model: nn.Module, site: Site, output: Output, transform: Transform, baseline: Floats | None, n_steps: int | None
    ) -> None:
        self.transform = transform
        self._model, self._site, self._output = model, site, output
        self._baseline, self._n_steps = baseline, n_steps
        self._parts: dict[int, tuple[Floats, Floats, Floats]] = {}

    def consume(self, batch: torch.Tensor, record: BatchRecord) -> None:
        with torch.inference_mode(False), torch.enable_grad(), evaluating(self._model, *self._site.modules):
            # a batch made in inference mode cannot be saved for a gradient
            inputs = (batch.clone() if batch.is_inference() else batch).to(device_of(self._model))
            with moved(self._model, [self._site]) as (taps, added), taps.forward():
                score = self._scores(inputs)
            activation, gradient = taps[self._site].by_unit, gradients(score, added)[self._site]  # [n_images, n_units, *positions]
            baseline = self._filled(activation)
            with tapped(self._model, replace={self._site: lambda values: self._given}):
                if self._n_steps is None:
                    per_position = gradient * (activation - baseline)
                else:
                    per_position = self._integrated(inputs, activation, baseline)
                with torch.no_grad():
                    start = self._score_of(baseline, inputs)
        units = per_position.double().reshape(*per_position.shape[:2], -1).sum(-1)
        found = _numbers(units), _numbers(score), _numbers(start)
        if not all(np.isfinite(part).all() for part in found):
            raise InputError(
                f"Expected finite outputs and gradients, but between {record.ids[0]!r} and {record.ids[-1]!r} some are not. Check the "
                "model's weights, its transform and the baseline."
            )
        self._parts[record.number] = found

    def _scores(self, inputs: torch.Tensor) -> torch.Tensor:
        return output_values(self._model(inputs), self._output, "output", len(inputs))

    def _score_of(self, activation: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """The output of every image where the site gives this, [n]."""
        self._given = activation
        return self._scores(inputs)

    def _integrated(self, inputs: torch.Tensor, activation: torch.Tensor, baseline: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = _captum()(self._score_of).attribute(
            activation, baselines=baseline, additional_forward_args=(inputs,), n_steps=self._n_steps, internal_batch_size=len(inputs)
        )
        return found.detach()

    def _filled(self, activation: torch.Tensor) -> torch.Tensor:
        """The baseline in the site's shape."""
        if self._baseline is None:
            return torch.zeros_like(activation)
        n_units = activation.shape[1]
        if len(self._baseline) != n_units:
            raise InputError(f"Expected a baseline for each of the {n_units} units of {self._site.key!r}, but got {len(self._baseline)}.")
        shape = (1, n_units, *(1 for _ in activation.shape[2:]))
        return torch.from_numpy(self._baseline).to(activation).reshape(shape).expand_as(activation).contiguous()

    def finish(self, collected: Collected) -> UnitAttributions:
        values, scores, starts = (np.concatenate(part) for part in zip(*(self._parts[i] for i in sorted(self._parts)), strict=True))
        metadata = {
            "method": "gradient_times_activation" if self._n_steps is None else "integrated_gradients",
            "baseline": "zeros" if self._baseline is None else "given",
            "output": "a function" if callable(self._output) else int(self._output),
            "n_steps": self._n_steps,
            "sites": {self._site.key: self._site.identity},
            "images": collected.fingerprint,
        }
        return UnitAttributions(values, scores, starts, collected.ids, self._site.key, metadata)


def _captum() -> Any:
    try:
        return importlib.import_module("captum.attr").IntegratedGradients
    except ImportError as error:
        raise MissingDependencyError(
            "Integrated gradients need captum: pip install 'neuroprobe-clip[attribution]'. Or use method='gradient_times_activation'."
        ) from error


def _as_images(images: Any) -> Images:
    listed = [images] if isinstance(images, Image.Image) else images
    if isinstance(listed, Images):
        return listed
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise InputError(f"Expected a PIL image, several, or neuroprobe.Images (for a folder: Images(folder)), but got {shown(images)}.")
    return Images(list(listed))


def _checked_baseline(baseline: npt.ArrayLike | None) -> Floats | None:
    if baseline is None:
        return None
    values = as_numbers("baseline", baseline)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise InputError(f"Expected a baseline as a finite number per unit, [n_units], but got {values.shape}.")
    return values


def _numbers(tensor: torch.Tensor) -> Floats:
    return np.asarray(tensor.detach().double().cpu().numpy())
