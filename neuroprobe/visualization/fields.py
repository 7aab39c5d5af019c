"""Receptive fields: the input pixels on which one position of a layer's output depends, measured by gradient.

The model's own forward pass is run in float64 on the CPU, with everything let through that a non-linearity or a max-pool could
hide (`neuroprobe.visualization._dependence`), and the gradient of the output at one position with respect to the input is taken. Nothing is
derived from kernel sizes, so that padding, strides, dilation, branches, skips, groups, weights of zero and operations that see the
whole image all count as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.func import functional_call

from neuroprobe._core import check_unit
from neuroprobe.exceptions import InputError, NeuroprobeError
from neuroprobe.models import Axes, Layout, UnitAxisTracker, check_layers, check_layout, check_model, describe_output, evaluating
from neuroprobe.visualization._dependence import Dependence

# Operations that choose among values or places and are not replaced may choose otherwise on another input.
_INPUTS = 2


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """The input pixels that one position of a map depends on.

    Attributes
    ----------
    layer : str
    unit : int or None
        None for any unit of the layer.
    position : tuple of int
        Row and column in the map.
    mask : ndarray, [height, width], bool
        Of the model's input: the pixels that count. Those in the padding around the image are no pixels.
    """

    layer: str
    unit: int | None
    position: tuple[int, int]
    mask: npt.NDArray[np.bool_]

    def __repr__(self) -> str:
        of = "any unit" if self.unit is None else f"unit {self.unit}"
        return (
            f"ReceptiveField({self.layer}, {of}, position {self.position}: box {self.box} of {self.mask.shape[1]} x {self.mask.shape[0]})"
        )

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the smallest box around these pixels; right and bottom are beyond it, as for PIL's crop."""
        columns, rows = np.flatnonzero(self.mask.any(axis=0)), np.flatnonzero(self.mask.any(axis=1))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the box; smaller than the field of a position further in, where the image's border cuts it off."""
        left, top, right, bottom = self.box
        return bottom - top, right - left

    @property
    def is_whole_image(self) -> bool:
        """Whether every pixel counts, as after attention, squeeze and excitation, or a mean over all positions."""
        return bool(self.mask.all())


def receptive_field(
    model: nn.Module,
    layer: str,
    position: tuple[int, int],
    *,
    input_shape: Sequence[int],
    unit: int | None = None,
    layout: Layout | None = None,
) -> ReceptiveField:
    """The input pixels on which a position of a layer's map depends.

    The model is not changed: neither its weights, gradients and modes nor torch's random state.

    Parameters
    ----------
    model : Module
        In evaluation mode while it is measured.
    layer : str
        A module whose output has positions; it runs once in a forward pass.
    position : tuple of int
        Row and column in the layer's map; of tokens, ``(0, token)``; of rows without positions, ``(0, 0)``.
    input_shape : sequence of int
        Channels, height and width of the model's input.
    unit : int, optional
        By default any unit of the layer: units can differ, as the branches of an Inception block do.
    layout : {"nchw", "nhwc", "nlc", "lnc"}, optional
        As in `neuroprobe.ActivationRecorder`; needed only where the modules do not tell.

    Returns
    -------
    ReceptiveField

    Raises
    ------
    InputError
        A position or unit that the layer does not have, a layer that runs never or several times or gives no tensor, a model that
        is compiled, scripted, spread over devices or checkpointed or cannot run in float64 on the CPU, or an output that depends on
        no pixel.
    UnknownNameError
        A layer that the model does not have.

    Notes
    -----
    Where non-linearities of the user's own (of Python functions of torch's operations, or a `torch.autograd.Function`) or layers that
    choose where they look (deformable convolution, spatial transformers, unpooling) hide a pixel at both of two random inputs, that
    pixel is missed. A weight counts if it is not exactly zero.

    References
    ----------
    Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill, 2019 (the sizes it is tested on).

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1))
    >>> receptive_field(model, "3", (4, 4), input_shape=(3, 32, 32)).box
    (5, 5, 13, 13)
    """
    return receptive_fields(model, layer, [position], input_shape=input_shape, unit=unit, layout=layout)[0]


def receptive_fields(
    model: nn.Module,
    layer: str,
    positions: Sequence[tuple[int, int]],
    *,
    input_shape: Sequence[int],
    unit: int | None = None,
    layout: Layout | None = None,
) -> list[ReceptiveField]:
    """The receptive field of every position, from the same forward passes; otherwise as `receptive_field`."""
    shape = _checked(model, layer, input_shape, unit, layout)
    places = _checked_positions(positions)
    masks = np.zeros((len(positions), *shape[1:]), bool)
    # wherever it is called from, tensors are such as have gradients; and a model that draws numbers leaves the random state
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        tensors = {name: _copied(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        generator = torch.Generator().manual_seed(0)
        for number in range(_INPUTS):
            image = (torch.rand(1, *shape, generator=generator, dtype=torch.float64) + 0.5).requires_grad_(True)
            with torch.enable_grad():
                output, axes = _run(model, tensors, layer, image, layout, whole=number == 0)
            with torch.enable_grad():
                values = _map(output, axes, layer, unit)
            for i, place in enumerate(places):
                masks[i] |= _reached(values, place, image, layer)
    for place, mask in zip(places, masks, strict=True):
        if not mask.any():
            raise InputError(
                f"Expected an output that depends on the input, but {layer!r} at {place} does not: its weights are zero, or the model "
                "computes it in inference mode, where gradients cannot follow."
            )
    return [ReceptiveField(layer, unit, place, mask) for place, mask in zip(places, masks, strict=True)]


def _map(output: torch.Tensor, axes: Axes, layer: str, unit: int | None) -> torch.Tensor:
    """What the layer gives for the one image, summed over the units asked for, [height, width], with its graph."""
    values = output.movedim((axes.images, axes.units), (0, 1))[0]  # [n_units, ...positions]
    if unit is not None:
        if unit >= len(values):
            raise InputError(f"Expected a unit from 0 to {len(values) - 1} of {layer!r}, but got {unit}.")
        values = values[unit : unit + 1]
    values = values.sum(dim=0)
    return values.reshape((1,) * (2 - values.ndim) + tuple(values.shape)) if values.ndim < 2 else values


def _reached(values: torch.Tensor, position: tuple[int, int], image: torch.Tensor, layer: str) -> npt.NDArray[np.bool_]:
    if values.ndim != 2 or not all(p < n for p, n in zip(position, values.shape, strict=True)):
        raise InputError(f"Expected a position (row, column) in the map of {layer!r}, {tuple(values.shape)}, but got {position}.")
    value = values[position]
    (gradient,) = torch.autograd.grad(value, image, retain_graph=True, allow_unused=True) if value.requires_grad else (None,)
    if gradient is None:
        return np.zeros(tuple(image.shape[2:]), bool)
    found: npt.NDArray[np.bool_] = (gradient[0] != 0).any(dim=0).numpy()
    return found


class _Done(BaseException):
    """Nothing after the layer is wanted. No `Exception`, so that no model takes it for an error of its own."""


def _run(
    model: nn.Module, tensors: dict[str, torch.Tensor], layer: str, image: torch.Tensor, layout: Layout | None, *, whole: bool
) -> tuple[torch.Tensor, Axes]:
    """What the layer gives; if `whole`, the pass goes on behind it, to see whether it runs again."""
    tracker = UnitAxisTracker()
    found: list[tuple[torch.Tensor, Axes]] = []
    dependence = Dependence()
    no_checkpoints = torch.autograd.graph.disable_saved_tensors_hooks("it uses gradient checkpointing, which has to be turned off")
    with evaluating(model), tracker.following(model), _taking(model, layer, layout, tracker, found, dependence if whole else None):
        try:
            with dependence, no_checkpoints:
                functional_call(model, tensors, (image.clone(),))  # a copy, which the model may change in place
        except _Done:
            pass
        except NeuroprobeError:
            raise
        except Exception as error:
            if not found:  # behind the layer, anything may go wrong on an input of another size than the model's own
                raise InputError(
                    f"Expected a model that runs in float64 on the CPU on an input {tuple(image.shape[1:])}, but got: {str(error)[:200]}. "
                    "Give the `input_shape` it was made for."
                ) from error
    if not found:
        raise InputError(f"Expected {layer!r} to run in a forward pass, but it does not.")
    return found[0]


@contextmanager
def _taking(
    model: nn.Module,
    layer: str,
    layout: Layout | None,
    tracker: UnitAxisTracker,
    found: list[tuple[torch.Tensor, Axes]],
    whole: Dependence | None,
) -> Iterator[None]:
    def take(module: nn.Module, args: object, output: object) -> None:
        if found:
            raise InputError(f"Expected {layer!r} to run once in a forward pass, but it runs again. Take a module around it.")
        if not isinstance(output, torch.Tensor):
            raise InputError(f"Expected {layer!r} to return a tensor, but it gives {describe_output(output)}. Take a module inside it.")
        axes = tracker.axes(output, layer=layer, layout=layout if output.ndim > 2 else None)
        found.append((output.clone(), axes))  # what follows may change it in place
        if whole is None:
            raise _Done
        whole.end()

    handle = dict(model.named_modules(remove_duplicate=False))[layer].register_forward_hook(take)
    try:
        yield
    finally:
        handle.remove()


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """In float64 where it is of fractions, on the CPU; no gradient reaches the model's own."""
    plain = tensor.detach().cpu()
    return plain.to(torch.float64, copy=True) if plain.is_floating_point() else plain.clone()


def _checked_positions(positions: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    try:
        places = [tuple(position) for position in positions]
    except TypeError:
        places = [()]
    for place in places:
        whole = all(isinstance(p, (int, np.integer)) and not isinstance(p, bool) and p >= 0 for p in place)
        if len(place) != 2 or not whole:
            raise InputError(f"Expected positions (row, column) as whole numbers from 0 on, but got {positions!r}.")
    return [(int(row), int(column)) for row, column in places]


def _checked(model: nn.Module, layer: str, input_shape: Sequence[int], unit: int | None, layout: Layout | None) -> tuple[int, int, int]:
    check_model(model)
    check_layers(model, [layer])
    if layout is not None:
        check_layout(layout)
    if unit is not None:
        check_unit(layer, unit)
    shape = tuple(input_shape) if isinstance(input_shape, Iterable) else ()
    if len(shape) != 3 or not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n > 0 for n in shape):
        raise InputError(f"Expected `input_shape` as (channels, height, width), but got {input_shape!r}. Leave the batch out.")
    return int(shape[0]), int(shape[1]), int(shape[2])
