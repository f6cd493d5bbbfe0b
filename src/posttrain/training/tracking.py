"""Trackers: metrics go to `metrics.jsonl` always, and to one of these as well when `track` names it.

Each library is imported when it is asked for. A tracker that fails while training goes on is told and left: a broken
connection must not cost a run, and `metrics.jsonl` has everything.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..core.files import read_json, write_json
from .processes import say
from .settings import Tracker

__all__ = ["PROJECT", "Tracking", "library_of"]

PROJECT = "posttrain"
_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}


def library_of(track: Tracker) -> Any:
    """Return the tracker's library; raises `ConfigError` when it is not installed."""
    try:
        return importlib.import_module(_MODULES[track])
    except ImportError as error:
        raise ConfigError(
            f"track={track} needs the package {track} ({error}): pip install {track}, or leave track out"
        ) from None


@dataclass(slots=True, kw_only=True)
class Tracking:
    """An open run of a tracker."""

    name: Tracker
    _log: Callable[[Mapping[str, float], int], Any]
    _close: Callable[[], Any]
    _broken: bool = False

    @classmethod
    def open(cls, track: Tracker, out: Path, *, key: str, config: Mapping[str, Any], done: int) -> Tracking:
        """Begin a run named after the folder, or go on with the one that this run's earlier start began.

        What an interrupted start has logged after its `done` saved steps is logged again, with the same values.
        """
        library = library_of(track)
        try:
            opened = _OPENERS[track](library, out, key, dict(config), done)
        except Exception as error:
            raise ConfigError(f"track={track} cannot begin a run ({error}): mend that, or leave track out") from error
        return cls(name=track, _log=opened[0], _close=opened[1])

    def log(self, row: Mapping[str, Any]) -> None:
        """Log a line of metrics under its step."""
        numbers = {name: float(value) for name, value in row.items() if name != "step"}
        self._guarded(lambda: self._log(numbers, int(row["step"])))

    def close(self) -> None:
        """End the run."""
        self._guarded(self._close)

    def _guarded(self, call: Callable[[], Any]) -> None:
        if self._broken:
            return
        try:
            call()
        except Exception as error:
            self._broken = True
            say(f"track={self.name} failed ({error}) and gets nothing more; training goes on, metrics.jsonl has all")


_Opened = tuple[Callable[[Mapping[str, float], int], Any], Callable[[], Any]]


def _tensorboard(library: Any, out: Path, key: str, config: dict[str, Any], done: int) -> _Opened:
    writer = library.SummaryWriter(log_dir=str(out / "tensorboard"), purge_step=done + 1 if done else None)
    if not done:
        writer.add_text("config", "\n".join(f"- {name}: {value}" for name, value in config.items()), 0)

    def log(row: Mapping[str, float], step: int) -> None:
        for name, value in row.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log, writer.close


def _wandb(library: Any, out: Path, key: str, config: dict[str, Any], done: int) -> _Opened:
    run = library.init(project=PROJECT, name=out.name, id=f"{out.name}-{key}", config=config, resume="allow", dir=str(out))
    return (lambda row, step: run.log(dict(row), step=step)), run.finish


def _mlflow(library: Any, out: Path, key: str, config: dict[str, Any], done: int) -> _Opened:
    library.set_experiment(PROJECT)
    known = out / "mlflow.json"
    if known.is_file() and read_json(known)["key"] == key:
        library.start_run(run_id=read_json(known)["run_id"])
    else:
        run = library.start_run(run_name=out.name)
        write_json(known, {"key": key, "run_id": run.info.run_id})
        library.log_params(config)
    return (lambda row, step: library.log_metrics(dict(row), step=step)), library.end_run


def _trackio(library: Any, out: Path, key: str, config: dict[str, Any], done: int) -> _Opened:
    library.init(project=PROJECT, name=f"{out.name}-{key}", config=config, resume="allow")
    return (lambda row, step: library.log(dict(row), step=step)), library.finish


_OPENERS: dict[str, Callable[[Any, Path, str, dict[str, Any], int], _Opened]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
