"""Receptive fields: the input pixels on which one position of a layer's output depends, measured by gradient.

The model's own forward pass is run in float64 on the CPU, with everything let through that a non-linearity or a max-pool could
hide (see `Dependence`), and the gradient of the output at one position with respect to the input is taken. Nothing is
derived from kernel sizes, so that padding, strides, dilation, branches, skips, groups, weights of zero and operations that see the
whole image all count as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.func import functional_call

from neuroprobe._core import check_unit, is_whole
from neuroprobe.exceptions import InputError, NeuroprobeError
from neuroprobe.models import Reading, Site, Taps, check_site, evaluating, tapped
from neuroprobe.visualization._dependence import Dependence

# Operations that choose among values or places and are not replaced may choose otherwise on another input.
_INPUTS = 2


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """The input pixels that one position of a map depends on.

    Attributes
    ----------
    layer : str
        The site's key.
    site : str
        Its identity.
    unit : int or None
        None for any unit of the layer.
    position : tuple of int
        Row and column in the map.
    mask : ndarray, [height, width], bool
        Of the model's input: the pixels that count. Those in the padding around the image are no pixels.
    """

    layer: str
    site: str
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
    layer: str | Site,
    position: tuple[int, int],
    *,
    input_shape: Sequence[int],
    unit: int | None = None,
) -> ReceptiveField:
    """The input pixels on which a position of a layer's map depends.

    The model is not changed: neither its weights, gradients and modes nor torch's random state.

    Parameters
    ----------
    model : Module
        In evaluation mode while it is measured.
    layer : str or Site
        A module whose output has positions; it runs once in a forward pass. In a basis, it is seen to depend on the channels on which
        it could depend: a latent that neither of two random inputs reaches, as of a TopK autoencoder, on all of them.
    position : tuple of int
        Row and column in the layer's map; of tokens, ``(0, token)``; of rows without positions, ``(0, 0)``.
    input_shape : sequence of int
        Channels, height and width of the model's input.
    unit : int, optional
        By default any unit of the layer: units can differ, as the branches of an Inception block do.

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
    return receptive_fields(model, layer, [position], input_shape=input_shape, unit=unit)[0]


def receptive_fields(
    model: nn.Module,
    layer: str | Site,
    positions: Sequence[tuple[int, int]],
    *,
    input_shape: Sequence[int],
    unit: int | None = None,
) -> list[ReceptiveField]:
    """The receptive field of every position, from the same forward passes; otherwise as `receptive_field`."""
    site = check_site(model, layer)
    if unit is not None:
        check_unit(site.key, unit)
    shape, places = _checked_shape(input_shape), _checked_positions(positions)
    masks = _masks(model, site, places, shape, unit)
    if site.basis is not None and unit is not None and not masks.any((1, 2)).all():
        # a latent that was chosen at neither input could be chosen at another
        masks = np.where(masks.any((1, 2), keepdims=True), masks, _masks(model, site, places, shape, None))
    for place, mask in zip(places, masks, strict=True):
        if not mask.any():
            raise InputError(
                f"Expected an output that depends on the input, but {site.layer!r} at {place} does not: its weights are zero, or the model "
                "computes it in inference mode, where gradients cannot follow."
            )
    return [ReceptiveField(site.key, site.identity, unit, place, mask) for place, mask in zip(places, masks, strict=True)]


def _masks(
    model: nn.Module, site: Site, places: Sequence[tuple[int, int]], shape: tuple[int, int, int], unit: int | None
) -> npt.NDArray[np.bool_]:
    """The pixels that a unit, or any, depends on at each place, [n_places, height, width]."""
    masks = np.zeros((len(places), *shape[1:]), bool)
    plain = dataclasses.replace(site, basis=None)
    # wherever it is called from, tensors are such as have gradients; and a model that draws numbers leaves the random state
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        tensors = {name: _copied(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        generator = torch.Generator().manual_seed(0)
        with evaluating(model, *site.modules), tapped(model, [plain], gradients=True) as taps:
            for _ in range(_INPUTS):
                image = (torch.rand(1, *shape, generator=generator, dtype=torch.float64) + 0.5).requires_grad_(True)
                values = _map(_run(model, tensors, plain, image, taps), site, unit)
                for mask, place in zip(masks, places, strict=True):
                    mask |= _reached(values, place, image, site.layer)
    return masks


def _map(values: torch.Tensor, site: Site, unit: int | None) -> torch.Tensor:
    """What a layer gives for one image, [1, n_channels, *positions], summed over the units asked for: [height, width], with its graph."""
    if site.basis is not None and unit is not None:
        weight = next((p for module in site.modules for p in module.parameters() if p.is_floating_point()), torch.zeros(0))
        with Dependence():
            values = site.basis.encode(values.movedim(1, -1).to(weight.device, weight.dtype)).movedim(-1, 1)
    if unit is not None:
        check_unit(site.key, unit, values.shape[1])
        values = values[:, unit : unit + 1]
    values = values[0].sum(dim=0)
    return values.reshape((1,) * (2 - values.ndim) + tuple(values.shape)) if values.ndim < 2 else values


def _reached(values: torch.Tensor, position: tuple[int, int], image: torch.Tensor, layer: str) -> npt.NDArray[np.bool_]:
    if values.ndim != 2 or not all(p < n for p, n in zip(position, values.shape, strict=True)):
        raise InputError(f"Expected a position (row, column) in the map of {layer!r}, {tuple(values.shape)}, but got {position}.")
    value = values[position]
    (gradient,) = torch.autograd.grad(value, image, retain_graph=True, allow_unused=True) if value.requires_grad else (None,)
    return np.asarray((torch.zeros_like(image) if gradient is None else gradient)[0].ne(0).any(dim=0))


def _run(model: nn.Module, tensors: dict[str, torch.Tensor], site: Site, image: torch.Tensor, taps: Taps) -> torch.Tensor:
    """What the site gives for an image, [1, n_units, *positions]; the first pass goes on behind it, to see whether it runs again."""
    dependence = Dependence()
    no_checkpoints = torch.autograd.graph.disable_saved_tensors_hooks("it uses gradient checkpointing, which has to be turned off")
    try:
        with dependence, no_checkpoints, taps.forward():
            functional_call(model, tensors, (image.clone(),))  # a copy, which the model may change in place
    except NeuroprobeError:
        raise
    except Exception as error:
        if site not in taps:  # behind the layer, anything may go wrong on an input of another size than the model's own
            raise InputError(
                f"Expected a model that runs in float64 on the CPU on an input {tuple(image.shape[1:])}, but got: {str(error)[:200]}. "
                "Give the `input_shape` it was made for."
            ) from error
    return cast(Reading, taps[site]).by_unit


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
        if len(place) != 2 or not all(is_whole(p) and p >= 0 for p in place):
            raise InputError(f"Expected positions (row, column) as whole numbers from 0 on, but got {positions!r}.")
    return [(int(row), int(column)) for row, column in places]


def _checked_shape(input_shape: Sequence[int]) -> tuple[int, int, int]:
    shape = tuple(input_shape) if isinstance(input_shape, Iterable) else ()
    if len(shape) != 3 or not all(is_whole(n) and n > 0 for n in shape):
        raise InputError(f"Expected `input_shape` as (channels, height, width), but got {input_shape!r}. Leave the batch out.")
    return int(shape[0]), int(shape[1]), int(shape[2])
