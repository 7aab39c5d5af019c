from .axes import Axes as Axes
from .axes import Layout as Layout
from .axes import UnitAxisTracker as UnitAxisTracker
from .axes import check_layout as check_layout
from .checkpoints import Checkpoint as Checkpoint
from .checkpoints import fingerprint_checkpoints as fingerprint_checkpoints
from .checkpoints import fingerprint_each as fingerprint_each
from .checkpoints import is_torchscript as is_torchscript
from .checkpoints import load_checkpoint as load_checkpoint
from .checkpoints import load_state_dict as load_state_dict
from .directions import Direction as Direction
from .directions import directions_from_npz as directions_from_npz
from .directions import directions_to_npz as directions_to_npz
from .directions import mean_direction as mean_direction
from .layers import Layers as Layers
from .layers import all_layers as all_layers
from .layers import block_layers as block_layers
from .layers import check_layers as check_layers
from .layers import check_model as check_model
from .layers import list_layers as list_layers
from .loading import load_model as load_model
from .modes import Precision as Precision
from .modes import _placed as _placed
from .modes import autocasting as autocasting
from .modes import check_precision as check_precision
from .modes import device_of as device_of
from .modes import evaluating as evaluating
from .modes import one_thread_each as one_thread_each
from .modes import placed as placed
from .modes import resolve_device as resolve_device
from .outputs import Selection as Selection
from .outputs import choices as choices
from .outputs import describe_output as describe_output
from .outputs import select_output as select_output
from .pictures import picture_of as picture_of
from .pooling import POOLINGS as POOLINGS
from .pooling import Pooling as Pooling
from .pooling import check_pooling as check_pooling
from .pooling import describe_pooling as describe_pooling
from .pooling import pool as pool
from .transforms import IMAGENET_MEAN as IMAGENET_MEAN
from .transforms import IMAGENET_STD as IMAGENET_STD
from .transforms import Normalize as Normalize
from .transforms import Preprocessing as Preprocessing
from .transforms import preprocessing as preprocessing

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "POOLINGS",
    "Axes",
    "Checkpoint",
    "Direction",
    "Layers",
    "Layout",
    "Normalize",
    "Pooling",
    "Precision",
    "Preprocessing",
    "Selection",
    "UnitAxisTracker",
    "_placed",
    "all_layers",
    "autocasting",
    "block_layers",
    "check_layers",
    "check_layout",
    "check_model",
    "check_pooling",
    "check_precision",
    "choices",
    "describe_output",
    "describe_pooling",
    "device_of",
    "directions_from_npz",
    "directions_to_npz",
    "evaluating",
    "fingerprint_checkpoints",
    "fingerprint_each",
    "is_torchscript",
    "list_layers",
    "load_checkpoint",
    "load_model",
    "load_state_dict",
    "mean_direction",
    "one_thread_each",
    "picture_of",
    "placed",
    "pool",
    "preprocessing",
    "resolve_device",
    "select_output",
]
