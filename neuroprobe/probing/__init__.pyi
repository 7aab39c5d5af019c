from ._layer import Features as Features
from ._layer import Sample as Sample
from ._layer import Task as Task
from ._layer import fit_layer as fit_layer
from ._problems import Split as Split
from ._statistics import Options as Options
from .probes import LinearProbe as LinearProbe
from .probes import MeanDifferenceProbe as MeanDifferenceProbe
from .probes import NonlinearProbe as NonlinearProbe
from .probes import Probe as Probe
from .probes import RegressionProbe as RegressionProbe
from .probes import Solution as Solution
from .probes import SparseProbe as SparseProbe
from .probes import Training as Training
from .probes import list_probes as list_probes
from .probes import make_probe as make_probe
from .probes import register_probe as register_probe
from .study import BLOG_PROBES as BLOG_PROBES
from .study import ProbingStudy as ProbingStudy
from .study import Scopes as Scopes
from .study import check_jobs as check_jobs
from .study import check_seeds as check_seeds
from .study import check_split as check_split
from .study import make_tasks as make_tasks
from .study import split as split

__all__ = [
    "ProbingStudy",
    "LinearProbe",
    "NonlinearProbe",
    "SparseProbe",
    "MeanDifferenceProbe",
    "RegressionProbe",
    "Probe",
    "Training",
    "Solution",
    "register_probe",
    "list_probes",
    "make_probe",
    "BLOG_PROBES",
    "Scopes",
]
