"""From a start checkpoint to a model ready to train: loaded, in the compute type, with an adapter if one is wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..core.errors import ConfigError, DataError
from ..core.files import disk_errors
from ..core.seeds import derive
from ..core.types import Checkpoint, Message
from ..models.adapters import add_lora, is_adapter
from ..models.load import LoadedModel, load
from .state import replace_folder, save_model
from .step import rank_and_world

__all__ = ["Adaptation", "Opened", "messages_of", "open_start"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """Which weights are trained: all of them, or a LoRA adapter on the linear layers."""

    adapter: Literal["full", "lora"]
    rank: int
    alpha: float
    dropout: float

    def __post_init__(self) -> None:
        if self.adapter == "lora" and self.rank < 1:
            raise ConfigError(f"rank = {self.rank}: a LoRA adapter needs a rank of at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout = {self.dropout} must be in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model to train. `base` is what a saved adapter is to be put on (None: all weights are saved)."""

    loaded: LoadedModel
    model: Any
    base: str | None
    context: int  # tokens


def open_start(start: Checkpoint, *, dtype: str, adaptation: Adaptation, out: Path, seed: int) -> Opened:
    """Load the start; an adapter checkpoint is merged into its base first.

    A new LoRA adapter on a merged start needs that merged model on disk: it is written to `out/base`.
    """
    loaded = load(start.path, dtype=dtype)
    model = loaded.model
    base = None
    if adaptation.adapter == "lora":
        base = _base(loaded, start, out)
        model = add_lora(
            model, rank=adaptation.rank, alpha=adaptation.alpha, dropout=adaptation.dropout, seed=derive(seed, "lora")
        )
    else:
        model.requires_grad_(True)
    config = loaded.model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return Opened(loaded=loaded, model=model, base=base, context=int(getattr(text, "max_position_embeddings", 0) or 1 << 30))


def _base(loaded: LoadedModel, start: Checkpoint, out: Path) -> str:
    """Return a reference to the model as it was loaded, writing it to `out/base` when it is the merger of an adapter."""
    if not is_adapter(loaded.path):
        return str(loaded.path.resolve()) if start.path.is_dir() else str(start.path)
    folder = out / "base"
    if rank_and_world()[0] == 0 and not folder.is_dir():
        aside = out / ".writing-base"
        with disk_errors(folder):
            save_model(loaded.model, loaded.tokenizer, aside)
            replace_folder(aside, folder)
    return str(folder)


def messages_of(value: Any, where: str) -> list[Message]:
    """Read a prompt or conversation: a string is one user turn; a list holds `{"role", "content"}` objects."""
    if isinstance(value, str):
        return [Message(role="user", content=value)]
    if not isinstance(value, Sequence) or not value:
        raise DataError(f"{where}: expected text or a list of messages, found {type(value).__name__}")
    found = []
    for i, turn in enumerate(value):
        if isinstance(turn, Message):
            found.append(turn)
        elif isinstance(turn, Mapping) and turn.get("role") in ("system", "user", "assistant", "tool"):
            if not isinstance(turn.get("content"), str):
                raise DataError(f"{where}: message {i} has no text in 'content'")
            found.append(Message(role=turn["role"], content=turn["content"]))
        else:
            raise DataError(f"{where}: message {i} is not an object with a 'role' and a 'content': {turn!r:.100}")
    return found
