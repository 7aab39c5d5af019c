from ._ranking import Negatives as Negatives
from ._ranking import Ranking as Ranking
from ._tables import LabelTable as LabelTable
from ._texts import TextEncoder as TextEncoder
from ._texts import text_vectors as text_vectors
from .curation import contact_sheet as contact_sheet
from .curation import load_curation as load_curation
from .curation import save_curation as save_curation
from .encoders._base import ImageTextEncoder as ImageTextEncoder
from .encoders._base import PromptTooLongError as PromptTooLongError
from .encoders._base import list_encoders as list_encoders
from .encoders._base import load_encoder as load_encoder
from .encoders._base import register_encoder as register_encoder
from .encoders._clip import ClipEncoder as ClipEncoder
from .encoders._clip import import_clip as import_clip
from .encoders._open_clip import OpenClipEncoder as OpenClipEncoder
from .encoders._transformers import TransformersEncoder as TransformersEncoder
from .labels import GivenLabels as GivenLabels
from .labels import as_labels as as_labels
from .labels import shown_concepts as shown_concepts
from .quality import estimate_set_quality as estimate_set_quality
from .quality import set_quality as set_quality
from .quality import with_label_noise as with_label_noise
from .scores import ConceptScores as ConceptScores
from .scores import ConceptSource as ConceptSource
from .scores import check_encoder as check_encoder
from .scores import check_kinds as check_kinds
from .scores import check_same_images as check_same_images
from .sets import ConceptSet as ConceptSet
from .sets import ConceptSets as ConceptSets
from .vocabulary import BLOG_TEMPLATE as BLOG_TEMPLATE
from .vocabulary import TEMPLATES as TEMPLATES
from .vocabulary import Concept as Concept
from .vocabulary import ConceptGroup as ConceptGroup
from .vocabulary import Vocabulary as Vocabulary

__all__ = [
    "ConceptSource",
    "Vocabulary",
    "ConceptGroup",
    "ConceptScores",
    "ConceptSets",
    "ConceptSet",
    "Ranking",
    "Negatives",
    "GivenLabels",
    "LabelTable",
    "as_labels",
    "ImageTextEncoder",
    "ClipEncoder",
    "OpenClipEncoder",
    "TransformersEncoder",
    "load_encoder",
    "list_encoders",
    "register_encoder",
    "import_clip",
    "TextEncoder",
    "PromptTooLongError",
    "contact_sheet",
    "save_curation",
    "load_curation",
    "set_quality",
    "estimate_set_quality",
    "with_label_noise",
    "Concept",
    "TEMPLATES",
    "BLOG_TEMPLATE",
]
