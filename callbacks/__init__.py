"""Lightning callbacks of calosim; YAML names them as ``callbacks.<ClassName>``."""

from callbacks.checkerboard_validation import CheckerboardValidation
from callbacks.gradual_unfreezing import GradualUnfreezing
from callbacks.physics_loss_scaler import PhysicsLossScaler
from callbacks.processor_time import ProcessorTime

__all__ = ["CheckerboardValidation", "GradualUnfreezing", "PhysicsLossScaler", "ProcessorTime"]
