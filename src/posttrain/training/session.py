"""The frame of every offline trainer: open the start, skip what is finished, train, leave an ordinary checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..core.files import write_json
from ..core.types import Checkpoint, Cost
from ..data.rows import rows_for
from ..data.sources import read_rows
from ..models.forward import Forward
from ..models.recompute import recompute_activations
from .alarm import Alarm
from .artifact import data_hash, export, finished, run_key
from .batching import steps_per_epoch
from .critic import Critic, CriticStart, open_critic
from .estimate import advice, estimate, free_memory, measure, words
from .heldout import OBJECTIVE, Evaluation, HeldOut, check_rows, question_of, split_by_question
from .lanes import choose, hindrance, open_lanes
from .loop import Companions, fit
from .memory import forget_peak
from .opening import Adaptation, Opened, open_start
from .optimiser import Optimisation, Optimiser
from .processes import agree, by_first_process, rank_and_world, say
from .rollouts import Fresh
from .samples import Generate, Samples
from .settings import LoopSettings, TrainerSettings, key_config
from .shards import check_shardable, make_whole, shard
from .step import Learner, Objective
from .tracking import library_of
from .work import group_work, virtual_flops

__all__ = ["Session", "group_work", "virtual_flops"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """An opened run: the model in its training forward, the key that identifies the run, and where it writes.

    `rows` are the rows to encode: the data's, then those of `eval_data`. `held` are the indices of the held-out ones.
    """

    method: TrainerSettings
    loop: LoopSettings
    start: Checkpoint
    out: Path
    seed: int
    key: str
    data: Mapping[str, Any]  # hash and row count
    rows: Sequence[Mapping[str, Any]]
    held: frozenset[int]
    opened: Opened
    module: Forward
    done: Checkpoint | None
    critic: Critic | None = None  # a value model that is trained along

    @classmethod
    def open(
        cls, method: TrainerSettings, start: Checkpoint, data: Sequence[Mapping[str, Any]], out: Path, *, seed: int,
        opener: Callable[..., Opened] = open_start, forward: Callable[[Any], Forward] = Forward,
        critic: CriticStart | None = None,
    ) -> Session:  # fmt: skip
        """Check the settings, load the start, and look whether `out` already holds this run, finished.

        `opener` and `forward` are those of a model that is no language model (a reward model). With `critic` a value model
        is trained along; its start is named by content in the run's key, as the setting `value_start`.
        """
        name = type(method).__name__.lower()
        for field, least in (("epochs", 1), ("batch_size", 1), ("tokens_per_microbatch", 0), ("save_every", 0)):
            if getattr(method, field) < least:
                raise ConfigError(f"{name}: {field} = {getattr(method, field)} must be at least {least}")
        loop = LoopSettings.of(method)
        _optimisation(method, loop)
        check_shardable(name, method.adapter, loop, critic=critic is not None)
        if loop.track is not None:
            library_of(loop.track)
        if method.adapter == "ia3" and method.weight_decay:
            raise ConfigError(
                f"{name}: weight_decay = {method.weight_decay} would pull IA3's factors to 0, not to 1; set it to 0"
            )
        if method.adapter == "prefix" and loop.activation_checkpointing:
            raise ConfigError(
                f"{name}: activation_checkpointing cannot compute the keys and values of adapter=prefix again: leave one of "
                "them out, or take adapter=prompt"
            )
        forget_peak()
        opened = opener(start, dtype=method.dtype, adaptation=Adaptation.of(method), out=out, seed=seed)
        hashed, config = data_hash(data), key_config(method)
        rows, held = list(data), frozenset[int]()
        if loop.eval_data is not None:
            rows += rows_for(method, read_rows(loop.eval_data), loop.eval_data)
            held = frozenset(range(len(data), len(rows)))
            config["eval_data"] = data_hash(rows[len(data) :])  # the content, not the file's name
        if critic is not None:
            config["value_start"] = critic.content
        key = run_key(method=method, start=opened.loaded.fingerprint, data=hashed, seed=seed, config=config)
        done = finished(out, key)
        agree(
            (key, done is not None),
            f"the processes do not train the same run in {out}: give all of them the same command, model and data, and a "
            "folder that all machines share",
        )
        if loop.eval_share and done is None:
            held = split_by_question(data, loop.eval_share, seed)
        rate, numbers = method.lr, method.dtype
        begin = (
            start.path if opened.loaded.adapter is None else opened.base or start.path
        )  # a head goes on what can be merged
        return cls(
            method=method, loop=loop, start=start, out=out, seed=seed, key=key, data={"hash": hashed, "rows": len(data)},
            rows=rows, held=held, opened=opened, module=forward(opened.model), done=done,
            critic=open_critic(name, critic, begin, lr=rate, dtype=numbers) if critic and done is None else None,
        )  # fmt: skip

    def where(self, row: int) -> str:
        """Name a row for an error message."""
        given = int(self.data["rows"])
        return f"row {row}" if row < given else f"{self.loop.eval_data}: row {row - given}"

    @property
    def context(self) -> int:
        """How many tokens a row may have: what the model takes, and the value model too."""
        return min(self.opened.context, *([] if self.critic is None else [self.critic.context]), 1 << 30)

    @property
    def tokens_per_microbatch(self) -> int:
        """The setting; 0 chooses what keeps this device busy (the trajectory does not depend on it)."""
        return int(self.method.tokens_per_microbatch) or (8192 if self.opened.loaded.device.type == "cuda" else 512)

    @property
    def frozen_backbone(self) -> bool:
        """Whether only an adapter is trained."""
        return self.opened.base is not None

    @property
    def reference(self) -> Forward:
        """The start as it is before training, for a reference: fresh virtual tokens are no part of it."""
        return Forward(self.opened.loaded.model) if self.opened.starts_apart else self.module

    def virtual_flops(self, tokens: int, *, backward: bool = True) -> float:
        """Return the FLOPs that the adapter's virtual tokens add to one sequence of `tokens`."""
        return virtual_flops(self.opened.model, self.opened.loaded.shape, tokens, backward=backward)

    def train(
        self,
        objective: Objective,
        items: Sequence[Any],
        *,
        facts: Mapping[str, Any],
        cost: Cost | None = None,
        generate: Generate | None = None,
        fresh: Fresh | None = None,
        closing: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]] | None = None,
        judge: Callable[[Learner, Sequence[Any]], Mapping[str, Any]] | None = None,
        evaluation: Evaluation = OBJECTIVE,
        held_bytes: int = 0,
    ) -> Checkpoint:
        """Train on the items and export.

        `facts` go into `posttrain.json`; `cost` is what was spent before (a reference); `generate` writes the samples that
        `sample_every` asks for, `fresh` makes what steps train on in place of their rows; `closing` returns facts that the
        lines of metrics tell in the end, `judge` facts about the trained model on the held-out items. `evaluation` is what
        is measured on these on the way. `held_bytes` are the weights of models that are only read.
        """
        method, loop, name = self.method, self.loop, type(self.method).__name__.lower()
        if fresh is not None and loop.sharding == "full":
            raise ConfigError(
                f"{name}: sharding=full does not go with samples of the model in training: leave sharding out, or train on "
                "given rows alone"
            )
        trained = [item for item in items if item.row not in self.held]
        held_out = self._held_out(trained, [item for item in items if item.row in self.held], evaluation)
        needs, parameters = self._estimate(objective, trained, held_out, held_bytes), self.opened.parameters
        module = self.module if self.critic is None else self.critic.beside(self.module)
        lanes = open_lanes(name, module, needs["lanes"], wanted=loop.lanes)
        needs["lanes"] = 1 if lanes is None else len(lanes)
        if loop.activation_checkpointing:
            recompute_activations(self.opened.model)
            if self.critic is not None:
                self.critic.recompute()
        sharded = loop.sharding == "full" and shard(self.module, self.opened.loaded.device)
        optimiser = Optimiser(module, _optimisation(method, loop, self.critic))
        if lanes is not None:
            lanes.collect_into(optimiser)
        elif not sharded:  # gradients of slices must come to FSDP's own hooks
            module.collect_into(optimiser.sink)
        learner = Learner(
            module=module, objective=objective, optimiser=optimiser, seed=self.seed,
            tokens_per_microbatch=self.tokens_per_microbatch, device=self.opened.loaded.device,
            alarm=Alarm(factor=loop.explode) if loop.explode else None, lanes=lanes,
        )  # fmt: skip
        companions = Companions(
            held_out=held_out, samples=self._samples(generate), fresh=fresh, keep=loop.keep, track=loop.track,
            config={f.name: getattr(method, f.name) for f in fields(type(method))},
        )  # fmt: skip
        try:
            total = fit(
                learner, trained, out=self.out, key=self.key, batch_size=method.batch_size, epochs=method.epochs,
                save_every=method.save_every, description=name, companions=companions,
            )  # fmt: skip
            judged = {} if held_out is None or judge is None else {"held_out": judge(learner, held_out.items)}
        finally:
            optimiser.close()
            if lanes is not None:
                lanes.close()
        if sharded:
            make_whole(self.module, frozen=self.opened.base is None)
        told = {"estimate": needs, **({} if held_out is None else {"evaluation": held_out.facts(total)}), **judged}
        told |= {} if self.critic is None else {"value": self.critic.facts}
        if rank_and_world()[0] == 0:  # which alone writes these files
            told |= {} if companions.samples is None else {"reply_tokens": companions.samples.lengths()}
            told |= {} if closing is None else closing(read_rows(self.out / "metrics.jsonl"))
        return export(
            self.opened.model, self.opened.loaded.tokenizer, self.out, method=method, seed=self.seed, key=self.key,
            base=self.opened.base, start={"path": str(self.start.path), "fingerprint": self.opened.loaded.fingerprint},
            data={**self.data, **facts}, parameters=parameters,
            cost=self.start.cost + learner.cost + (cost or Cost()), told=told,
            value=None if self.critic is None else self.critic.artifact,
        )  # fmt: skip

    def _estimate(
        self, objective: Objective, trained: Sequence[Any], held_out: HeldOut | None, held_bytes: int
    ) -> dict[str, Any]:
        """Tell what the run will need, and what to lower when that is not there; returns it for `posttrain.json`."""
        method, loop, loaded, world = self.method, self.loop, self.opened.loaded, rank_and_world()[1]
        work = [objective.work(item) for item in trained]
        longest = max((w.tokens for w in work), default=0)
        how: dict[str, Any] = {
            "context": self.opened.context, "tokens": max(longest, self.tokens_per_microbatch),
            "recomputed": loop.activation_checkpointing, "eight_bit": loop.optimiser == "adamw8bit",
            "shards": world if loop.sharding == "full" else 1,
        }  # fmt: skip
        sizes, speed = measure(self.module, loaded.shape, full=not self.frozen_backbone, held=held_bytes, **how)
        if self.critic is not None:
            sizes = replace(sizes, beside=measure(self.critic.module, self.critic.loaded.shape, **how)[0])
        name, free = type(method).__name__.lower(), free_memory(loaded.device)
        hindered = hindrance((self.module, *([] if self.critic is None else [self.critic.module])), objective, loop)
        sizes = replace(sizes, lanes=choose(name, loop.lanes, sizes, self.out, hindered=hindered, free=free))
        steps = method.epochs * steps_per_epoch(len(trained), method.batch_size)
        flops = method.epochs * sum(w.flops for w in work) * (4 / 3 if loop.activation_checkpointing else 1)
        if held_out is not None:
            once = sum(objective.work(item, backward=False).flops for item in held_out.items)
            flops += (-(-steps // held_out.every) + held_out.start) * once
        found = replace(estimate(sizes), steps=steps, seconds=flops / speed / world, free=free)
        asks = bool(getattr(method, "asks", False))  # how long its samples will be is not known
        told = words(name, found, asks=asks)
        better = advice(sizes, found, longest=longest, cuda=loaded.device.type == "cuda", world=world)
        say(told if better is None else f"{told}: {better}")
        by_first_process(lambda: write_json(self.out / "estimate.json", found.to_dict()))
        return found.to_dict()

    def _held_out(self, trained: Sequence[Any], held: Sequence[Any], evaluation: Evaluation) -> HeldOut | None:
        if not self.loop.evaluates:
            return None
        check_rows(held, trained, "eval_data" if self.loop.eval_data is not None else "eval_share")
        asked, rows = {question_of(self.rows[item.row]) for item in trained}, {item.row for item in held}
        common = sum(question_of(self.rows[row]) in asked for row in rows)
        if common:
            name = evaluation.criterion
            say(f"{common} of the {len(rows)} held-out rows ask what training rows ask too: their {name} flatters")
        return HeldOut(
            also_trained=common, evaluation=evaluation,
            items=held, every=self.loop.eval_every or steps_per_epoch(len(trained), self.method.batch_size),
            patience=self.loop.patience, start=self.loop.eval_start, folder=self.out / "best", key=self.key,
        )  # fmt: skip

    def _samples(self, generate: Generate | None) -> Samples | None:
        loop, loaded = self.loop, self.opened.loaded
        if not loop.sample_every:
            return None
        if generate is None:
            raise ConfigError(f"{type(self.method).__name__.lower()} writes no samples: leave sample_every out")
        return Samples.open(
            [self.rows[i] for i in sorted(self.held)], loop.sample_data, count=loop.sample_count, tokens=loop.sample_tokens,
            context=self.opened.context, generate=generate, model=self.opened.model, tokenizer=loaded.tokenizer,
            shape=loaded.shape, every=loop.sample_every, path=self.out / "samples.jsonl", seed=self.seed,
        )  # fmt: skip


def _optimisation(method: TrainerSettings, loop: LoopSettings, critic: Critic | None = None) -> Optimisation:
    return Optimisation(
        lr=method.lr, schedule=method.schedule, warmup=method.warmup, weight_decay=method.weight_decay, clip=method.clip,
        decay_share=loop.decay_share, kind=loop.optimiser, groups=() if critic is None else critic.groups,
    )  # fmt: skip
