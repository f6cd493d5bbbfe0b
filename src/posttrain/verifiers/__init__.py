"""L4: scoring what a model wrote."""

from .build import build_judge, build_verifier

__all__ = ["build_judge", "build_verifier"]
