"""The world's images as a probing set, and the truth about them."""

from __future__ import annotations

from typing import get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from neuroprobe._core import check_count, check_seed
from neuroprobe.exceptions import UnknownNameError, suggest
from neuroprobe.images import Images
from neuroprobe.world._rendering import render
from neuroprobe.world._scenes import ATTRIBUTES, Combinations, Scene, sample_scene


def draw(index: int, *, seed: int = 0, combinations: Combinations = "all") -> tuple[Scene, npt.NDArray[np.uint8]]:
    """Scene and pixels [64, 64, 3] of image `index` of `seed`; no other image has a part in it."""
    generator = np.random.default_rng((seed, index))
    scene = sample_scene(generator, combinations=combinations)
    return scene, render(scene, generator)


class WorldDataset:
    """Rendered images, each made when it is first asked for; a dataset of PIL images with ids and scenes."""

    def __init__(self, n: int, *, seed: int = 0, combinations: Combinations = "all") -> None:
        check_count("n", n)
        check_seed(seed)
        if combinations not in get_args(Combinations):
            what = suggest(str(combinations), get_args(Combinations))
            raise UnknownNameError(f"Expected the name of a set of combinations, but got {combinations!r}. {what}")
        self.seed, self.combinations = seed, combinations
        self.ids = [f"world-{seed}-{i}" for i in range(n)]
        self._drawn: dict[int, tuple[Scene, npt.NDArray[np.uint8]]] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self._draw(index)[1])

    def scene(self, index: int) -> Scene:
        """What image `index` shows."""
        return self._draw(index)[0]

    def _draw(self, index: int) -> tuple[Scene, npt.NDArray[np.uint8]]:
        if not 0 <= index < len(self):
            raise IndexError(f"Expected an image from 0 to {len(self) - 1}, but got {index}.")
        if index not in self._drawn:
            self._drawn[index] = draw(index, seed=self.seed, combinations=self.combinations)
        return self._drawn[index]

    def truth(self) -> npt.NDArray[np.bool_]:
        """Which attribute is true of which image, [n_images, n_attributes]; columns as in `ATTRIBUTES`."""
        scenes = (self.scene(i).attributes for i in range(len(self)))
        return np.array([[name in attributes for name in ATTRIBUTES] for attributes in scenes])


def world_images(n: int, *, seed: int = 0, combinations: Combinations = "all") -> Images:
    """The first `n` images of a seed as a probing set.

    Parameters
    ----------
    n : int
    seed : int, default 0
        The world's CLIP was trained on seed 1, its target on seed 2.
    combinations : {"all", "seen", "unseen"}, default "all"
        Combinations of shape, color and pattern; "unseen" are those the world's CLIP was never shown.

    Returns
    -------
    Images

    Raises
    ------
    InputError
        No images asked for, or a negative seed.
    UnknownNameError
        No such set of combinations.
    """
    return Images(WorldDataset(n, seed=seed, combinations=combinations))
