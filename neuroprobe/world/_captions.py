"""Captions the world's CLIP is trained on, and which scene each is true of.

A caption is true of many images, so truth is a matrix over the batch and not a pairing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from neuroprobe.world._scenes import BACKGROUNDS, COLORS, PATTERNS, SHAPES, Scene, phrase

TEMPLATES = ("This image has a concept: {}", "{}", "a photo of {}", "an image of {}", "a picture with {}", "something {}")

#: Placeholder for a word outside the captions' own vocabulary.
UNKNOWN_WORD = "\N{WHITE SQUARE}"

_Attributes = tuple[int, int, int]  # shape, color, pattern; -1 for any


@dataclass(frozen=True)
class Caption:
    """A text and what it claims: objects, a background, or nothing at all.

    ``fixed_truth`` overrides the claims: 0.5 for "none", which is to sit exactly on the fence, so that in any
    group it wins where every other concept is judged false; 0 for a caption of unknown words.
    """

    text: str
    objects: tuple[_Attributes, ...] = ()
    background: int = -1
    empty: bool = False
    fixed_truth: float | None = None


@dataclass(frozen=True)
class SceneTable:
    """Scenes as integers: objects [n, 2, 3] (shape, color, pattern; -1 where there is none), backgrounds [n]."""

    objects: npt.NDArray[np.int64]
    backgrounds: npt.NDArray[np.int64]

    @classmethod
    def of(cls, scenes: list[Scene]) -> SceneTable:
        objects = np.full((len(scenes), 2, 3), -1)
        for i, scene in enumerate(scenes):
            for j, item in enumerate(scene.objects):
                objects[i, j] = SHAPES.index(item.shape), COLORS.index(item.color), PATTERNS.index(item.pattern)
        return cls(objects, np.array([BACKGROUNDS.index(scene.background) for scene in scenes]))

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> SceneTable:
        return SceneTable(self.objects[rows], self.backgrounds[rows])


def truth_matrix(table: SceneTable, captions: list[Caption]) -> npt.NDArray[np.float32]:
    """Which caption is true of which scene: [n_scenes, n_captions], values 0, 0.5 or 1."""
    return np.stack([_truth(table, caption) for caption in captions], axis=1).astype(np.float32)


def _truth(table: SceneTable, caption: Caption) -> npt.NDArray[np.float64]:
    if caption.fixed_truth is not None:
        return np.full(len(table.backgrounds), caption.fixed_truth)
    there = table.objects[:, :, 0] >= 0  # [n, 2]
    true = np.ones(len(table.backgrounds), dtype=bool)
    for wanted in caption.objects:
        fits = np.all((table.objects == np.array(wanted)) | (np.array(wanted) < 0), axis=2)
        true &= (fits & there).any(axis=1)
    if caption.background >= 0:
        true &= table.backgrounds == caption.background
    if caption.empty:
        true &= ~there.any(axis=1)
    return true.astype(np.float64)


def sample_caption(objects: npt.NDArray[np.int64], background: int, generator: np.random.Generator) -> Caption:
    """Draw a caption that is true of the scene (or, seldom, "none" or unknown words).

    Parameters
    ----------
    objects : ndarray, [2, 3]
        A row of `SceneTable.objects`.
    background : int
    generator : numpy.random.Generator
    """
    present = [tuple(int(a) for a in o) for o in objects if o[0] >= 0]
    template = TEMPLATES[0] if generator.random() < 0.5 else TEMPLATES[int(generator.random() * len(TEMPLATES))]
    kind = generator.random()
    if kind < 0.05:
        return Caption(template.format("none"), fixed_truth=0.5)
    if kind < 0.08:
        return Caption(template.format(UNKNOWN_WORD), fixed_truth=0)
    if kind < 0.23 or not present:
        return _background_caption(background, template, not present and generator.random() < 0.3)
    first = present[int(generator.random() * len(present))]
    if kind < 0.62:  # one attribute by its bare name
        which = int(generator.random() * 3)
        kept = tuple(a if i == which else -1 for i, a in enumerate(first))
        return Caption(template.format((SHAPES, COLORS, PATTERNS)[which][first[which]]), (kept,))  # type: ignore[arg-type]
    keep = [generator.random(3) < 0.65 for _ in range(2)]
    chosen = [first] if kind < 0.9 else present
    wanted = tuple(tuple(a if k else -1 for a, k in zip(o, ks, strict=True)) for o, ks in zip(chosen, keep, strict=False))
    text = " and ".join(_phrase(o) for o in wanted)  # type: ignore[arg-type]
    if kind > 0.95:
        return Caption(template.format(f"{text} on a {BACKGROUNDS[background]} background"), wanted, background)  # type: ignore[arg-type]
    return Caption(template.format(text), wanted)  # type: ignore[arg-type]


def _background_caption(background: int, template: str, empty: bool) -> Caption:
    if empty:
        return Caption(template.format("nothing"), empty=True)
    name = BACKGROUNDS[background]
    return Caption(template.format(name if template == TEMPLATES[0] else f"a {name} background"), background=background)


def _phrase(wanted: _Attributes) -> str:
    shape, color, pattern = wanted
    return phrase(
        SHAPES[shape] if shape >= 0 else None,
        COLORS[color] if color >= 0 else None,
        PATTERNS[pattern] if pattern >= 0 else None,
    )


def wrap_in_unknown_words(text: str, generator: np.random.Generator) -> str:
    """Put up to two unknown words before a caption, and up to two after it."""
    before, after = (int(k) for k in generator.integers(0, 3, size=2))
    return " ".join([UNKNOWN_WORD] * before + [text] + [UNKNOWN_WORD] * after)
