"""Unit maps: what a unit does at every position of an image, before pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from neuroprobe._core import check_number, check_unit
from neuroprobe.exceptions import InputError
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
)


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
