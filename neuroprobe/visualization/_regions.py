"""Regions: where in an image a unit fired: its map over the image, and the receptive field of its strongest position.

Everything is shown on the model's input, which is what the transform gave it; a crop or a resize of the transform's is not undone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from neuroprobe._core import check_number
from neuroprobe.exceptions import InputError, UnreadableImageError
from neuroprobe.images import Images, Transform, check_images, collect
from neuroprobe.models import Layout, picture_of
from neuroprobe.visualization.examples import Example, check_examples
from neuroprobe.visualization.fields import ReceptiveField, receptive_fields
from neuroprobe.visualization.maps import MapPass


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
        All of one unit, as `neuroprobe.visualization.examples.top_images` and `neuroprobe.visualization.examples.quantile_examples` find them.
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
