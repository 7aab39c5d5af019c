"""neuroprobe: probe and name the neurons of any PyTorch vision model with concepts from CLIP."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
