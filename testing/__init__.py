"""What users and the project test with."""

from .clock import VirtualClock as VirtualClock

__all__ = ["VirtualClock"]
