"""Monte Carlo tree search over reasoning steps: spend more draws below the beginnings that have led to good replies."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..core.protocols import Tools
from ..core.seeds import derive
from ..core.types import Answer, Example, Prompt
from ..stats.steps import Aggregation
from ._steps import Choose, Path, Search, wanted

__all__ = ["Mcts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mcts:
    """Build a tree of reasoning steps by simulations: select, expand, evaluate, back up.

    UCT: argmax_a Q(s,a) + c √(ln N(s) / N(s,a));  PUCT: argmax_a Q(s,a) + c P(a|s) √N(s) / (1 + N(s,a))

    Each simulation follows this rule from the root to a leaf through as many levels as there are; expands the leaf, if it
    was visited before, into `expand` sampled next steps (equal ones merged; P is a child's share of the draws, for they are
    drawn from the model itself); values the leaf; and adds the value to every state on the way back. Q is the mean of the
    values below a state, stretched to [0, 1] by the lowest and highest value seen so far, so that c means the same for every
    verifier. A leaf is valued by writing replies from it to their end and scoring them (`leaf=rollout`), or by scoring it
    as it stands (`leaf=value`); a finished reply always by its own score.

    Every finished reply, from the tree and from rollouts, is a candidate. One that runs into the token limit counts as the
    lowest value seen, and is none. When none has finished, the rest of the most visited state is written in one go.

    Args:
        simulations: how many.
        expand: how many next steps are drawn where a state is expanded.
        steps: how many steps a reply may have; the last one is all the rest of it.
        policy: uct or puct.
        exploration: c.
        leaf: rollout or value.
        rollouts: how many replies are written from a leaf (their mean is its value).
        verifier: "likelihood" (length-normalised), or the spec of a verifier.
        accept: stop as soon as a finished reply scores this much; null: never.
        choose: among all finished replies: best, vote (majority), weighted (by value), visits (weighted by visits).
        aggregate: how a verifier's step scores become one: last, min, product or mean.
        separator: what ends a step; \\n is the end of a line.
        step_tokens: a step that is longer is continued as another one.
        temperature: above 0, else all next steps are the same.
        top_p: the nucleus; 1 keeps all tokens.

    Source: Kocsis and Szepesvári 2006, "Bandit based Monte-Carlo Planning" (UCT); Silver et al. 2017 (PUCT); the bounds of
    Q: Schrittwieser et al. 2020 (arXiv 1911.08265), equation 5; on language models: Hao et al. 2023 (arXiv 2305.14992).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"prefix"})
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "Kocsis & Szepesvári 2006 (UCT); Silver et al. 2017 (PUCT); Hao et al. 2023, arXiv 2305.14992"
    cost: ClassVar[str] = "at most simulations × expand steps and simulations × rollouts rests of replies, each scored"
    fails: ClassVar[str] = "values are noisy or few simulations are made: then best-of-N with the same tokens is better"

    simulations: Annotated[int, Field(ge=1)] = 32
    expand: Annotated[int, Field(ge=1)] = 3
    steps: Annotated[int, Field(ge=1)] = 16
    policy: Literal["uct", "puct"] = "uct"
    exploration: Annotated[float, Field(ge=0)] = 1.4
    leaf: Literal["rollout", "value"] = "rollout"
    rollouts: Annotated[int, Field(ge=1)] = 1
    verifier: str = "likelihood"
    accept: float | None = None
    choose: Literal["best", "vote", "weighted", "visits"] = "best"
    aggregate: Aggregation = "last"
    separator: str = "\\n"
    step_tokens: Annotated[int, Field(ge=1)] = 128
    temperature: Annotated[float, Field(gt=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    @property
    def verifiers(self) -> tuple[str, ...]:
        """The specs that `Tools.verifiers` must hold."""
        return wanted(self.verifier)

    async def __call__(self, prompt: Prompt, example: Example, tools: Tools, *, seed: int) -> Answer:
        """Answer one example."""
        search = Search(self, prompt, example, tools)
        tree = _Tree()
        simulations = 0
        while simulations < self.simulations and not self._enough(tree):
            node = self._select(tree)
            if node.path.open and (node is tree.root or node.visits):
                await self._expand(search, node, seed)
                node = node.children[0] if node.children else node
            value = await self._evaluate(search, tree, node, seed)
            if search.spent and value is None:
                break
            tree.back_up(node, value)
            simulations += 1
            if search.spent:
                break
        if not tree.leaves:
            await self._finish(search, tree, seed)
        how, weights = self._votes(tree)
        return await search.answer(
            [leaf.path for leaf in tree.leaves],
            [leaf.value for leaf in tree.leaves],
            choose=how,
            weights=weights,
            seed=seed,
            otherwise=tree.favourite().path if tree.root.children else None,
            trace={
                "choose": self.choose,
                "simulations": simulations,
                "states": sum(1 for _ in tree.root.below()),
                "depth": max(node.path.steps for node in tree.root.below()),
                "values": [tree.low, tree.high] if tree.low <= tree.high else None,
                "visits": [leaf.visits for leaf in tree.leaves],
            },
        )

    def _select(self, tree: _Tree) -> _Node:
        node = tree.root
        while node.children:
            node = max(node.children, key=lambda child: self._worth(tree, child))  # the first of equals
        return node

    def _worth(self, tree: _Tree, child: _Node) -> float:
        parent = child.parent
        assert parent is not None
        if self.policy == "uct":
            if not child.visits:
                return math.inf
            return tree.q(child) + self.exploration * math.sqrt(math.log(parent.visits) / child.visits)
        # Until it is visited, a child is taken to be as good as its parent has turned out to be.
        q = tree.q(child) if child.visits else tree.q(parent)
        return q + self.exploration * child.prior * math.sqrt(parent.visits) / (1 + child.visits)

    async def _expand(self, search: Search, node: _Node, seed: int) -> None:
        last = node.path.steps == self.steps - 1
        drawn = await search.grow(node.path, range(self.expand), seed=seed, last=last)
        merged = search.merged(drawn)
        node.children = [_Node(path=path, parent=node, prior=path.copies / len(drawn)) for path in merged]

    async def _evaluate(self, search: Search, tree: _Tree, node: _Node, seed: int) -> float | None:
        """Return the value of a leaf; None when there is none to be had (cut off, unscored, budget spent)."""
        path = node.path
        if node.leaf is not None:
            node.leaf.visits += 1
            return node.leaf.value
        if path.cut or (search.spent and not path.done):
            return None
        if path.done or self.leaf == "value":
            (value,) = await search.score([path])
            if path.done:
                node.leaf = tree.add(path, value)
            return value
        replies = await search.grow(path, range(self.rollouts), seed=derive(seed, "rollout"), last=True)
        values = await search.score(replies)
        leaves = [tree.add(reply, value) for reply, value in zip(replies, values, strict=True) if reply.done]
        known = [leaf.value for leaf in leaves if leaf.value is not None]
        return math.fsum(known) / len(known) if known else None

    async def _finish(self, search: Search, tree: _Tree, seed: int) -> None:
        node = tree.favourite()
        if node.path.open and node.path.steps and not search.spent:
            for path in await search.grow(node.path, [0], seed=derive(seed, "rollout"), last=True):
                if path.done:
                    tree.add(path, *await search.score([path]))

    def _enough(self, tree: _Tree) -> bool:
        return self.accept is not None and any(leaf.value is not None and leaf.value >= self.accept for leaf in tree.leaves)

    def _votes(self, tree: _Tree) -> tuple[Choose, list[float] | None]:
        if self.choose == "visits":
            return "weighted", [float(leaf.visits) for leaf in tree.leaves]
        return ("majority" if self.choose == "vote" else self.choose), None


@dataclass(eq=False, slots=True, kw_only=True)
class _Leaf:
    """A finished reply."""

    path: Path
    value: float | None
    visits: int = 1


@dataclass(eq=False, slots=True, kw_only=True)
class _Node:
    """A state: the reply so far, and what has been learnt below it."""

    path: Path
    parent: _Node | None = None
    prior: float = 1.0
    children: list[_Node] = field(default_factory=list)
    visits: int = 0
    total: float = 0.0
    leaf: _Leaf | None = None

    def below(self) -> Iterator[_Node]:
        """Yield this state and all below it."""
        yield self
        for child in self.children:
            yield from child.below()


class _Tree:
    """The states, the finished replies, and the range of the values seen."""

    def __init__(self) -> None:
        self.root = _Node(path=Path())
        self.leaves: list[_Leaf] = []
        self.low, self.high = math.inf, -math.inf

    def add(self, path: Path, value: float | None) -> _Leaf:
        """Keep a finished reply."""
        self.leaves.append(_Leaf(path=path, value=value))
        return self.leaves[-1]

    def q(self, node: _Node) -> float:
        """Return the mean value below a visited state, in [0, 1]; the middle while all values are equal."""
        return (node.total / node.visits - self.low) / (self.high - self.low) if self.low < self.high else 0.5

    def back_up(self, node: _Node, value: float | None) -> None:
        """Add a value to a state and all above it; none counts as the lowest value seen so far."""
        if value is not None:
            self.low, self.high = min(self.low, value), max(self.high, value)
        worth = value if value is not None else self.low if self.low < math.inf else 0.0
        at: _Node | None = node
        while at is not None:
            at.visits += 1
            at.total += worth
            at = at.parent

    def favourite(self) -> _Node:
        """Follow the most visited states from the root, as far as any was visited and at least one step."""
        node = self.root
        while any(child.visits for child in node.children) or (node is self.root and node.children):
            node = max(node.children, key=lambda child: child.visits)
        return node
