"""What every room stands on: checks of arguments, files, fingerprints, types, figures."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
