from ._formula_search import Formula as Formula
from ._formula_search import Term as Term
from .clarity import UnitScoreReport as UnitScoreReport
from .clarity import score_units as score_units
from .dissection import FALSE_DISCOVERY_RATE as FALSE_DISCOVERY_RATE
from .dissection import N_BOOTSTRAP as N_BOOTSTRAP
from .dissection import check_numbers as check_numbers
from .dissection import dissect as dissect
from .formulas import FormulaReport as FormulaReport
from .formulas import dissect_formulas as dissect_formulas
from .pairs import PairReport as PairReport
from .pairs import dissect_pairs as dissect_pairs
from .search import UnitSearchReport as UnitSearchReport
from .search import search_units as search_units
from .similarity._registry import DEFAULT_SIMILARITY as DEFAULT_SIMILARITY
from .similarity._registry import Similarity as Similarity
from .similarity._registry import SimilarityOrScorer as SimilarityOrScorer
from .similarity._registry import check_similarity as check_similarity
from .similarity._registry import find_scorer as find_scorer
from .similarity._registry import get_similarity as get_similarity
from .similarity._registry import list_similarities as list_similarities
from .similarity._scorer import Scorer as Scorer
from .similarity.detection import auc as auc
from .similarity.detection import average_precision as average_precision
from .similarity.detection import mean_difference as mean_difference
from .similarity.information import soft_wpmi as soft_wpmi
from .similarity.information import wpmi as wpmi
from .similarity.linear import cos_similarity as cos_similarity
from .similarity.linear import cos_similarity_cubed as cos_similarity_cubed
from .similarity.linear import pearson as pearson
from .similarity.peaks import peak_correlation as peak_correlation
from .similarity.peaks import peak_mean as peak_mean
from .similarity.ranks import rank_reorder as rank_reorder
from .sums import UnitCompositionReport as UnitCompositionReport
from .sums import explain_units as explain_units

# what users take, what is used most first; the rest is for other rooms
__all__ = [
    "dissect",
    "dissect_formulas",
    "dissect_pairs",
    "explain_units",
    "score_units",
    "search_units",
    "list_similarities",
    "get_similarity",
    "peak_correlation",
    "peak_mean",
    "soft_wpmi",
    "wpmi",
    "rank_reorder",
    "cos_similarity",
    "cos_similarity_cubed",
    "pearson",
    "auc",
    "average_precision",
    "mean_difference",
    "Scorer",
    "FormulaReport",
    "Formula",
    "Term",
    "PairReport",
    "UnitCompositionReport",
    "UnitScoreReport",
    "UnitSearchReport",
    "Similarity",
    "SimilarityOrScorer",
    "DEFAULT_SIMILARITY",
    "FALSE_DISCOVERY_RATE",
    "N_BOOTSTRAP",
]
