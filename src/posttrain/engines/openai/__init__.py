"""A model behind an OpenAI-compatible server."""

from .engine import OpenAIEngine, open_server
from .policy import ServerPolicy
from .settings import Server, read_server

__all__ = ["OpenAIEngine", "Server", "ServerPolicy", "open_server", "read_server"]
