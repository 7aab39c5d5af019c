"""What a model's transform does to the colors and the size of an image, and how it is undone.

Whoever makes images for a model, or shows what a model was given, has to know how its transform scales colors. That is not read from a
transform's fields, which every library names in another way: images of one color show it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from neuroprobe.exceptions import InputError, shown
from neuroprobe.images import Transform

#: From images in [0, 1], RGB, [n, 3, h, w], to what a model takes.
Normalize: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

#: ImageNet's, which most models of photographs use.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_SIDES = (640, 768)  # larger than what models take, so that nothing is padded
_COLOR = (51, 102, 204)
_TOLERANCE = 2e-3  # of a half-precision or 8-bit transform, in units of the scale


@dataclass(frozen=True)
class Preprocessing:
    """How an image in [0, 1] becomes a model's input.

    Attributes
    ----------
    size : (int, int)
        Height and width in pixels.
    normalize : callable
    facts : dict
        What results remember: the size, and mean and std where they are known.
    """

    size: tuple[int, int]
    normalize: Normalize
    facts: dict[str, Any]


def scaling(mean: Sequence[float], std: Sequence[float]) -> Normalize:
    """The function that takes `mean` away from the three channels of images and divides by `std`.

    Raises
    ------
    InputError
        Not three finite numbers each, or a `std` that is not positive.
    """
    try:
        rows = torch.stack([torch.as_tensor(numbers, dtype=torch.float64) for numbers in (mean, std)])
    except (TypeError, ValueError, RuntimeError):  # no numbers, or not as many of both
        rows = torch.zeros(0)
    if rows.shape != (2, 3) or not rows.isfinite().all() or not (rows[1] > 0).all():
        raise InputError(f"Expected `mean` and `std` as three numbers each, `std` above 0, but got {mean!r:.80} and {std!r:.80}.")
    shift, scale = rows[:, None, :, None, None]

    def normalize(images: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = (images - shift.to(images)) / scale.to(images)
        return scaled

    return normalize


def read_transform(transform: Transform) -> tuple[tuple[int, int] | None, tuple[float, ...], tuple[float, ...]]:
    """The size, mean and std of a transform from a PIL image to a model's input.

    Parameters
    ----------
    transform : callable

    Returns
    -------
    size : (int, int) or None
        Height and width; None if it depends on the image's.
    mean, std : tuple of float
        Of the three channels, of images in [0, 1]: the input is ``(image - mean) / std``.

    Raises
    ------
    InputError
        It does not return [3, h, w], is random, or does anything else to colors.

    Examples
    --------
    >>> from neuroprobe.world import target_transform
    >>> size, mean, std = read_transform(target_transform())
    >>> size, [round(value, 3) for value in mean], [round(value, 3) for value in std]
    ((64, 64), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    """
    size, black, white = _black_and_white(transform, channels=(3,))
    color, scale = _of_one_color(transform, _COLOR, _SIDES[0])[1], white - black
    expected = black + scale * torch.tensor(_COLOR, dtype=torch.float64) / 255
    if not (scale > 0).all() or ((color - expected).abs() > _TOLERANCE * scale).any():
        raise InputError(
            "Expected a transform that scales red, green and blue each by itself, but this one does something else with colors. "
            "Give `normalize` (a function of images [n, 3, h, w] in [0, 1]) and `size` instead."
        )
    same = _of_one_color(transform, (0, 0, 0), _SIDES[1])[0] == size
    return size if same else None, tuple((-black / scale).tolist()), tuple((1 / scale).tolist())


def _black_and_white(transform: Transform, *, channels: tuple[int, ...]) -> tuple[tuple[int, int], torch.Tensor, torch.Tensor]:
    """The size, and what becomes of black and of white, [channels] each."""
    (size, black), (_, white) = (_of_one_color(transform, (level,) * 3, _SIDES[0], channels) for level in (0, 255))
    return size, black, white


def _of_one_color(
    transform: Transform, rgb: tuple[int, ...], side: int, channels: tuple[int, ...] = (3,)
) -> tuple[tuple[int, int], torch.Tensor]:
    """Size and value [channels] of what becomes of an image of one color."""
    found = transform(Image.new("RGB", (side, side), rgb))
    if not isinstance(found, torch.Tensor) or found.ndim != 3 or len(found) not in channels or not found.is_floating_point():
        what = f"{tuple(found.shape)} of {found.dtype}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise InputError(f"Expected a transform from an RGB image to floating-point [3, h, w], but it gives {what}.")
    values = found.cpu().double().flatten(1)
    spread = values.amax(1) - values.amin(1)
    if (spread > _TOLERANCE * values.abs().amax().clamp(min=1)).any():
        raise InputError(
            "Expected a transform that leaves an image of one color of one color, but this one does not. Leave out noise and padding."
        )
    return (found.shape[1], found.shape[2]), values.mean(1)


def preprocessing(
    transform: Transform | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    normalize: Normalize | None = None,
) -> Preprocessing:
    """How images in [0, 1] become a model's input, from whichever of these the user has.

    Parameters
    ----------
    transform : callable, optional
        From a PIL image to the model's input, as everywhere in this library: its size, mean and std are measured.
    size : int or (int, int), optional
        In pixels, (height, width); by default the transform's, or 224.
    mean, std : three numbers each, optional
        Of images in [0, 1]; by default ImageNet's.
    normalize : callable, optional
        Instead of `mean` and `std`, a differentiable function of images [n, 3, h, w].

    Raises
    ------
    InputError
        Several of `transform`, `mean` with `std`, and `normalize`, or values that do not fit.
    """
    if sum((transform is not None, mean is not None or std is not None, normalize is not None)) > 1:
        raise InputError("Expected one of `transform`, `mean` with `std`, and `normalize`, but got several. They say the same thing.")
    if (mean is None) != (std is None):
        raise InputError("Expected `mean` and `std` together, but got one of them.")
    for name, given in (("transform", transform), ("normalize", normalize)):
        if given is not None and not callable(given):
            raise InputError(f"Expected `{name}` to be a function, but got {shown(given)}.")
    found: tuple[int, int] | None = (224, 224)
    if transform is not None:
        found, mean, std = read_transform(transform)
    found = found if size is None else _checked_size(size)
    if found is None:
        raise InputError("Expected a transform that gives images of one size, but this one's depends on the image. Give `size`.")
    if normalize is not None:
        return Preprocessing(found, normalize, {"size": list(found)})
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if mean is None or std is None else (mean, std)
    function = scaling(mean, std)
    return Preprocessing(found, function, {"size": list(found), "mean": [float(m) for m in mean], "std": [float(s) for s in std]})


def _checked_size(size: int | tuple[int, int]) -> tuple[int, int]:
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, (int, np.integer)) and not isinstance(side, bool) and side >= 4 for side in sides):
        raise InputError(f"Expected `size` as a whole number of pixels from 4 up, or (height, width), but got {size!r}.")
    return int(sides[0]), int(sides[1])


def color_scaling(transform: Transform | None) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std per channel with which ``image = input * std + mean``; None where images of one color do not show any."""
    try:
        _, black, white = _black_and_white(transform, channels=(1, 3))  # type: ignore[arg-type]
    except Exception:  # none is given, or it is of images of another kind
        return None
    scale = white - black
    return (tuple((-black / scale).tolist()), tuple((1 / scale).tolist())) if (scale > 0).all() else None


def picture_of(
    tensor: torch.Tensor, *, transform: Any = None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Image.Image:
    """A model's input as a picture, pixel by pixel: nothing is resized or cropped.

    The scaling of colors is taken back: by `mean` and `std` if they are given, else as images of one color show what the transform
    does. Without either, values that are all in [0, 1], and bytes, stay as they are, and others are stretched from the lowest to the
    highest, which changes colors.

    Parameters
    ----------
    tensor : Tensor, [channels, height, width]
        3 channels, or 1.
    transform : callable, optional
        What made it.
    mean, std : sequence of float, optional
        One per channel; both or neither.

    Returns
    -------
    PIL.Image.Image
        RGB, width x height.

    Raises
    ------
    InputError
        A tensor of another shape, or only one of mean and std, or of another length.
    """
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != 3 or tensor.shape[0] not in (1, 3) or not tensor.numel():
        shape = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise InputError(f"Expected a model's input [3, height, width] or [1, height, width], but got {shape}.")
    if (mean is None) != (std is None):
        raise InputError(f"Expected both `mean` and `std` or neither, but got {mean} and {std}.")
    values = tensor.detach().cpu().double() / (255 if tensor.dtype == torch.uint8 else 1)
    known = (mean, std) if mean is not None else color_scaling(transform)
    if known is not None:
        offset, scale = (_per_channel(numbers, len(values)) for numbers in known)
        values = values * scale + offset
    elif values.min() < 0 or values.max() > 1:
        values = (values - values.min()) / (values.max() - values.min()).clamp_min(torch.finfo(torch.float64).tiny)
    pixels = (values.clamp(0, 1) * 255).round().to(torch.uint8).expand(3, -1, -1)
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))  # [3, h, w] -> [h, w, 3]


def _per_channel(numbers: Any, n: int) -> torch.Tensor:
    try:
        values = torch.as_tensor(numbers, dtype=torch.float64).flatten()
    except (TypeError, ValueError, RuntimeError):
        values = torch.empty(0)
    if len(values) not in (1, n):
        raise InputError(f"Expected a mean and a standard deviation per channel ({n}), but got {numbers!r}.")
    return values.expand(n).view(-1, 1, 1)
