"""The world's vocabulary, and the CLIP that knows it."""

from __future__ import annotations

from pathlib import Path

from neuroprobe.concepts import BLOG_TEMPLATE, ConceptGroup, Vocabulary
from neuroprobe.world._scenes import BACKGROUNDS, COLORS, PATTERNS, SHAPES

#: The world's CLIP: a checkpoint file in clip's own format.
CLIP_PATH = Path(__file__).parent / "clip.pt"


def world_vocabulary() -> Vocabulary:
    """Every attribute of the world as a concept, in the groups shape, color, pattern and background."""
    groups = {"shape": SHAPES, "color": COLORS, "pattern": PATTERNS, "background": BACKGROUNDS}
    return Vocabulary([ConceptGroup(name, concepts, templates=(BLOG_TEMPLATE,)) for name, concepts in groups.items()])
