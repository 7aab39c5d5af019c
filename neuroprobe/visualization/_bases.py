"""Images as Fourier coefficients of decorrelated colors, so that a step of gradient ascent changes them as natural images vary.

Both kinds are one map, ``image = sigmoid(4 (mean + colors @ z - 1/2))``, where the three planes of z are inverse Fourier transforms:
its slope in the middle is 1, so that small contrasts stay as they are and nothing leaves [0, 1]. What is free differs: magnitude and
phase (`FourierImages`), or phase alone (`PhaseImages`).
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from neuroprobe._core import check_number
from neuroprobe.visualization.spectrum import ImageSpectrum

_START = 0.1  # the contrast of the first image, of noise, in that of natural images


class ImageBasis(Protocol):
    """What images are made of: parameters, and the way from them to pixels."""

    def start(self, generator: torch.Generator, *, attempt: int = 0) -> torch.Tensor:
        """Parameters of one image of noise, on the CPU; a later attempt has more contrast, where there is a choice."""

    def images(self, parameters: torch.Tensor) -> torch.Tensor:
        """Images [n, 3, h, w] in [0, 1], RGB, from parameters [n, ...]."""

    def allowed(self, parameters: torch.Tensor) -> torch.Tensor:
        """The parameters, or the nearest that are allowed."""


class _Colors:
    """From the planes z to pixels."""

    def __init__(self, mean: npt.NDArray[np.float32], colors: npt.NDArray[np.float32]) -> None:
        self._mean, self._matrix = torch.from_numpy(mean.copy()), torch.from_numpy(colors.copy())

    def pixels(self, planes: torch.Tensor) -> torch.Tensor:
        mixed = torch.einsum("cr,nrhw->nchw", self._matrix.to(planes), planes)
        return torch.sigmoid(4 * (mixed + (self._mean.to(planes) - 0.5)[:, None, None]))


class FourierImages:
    """Magnitude and phase are free; coefficients are scaled by 1/f^decay, and the contrast has a limit.

    A coefficient of 1 is one of natural images: their magnitudes fall as 1/f, here with decorrelated components of variance 1.

    Parameters
    ----------
    size : (int, int)
        Height and width.
    mean, colors : ndarray, [3] and [3, 3]
        As of `neuroprobe.visualization.spectrum.ImageSpectrum`.
    decay : float, default 1
        Larger for smoother images.
    contrast : float, default 1.5
        The largest root mean square of z, over all pixels and components; that of natural images is 1.

    References
    ----------
    Olah, Mordvintsev and Schubert, Feature visualization, Distill 2017.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        mean: npt.NDArray[np.float32],
        colors: npt.NDArray[np.float32],
        decay: float = 1.0,
        contrast: float = 1.5,
    ) -> None:
        check_number("contrast", contrast, low=0, above=True)
        self._size, self._contrast = size, contrast
        self._colors = _Colors(mean, colors)
        self._scale = natural_scale(size, decay)  # [h, w // 2 + 1]

    def start(self, generator: torch.Generator, *, attempt: int = 0) -> torch.Tensor:
        contrast = min(_START * 2**attempt, self._contrast)
        noise: torch.Tensor = contrast * torch.randn(3, *self._scale.shape, 2, generator=generator)
        return noise

    def images(self, parameters: torch.Tensor) -> torch.Tensor:
        return self._colors.pixels(self._planes(parameters))

    def allowed(self, parameters: torch.Tensor) -> torch.Tensor:
        contrast = self._planes(parameters).square().mean((1, 2, 3)).sqrt()
        factors = (self._contrast / contrast.clamp(min=1e-12)).clamp(max=1)
        within: torch.Tensor = parameters * factors[:, None, None, None, None]
        return within

    def _planes(self, parameters: torch.Tensor) -> torch.Tensor:
        coefficients = torch.view_as_complex((parameters * self._scale.to(parameters)[:, :, None]).contiguous())
        return _planes(coefficients, self._size)


class PhaseImages:
    """The phase alone is free; magnitudes are those of natural images (MACO).

    Every image has the magnitudes of `spectrum` before the sigmoid. (The up to four coefficients that are real have no phase: they
    lie between minus and plus their magnitude. Among them is the mean.)

    References
    ----------
    Fel et al., Unlocking feature visualization for deeper networks with MAgnitude Constrained Optimization, NeurIPS 2023,
    arXiv 2306.06805.
    """

    def __init__(self, spectrum: ImageSpectrum) -> None:
        self._size = spectrum.size
        self._colors = _Colors(spectrum.mean, spectrum.colors)
        self._magnitudes = torch.from_numpy(spectrum.magnitudes.copy())

    def start(self, generator: torch.Generator, *, attempt: int = 0) -> torch.Tensor:
        return 2 * math.pi * torch.rand(self._magnitudes.shape, generator=generator)

    def images(self, parameters: torch.Tensor) -> torch.Tensor:
        return self._colors.pixels(self._planes(parameters))

    def allowed(self, parameters: torch.Tensor) -> torch.Tensor:
        return parameters

    def _planes(self, parameters: torch.Tensor) -> torch.Tensor:
        phases = _odd(parameters, even_width=self._size[1] % 2 == 0)
        magnitudes = self._magnitudes.to(parameters).expand_as(phases)
        return _planes(torch.polar(magnitudes.contiguous(), phases), self._size)


def natural_scale(size: tuple[int, int], decay: float) -> torch.Tensor:
    """Magnitudes [h, w // 2 + 1] that fall as 1/f^decay, of planes with variance 1 (by Parseval's theorem); f = 0 counts as the lowest."""
    height, width = size
    check_number("decay", decay, low=0)
    frequencies = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    scale = frequencies.clamp(min=1 / max(height, width)) ** -decay
    twice = torch.full((scale.shape[1],), 2.0)  # columns that stand for their mirror image too
    twice[0] = 1
    if width % 2 == 0:
        twice[-1] = 1
    normalized: torch.Tensor = scale / ((scale**2 * twice).sum() / (height * width)).sqrt()
    return normalized


def _planes(coefficients: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    planes: torch.Tensor = torch.fft.irfft2(coefficients, s=size, norm="ortho")
    return planes


def _odd(phases: torch.Tensor, *, even_width: bool) -> torch.Tensor:
    """Phases [..., h, w // 2 + 1] whose columns without a mirror image are odd in themselves, as a real image's are."""
    first, middle = phases[..., :1], phases[..., 1:]
    if not even_width:
        return torch.cat([_odd_column(first), middle], dim=-1)
    return torch.cat([_odd_column(first), middle[..., :-1], _odd_column(middle[..., -1:])], dim=-1)


def _odd_column(column: torch.Tensor) -> torch.Tensor:
    """A column [..., h, 1]: the phases of negative frequencies are minus those of positive ones."""
    height = column.shape[-2]
    half = height // 2 + 1
    return torch.cat([column[..., :half, :], -column[..., 1 : height - half + 1, :].flip(-2)], dim=-2)
