"""Where in an image a unit fires: its map before pooling, the threshold it fires at, and the regions of its examples.

Regions are shown on the model's input, which is what the transform gave it; a crop or a resize of the transform's is not undone.
"""

from __future__ import annotations

import dataclasses
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
from neuroprobe.models import Reading, Site, Taps, check_same_site, check_site, color_scaling, device_of, evaluating, picture_of, tapped
from neuroprobe.visualization.examples import Example, check_examples
from neuroprobe.visualization.fields import ReceptiveField
from neuroprobe.visualization.fields import receptive_fields as fields_of


def unit_maps(
    model: nn.Module,
    images: Images | Sequence[Image.Image],
    layer: str | Site,
    unit: int,
    *,
    transform: Transform,
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
    layer : str or Site
        A module whose output has rows and columns: a convolution, a block of them, a layer of Swin. Tokens have none.
    unit : int
    transform, batch_size, workers, progress
        As in `neuroprobe.ActivationRecorder.record`.

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
    reading: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress, "description": "maps"}
    return _read_again(model, check_site(model, layer), unit, probing, transform=transform, **reading)[0]


def firing_threshold(
    model: nn.Module,
    images: Images,
    layer: str | Site,
    unit: int,
    *,
    transform: Transform,
    share: float = 0.005,
    **reading: Any,
) -> float:
    """The activation that a unit exceeds at a certain share of all positions of all images: where Network Dissection says it fires.

    Parameters
    ----------
    model, images, layer, unit, transform
        As in `unit_maps`, and so what is further given: batch_size, workers, progress.
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
    return float(np.quantile(unit_maps(model, check_images(images), layer, unit, transform=transform, **reading), 1 - share))


class _MapPass:
    """A consumer that keeps a unit's maps [n, height, width], and the model's inputs if they are wanted."""

    def __init__(self, model: nn.Module, site: Site, unit: int, taps: Taps, *, transform: Transform, inputs: bool) -> None:
        self.transform = transform
        self._model, self._site, self._unit, self._taps = model, site, unit, taps
        self._maps: list[torch.Tensor] = []
        self._inputs: list[torch.Tensor] | None = [] if inputs else None

    def consume(self, batch: torch.Tensor, record: BatchRecord) -> None:
        if not len(batch):
            return
        with self._taps.forward():
            self._model(batch.to(device_of(self._model)))
        found = self._map(self._taps[self._site])
        if not found.isfinite().all():
            raise InputError(
                f"Expected finite activations, but unit {self._unit} of {self._site.key!r} is not on one of {record.ids[0]!r} to "
                f"{record.ids[-1]!r}. Check the model's weights and its transform."
            )
        self._maps.append(found)
        if self._inputs is not None:
            self._inputs.append(batch)

    def _map(self, reading: Reading) -> torch.Tensor:
        layer, shape = self._site.key, tuple(reading.values.shape)
        if len(shape) != 4:
            raise InputError(
                f"Expected {layer!r} to give a map, [n, units, height, width] or [n, height, width, units], but it gives {shape}. "
                "Take a convolution or a block of them; tokens and rows have no place in the image."
            )
        check_unit(layer, self._unit, reading.by_unit.shape[1])
        return reading.by_unit[:, self._unit].to("cpu", torch.float32)

    def finish(self, collected: Collected) -> tuple[npt.NDArray[np.float32], torch.Tensor | None, tuple[str, ...]]:
        inputs = None if self._inputs is None else torch.cat(self._inputs)
        return torch.cat(self._maps).numpy(), inputs, collected.ids


def _read_again(
    model: nn.Module, site: Site, unit: int, images: Images, *, transform: Transform, inputs: bool = False, **reading: Any
) -> tuple[npt.NDArray[np.float32], Any, tuple[str, ...]]:
    """The unit's maps, the model's inputs if they are wanted, and the ids of the images that could be read."""
    check_unit(site.key, unit)  # how many there are shows when the layer has run
    with torch.no_grad(), evaluating(model, *site.modules), tapped(model, [site]) as taps:
        ((maps, given, ids),) = collect(images, [_MapPass(model, site, unit, taps, transform=transform, inputs=inputs)], **reading)
    return maps, given, ids


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
        The model's input, as `neuroprobe.models.picture_of` shows it.
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
    layer: str | Site | None = None,
    threshold: float | None = None,
    receptive_fields: bool = True,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
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
    layer : str or Site, optional
        Where the examples were recorded; needed if that is more than a layer's name.
    threshold : float, optional
        By default half of the highest activation at any position of any of these examples, so that in weak examples nothing
        fires; infinite if none is above zero. For one that is made from all images see `neuroprobe.visualization.firing_threshold`.
    receptive_fields : bool, default True
        Whether the receptive field of the strongest position is measured: two forward passes in float64, and a backward pass for
        every such position.
    mean, std : sequence of float, optional
        As in `neuroprobe.models.picture_of`; by default measured on the transform.
    batch_size : int, default 64

    Returns
    -------
    list of Region
        In the order of the examples; of a mapping, those of the first quantile first.

    Raises
    ------
    InputError
        No examples, those of several units or of another site, a layer without a map, or an image that cannot be read now.
    UnknownNameError
        A layer that the model does not have, or an example whose image is not there.
    """
    chosen = check_examples(examples)
    check_images(images)
    if threshold is not None:
        check_number("threshold", threshold)
    unit, identity = chosen[0].unit, chosen[0].site
    site = check_site(model, identity.partition(" (")[0] if layer is None else layer)
    check_same_site(site, identity, what="these examples")
    part = images.subset(dict.fromkeys(example.image_id for example in chosen))
    options: dict[str, Any] = {"inputs": True, "batch_size": batch_size, "progress": False}
    found, inputs, ids = _read_again(model, site, unit, part, transform=transform, **options)
    if missing := set(part.ids) - set(ids):
        raise UnreadableImageError(f"Expected to read the examples again, but {sorted(missing)[0]!r} cannot be read.")
    rows = [ids.index(example.image_id) for example in chosen]
    highest = float(found.max())
    level = (highest / 2 if highest > 0 else float("inf")) if threshold is None else float(threshold)
    if mean is None and std is None:
        mean, std = color_scaling(transform) or (None, None)
    made = [
        Region(example, found[row], level, picture_of(inputs[row], mean=mean, std=std), None)
        for example, row in zip(chosen, rows, strict=True)
    ]
    if not receptive_fields:
        return made
    positions = list(dict.fromkeys(region.position for region in made))
    fields = dict(zip(positions, fields_of(model, site, positions, input_shape=inputs.shape[1:], unit=unit), strict=True))
    return [dataclasses.replace(region, field=fields[region.position]) for region in made]
