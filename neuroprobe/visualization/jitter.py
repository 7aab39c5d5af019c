"""Small random changes of images between the steps of gradient ascent: what stays a peak under them is no accident of a few pixels.

Everything is in shares of the image's side, never in pixels, so that small images are moved as little as large ones look moved.
Images are continued periodically, as their Fourier series are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from neuroprobe.exceptions import InputError

_PER_STEP = 4  # random numbers: two shifts, a rotation, a scale


@dataclass(frozen=True)
class Jitter:
    """How much images are changed at random before every step.

    Attributes
    ----------
    shift : float, default 0.05
        Largest shift, as a share of the image's side.
    scale : float, default 0.05
        Images are made larger or smaller by up to this share.
    rotation : float, default 5
        Largest angle, in degrees.
    noise : float, default 0.05
        Standard deviation of noise added to each pixel, of images in [0, 1].

    Raises
    ------
    InputError
        A number below 0, or so large that little of the image would be left.
    """

    shift: float = 0.05
    scale: float = 0.05
    rotation: float = 5.0
    noise: float = 0.05

    def __post_init__(self) -> None:
        for name, most in (("shift", 0.5), ("scale", 0.5), ("rotation", 90), ("noise", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
                raise InputError(f"Expected the jitter's `{name}` from 0 to {most}, but got {value!r}.")

    def draws(self, generator: torch.Generator, steps: int) -> torch.Tensor:
        """The random numbers of one image, [steps, 4], in [-1, 1]: shift down, shift right, rotation, scale."""
        return 2 * torch.rand(steps, _PER_STEP, generator=generator) - 1

    def moved(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Images [n, 3, h, w], each turned, scaled and shifted by its own draws [n, 4]."""
        draws = draws.to(images)
        turned = rotate(images, draws[:, 2] * math.radians(self.rotation)) if self.rotation else images
        if not (self.shift or self.scale):
            return turned
        zoom = torch.exp(draws[:, 3] * math.log1p(self.scale))
        rows, columns = (_resampling(n, zoom, self.shift * draws[:, i]) for i, n in enumerate(images.shape[2:]))
        return torch.einsum("nij,ncjk,nlk->ncil", rows, turned, columns)


def rotate(images: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Images [n, c, h, w] turned about their middle by angles [n], in radians, clockwise if positive.

    By three shears, each exact for band-limited images (Paeth 1986; Unser, Thevenaz and Yaroslavsky 1995). No pixel is averaged with
    its neighbors, and gradients are sums in one order on every device.
    """
    along = -torch.tan(angles / 2)
    return _shear(_shear(_shear(images, along, axis=3), torch.sin(angles), axis=2), along, axis=3)


def _shear(images: torch.Tensor, amounts: torch.Tensor, *, axis: int) -> torch.Tensor:
    """Each row (axis 3) or column (axis 2) shifted by its distance from the middle times the image's amount."""
    n, others = images.shape[axis], images.shape[5 - axis]
    frequencies = torch.fft.rfftfreq(n, device=images.device, dtype=images.dtype)
    distances = torch.arange(others, device=images.device, dtype=images.dtype) - (others - 1) / 2
    angles = -2 * math.pi * amounts[:, None, None] * distances[:, None] * frequencies  # [images, others, frequencies]
    factors = torch.polar(torch.ones_like(angles), angles)[:, None]
    factors = factors if axis == 3 else factors.transpose(2, 3)
    sheared: torch.Tensor = torch.fft.irfft(torch.fft.rfft(images, dim=axis) * factors, n=n, dim=axis)
    return sheared


def _resampling(n: int, zoom: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Matrices [images, n, n] that scale n pixels about their middle and shift them, by linear interpolation, periodically."""
    positions = torch.arange(n, device=zoom.device, dtype=zoom.dtype)
    middle = (n - 1) / 2
    sources = middle + (positions - middle - shift[:, None] * n) / zoom[:, None]  # [images, n]
    distances = sources[:, :, None] - positions
    return (1 - (distances - n * torch.round(distances / n)).abs()).clamp(min=0)
