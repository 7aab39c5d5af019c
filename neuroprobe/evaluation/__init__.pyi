from .changes import ComparisonReport as ComparisonReport
from .changes import LabelHistoryReport as LabelHistoryReport
from .changes import compare_reports as compare_reports
from .changes import labels_along as labels_along
from .classes import ClassReport as ClassReport
from .classes import classes_from_labels as classes_from_labels
from .images import ImageCheckReport as ImageCheckReport
from .images import check_on_images as check_on_images
from .metrics import MetricCheckReport as MetricCheckReport
from .metrics import check_metrics as check_metrics
from .missing import MissingConceptReport as MissingConceptReport
from .missing import dissect_without as dissect_without
from .truth import EvaluationReport as EvaluationReport
from .truth import evaluate_labels as evaluate_labels
from .weights import WeightReport as WeightReport
from .weights import compare_weights as compare_weights

__all__ = [
    "evaluate_labels", "check_on_images", "check_metrics", "classes_from_labels", "compare_weights", "dissect_without",
    "compare_reports", "labels_along",
    "EvaluationReport", "ImageCheckReport", "MetricCheckReport", "ClassReport", "WeightReport", "MissingConceptReport",
    "ComparisonReport", "LabelHistoryReport",
]  # fmt: skip
