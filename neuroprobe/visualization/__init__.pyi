from ._ascent import Jitter as Jitter
from ._facets import facets as facets
from ._facets import layer_facets as layer_facets
from ._spectrum import image_spectrum as image_spectrum
from .examples import quantile_examples as quantile_examples
from .examples import top_images as top_images
from .feature_visualization import Visualization as Visualization
from .feature_visualization import visualize as visualize
from .fields import receptive_field as receptive_field
from .figures import plot_examples as plot_examples
from .figures import plot_facets as plot_facets
from .figures import plot_regions as plot_regions
from .maps import regions as regions

__all__ = [
    "Jitter",
    "Visualization",
    "facets",
    "image_spectrum",
    "layer_facets",
    "plot_examples",
    "plot_facets",
    "plot_regions",
    "quantile_examples",
    "receptive_field",
    "regions",
    "top_images",
    "visualize",
]
