from .attribution import AttributionReport as AttributionReport
from .attribution import UnitAttributions as UnitAttributions
from .attribution import attribute_units as attribute_units
from .causal import EffectReport as EffectReport
from .causal import causal_effect as causal_effect
from .causal import units_named as units_named
from .classes import CompositionReport as CompositionReport
from .classes import explain_class as explain_class
from .derivatives import TcavReport as TcavReport
from .derivatives import directional_derivatives as directional_derivatives
from .derivatives import tcav as tcav
from .interventions import ablate as ablate
from .interventions import steer as steer
from .matching import MatchedImages as MatchedImages
from .matching import match_images as match_images

__all__ = [
    "causal_effect",
    "EffectReport",
    "units_named",
    "ablate",
    "steer",
    "explain_class",
    "CompositionReport",
    "attribute_units",
    "UnitAttributions",
    "AttributionReport",
    "tcav",
    "TcavReport",
    "directional_derivatives",
    "match_images",
    "MatchedImages",
]
