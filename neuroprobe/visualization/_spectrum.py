"""Images as Fourier coefficients of decorrelated colors: measured on the user's images, and what gradient ascent moves.

Colors are *decorrelated*: a pixel is ``mean + colors @ z``, and the three components of z are uncorrelated over the pixels of the
images, with variance 1 (Olah et al., 2017). An image made is ``sigmoid(4 (mean + colors @ z - 1/2))``, where the three planes of z are
inverse Fourier transforms, so that a step changes it as natural images vary: the slope in the middle is 1, so that small contrasts stay
as they are and nothing leaves [0, 1]. What is free differs: magnitude and phase (`FourierImages`), or phase alone (`PhaseImages`).

References
----------
Olah, Mordvintsev and Schubert, Feature visualization, Distill 2017 (`FourierImages`). Fel et al., Unlocking feature visualization for
deeper networks with MAgnitude Constrained Optimization, NeurIPS 2023, arXiv 2306.06805 (`PhaseImages`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision import transforms

from neuroprobe._core import check_number
from neuroprobe.exceptions import InputError
from neuroprobe.images import BatchRecord, Collected, Images, Transform, check_images, collect
from neuroprobe.models import IMAGENET_MEAN, preprocessing

#: ImageNet's colors: the square root of their covariance that the authors of Olah et al. (2017) published with lucid.
IMAGENET_COLORS = ((0.26, 0.09, 0.02), (0.27, 0.0, -0.05), (0.27, -0.09, 0.03))

_SMALLEST_SHARE = 1e-6  # of the colors' variance: gray images have no other


@dataclass(frozen=True, eq=False)
class ImageSpectrum:
    """Colors and Fourier magnitudes of images.

    Attributes
    ----------
    mean : ndarray, [3], float32
        Mean color, RGB in [0, 1].
    colors : ndarray, [3, 3], float32
        A pixel is ``mean + colors @ z``; columns by rising variance, ``colors @ colors.T`` is the colors' covariance.
    magnitudes : ndarray, [3, h, w // 2 + 1], float32
        The mean over the images of ``abs(rfft2(z))`` (orthonormal), of images of h x w pixels.
    size : (int, int)
        h and w.
    images : str
        Fingerprint of the images.
    """

    mean: npt.NDArray[np.float32]
    colors: npt.NDArray[np.float32]
    magnitudes: npt.NDArray[np.float32]
    size: tuple[int, int]
    images: str = ""

    def __post_init__(self) -> None:
        height, width = self.size
        shapes = {"mean": (3,), "colors": (3, 3), "magnitudes": (3, height, width // 2 + 1)}
        for name, shape in shapes.items():
            value = np.asarray(getattr(self, name), dtype=np.float32)
            if value.shape != shape or not np.isfinite(value).all():
                raise InputError(f"Expected `{name}` as finite numbers {list(shape)}, but got {list(value.shape)} or numbers that are not.")
            object.__setattr__(self, name, value)
        if (self.magnitudes < 0).any():
            raise InputError("Expected magnitudes of 0 or more, but some are below.")


def image_spectrum(
    images: Images,
    *,
    transform: Transform | None = None,
    size: int | tuple[int, int] | None = None,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool | None = None,
) -> ImageSpectrum:
    """Measure colors and Fourier magnitudes of the user's own images; they are gone through twice.

    What they are is told by the papers that `neuroprobe.visualize` names.

    Parameters
    ----------
    images : Images
        A few hundred are enough.
    transform : callable, optional
        The model's, from a PIL image to its input: images are cut and resized as the model sees them, and its scaling is undone.
    size : int or (int, int), optional
        Without a transform: images are resized (shorter side) and cut to this many pixels; by default 224.
    batch_size, workers, progress
        As in `neuroprobe.images.collect`.

    Raises
    ------
    InputError
        Both a transform and a size, a transform whose size depends on the image, or images that do not vary at all.
    """
    check_images(images)
    if transform is not None and size is not None:
        raise InputError("Expected `transform` or `size`, but got both: the transform has a size.")
    reading: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
    measured = preprocessing(transform, size=size)
    if transform is None:
        cut = [transforms.Resize(min(measured.size)), transforms.CenterCrop(measured.size), transforms.ToTensor()]
        transform, facts = transforms.Compose(cut), {"mean": [0.0] * 3, "std": [1.0] * 3}
    else:
        facts = measured.facts
    ((mean, colors, fingerprint),) = collect(images, [_ColorPass(transform, facts)], description="colors", **reading)
    (magnitudes,) = collect(images, [_MagnitudePass(transform, facts, mean, colors)], description="magnitudes", **reading)
    return ImageSpectrum(mean.numpy(), colors.numpy(), magnitudes, measured.size, fingerprint)


class _PixelPass:
    """A consumer's first half: images in [0, 1] from what the model takes."""

    def __init__(self, transform: Transform, facts: dict[str, Any]) -> None:
        self.transform, self._n = transform, 0
        self._mean, self._std = (torch.tensor(facts[name], dtype=torch.float64)[:, None, None] for name in ("mean", "std"))
        self._sum: torch.Tensor | float = 0.0
        self._products: torch.Tensor | float = 0.0

    def _pixels(self, batch: torch.Tensor) -> torch.Tensor:
        self._n += len(batch)
        return batch.double() * self._std + self._mean


class _ColorPass(_PixelPass):
    """Mean and square root of the covariance of all pixels."""

    def consume(self, batch: torch.Tensor, record: BatchRecord) -> None:
        pixels = self._pixels(batch)
        self._sum = self._sum + pixels.mean((2, 3)).sum(0)
        self._products = self._products + torch.einsum("nchw,ndhw->cd", pixels, pixels) / (pixels.shape[2] * pixels.shape[3])

    def finish(self, collected: Collected) -> tuple[torch.Tensor, torch.Tensor, str]:
        mean = torch.as_tensor(self._sum) / self._n
        covariance = self._products / self._n - mean[:, None] * mean
        values, vectors = torch.linalg.eigh(covariance)
        if values[-1] < 1e-10:
            raise InputError("Expected images that vary, but all their pixels have one color.")
        # gray images vary in one direction only; the others get next to nothing instead of a division by 0
        return mean, vectors * values.clamp(min=_SMALLEST_SHARE * float(values[-1])).sqrt(), collected.fingerprint


class _MagnitudePass(_PixelPass):
    """Mean Fourier magnitudes in decorrelated colors."""

    def __init__(self, transform: Transform, facts: dict[str, Any], mean: torch.Tensor, colors: torch.Tensor) -> None:
        super().__init__(transform, facts)
        self._color, self._inverse = mean[:, None, None], torch.linalg.inv(colors)

    def consume(self, batch: torch.Tensor, record: BatchRecord) -> None:
        components = torch.einsum("rc,nchw->nrhw", self._inverse, self._pixels(batch) - self._color)
        self._sum = self._sum + torch.fft.rfft2(components, norm="ortho").abs().sum(0)

    def finish(self, collected: Collected) -> npt.NDArray[np.float32]:
        return np.asarray((torch.as_tensor(self._sum) / self._n).numpy(), dtype=np.float32)


def imagenet_colors() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean [3] and colors [3, 3] of ImageNet, where no images of one's own are given."""
    return np.asarray(IMAGENET_MEAN, dtype=np.float32), np.asarray(IMAGENET_COLORS, dtype=np.float32)


_START = 0.1  # the contrast of the first image, of noise, in that of natural images


class Parametrization(ABC):
    """What images of a size and in decorrelated colors are made of: parameters, and the way from them to pixels."""

    def __init__(self, size: tuple[int, int], mean: npt.NDArray[np.float32], colors: npt.NDArray[np.float32]) -> None:
        self._size, self._mean, self._colors = size, torch.from_numpy(mean.copy()), torch.from_numpy(colors.copy())

    @abstractmethod
    def start(self, generator: torch.Generator, *, attempt: int = 0) -> torch.Tensor:
        """Parameters of one image of noise, on the CPU; a later attempt has more contrast, where there is a choice."""

    @abstractmethod
    def coefficients(self, parameters: torch.Tensor) -> torch.Tensor:
        """Fourier coefficients [n, 3, h, w // 2 + 1] of the planes z."""

    def allowed(self, parameters: torch.Tensor) -> torch.Tensor:
        """The parameters, or the nearest that are allowed."""
        return parameters

    def planes(self, parameters: torch.Tensor) -> torch.Tensor:
        """The planes z, [n, 3, h, w]."""
        planes: torch.Tensor = torch.fft.irfft2(self.coefficients(parameters), s=self._size, norm="ortho")
        return planes

    def images(self, parameters: torch.Tensor) -> torch.Tensor:
        """Images [n, 3, h, w] in [0, 1], RGB, from parameters [n, ...]."""
        planes = self.planes(parameters)
        mixed = torch.einsum("cr,nrhw->nchw", self._colors.to(planes), planes)
        return torch.sigmoid(4 * (mixed + (self._mean.to(planes) - 0.5)[:, None, None]))


class FourierImages(Parametrization):
    """Magnitude and phase are free; coefficients are scaled by 1/f^decay, and the contrast has a limit.

    A coefficient of 1 is one of natural images: their magnitudes fall as 1/f, here with decorrelated components of variance 1.

    Parameters
    ----------
    size : (int, int)
        Height and width.
    mean, colors : ndarray, [3] and [3, 3]
        As of `ImageSpectrum`.
    decay : float, default 1
        Larger for smoother images.
    contrast : float, default 1.5
        The largest root mean square of z, over all pixels and components; that of natural images is 1.
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
        super().__init__(size, mean, colors)
        self._contrast = contrast
        self._scale = natural_scale(size, decay)  # [h, w // 2 + 1]

    def start(self, generator: torch.Generator, *, attempt: int = 0) -> torch.Tensor:
        contrast = min(_START * 2**attempt, self._contrast)
        noise: torch.Tensor = contrast * torch.randn(3, *self._scale.shape, 2, generator=generator)
        return noise

    def allowed(self, parameters: torch.Tensor) -> torch.Tensor:
        contrast = self.planes(parameters).square().mean((1, 2, 3)).sqrt()
        factors = (self._contrast / contrast.clamp(min=1e-12)).clamp(max=1)
        within: torch.Tensor = parameters * factors[:, None, None, None, None]
        return within

    def coefficients(self, parameters: torch.Tensor) -> torch.Tensor:
        return torch.view_as_complex((parameters * self._scale.to(parameters)[:, :, None]).contiguous())


class PhaseImages(Parametrization):
    """The phase alone is free; magnitudes are those of natural images (MACO).

    Every image has the magnitudes of `spectrum` before the sigmoid. (The up to four coefficients that are real have no phase: they
    lie between minus and plus their magnitude. Among them is the mean.)
    """

    def __init__(self, spectrum: ImageSpectrum) -> None:
        super().__init__(spectrum.size, spectrum.mean, spectrum.colors)
        self._magnitudes = torch.from_numpy(spectrum.magnitudes.copy())

    def start(self, generator: torch.Generator, *, attempt: int = 0) -> torch.Tensor:
        return 2 * math.pi * torch.rand(self._magnitudes.shape, generator=generator)

    def coefficients(self, parameters: torch.Tensor) -> torch.Tensor:
        phases = _odd(parameters, even_width=self._size[1] % 2 == 0)
        magnitudes = self._magnitudes.to(parameters).expand_as(phases)
        return torch.polar(magnitudes.contiguous(), phases)


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
