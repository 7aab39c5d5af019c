from ._images import Images as Images
from ._images import check_images as check_images
from ._images import fingerprint_images as fingerprint_images
from ._images import first_readable as first_readable
from .distributed import gather_bytes as gather_bytes
from .distributed import process_group as process_group
from .distributed import rank_and_size as rank_and_size
from .distributed import started_by_torchrun as started_by_torchrun
from .duplicates import near_duplicate_vectors as near_duplicate_vectors
from .duplicates import near_duplicates as near_duplicates
from .passes import BatchRecord as BatchRecord
from .passes import Collected as Collected
from .passes import Consumer as Consumer
from .passes import Transform as Transform
from .passes import collect as collect

__all__ = [
    "Images",
    "collect",
    "Consumer",
    "Collected",
    "BatchRecord",
    "Transform",
    "near_duplicates",
    "near_duplicate_vectors",
    "process_group",
    "rank_and_size",
    "started_by_torchrun",
]
