"""Which of the world's colors an image shows: a measure for images that are made and not rendered."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from neuroprobe.world._rendering import RGB
from neuroprobe.world._scenes import COLORS

#: The plain backgrounds: white, gray, black and beige. Pixels nearest to one of them show no color.
_NEUTRAL = ((0.95, 0.95, 0.95), (0.5, 0.5, 0.5), (0.06, 0.06, 0.06), (0.86, 0.76, 0.58))

_TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
_WHITE = _TO_XYZ.sum(axis=1)  # of D65


def color_votes(images: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """How many pixels are nearest to each of the world's colors.

    Every pixel goes to the nearest in CIELAB of the eight colors and the four plain backgrounds, as they are rendered.

    Parameters
    ----------
    images : ndarray, [n, 3, h, w]
        RGB in [0, 1].

    Returns
    -------
    ndarray, [n, 8]
        In the order of `neuroprobe.world.COLORS`.

    Examples
    --------
    >>> red = np.broadcast_to(np.array([0.8, 0.1, 0.1])[None, :, None, None], (1, 3, 2, 2))
    >>> color_votes(red).tolist()
    [[4, 0, 0, 0, 0, 0, 0, 0]]
    """
    palette = lab(np.array([*(RGB[name] for name in COLORS), *_NEUTRAL]))
    pixels = lab(np.moveaxis(images, 1, -1)).reshape(len(images), -1, 1, 3)
    nearest = ((pixels - palette) ** 2).sum(axis=-1).argmin(axis=-1)  # [n, h * w]
    return np.stack([np.bincount(row, minlength=len(palette))[: len(COLORS)] for row in nearest])


def lab(rgb: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """CIELAB (D65) of sRGB values [..., 3] in [0, 1]."""
    values = np.asarray(rgb, dtype=np.float64)
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    ratio = linear @ _TO_XYZ.T / _WHITE
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)
