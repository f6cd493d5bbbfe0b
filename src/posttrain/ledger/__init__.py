"""L1: the store of result rows."""

from .row import Row, Samples, Timing, cold, timing_of
from .store import Ledger, Loaded, load_ledger

__all__ = ["Ledger", "Loaded", "Row", "Samples", "Timing", "cold", "load_ledger", "timing_of"]
