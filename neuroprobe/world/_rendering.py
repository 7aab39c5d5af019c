"""From a scene to pixels: 64 x 64 RGB, antialiased, in numpy alone.

One image is drawn at a time (its arrays fit the processor's cache), so that no image can depend on its neighbors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from neuroprobe.world._scenes import COLORS, Scene, SceneObject

SIDE = 64
_OVERSAMPLING = 2

_Plane = npt.NDArray[np.float32]
_Mask = npt.NDArray[np.bool_]

RGB = {
    "red": (0.86, 0.12, 0.14),
    "yellow": (0.95, 0.86, 0.15),
    "blue": (0.13, 0.27, 0.85),
    "green": (0.13, 0.62, 0.20),
    "orange": (0.97, 0.52, 0.08),
    "purple": (0.50, 0.15, 0.68),
    "pink": (0.98, 0.55, 0.76),
    "cyan": (0.22, 0.82, 0.86),
}


def render(scene: Scene, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw a scene.

    Parameters
    ----------
    scene : Scene
    generator : numpy.random.Generator
        For the background's texture and the noise.

    Returns
    -------
    ndarray of uint8, [64, 64, 3]
    """
    picture = _background(scene.background, generator)
    for item in scene.objects:
        inside, tone = _draw_object(item)
        color = np.asarray(RGB[item.color], dtype=np.float32) + (generator.random(3, dtype=np.float32) - 0.5) * 0.08
        picture = picture * (1 - inside[..., None]) + (tone[..., None] * color) * inside[..., None]
    picture = picture * scene.light + scene.noise * generator.standard_normal(picture.shape, dtype=np.float32)
    return np.asarray(np.clip(picture, 0, 1) * 255 + 0.5, dtype=np.uint8)


def _grid(side: int) -> tuple[_Plane, _Plane]:
    """Pixel centers, [side, side] each: x to the right and y downward, in fractions of the side."""
    centers: _Plane = np.asarray((np.arange(side) + 0.5) / side, dtype=np.float32)
    y, x = np.meshgrid(centers, centers, indexing="ij")
    return x, y


_X, _Y = _grid(SIDE)
_FINE_X, _FINE_Y = _grid(SIDE * _OVERSAMPLING)


def _background(name: str, generator: np.random.Generator) -> _Plane:
    plain = {"white": (0.95, 0.95, 0.95), "grey": (0.5, 0.5, 0.5), "black": (0.06, 0.06, 0.06), "beige": (0.86, 0.76, 0.58)}
    if name in plain:
        return np.broadcast_to(np.asarray(plain[name], dtype=np.float32), (SIDE, SIDE, 3))
    phases = generator.random(4, dtype=np.float32)
    if name == "gradient":
        direction = 2 * np.pi * phases[0]
        plane = 0.5 + 0.75 * ((_X - 0.5) * np.cos(direction) + (_Y - 0.5) * np.sin(direction))
    elif name == "cloudy":
        waves = [np.sin(2 * np.pi * (a * _X + b * _Y + p)) for a, b, p in zip((2, 1, 3, 2), (1, 3, 1, -2), phases, strict=True)]
        plane = 0.6 + 0.11 * sum(waves)
    elif name == "speckled":
        plane = np.where(generator.random((SIDE, SIDE), dtype=np.float32) < 0.12, 0.2, 0.7)
    else:  # tiled: dark joints every eighth of the side
        joints = (((_X + phases[0] / 8) * 8) % 1 < 0.17) | (((_Y + phases[1] / 8) * 8) % 1 < 0.17)
        plane = np.where(joints, 0.25, 0.75)
    return np.repeat(plane.astype(np.float32)[..., None], 3, axis=-1)


def _draw_object(item: SceneObject) -> tuple[_Plane, _Plane]:
    """Coverage and tone of an object, [64, 64] each in [0, 1]; the tone is the pattern's light and dark."""
    x, y = _FINE_X - np.float32(item.x), _FINE_Y - np.float32(item.y)
    c, s = np.float32(np.cos(item.angle) / item.radius), np.float32(np.sin(item.angle) / item.radius)
    u, v = x * c + y * s, y * c - x * s  # the object's own coordinates: its outline lies within [-1, 1]
    inside = _OUTLINES[item.shape](u, v)
    tone = np.where(_DARK[item.pattern](u, v), np.float32(0.25), np.float32(1))
    return _shrink(inside.astype(np.float32)), _shrink(tone)


def _shrink(plane: _Plane) -> _Plane:
    """Mean over the oversampled pixels: [128, 128] -> [64, 64]."""
    blocks = plane.reshape(SIDE, _OVERSAMPLING, SIDE, _OVERSAMPLING)
    return np.asarray(blocks.mean(axis=(1, 3)))


def _star(u: _Plane, v: _Plane) -> _Mask:
    step = 2 * np.pi / 5
    angle = np.abs((np.arctan2(u, -v) + step / 2) % step - step / 2)  # folded onto half a point
    radius = np.hypot(u, v)
    # the edge from the tip (radius 1, angle 0) to the notch (radius .42, angle step / 2)
    notch_x, notch_y = 0.42 * np.cos(step / 2), 0.42 * np.sin(step / 2)
    px, py = radius * np.cos(angle), radius * np.sin(angle)
    return np.asarray((1 - px) * notch_y - (1 - notch_x) * py > 0)


def _heart(u: _Plane, v: _Plane) -> _Mask:
    a, b = u * 1.2, 0.15 - v * 1.2
    return np.asarray((a * a + b * b - 1) ** 3 - a * a * b**3 < 0)


def _head(u: _Plane, v: _Plane) -> _Mask:
    return u**2 + (v + 0.78) ** 2 < 0.21**2


def _male(u: _Plane, v: _Plane) -> _Mask:
    trunk = (np.abs(u) < 0.46) & (v > -0.52) & (v < 0.2)
    legs = (np.abs(u) > 0.06) & (np.abs(u) < 0.32) & (v >= 0.2) & (v < 1)
    return np.asarray(_head(u, v) | trunk | legs)


def _female(u: _Plane, v: _Plane) -> _Mask:
    dress = (np.abs(u) < 0.16 + 0.5 * (v + 0.52)) & (v > -0.52) & (v < 0.5)
    legs = (np.abs(u) > 0.05) & (np.abs(u) < 0.22) & (v >= 0.5) & (v < 1)
    return np.asarray(_head(u, v) | dress | legs)


_OUTLINES: dict[str, Callable[[_Plane, _Plane], _Mask]] = {
    "circle": lambda u, v: u * u + v * v < 0.81,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) < 0.8,
    "triangle": lambda u, v: (v < 0.62) & (np.abs(u) * 1.73 - v < 0.98),
    "star": _star,
    "cross": lambda u, v: ((np.abs(u) < 0.3) & (np.abs(v) < 0.95)) | ((np.abs(v) < 0.3) & (np.abs(u) < 0.95)),
    "ring": lambda u, v: (u * u + v * v < 0.9) & (u * u + v * v > 0.27),
    "heart": _heart,
    "diamond": lambda u, v: np.abs(u) / 0.62 + np.abs(v) < 1,
    "male": _male,
    "female": _female,
}

_PERIOD = 0.42  # of a pattern, in radii of the object


def _phase(coordinate: _Plane) -> _Plane:
    return np.asarray((coordinate / _PERIOD) % 1)


_DARK: dict[str, Callable[[_Plane, _Plane], _Mask]] = {
    "plain": lambda u, v: np.zeros(u.shape, dtype=bool),
    "striped": lambda u, v: _phase(v) < 0.5,
    "dotted": lambda u, v: (_phase(u) - 0.5) ** 2 + (_phase(v) - 0.5) ** 2 < 0.33**2,
    "zigzagged": lambda u, v: _phase(v + 0.6 * np.abs(_phase(u / 1.6) - 0.5)) < 0.5,
    "checkered": lambda u, v: (_phase(u / 1.5) < 0.5) ^ (_phase(v / 1.5) < 0.5),
}


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
