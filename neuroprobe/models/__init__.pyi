from .axes import Axes as Axes
from .axes import Layout as Layout
from .axes import UnitAxisTracker as UnitAxisTracker
from .checkpoints import Checkpoint as Checkpoint
from .checkpoints import Checkpoints as Checkpoints
from .checkpoints import is_torchscript as is_torchscript
from .checkpoints import load_checkpoint as load_checkpoint
from .checkpoints import load_state_dict as load_state_dict
from .directions import Direction as Direction
from .directions import Directions as Directions
from .directions import directions_from_npz as directions_from_npz
from .directions import directions_to_npz as directions_to_npz
from .directions import mean_direction as mean_direction
from .layers import all_layers as all_layers
from .layers import block_layers as block_layers
from .layers import list_layers as list_layers
from .loading import load_model as load_model
from .modes import Precision as Precision
from .modes import batch_to as batch_to
from .modes import check_precision as check_precision
from .modes import device_of as device_of
from .modes import evaluating as evaluating
from .modes import one_thread_each as one_thread_each
from .modes import placed as placed
from .modes import resolve_device as resolve_device
from .outputs import Selection as Selection
from .outputs import choices as choices
from .pooling import FEATURES as FEATURES
from .pooling import POOLINGS as POOLINGS
from .pooling import Pooling as Pooling
from .pooling import check_pooling as check_pooling
from .pooling import describe_pooling as describe_pooling
from .pooling import pool as pool
from .sites import Basis as Basis
from .sites import Site as Site
from .sites import Sites as Sites
from .sites import as_site as as_site
from .sites import check_same_site as check_same_site
from .sites import check_site as check_site
from .sites import check_sites as check_sites
from .sites import find_site as find_site
from .taps import Reading as Reading
from .taps import Replacement as Replacement
from .taps import Run as Run
from .taps import Taps as Taps
from .taps import tapped as tapped
from .transforms import IMAGENET_MEAN as IMAGENET_MEAN
from .transforms import IMAGENET_STD as IMAGENET_STD
from .transforms import Normalize as Normalize
from .transforms import Preprocessing as Preprocessing
from .transforms import color_scaling as color_scaling
from .transforms import picture_of as picture_of
from .transforms import preprocessing as preprocessing

__all__ = [
    "Site",
    "Sites",
    "Basis",
    "Directions",
    "Direction",
    "mean_direction",
    "directions_from_npz",
    "directions_to_npz",
    "all_layers",
    "block_layers",
    "list_layers",
    "load_model",
    "load_checkpoint",
    "load_state_dict",
    "Checkpoint",
    "Checkpoints",
    "tapped",
    "Taps",
    "Reading",
    "Run",
    "preprocessing",
    "Preprocessing",
    "Normalize",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "picture_of",
    "Pooling",
    "POOLINGS",
    "pool",
    "Layout",
    "Selection",
    "Precision",
    "resolve_device",
]
