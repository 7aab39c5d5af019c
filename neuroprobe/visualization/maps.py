"""Where in an image a unit fires: its map before pooling, the threshold it fires at, and the regions of its examples.

Regions are shown on the model's input, which is what the transform gave it; a crop or a resize of the transform's is not undone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from neuroprobe._core import check_number, check_unit
from neuroprobe.exceptions import InputError, UnreadableImageError
from neuroprobe.images import BatchRecord, Collected, Images, Transform, check_images, collect
from neuroprobe.models import (
    Layout,
    UnitAxisTracker,
    check_layers,
    check_layout,
    check_model,
    describe_output,
    device_of,
    evaluating,
    picture_of,
)
from neuroprobe.visualization.examples import Example, check_examples
from neuroprobe.visualization.fields import ReceptiveField, receptive_fields


def unit_maps(
    model: nn.Module,
    images: Images | Sequence[Image.Image],
    layer: str,
    unit: int,
    *,
    transform: Transform,
    layout: Layout | None = None,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool | None = None,
) -> npt.NDArray[np.float32]:
    """A unit's activation at every position of every image.

    In evaluation mode and without gradients; the model is left as it was found.

    Parameters
    ----------
    model : Module
    images : Images or sequence of PIL images
    layer : str
        A module whose output has rows and columns: a convolution, a block of them, a layer of Swin. Tokens have none.
    unit : int
    transform : callable
        From a PIL image to the model's input, as in `neuroprobe.ActivationRecorder.record`.
    layout : {"nchw", "nhwc"}, optional
        As in `neuroprobe.ActivationRecorder`; needed only where the modules do not tell.
    batch_size, workers, progress
        As in `neuroprobe.images.passes.collect`.

    Returns
    -------
    ndarray, [n_images, height, width], float32
        Of the images that could be read, in their order; their mean over positions is what the pooling "mean" records.

    Raises
    ------
    InputError
        A layer that runs never or several times or whose output is no map, a unit that it does not have, activations that are not
        finite, or a model that is compiled, scripted or spread over devices.
    UnknownNameError
        A layer that the model does not have.
    """
    probing = check_images(Images(list(images)) if isinstance(images, (list, tuple)) else images)
    maps = MapPass(model, layer, unit, transform=transform, layout=layout)
    (found,) = collect(probing, [maps], batch_size=batch_size, workers=workers, progress=progress, description="maps")
    return np.asarray(found[0])


def firing_threshold(
    model: nn.Module,
    images: Images,
    layer: str,
    unit: int,
    *,
    transform: Transform,
    share: float = 0.005,
    layout: Layout | None = None,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool | None = None,
) -> float:
    """The activation that a unit exceeds at a certain share of all positions of all images: where Network Dissection says it fires.

    Parameters
    ----------
    model, images, layer, unit, transform, layout, batch_size, workers, progress
        As in `unit_maps`.
    share : float, default 0.005
        Of the positions, above 0 and at most 1.

    Returns
    -------
    float
        The ``1 - share`` quantile of the maps. Of a unit that is zero at more positions than that, zero: take a larger activation.

    Raises
    ------
    InputError
        As `unit_maps`, or another share.

    References
    ----------
    Bau et al., "Network Dissection", CVPR 2017, arXiv 1704.05796 (T_k; there before the map is upsampled, as here).
    """
    check_number("share", share, low=0, high=1, above=True)
    check_images(images)
    options: dict[str, Any] = {"layout": layout, "batch_size": batch_size, "workers": workers, "progress": progress}
    return float(np.quantile(unit_maps(model, images, layer, unit, transform=transform, **options), 1 - share))


class MapPass:
    """A consumer of `neuroprobe.images.passes.collect` that keeps a unit's maps, and the model's inputs if they are wanted.

    Its result: the maps [n, height, width], the inputs [n, channels, height, width] or None, and the images' ids.
    """

    def __init__(
        self, model: nn.Module, layer: str, unit: int, *, transform: Transform, layout: Layout | None = None, inputs: bool = False
    ) -> None:
        check_model(model)
        check_layers(model, [layer])
        if layout is not None:
            check_layout(layout)
        check_unit(layer, unit)  # how many there are shows when the layer has run
        self.transform = transform
        self._model, self._layer, self._unit, self._layout = model, layer, unit, layout
        self._maps: list[torch.Tensor] = []
        self._inputs: list[torch.Tensor] | None = [] if inputs else None

    def consume(self, batch: torch.Tensor, record: BatchRecord) -> None:
        if not len(batch):
            return
        found: list[torch.Tensor] = []
        tracker, module = UnitAxisTracker(), dict(self._model.named_modules(remove_duplicate=False))[self._layer]
        with torch.no_grad(), evaluating(self._model), tracker.following(self._model):
            handle = module.register_forward_hook(lambda _, args, output: found.append(self._taken(output, tracker, again=bool(found))))
            try:
                self._model(batch.to(device_of(self._model)))
            finally:
                handle.remove()
        if not found:
            raise InputError(f"Expected {self._layer!r} to run in a forward pass, but it does not.")
        if not found[0].isfinite().all():
            raise InputError(
                f"Expected finite activations, but unit {self._unit} of {self._layer!r} is not on one of {record.ids[0]!r} to "
                f"{record.ids[-1]!r}. Check the model's weights and its transform."
            )
        self._maps.append(found[0])
        if self._inputs is not None:
            self._inputs.append(batch)

    def _taken(self, output: Any, tracker: UnitAxisTracker, *, again: bool) -> torch.Tensor:
        """The unit's maps, [n, height, width]."""
        layer = self._layer
        if again:
            raise InputError(f"Expected {layer!r} to run once in a forward pass, but it runs again. Take a module around it.")
        if not isinstance(output, torch.Tensor) or output.ndim != 4:
            raise InputError(
                f"Expected {layer!r} to give a map, [n, units, height, width] or [n, height, width, units], but it gives "
                f"{describe_output(output)}. Take a convolution or a block of them; tokens and rows have no place in the image."
            )
        axes = tracker.axes(output, layer=layer, layout=self._layout)
        check_unit(layer, self._unit, output.shape[axes.units])
        return output.select(axes.units, self._unit).to("cpu", torch.float32, copy=True)  # what follows may change it in place

    def finish(self, collected: Collected) -> tuple[npt.NDArray[np.float32], torch.Tensor | None, tuple[str, ...]]:
        inputs = None if self._inputs is None else torch.cat(self._inputs)
        return torch.cat(self._maps).numpy(), inputs, collected.ids


@dataclass(frozen=True, eq=False)
class Region:
    """Where a unit fired in an example.

    Attributes
    ----------
    example : Example
    map : ndarray, [height, width], float32
        The unit's activation at every position.
    threshold : float
        From this activation on it counts as firing.
    picture : PIL.Image.Image
        The model's input, as `neuroprobe.models.pictures.picture_of` shows it.
    field : ReceptiveField or None
        Of the strongest position; None if it was not asked for.
    """

    example: Example
    map: npt.NDArray[np.float32]
    threshold: float
    picture: Image.Image
    field: ReceptiveField | None

    def __repr__(self) -> str:
        return f"Region({self.example.image_id!r}, position {self.position} of {self.map.shape}, fired on {self.fired.mean():.1%})"

    @property
    def position(self) -> tuple[int, int]:
        """Row and column of the strongest position of the map; of equal ones the first."""
        row, column = np.unravel_index(int(self.map.argmax()), self.map.shape)
        return int(row), int(column)

    @property
    def heat(self) -> npt.NDArray[np.float32]:
        """The map stretched over the picture from edge to edge (bilinear), [picture height, picture width].

        Its positions then lie at the centers of equal fields of the picture. The center of a position's receptive field can be up to
        half a stride away from there (ResNet's layer4: 16 of 224 pixels); the crop of the receptive field is exact.
        """
        width, height = self.picture.size
        stretched = F.interpolate(torch.from_numpy(self.map)[None, None], size=(height, width), mode="bilinear", align_corners=False)
        found: npt.NDArray[np.float32] = stretched[0, 0].numpy()
        return found

    @property
    def fired(self) -> npt.NDArray[np.bool_]:
        """Where the stretched map is at least the threshold, [picture height, picture width]; nowhere if no position fires."""
        found: npt.NDArray[np.bool_] = self.heat >= self.threshold
        return found

    @property
    def crop(self) -> Image.Image:
        """The part of the picture that the strongest position can see; all of it for some positions, units and models.

        Raises
        ------
        InputError
            The receptive field was not asked for.
        """
        if self.field is None:
            raise InputError("Expected regions with receptive fields, but these were made with receptive_fields=False.")
        return self.picture.crop(self.field.box)


def regions(
    model: nn.Module,
    images: Images,
    examples: Sequence[Example] | Mapping[float, Sequence[Example]],
    *,
    transform: Transform,
    threshold: float | None = None,
    receptive_fields: bool = True,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    layout: Layout | None = None,
    batch_size: int = 64,
) -> list[Region]:
    """The region that fired in every example of a unit of a convolution.

    The images are read again and the model runs on them, in evaluation mode; it is left as it was found.

    Parameters
    ----------
    model : Module
    images : Images
        The probing set, or any that has the examples' ids.
    examples : sequence of Example, or mapping from quantile to them
        All of one unit, as `top_images` and `quantile_examples` find them.
    transform : callable
        As for the recording.
    threshold : float, optional
        By default half of the highest activation at any position of any of these examples, so that in weak examples nothing
        fires; infinite if none is above zero. For one that is made from all images see `neuroprobe.visualization.maps.firing_threshold`.
    receptive_fields : bool, default True
        Whether the receptive field of the strongest position is measured: two forward passes in float64, and a backward pass for
        every such position.
    mean, std : sequence of float, optional
        As in `neuroprobe.models.pictures.picture_of`; by default those of the transform's Normalize.
    layout : {"nchw", "nhwc"}, optional
        As in `neuroprobe.ActivationRecorder`.
    batch_size : int, default 64

    Returns
    -------
    list of Region
        In the order of the examples; of a mapping, those of the first quantile first.

    Raises
    ------
    InputError
        No examples or those of several units, a layer without a map, or an image that cannot be read now.
    UnknownNameError
        A layer that the model does not have, or an example whose image is not there.
    """
    chosen = check_examples(examples)
    check_images(images)
    if threshold is not None:
        check_number("threshold", threshold)
    layer, unit = chosen[0].layer, chosen[0].unit
    part = images.subset(dict.fromkeys(example.image_id for example in chosen))
    maps = MapPass(model, layer, unit, transform=transform, layout=layout, inputs=True)
    ((found, inputs, ids),) = collect(part, [maps], batch_size=batch_size, progress=False)
    if missing := set(part.ids) - set(ids):
        raise UnreadableImageError(f"Expected to read the examples again, but {sorted(missing)[0]!r} cannot be read.")
    row_of = {id_: row for row, id_ in enumerate(ids)}
    rows = [row_of[example.image_id] for example in chosen]
    highest = float(found.max())
    level = (highest / 2 if highest > 0 else float("inf")) if threshold is None else float(threshold)
    made = [
        Region(example, found[row], level, picture_of(inputs[row], transform=transform, mean=mean, std=std), None)
        for example, row in zip(chosen, rows, strict=True)
    ]
    return _with_fields(model, made, tuple(inputs.shape[1:]), layout) if receptive_fields else made


def _with_fields(model: nn.Module, made: list[Region], input_shape: tuple[int, ...], layout: Layout | None) -> list[Region]:
    layer, unit = made[0].example.layer, made[0].example.unit
    positions = list(dict.fromkeys(region.position for region in made))
    measured = receptive_fields(model, layer, positions, input_shape=input_shape, unit=unit, layout=layout)
    fields = dict(zip(positions, measured, strict=True))
    return [Region(r.example, r.map, r.threshold, r.picture, fields[r.position]) for r in made]
