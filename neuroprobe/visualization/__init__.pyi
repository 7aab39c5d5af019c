from ._ascent import Jitter as Jitter
from ._facets import Facet as Facet
from ._facets import FacetConcept as FacetConcept
from ._facets import UnitFacets as UnitFacets
from ._facets import facets as facets
from ._facets import layer_facets as layer_facets
from ._objectives import Target as Target
from ._spectrum import ImageSpectrum as ImageSpectrum
from ._spectrum import image_spectrum as image_spectrum
from .examples import Example as Example
from .examples import quantile_examples as quantile_examples
from .examples import top_images as top_images
from .feature_visualization import Visualization as Visualization
from .feature_visualization import visualize as visualize
from .fields import ReceptiveField as ReceptiveField
from .fields import receptive_field as receptive_field
from .fields import receptive_fields as receptive_fields
from .figures import plot_examples as plot_examples
from .figures import plot_facets as plot_facets
from .figures import plot_regions as plot_regions
from .maps import Region as Region
from .maps import firing_threshold as firing_threshold
from .maps import regions as regions
from .maps import unit_maps as unit_maps

__all__ = [
    "top_images",
    "quantile_examples",
    "plot_examples",
    "regions",
    "plot_regions",
    "unit_maps",
    "firing_threshold",
    "receptive_field",
    "receptive_fields",
    "layer_facets",
    "facets",
    "plot_facets",
    "visualize",
    "Visualization",
    "image_spectrum",
    "ImageSpectrum",
    "Jitter",
    "Target",
    "Example",
    "Region",
    "ReceptiveField",
    "Facet",
    "FacetConcept",
    "UnitFacets",
]
