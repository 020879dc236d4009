"""Lightning callbacks of calosim; YAML names them as ``callbacks.<ClassName>``."""

from callbacks.checkerboard_validation import CheckerboardValidation

__all__ = ["CheckerboardValidation"]
