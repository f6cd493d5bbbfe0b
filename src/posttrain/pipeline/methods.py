"""Finding methods by their one-line specs, and telling what there is."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from ..core.errors import ConfigError, did_you_mean
from ..core.protocols import Maker, Prompter, Strategy, Trainer
from ..core.specs import Spec, available, format_value, instantiate, lookup, parse

__all__ = ["Described", "build_maker", "build_prompter", "build_strategy", "build_trainer", "describe_methods"]

LEVERS = {
    "prompting": "posttrain.prompting",
    "test-time": "posttrain.test_time",
    "fine-tuning": "posttrain.finetuning",
    "preference": "posttrain.preference",
}


def build_prompter(spec: str) -> Prompter:
    """Return the prompter a spec names."""
    return _build(spec, ("posttrain.prompting",), "prompt")  # type: ignore[no-any-return]


def build_strategy(spec: str) -> Strategy:
    """Return the test-time strategy a spec names."""
    return _build(spec, ("posttrain.test_time",), "strategy")  # type: ignore[no-any-return]


def build_trainer(spec: str) -> Trainer:
    """Return the training method a spec names."""
    return _build(spec, ("posttrain.finetuning", "posttrain.preference"), "method", data=False)  # type: ignore[no-any-return]


def build_maker(spec: str) -> Maker:
    """Return the data maker a spec names."""
    return _build(spec, ("posttrain.finetuning", "posttrain.preference"), "data maker", data=True)  # type: ignore[no-any-return]


def _build(text: str, packages: tuple[str, ...], kind: str, data: bool | None = None) -> Any:
    spec = parse(text)
    cls = _find(spec, packages, kind)
    if data is not None and (getattr(cls, "kind", "trainer") == "data") != data:
        raise ConfigError(f"'{spec.name}' is a {'training method' if data else 'data maker'}, not a {kind}")
    return instantiate(cls, spec.params, where=f"{kind} '{spec.name}'")


def _find(spec: Spec, packages: tuple[str, ...], kind: str) -> type[Any]:
    if "@" in spec.name:
        return lookup(spec.name, packages[0], kind)
    for package in packages:
        if spec.name in available(package):
            return lookup(spec.name, package, kind)
    places = [(name, package) for package in packages for name in available(package)]
    for name, package in places:
        known_as = getattr(lookup(name, package, kind), "known_as", {})
        if spec.name in known_as:
            raise ConfigError(f"'{spec.name}' is a setting of another {kind}: write {known_as[spec.name]}")
    names = [name for name, _ in places]
    raise ConfigError(f"unknown {kind} '{spec.name}'{did_you_mean(spec.name, names)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What `posttrain methods` shows of a method."""

    name: str
    lever: str
    summary: str
    settings: tuple[str, ...]
    shared: tuple[str, ...]  # settings of the loop that all trainers have
    paper: str
    needs: str
    cost: str
    fails: str
    measured: bool  # there is a result page with it
    known_as: dict[str, str]  # names of the literature, and the specs they are here


def describe_methods() -> Iterator[Described]:
    """Yield every method of the four levers; what a method says of itself stands in its class."""
    for lever, package in LEVERS.items():
        for name in available(package):
            cls = lookup(name, package, "method")
            importlib.import_module(f"{package}.{name}")
            yield Described(
                name=name,
                lever=lever + (" data" if getattr(cls, "kind", "") == "data" else ""),
                summary=getattr(cls, "summary", (cls.__doc__ or "").strip().split("\n")[0]),
                settings=_settings(cls, shared=False),
                shared=_settings(cls, shared=True),
                paper=getattr(cls, "paper", ""),
                needs=", ".join(sorted(getattr(cls, "needs", ()))),
                cost=getattr(cls, "cost", ""),
                fails=getattr(cls, "fails", ""),
                measured=getattr(cls, "measured", False),
                known_as=dict(getattr(cls, "known_as", {})),
            )


def _settings(cls: type[Any], *, shared: bool) -> tuple[str, ...]:
    """Return a method's own settings, those it has in common with other trainers last, or the ones of the training loop."""
    from ..training.settings import LoopSettings

    loop = {f.name for f in fields(LoopSettings)} if issubclass(cls, LoopSettings) else set()
    base = {f.name for parent in cls.__mro__[1:] if is_dataclass(parent) for f in fields(parent)}
    found = [f for f in fields(cls) if f.init and (f.name in loop) == shared]
    return tuple(f"{f.name}={format_value(f.default)}" for f in sorted(found, key=lambda f: f.name in base))
