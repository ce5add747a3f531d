"""How two backends are compared."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT32 = "float32"
"""What both backends compute in unless PyTorch is asked for another precision."""

TOLERANCE, ROUGH_TOLERANCE = 1e-4, 0.01
"""The default tolerances: in float32, and in any other precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What PyTorch computes on and in, and how far it may be from the reference."""

    steps: int = 50
    """Optimizer steps of a run's replay; a recorded reference has its own."""
    tolerance: float | None = None
    """Largest relative difference of a loss, a gradient norm, a gradient or a logit; in another precision than float32,
    of the losses in the mean of all steps. None for the default."""
    device: str = "cpu"
    """What PyTorch computes on."""
    precision: str = FLOAT32
    """What PyTorch's base computes in; "bfloat16" is held to the loss curve alone."""

    @property
    def allowed(self) -> float:
        """The tolerance, or its default."""
        return self.tolerance or (TOLERANCE if self.precision == FLOAT32 else ROUGH_TOLERANCE)
