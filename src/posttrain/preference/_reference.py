"""What trainers with a reference share: its log-probabilities, what groups cost, and a note when all responses fell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..core.types import Cost, ModelShape
from ..data.masks import Encoded
from ..models.sharing import shared_prefix
from ..training.kept_logps import KeptLogps
from ..training.processes import say
from ..training.reference import reference_logps
from ..training.session import Session, group_work
from ..training.step import Work

__all__ = ["both_fell", "start_logps", "work_of"]


def start_logps(session: Session, groups: Sequence[Sequence[Encoded]]) -> tuple[list[list[float]], Cost]:
    """Return log π_ref of the sequences of each group, and what that cost; π_ref is the start as it is.

    It is computed before any weight changes, by the model that is about to be trained: so it is the start's whatever the
    adapter, fresh or trained before, and no second model is held in memory. Only fresh virtual tokens are left away.
    """
    module = session.reference
    work = [
        work_of(
            group, shape=session.opened.loaded.shape, frozen_backbone=session.frozen_backbone, backward=False,
            prefix=shared_prefix(group) if module.packs else 0,
            virtual_flops=None if session.opened.starts_apart else session.virtual_flops,
        )
        for group in groups
    ]  # fmt: skip
    # An adapter that changes nothing yet still rounds in its own way: its kind belongs to the name.
    start = f"{session.opened.loaded.fingerprint} {session.method.adapter}"
    return reference_logps(
        module, groups, work, out=session.out, key=session.key, tokens_per_microbatch=4 * session.tokens_per_microbatch,
        kept=KeptLogps(start, module),
    )  # fmt: skip


def work_of(
    group: Sequence[Encoded], *, shape: ModelShape, prefix: int, frozen_backbone: bool, backward: bool,
    virtual_flops: Callable[..., float] | None,
) -> Work:  # fmt: skip
    """Return what a group costs whose first `prefix` tokens are computed once."""
    work = group_work(
        shape, prefix=prefix, branches=[len(e.ids) - prefix for e in group], logits=sum(e.trained for e in group),
        frozen_backbone=frozen_backbone, backward=backward,
    )  # fmt: skip
    if virtual_flops is None:
        return work
    return replace(work, flops=work.flops + sum(virtual_flops(len(e.ids), backward=backward) for e in group))


def both_fell(
    lines: Sequence[Mapping[str, Any]], sides: tuple[str, str] = ("chosen", "rejected"), *, mend: str = ""
) -> dict[str, Any]:
    """Tell when the better responses, too, have become less likely than they were: over the last tenth of the steps.

    Returns what `posttrain.json` says about it; nothing without a reference, or where these steps had one kind alone. `mend`
    is what else may be done about it.
    """
    last = lines[-max(1, len(lines) // 10) :]
    found = {side: [line[f"change_{side}"] for line in last if f"change_{side}" in line] for side in sides}
    if not all(found.values()):
        return {}
    change = {side: sum(nats) / len(nats) for side, nats in found.items()}
    fell = all(nats < 0 for nats in change.values())
    if fell:
        better, worse = sides
        say(
            f"the {better} responses have become less likely ({change[better]:.3g} nats), the {worse} ones too "
            f"({change[worse]:.3g}): the loss sees how they differ, not where they are. Harmless while the task's accuracy "
            f"rises; if it falls, lower lr, raise beta, {mend}{', ' if mend else ''}or fine-tune on the {better} responses "
            "first"
        )
    return {"change": {**change, "both_fell": fell}}
