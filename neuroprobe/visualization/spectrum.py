"""What images look like on average: their mean color, how their colors vary together, and their Fourier magnitudes.

Colors are *decorrelated*: a pixel is ``mean + colors @ z``, and the three components of z are uncorrelated over the pixels of the
images, with variance 1 (Olah et al., 2017). The magnitudes are of z.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torchvision import transforms

from neuroprobe.exceptions import InputError, shown
from neuroprobe.images import BatchRecord, Collected, Images, Transform, collect
from neuroprobe.models import preprocessing
from neuroprobe.models import IMAGENET_MEAN

_Result = TypeVar("_Result")

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

    Parameters
    ----------
    images : Images
        A few hundred are enough.
    transform : callable, optional
        The model's, from a PIL image to its input: images are cut and resized as the model sees them, and its scaling is undone.
    size : int or (int, int), optional
        Without a transform: images are resized (shorter side) and cut to this many pixels; by default 224.
    batch_size, workers, progress
        As in `neuroprobe.images.passes.collect`.

    Raises
    ------
    InputError
        Both a transform and a size, a transform whose size depends on the image, or images that do not vary at all.

    References
    ----------
    Olah, Mordvintsev and Schubert, Feature visualization, Distill 2017. Fel et al., Unlocking feature visualization for deeper
    networks with MAgnitude Constrained Optimization, NeurIPS 2023, arXiv 2306.06805.
    """
    if not isinstance(images, Images):
        raise InputError(f"Expected `images` to be neuroprobe.Images, but got {shown(images)}. Write Images(...).")
    if transform is not None and size is not None:
        raise InputError("Expected `transform` or `size`, but got both: the transform has a size.")
    reading = {"batch_size": batch_size, "workers": workers, "progress": progress}
    measured = preprocessing(transform, size=size)
    colors = _Colors(transform, measured.size, measured.facts)
    (mean, factor, fingerprint) = collect(images, [colors], description="colors", **reading)[0]  # type: ignore[arg-type]
    magnitudes = _Magnitudes(transform, measured.size, measured.facts, mean, factor)
    (found,) = collect(images, [magnitudes], description="magnitudes", **reading)  # type: ignore[arg-type]
    return ImageSpectrum(mean.numpy(), factor.numpy(), found, measured.size, fingerprint)


class _Pixels:
    """A consumer's first half: images in [0, 1] from what the model takes."""

    def __init__(self, transform: Transform | None, size: tuple[int, int], facts: dict[str, Any]) -> None:
        cut = [transforms.Resize(min(size)), transforms.CenterCrop(size), transforms.ToTensor()]
        self.transform: Transform = transforms.Compose(cut) if transform is None else transform
        known = transform is not None
        self._mean = torch.tensor(facts["mean"] if known else [0.0] * 3, dtype=torch.float64)[:, None, None]
        self._std = torch.tensor(facts["std"] if known else [1.0] * 3, dtype=torch.float64)[:, None, None]
        self._n = 0

    def _pixels(self, batch: torch.Tensor) -> torch.Tensor:
        self._n += len(batch)
        return batch.double() * self._std + self._mean


class _Colors(_Pixels):
    """Mean and square root of the covariance of all pixels."""

    def __init__(self, transform: Transform | None, size: tuple[int, int], facts: dict[str, Any]) -> None:
        super().__init__(transform, size, facts)
        self._sum, self._products = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)

    def consume(self, batch: torch.Tensor, record: BatchRecord) -> None:
        pixels = self._pixels(batch)
        self._sum += pixels.mean((2, 3)).sum(0)
        self._products += torch.einsum("nchw,ndhw->cd", pixels, pixels) / (pixels.shape[2] * pixels.shape[3])

    def finish(self, collected: Collected) -> tuple[torch.Tensor, torch.Tensor, str]:
        mean = self._sum / self._n
        covariance = self._products / self._n - mean[:, None] * mean
        values, vectors = torch.linalg.eigh(covariance)
        if values[-1] < 1e-10:
            raise InputError("Expected images that vary, but all their pixels have one color.")
        # gray images vary in one direction only; the others get next to nothing instead of a division by 0
        return mean, vectors * values.clamp(min=_SMALLEST_SHARE * float(values[-1])).sqrt(), collected.fingerprint


class _Magnitudes(_Pixels):
    """Mean Fourier magnitudes in decorrelated colors."""

    def __init__(
        self, transform: Transform | None, size: tuple[int, int], facts: dict[str, Any], mean: torch.Tensor, colors: torch.Tensor
    ) -> None:
        super().__init__(transform, size, facts)
        self._color, self._inverse = mean[:, None, None], torch.linalg.inv(colors)
        self._sum = torch.zeros(3, size[0], size[1] // 2 + 1, dtype=torch.float64)

    def consume(self, batch: torch.Tensor, record: BatchRecord) -> None:
        components = torch.einsum("rc,nchw->nrhw", self._inverse, self._pixels(batch) - self._color)
        self._sum += torch.fft.rfft2(components, norm="ortho").abs().sum(0)

    def finish(self, collected: Collected) -> npt.NDArray[np.float32]:
        return np.asarray((self._sum / self._n).numpy(), dtype=np.float32)


def imagenet_colors() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean [3] and colors [3, 3] of ImageNet, where no images of one's own are given."""
    return np.asarray(IMAGENET_MEAN, dtype=np.float32), np.asarray(IMAGENET_COLORS, dtype=np.float32)
