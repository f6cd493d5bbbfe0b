"""From a start checkpoint to a model ready to train: loaded, in the compute type, with an adapter if one is wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from ..core.errors import ConfigError, DataError
from ..core.files import disk_errors
from ..core.seeds import derive
from ..core.types import Checkpoint, Message
from ..models import bottleneck
from ..models.adapters import Kind, Variant, add_ia3, add_lora, base_of, is_adapter
from ..models.load import LoadedModel, load
from ..models.virtual import add_virtual, virtual_tokens
from .state import replace_folder, save_model
from .step import rank_and_world

__all__ = ["Adaptation", "Opened", "base_for", "context_of_model", "messages_of", "open_start"]


_LOW_RANK = ("lora", "rslora", "dora", "qlora")
_VIRTUAL = ("prefix", "prompt")
_READ_BY: dict[str, tuple[str, ...]] = {  # which kinds read a setting
    "rank": _LOW_RANK,
    "alpha": _LOW_RANK,
    "dropout": _LOW_RANK,
    "targets": _LOW_RANK,
    "virtual_tokens": _VIRTUAL,
    "width": ("bottleneck",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """Which weights are trained: all of them, or an adapter's. A setting that the chosen kind does not read is refused.

    Only `adapter=full` lets `rank`, `alpha` and `dropout` stand without reading them, as it always has.
    """

    adapter: Kind = "full"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    virtual_tokens: int = 20
    width: int = 64

    def __post_init__(self) -> None:
        if self.adapter not in get_args(Kind):
            raise ConfigError(f"adapter = {self.adapter!r}: choose from {', '.join(get_args(Kind))}")
        if self.adapter in _LOW_RANK and self.rank < 1:
            raise ConfigError(f"rank = {self.rank}: a LoRA adapter needs a rank of at least 1")
        if self.adapter in _LOW_RANK and not self.alpha > 0:
            raise ConfigError(f"alpha = {self.alpha} must be positive")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout = {self.dropout} must be in [0, 1)")
        for name, least in (("virtual_tokens", 1), ("width", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least {least}")
        if not self.targets:
            raise ConfigError("targets = [] names no layer: give names such as [q_proj,v_proj], or all-linear")
        if not isinstance(self.targets, str) and "all-linear" in self.targets:
            raise ConfigError(f"targets = {list(self.targets)}: all-linear stands alone, or name the layers without it")
        for name, kinds in _READ_BY.items():
            tolerated = self.adapter == "full" and name in ("rank", "alpha", "dropout")
            if self.adapter not in kinds and not tolerated and getattr(self, name) != type(self).default(name):
                raise ConfigError(
                    f"{name} = {getattr(self, name)} has no effect with adapter={self.adapter}: it belongs to adapter="
                    f"{' or '.join(kinds)}; leave it out"
                )

    @property
    def names(self) -> Any:
        """The targets as `add_lora` takes them: one name is a list of one."""
        return (self.targets,) if isinstance(self.targets, str) and self.targets != "all-linear" else self.targets

    @classmethod
    def default(cls, name: str) -> Any:
        """Return a setting's default."""
        return next(field.default for field in fields(cls) if field.name == name)

    @classmethod
    def of(cls, method: Any) -> Adaptation:
        """Read the settings of a trainer, whose fields have the same names; what it does not offer is at its default."""
        return cls(**{field.name: getattr(method, field.name, cls.default(field.name)) for field in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model to train. `base` is what a saved adapter is to be put on (None: all weights are saved).

    `loaded.model` computes what the start computes until training begins, also when a fresh adapter does not.
    """

    loaded: LoadedModel
    model: Any
    base: str | None
    context: int  # tokens

    @property
    def starts_apart(self) -> bool:
        """Whether the model to train is another function than the start: fresh virtual tokens are in front of it."""
        return self.model is not self.loaded.model and virtual_tokens(self.model) > 0

    @property
    def parameters(self) -> dict[str, float]:
        """How many weights are trained, of how many, and their share."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.model.parameters() if not p.requires_grad) + trained
        if self.loaded.four_bit:  # two weights in one byte: counted from the configuration instead
            total = self.loaded.shape.parameters + trained
        return {"trained": trained, "total": total, "share": trained / total}


def open_start(start: Checkpoint, *, dtype: str, adaptation: Adaptation, out: Path, seed: int) -> Opened:
    """Load the start and put the adapter on it. An adapter as start is merged into its base first, if it can be.

    One that cannot (bottleneck, prefix, prompt) is trained further itself. A new adapter on a merged start needs that
    merged model on disk: it is written to `out/base`. Raises `ConfigError` when start and `adapter` do not go together.
    """
    loaded = load(start.path, dtype=dtype, four_bit=adaptation.adapter == "qlora")
    model, base = loaded.model, None
    if loaded.adapter is not None:
        _check_goes_on(loaded, adaptation)
        named = base_of(loaded.path)
        base = str(Path(named).resolve()) if Path(named).is_dir() else named
    elif adaptation.adapter == "full":
        model.requires_grad_(True)
    else:
        base = base_for(loaded, start, out)
        model = _fresh(model, adaptation, seed)
    return Opened(loaded=loaded, model=model, base=base, context=context_of_model(model))


def context_of_model(model: Any) -> int:
    """Return how many tokens a model takes; without a stated limit, more than any row has."""
    config = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(text, "max_position_embeddings", 0) or 1 << 30) - virtual_tokens(model)


def _fresh(model: Any, wanted: Adaptation, seed: int) -> Any:
    kind = wanted.adapter
    if kind == "ia3":
        return add_ia3(model, seed=derive(seed, "ia3"))
    if kind == "prefix" or kind == "prompt":
        return add_virtual(model, kind=kind, tokens=wanted.virtual_tokens, seed=derive(seed, kind))
    if kind == "bottleneck":
        return bottleneck.add(model, width=wanted.width, seed=derive(seed, kind))
    variant: Variant = "rslora" if kind == "rslora" else "dora" if kind == "dora" else "lora"
    return add_lora(
        model, rank=wanted.rank, alpha=wanted.alpha, dropout=wanted.dropout, targets=wanted.names, variant=variant,
        seed=derive(seed, "lora"),
    )  # fmt: skip


def _check_goes_on(loaded: LoadedModel, wanted: Adaptation) -> None:
    """Raise `ConfigError` unless the settings are those of the adapter that the start is."""
    kind = loaded.adapter
    if wanted.adapter != kind:
        raise ConfigError(
            f"{loaded.path}: is a {kind} adapter, which cannot be merged, so adapter={wanted.adapter} cannot go on top "
            f"of it: train with adapter={kind}, or begin at its base"
        )
    name, has = ("width", bottleneck.width_of(loaded.model)) if kind == "bottleneck" else (
        "virtual_tokens", virtual_tokens(loaded.model)
    )  # fmt: skip
    if getattr(wanted, name) != has:
        raise ConfigError(
            f"{loaded.path}: has {name} = {has}, not {getattr(wanted, name)}: set {name}={has} to train it further"
        )


def base_for(loaded: LoadedModel, start: Checkpoint, out: Path) -> str:
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
