"""L4: scoring what a model wrote."""

from .build import build_verifier

__all__ = ["build_verifier"]
