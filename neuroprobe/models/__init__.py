"""A model's layers by exact name, what a unit is there, and how models and their transforms are loaded."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
