"""The in-process engine."""

from .engine import LocalEngine

__all__ = ["LocalEngine"]
