"""Rewards of online methods: any weighted mix of verifiers, each told by itself, and what they cost.

R(x, y) = Σ_k w_k v_k(x, y); verifiers that are only watched are told and add nothing.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError, DataError, TrainingError, did_you_mean
from ..core.files import file_hash
from ..core.protocols import Engine, Task, Verifier
from ..core.specs import Spec, format_spec, parse
from ..core.types import Cost, Example
from ..engines.meter import Account, Metered
from ..engines.services import SERVICES, open_service
from ..models.load import fingerprint_of
from ..training.processes import gathered
from ..verifiers.build import build_verifier, compares, files_of, local_engine, weighted

__all__ = ["AsAsked", "Rewarded", "Rewards", "identified", "overlong_punishment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewarded:
    """What the samples of some examples are worth: `total_PK`, and each verifier's own `values` by its measure's name."""

    total_PK: Tensor
    values: Mapping[str, Tensor]
    cost: Cost


_Asked = tuple[Example, Sequence[str], tuple[str, ...]]  # what was asked, the replies, the rewards that score it (none: all)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewards:
    """Opened verifiers with their weights."""

    verifiers: Sequence[tuple[str, float | None, Verifier]]  # measure, weight; None: only watched
    account: Account
    verifier: Callable[[str], Verifier] | None = None  # opens a further one, charged to the same account
    lenient: bool = False  # what has no readable verdict, and no other sample to stand in for it, is NaN: no error

    @classmethod
    def open(
        cls, specs: Sequence[str], *, task: Task, golds: Mapping[str, Example], watched: Sequence[str] = ()
    ) -> Rewards:  # fmt: skip
        """Open verifiers, `weight*spec` each (weight 1 if there is none), and watched ones; all may see the gold."""
        account = Account()

        def meter(engine: Engine, role: str) -> Engine:
            return Metered(engine, account, role)

        def opened(spec: str) -> Verifier:
            return build_verifier(spec, task=task, golds=golds, meter=meter, opener=_opened)

        found: list[tuple[str, float | None, Verifier]] = []
        wanted = [("reward", *weighted(spec)) for spec in specs] + [("watched", None, weighted(spec)[1]) for spec in watched]
        for kind, weight, spec in wanted:
            if compares(spec):
                raise ConfigError(f"rewards: '{spec}' compares two texts and scores none by itself: use tournament")
            name = f"{kind}_{parse(spec).name.partition('@')[0]}"
            same = sum(other.partition("#")[0] == name for other, _, _ in found)
            found.append((name if not same else f"{name}#{same + 1}", weight, opened(spec)))
        if not specs:
            raise ConfigError("rewards: none is given: name at least one verifier, as in rewards=[exact]")
        return cls(verifiers=found, account=account, verifier=opened)

    def __call__(
        self, examples: Sequence[Example], texts: Sequence[Sequence[str]], rows: Sequence[int],
        only: Sequence[tuple[str, ...]],
    ) -> Rewarded:  # fmt: skip
        """Return what each of K texts is worth for each of P examples; `rows` name these in an error.

        `only` names for each example the rewards that score it (none: all); the others are NaN in `values` and add nothing.
        A text without a readable verdict is NaN there too, and worth what the prompt's others are, or the step's where none
        has one; more than half of a step without is an error. With `lenient` it is none, and the total is NaN.
        Several processes ask for a share each, and all have all of them in the end.
        """
        found, spent = gathered(list(zip(examples, texts, only, strict=True)), self._own)
        values = torch.tensor(found, dtype=torch.double).reshape(len(examples), len(self.verifiers), -1).unbind(1)
        total_PK = torch.zeros(len(examples), values[0].shape[1], dtype=torch.double)
        for (name, weight, _), values_PK in zip(self.verifiers, values, strict=True):
            scored_P = torch.tensor([_scores(name, each) for each in only], dtype=torch.bool)
            self._check(name, values_PK, scored_P, rows)
            if weight is not None:
                total_PK += weight * _filled(values_PK, scored_P, of_step=not self.lenient)
        named = {name: v for (name, _, _), v in zip(self.verifiers, values, strict=True)}
        return Rewarded(total_PK=total_PK, values=named, cost=spent)

    def _check(self, name: str, values_PK: Tensor, scored_P: Tensor, rows: Sequence[int]) -> None:
        if bool((bad_P := values_PK.isinf().any(1)).any()):
            at = int(bad_P.nonzero()[0])
            raise TrainingError(f"'{name}' is no finite number for a reply to row {rows[at]}: {values_PK[at].tolist()}")
        unread_PK = values_PK.isnan() & scored_P[:, None]
        asked = int(scored_P.sum()) * values_PK.shape[1]
        if not self.lenient and 2 * int(unread_PK.sum()) > asked:
            raise TrainingError(
                f"'{name}' has no readable verdict on {int(unread_PK.sum())} of the {asked} replies of this step, the first "
                f"of them to row {rows[int(unread_PK.any(1).nonzero()[0])]}: look at what it says of them"
            )

    def _own(self, asked: Sequence[_Asked]) -> tuple[list[list[list[float]]], Cost]:
        """Return this process's share of the values, by example, verifier and text, and what they cost."""
        before, began = self.account.total, time.perf_counter()
        with ThreadPoolExecutor(1) as thread:  # an event loop of its own: there may be one here already
            found = thread.submit(asyncio.run, self._ask(asked)).result()
        spent = self.account.total - before  # asked together: their waits, added, would be more than the time that passed
        return found, replace(spent, seconds=time.perf_counter() - began)

    async def _ask(self, asked: Sequence[_Asked]) -> list[list[list[float]]]:
        async def one(name: str, verifier: Verifier, of: _Asked) -> list[float]:
            example, texts, only = of
            if not _scores(name, only):
                return [math.nan] * len(texts)
            return [score.value for score in await verifier(example.public(), texts)]

        async def each(of: _Asked) -> list[list[float]]:
            return list(await asyncio.gather(*(one(name, verifier, of) for name, _, verifier in self.verifiers)))

        return list(await asyncio.gather(*map(each, asked)))

    def check(self, only: Sequence[str], where: str) -> None:
        """Raise `DataError` unless every name is one of these rewards."""
        names = [_plain(name) for name, weight, _ in self.verifiers if weight is not None]
        for name in only:
            if name not in names:
                raise DataError(f"{where}: '{name}' is none of the rewards {', '.join(names)}{did_you_mean(name, names)}")


def _filled(values_PK: Tensor, scored_P: Tensor, *, of_step: bool) -> Tensor:
    """Return values in which a text without a readable verdict is neither better nor worse than others for it.

    It has the mean of the prompt's other texts; where no text of a prompt has a verdict, that of the step's, or with
    `of_step` false NaN. A verifier that does not score a prompt adds nothing to it.
    """
    step = values_PK[scored_P].nanmean() if of_step else values_PK.new_tensor(math.nan)
    others_P = values_PK.nanmean(1)
    others_P = torch.where(others_P.isnan(), step, others_P)
    filled_PK = torch.where(values_PK.isnan(), others_P[:, None], values_PK)
    return filled_PK.masked_fill(~scored_P[:, None], 0.0)


def _scores(measure: str, only: Sequence[str]) -> bool:
    """Whether a verifier scores an example that names these rewards."""
    return not only or _plain(measure) in only


def _plain(measure: str) -> str:
    """Return the verifier's name of a measure."""
    return measure.partition("_")[2]


def identified(specs: Sequence[str]) -> tuple[str, ...]:
    """Return the specs with what their models and Python files are: what decides a run's result, wherever it lies."""

    def known(spec: Spec) -> Spec:
        changed = {
            key: fingerprint_of(value) if key == "model" and isinstance(value, str) and not _is_service(value) else value
            for key, value in spec.params.items()
        }
        if isinstance(models := spec.params.get("models"), list | tuple):
            changed["models"] = [str(model) if _is_service(str(model)) else fingerprint_of(str(model)) for model in models]
        return Spec(spec.name, changed)

    return tuple(
        f"{weight}*{format_spec(known(parse(spec)))}" + "".join(f" {file_hash(file)}" for file in files_of(spec))
        for weight, spec in map(weighted, specs)
    )


def _is_service(model: str) -> bool:
    return model.partition(":")[0] in SERVICES


def _opened(model: str) -> Engine:
    """Return the engine that a verifier's setting `model` names, a server's among them."""
    return open_service(model)[0] if _is_service(model) else local_engine(model)


class AsAsked:
    """A task whose examples are conversations as they were asked: no instruction is to be added to these."""

    instruction = ""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


def overlong_punishment(tokens: Tensor, *, limit: int, zone: int) -> Tensor:
    """Return 0 up to limit − zone tokens, then falling to −1 at the limit: ((limit − zone) − |y|) / zone.

    Source: DAPO (Yu et al. 2025, 2503.14476), eq. 13, with L_max the limit of what is generated.
    """
    return (((limit - zone) - tokens.double()) / zone).clamp(-1.0, 0.0)
