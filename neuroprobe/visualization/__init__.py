"""What a unit responds to, seen: examples, regions, receptive fields, facets, images made for it."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
