"""Whether the stages of a recipe name each other rightly: earlier ones, and of the kind that is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..core.errors import did_you_mean
from .alignment import check_judging
from .naming import STAGE

if TYPE_CHECKING:
    from .recipe import StageConfig

__all__ = ["check_references"]


def check_references(stages: Sequence[StageConfig]) -> None:
    """Raise `ValueError` that names the stage and what it names wrongly."""
    earlier: dict[str, StageConfig] = {}
    for stage in stages:
        if stage.name in earlier:
            raise ValueError(f"two stages are called '{stage.name}'")
        for name in (*stage.inputs, *([stage.against] if stage.against else [])):
            if name not in earlier:
                near = did_you_mean(name, earlier)
                raise ValueError(f"stage '{stage.name}' needs '{name}', which is no earlier stage{near}")
        if stage.model is not None and not earlier[stage.model].makes_a_model:
            raise ValueError(f"stage '{stage.name}': model '{stage.model}' is not a training stage")
        for name in stage.data.stages or () if stage.data is not None else ():
            if earlier[name].data is None:
                raise ValueError(f"stage '{stage.name}': '{name}' of 'stages' is not a data stage")
        if stage.data is not None and (by := stage.data.labelled_by) is not None and not earlier[by].makes_a_model:
            raise ValueError(f"stage '{stage.name}': labeller '{by}' is not a training stage")
        if stage.data is not None and stage.data.beside is not None and earlier[stage.data.beside].eval is None:
            raise ValueError(f"stage '{stage.name}': beside '{stage.data.beside}' is not an evaluation")
        for key, config in (("data", stage.train), ("eval_data", stage.train), ("also", stage.data)):
            source = getattr(config, key, None)
            if source is not None and earlier[source].data is None:
                raise ValueError(f"stage '{stage.name}': {key} '{source}' is not a data stage")
        if stage.train is not None and stage.train.teacher is not None and earlier[stage.train.teacher].train is None:
            raise ValueError(f"stage '{stage.name}': teacher '{stage.train.teacher}' is not a training stage")
        if stage.eval is not None and stage.eval.teacher is not None and stage.model is not None:
            raise ValueError(f"stage '{stage.name}': give either 'model', an earlier stage, or 'teacher', another model")
        named = {
            "strategy": stage.eval.scoring if stage.eval is not None else (),
            "rewards": stage.train.scoring if stage.train is not None else (),
            "method": stage.train.reading if stage.train is not None else (),
        }
        for where, names in named.items():
            for name in names:
                if earlier[name].train is None:
                    raise ValueError(f"stage '{stage.name}': {STAGE}{name} in its {where} is not a training stage")
        if stage.data is not None and stage.data.source is not None:
            source = earlier[stage.data.source]
            if source.eval is None and source.data is None:
                raise ValueError(f"stage '{stage.name}': from '{source.name}' is no evaluation and no data stage")
        if stage.eval is not None and stage.eval.instruction is not None and earlier[stage.eval.instruction].search is None:
            raise ValueError(f"stage '{stage.name}': instruction '{stage.eval.instruction}' is not a search stage")
        if stage.judge is not None:
            check_judging(stage.name, stage.judge, earlier)
        earlier[stage.name] = stage
