from .attribution import AttributionReport as AttributionReport
from .attribution import attribute_units as attribute_units
from .causal import EffectReport as EffectReport
from .causal import causal_effect as causal_effect
from .causal import units_named as units_named
from .classes import CompositionReport as CompositionReport
from .classes import explain_class as explain_class
from .interventions import ablate as ablate
from .interventions import steer as steer

__all__ = [
    "AttributionReport",
    "CompositionReport",
    "EffectReport",
    "ablate",
    "attribute_units",
    "causal_effect",
    "explain_class",
    "steer",
    "units_named",
]
