"""What the world's images show: attributes, scenes sampled by seed and index, and their captions.

A scene holds zero, one or two objects on a background. Everything about scene ``i`` of seed ``s`` is drawn
from one generator seeded by ``(s, i)``, so it never depends on how many scenes are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal, TypeAlias

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond", "male", "female")
COLORS = ("red", "yellow", "blue", "green", "orange", "purple", "pink", "cyan")
PATTERNS = ("plain", "striped", "dotted", "zigzagged", "checkered")
BACKGROUNDS = ("white", "grey", "black", "beige", "gradient", "cloudy", "speckled", "tiled")

#: Every attribute a scene can have; the order of the columns of a truth table and of the target's outputs.
ATTRIBUTES = SHAPES + COLORS + PATTERNS + BACKGROUNDS

Combinations: TypeAlias = Literal["all", "seen", "unseen"]


def _is_unseen(shape: int, color: int, pattern: int) -> bool:
    """A tenth of the combinations, spread evenly over every attribute, never occurs while the world's CLIP learns."""
    return (shape + 3 * color + 2 * pattern) % 10 == 0


_ALL = tuple(product(range(len(SHAPES)), range(len(COLORS)), range(len(PATTERNS))))
_COMBINATIONS = {
    "all": _ALL,
    "seen": tuple(c for c in _ALL if not _is_unseen(*c)),
    "unseen": tuple(c for c in _ALL if _is_unseen(*c)),
}


@dataclass(frozen=True)
class SceneObject:
    """One object: its three attributes, and its place in the image.

    ``x`` and ``y`` (center) and ``radius`` are fractions of the image's side; ``angle`` is in radians.
    """

    shape: str
    color: str
    pattern: str
    x: float
    y: float
    radius: float
    angle: float

    @property
    def attributes(self) -> tuple[str, str, str]:
        return self.shape, self.color, self.pattern


@dataclass(frozen=True)
class Scene:
    """Objects on a background, with the light (a factor) and the noise (a standard deviation) of the picture."""

    objects: tuple[SceneObject, ...]
    background: str
    light: float
    noise: float

    @property
    def attributes(self) -> frozenset[str]:
        """All attributes true of the scene: names of `ATTRIBUTES`."""
        return frozenset((self.background, *(name for o in self.objects for name in o.attributes)))

    @property
    def captions(self) -> tuple[str, ...]:
        """One caption for every object, one for all of them, and one for the background."""
        phrases = [phrase(*o.attributes) for o in self.objects]
        whole = " and ".join(phrases) if phrases else "nothing"
        return (*phrases, f"{whole} on a {self.background} background", f"a {self.background} background")


def phrase(shape: str | None = None, color: str | None = None, pattern: str | None = None) -> str:
    """The noun phrase for an object: pattern, color, shape; what is None is left out (an "object" for no shape)."""
    words = [word for word in (pattern, color) if word is not None]
    return " ".join(["a", *words, shape or "object"])


def sample_scene(generator: np.random.Generator, *, combinations: Combinations = "all") -> Scene:
    """Draw one scene: 0, 1 or 2 objects with probabilities .1, .5 and .4, every attribute uniform.

    Parameters
    ----------
    generator : numpy.random.Generator
        Where all the randomness comes from.
    combinations : {"all", "seen", "unseen"}, default "all"
        Which combinations of shape, color and pattern may occur; "unseen" are those that the world's CLIP
        was never shown.
    """
    draws = generator.random(24)
    n_objects = int(np.searchsorted([0.1, 0.6], draws[0], side="right"))
    return Scene(
        objects=tuple(_sample_object(draws[4 + 8 * i : 12 + 8 * i], i, n_objects, combinations) for i in range(n_objects)),
        background=BACKGROUNDS[int(draws[1] * len(BACKGROUNDS))],
        light=0.8 + 0.35 * draws[2],
        noise=0.01 + 0.04 * draws[3],
    )


def _sample_object(draws: np.ndarray, i: int, n_objects: int, combinations: Combinations) -> SceneObject:
    choices = _COMBINATIONS[combinations]
    shape, color, pattern = choices[int(draws[0] * len(choices))]
    jitter = draws[1:3] - 0.5
    if n_objects == 1:
        x, y, radius = 0.5 + 0.3 * jitter[0], 0.5 + 0.3 * jitter[1], 0.24 + 0.12 * draws[3]
    else:  # one on each side, at any height
        x, y, radius = 0.26 + 0.48 * i + 0.04 * jitter[0], 0.5 + 0.4 * jitter[1], 0.20 + 0.05 * draws[3]
    return SceneObject(
        shape=SHAPES[shape],
        color=COLORS[color],
        pattern=PATTERNS[pattern],
        x=float(x),
        y=float(y),
        radius=float(radius),
        angle=float((draws[4] - 0.5) * 0.6),
    )
