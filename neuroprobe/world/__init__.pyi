from ._concepts import CLIP_PATH as CLIP_PATH
from ._concepts import world_vocabulary as world_vocabulary
from ._images import WorldDataset as WorldDataset
from ._images import world_images as world_images
from ._rendering import color_votes as color_votes
from ._scenes import ATTRIBUTES as ATTRIBUTES
from ._scenes import BACKGROUNDS as BACKGROUNDS
from ._scenes import COLORS as COLORS
from ._scenes import PATTERNS as PATTERNS
from ._scenes import SHAPES as SHAPES
from ._target import LAYERS as LAYERS
from ._target import build_target as build_target
from ._target import load_target as load_target
from ._target import target_checkpoints as target_checkpoints
from ._target import target_transform as target_transform
from ._target import target_with_transform as target_with_transform

__all__ = [
    "world_images",
    "load_target",
    "target_transform",
    "target_with_transform",
    "target_checkpoints",
    "CLIP_PATH",
    "world_vocabulary",
    "ATTRIBUTES",
    "SHAPES",
    "COLORS",
    "PATTERNS",
    "BACKGROUNDS",
    "LAYERS",
    "WorldDataset",
    "color_votes",
    "build_target",
]
