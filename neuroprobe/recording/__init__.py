"""Activations: what the units of any layer do on a probing set, in memory, on disk or as summaries."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
