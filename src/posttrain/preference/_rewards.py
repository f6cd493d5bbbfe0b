"""Rewards of online methods: any weighted mix of verifiers, each told by itself, and what they cost.

R(x, y) = Σ_k w_k v_k(x, y); verifiers that are only watched are told and add nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.errors import ConfigError, DataError, TrainingError, did_you_mean
from ..core.files import file_hash
from ..core.protocols import Engine, Task, Verifier
from ..core.specs import Spec, format_spec, parse
from ..core.types import Cost, Example
from ..engines.meter import Account, Metered
from ..engines.services import SERVICES, open_service
from ..models.load import fingerprint_of
from ..training.processes import rank_and_world
from ..verifiers.build import build_verifier, compares, files_of, local_engine, weighted

__all__ = ["Rewarded", "Rewards", "identified"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewarded:
    """What the samples of some examples are worth: `total_PK`, and each verifier's own `values` by its measure's name."""

    total_PK: Tensor
    values: Mapping[str, Tensor]
    cost: Cost


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
        A text without a readable verdict is NaN there too, and worth what the prompt's others are; one must have one, or
        with `lenient` the total is NaN.
        Several processes ask for a share each, and all have all of them in the end.
        """
        rank, world = rank_and_world()
        before = self.account.total
        with ThreadPoolExecutor(1) as thread:  # an event loop of its own: there may be one here already
            asked = self._ask(examples[rank::world], texts[rank::world], only[rank::world])
            own = thread.submit(asyncio.run, asked).result()
        found, spent = own, self.account.total - before
        if world > 1:
            shares: list[Any] = [None] * world
            dist.all_gather_object(shares, (own, spent))
            found = [[]] * len(examples)
            for other, (values, _) in enumerate(shares):
                found[other::world] = values
            spent = sum((cost for _, cost in shares), Cost())
        values = torch.tensor(found, dtype=torch.double).reshape(len(examples), len(self.verifiers), -1).unbind(1)
        total_PK = torch.zeros(len(examples), values[0].shape[1], dtype=torch.double)
        for (name, weight, _), values_PK in zip(self.verifiers, values, strict=True):
            unread_P = values_PK.isnan().all(1) & torch.tensor([_scores(name, each) for each in only], dtype=torch.bool)
            bad = (values_PK.isinf().any(1) | (unread_P & (not self.lenient))).nonzero().flatten().tolist()
            if bad:
                raise TrainingError(
                    f"'{name}' is no finite number for a reply to row {rows[bad[0]]}: {values_PK[bad[0]].tolist()}"
                )
            if weight is not None:
                total_PK += weight * _filled(values_PK).masked_fill(unread_P[:, None], math.nan)
        named = {name: v for (name, _, _), v in zip(self.verifiers, values, strict=True)}
        return Rewarded(total_PK=total_PK, values=named, cost=spent)

    async def _ask(
        self, examples: Sequence[Example], texts: Sequence[Sequence[str]], only: Sequence[tuple[str, ...]]
    ) -> list[list[list[float]]]:
        """Return values by example, verifier and text."""

        async def one(name: str, verifier: Verifier, at: int) -> list[float]:
            if not _scores(name, only[at]):
                return [math.nan] * len(texts[at])
            return [score.value for score in await verifier(examples[at].public(), texts[at])]

        async def of(at: int) -> list[list[float]]:
            return list(await asyncio.gather(*(one(name, verifier, at) for name, _, verifier in self.verifiers)))

        return list(await asyncio.gather(*(of(at) for at in range(len(examples)))))

    def check(self, only: Sequence[str], where: str) -> None:
        """Raise `DataError` unless every name is one of these rewards."""
        names = [_plain(name) for name, weight, _ in self.verifiers if weight is not None]
        for name in only:
            if name not in names:
                raise DataError(f"{where}: '{name}' is none of the rewards {', '.join(names)}{did_you_mean(name, names)}")


def _filled(values_PK: Tensor) -> Tensor:
    """Return values without NaN: of a text that a judge gave no readable verdict on, the mean of the prompt's other ones.

    It is then neither better nor worse than they are for it. A verifier that does not score a prompt adds nothing.
    """
    return torch.where(values_PK.isnan(), values_PK.nanmean(1, keepdim=True).nan_to_num(0.0), values_PK)


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
