from ._forward import ForwardPass as ForwardPass
from .activations import Activations as Activations
from .activations import Recorded as Recorded
from .activations import check_layers as check_layers
from .recorder import ActivationRecorder as ActivationRecorder
from .recorder import record_beside as record_beside
from .recorder import record_checkpoints as record_checkpoints
from .summaries import ActivationSummary as ActivationSummary
from .summaries import UnitStatistics as UnitStatistics

__all__ = [
    "ActivationRecorder",
    "Activations",
    "ActivationSummary",
    "UnitStatistics",
    "record_checkpoints",
    "record_beside",
]
