from . import figures as figures
from .checks import as_numbers as as_numbers
from .checks import check_choice as check_choice
from .checks import check_count as check_count
from .checks import check_counts as check_counts
from .checks import check_level as check_level
from .checks import check_number as check_number
from .checks import check_seed as check_seed
from .checks import check_share as check_share
from .checks import check_unit as check_unit
from .checks import check_units as check_units
from .checks import is_whole as is_whole
from .extras import import_extra as import_extra
from .extremes import Extremes as Extremes
from .extremes import places_at as places_at
from .figures import Tile as Tile
from .figures import axes_or_new as axes_or_new
from .figures import layer_ticks as layer_ticks
from .figures import picture_grid as picture_grid
from .figures import printable as printable
from .figures import shortened as shortened
from .figures import thumbnail as thumbnail
from .files import check_writable as check_writable
from .files import write_whole as write_whole
from .fingerprints import describe_function as describe_function
from .fingerprints import fingerprint_architecture as fingerprint_architecture
from .fingerprints import fingerprint_bytes as fingerprint_bytes
from .fingerprints import fingerprint_model as fingerprint_model
from .fingerprints import fingerprint_texts as fingerprint_texts
from .fingerprints import identify_function as identify_function
from .html import SHOWN_ROWS as SHOWN_ROWS
from .html import table_html as table_html
from .types import BoolArray as BoolArray
from .types import Floats as Floats
from .types import Rows as Rows
from .types import Unit as Unit
from .vectors import unit_length as unit_length
from .version import __version__ as __version__
from .version import versions as versions

__all__ = [
    "SHOWN_ROWS",
    "BoolArray",
    "Extremes",
    "Floats",
    "Rows",
    "Tile",
    "Unit",
    "__version__",
    "as_numbers",
    "axes_or_new",
    "check_choice",
    "check_count",
    "check_counts",
    "check_level",
    "check_number",
    "check_seed",
    "check_share",
    "check_unit",
    "check_units",
    "check_writable",
    "describe_function",
    "figures",
    "fingerprint_architecture",
    "fingerprint_bytes",
    "fingerprint_model",
    "fingerprint_texts",
    "identify_function",
    "is_whole",
    "import_extra",
    "layer_ticks",
    "picture_grid",
    "places_at",
    "printable",
    "shortened",
    "table_html",
    "thumbnail",
    "unit_length",
    "versions",
    "write_whole",
]
