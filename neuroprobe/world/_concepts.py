"""The offline world: rendered images with known concepts, a CLIP that knows them, and a network trained on them.

Everything here is for trying the library and for checking its claims against a known truth. The models know
nothing of photographs.
"""

from __future__ import annotations

from pathlib import Path

from neuroprobe.concepts import BLOG_TEMPLATE, ConceptGroup, Vocabulary
from neuroprobe.world._images import WorldDataset, world_images
from neuroprobe.world._scenes import ATTRIBUTES, BACKGROUNDS, COLORS, PATTERNS, SHAPES, Scene
from neuroprobe.world._target import LAYERS, load_target, target_checkpoints, target_transform, target_with_transform

#: The world's CLIP: a checkpoint file in clip's own format.
CLIP_PATH = Path(__file__).parent / "clip.pt"

__all__ = [
    "ATTRIBUTES",
    "BACKGROUNDS",
    "CLIP_PATH",
    "COLORS",
    "LAYERS",
    "PATTERNS",
    "SHAPES",
    "Scene",
    "WorldDataset",
    "load_target",
    "target_checkpoints",
    "target_transform",
    "target_with_transform",
    "world_images",
    "world_vocabulary",
]


def world_vocabulary() -> Vocabulary:
    """Every attribute of the world as a concept, in the groups shape, color, pattern and background."""
    groups = {"shape": SHAPES, "color": COLORS, "pattern": PATTERNS, "background": BACKGROUNDS}
    return Vocabulary([ConceptGroup(name, concepts, templates=(BLOG_TEMPLATE,)) for name, concepts in groups.items()])
