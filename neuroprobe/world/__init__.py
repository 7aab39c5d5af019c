"""The offline world: rendered images with known concepts, a small CLIP, a small MobileNetV2."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
