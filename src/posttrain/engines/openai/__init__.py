"""A model behind an OpenAI-compatible server."""

from .engine import OpenAIEngine, open_server
from .settings import Server, read_server

__all__ = ["OpenAIEngine", "Server", "open_server", "read_server"]
