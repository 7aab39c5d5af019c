"""Pictures of a model's input: what the transform gave it, as something to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from neuroprobe.exceptions import InputError


def picture_of(
    tensor: torch.Tensor, *, transform: Any = None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Image.Image:
    """A model's input as a picture, pixel by pixel: nothing is resized or cropped.

    The normalization is taken back: by `mean` and `std` if they are given, else by those of a
    `torchvision.transforms.Normalize` in the transform; values that are all in [0, 1], and bytes, then stay as they are, and others
    are stretched from the lowest to the highest, which changes colors.

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
    values = tensor.detach().double().cpu() / (255 if tensor.dtype == torch.uint8 else 1)
    known = (mean, std) if mean is not None else normalization(transform)
    if known is not None:
        offset, scale = (_per_channel(numbers, len(values)) for numbers in known)
        values = values * scale + offset
    elif values.min() < 0 or values.max() > 1:
        values = (values - values.min()) / (values.max() - values.min()).clamp_min(torch.finfo(torch.float64).tiny)
    pixels = (values.clamp(0, 1) * 255).round().to(torch.uint8).expand(3, -1, -1)
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))  # [3, h, w] -> [h, w, 3]


def normalization(transform: Any) -> tuple[Any, Any] | None:
    """Mean and standard deviation of the last step of a transform that has both, such as torchvision's Normalize; None if none has."""
    steps = getattr(transform, "transforms", None)
    if steps is None and isinstance(transform, torch.nn.Sequential):
        steps = list(transform)
    for step in reversed(list(steps) if steps is not None else []):
        found = normalization(step)
        if found is not None:
            return found
    mean, std = getattr(transform, "mean", None), getattr(transform, "std", None)
    return None if mean is None or std is None or callable(mean) else (mean, std)


def _per_channel(numbers: Any, n: int) -> torch.Tensor:
    try:
        values = torch.as_tensor(numbers, dtype=torch.float64).flatten()
    except (TypeError, ValueError, RuntimeError):
        values = torch.empty(0)
    if len(values) not in (1, n):
        raise InputError(f"Expected a mean and a standard deviation per channel ({n}), but got {numbers!r}.")
    return values.expand(n).view(-1, 1, 1)
