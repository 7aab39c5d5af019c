from . import similarity as similarity
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
from .sums import UnitCompositionReport as UnitCompositionReport
from .sums import explain_units as explain_units

__all__ = [
    "DEFAULT_SIMILARITY",
    "FALSE_DISCOVERY_RATE",
    "N_BOOTSTRAP",
    "Formula",
    "FormulaReport",
    "PairReport",
    "Scorer",
    "Similarity",
    "SimilarityOrScorer",
    "Term",
    "UnitCompositionReport",
    "UnitScoreReport",
    "UnitSearchReport",
    "dissect",
    "dissect_formulas",
    "dissect_pairs",
    "explain_units",
    "get_similarity",
    "list_similarities",
    "score_units",
    "search_units",
    "similarity",
]
