"""Tree of thoughts: propose or sample next thoughts, judge them, and search the tree breadth-first or depth-first."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..core.errors import ConfigError
from ..core.protocols import Tools
from ..core.seeds import derive
from ..core.types import Answer, Completion, Example, Prompt
from ..stats.steps import Aggregation
from ._steps import Path, Search, wanted
from ._thoughts import PROPOSE, VALUE, VOTE, Evaluator, Node, Proposer, template

__all__ = ["TreeOfThoughts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeOfThoughts:
    """Search a tree of reasoning steps, guided by the model's own judgement or a verifier, until a goal is reached.

    BFS: S_t = top_width { s + z : s ∈ S_{t-1}, z ∈ G(s, expand) } by V. DFS: follow the children of s by falling V, skip
    those with V ≤ threshold, and go back to s when a child's subtree holds no goal.

    G samples next steps from the reply itself, or asks for a list of them with `propose_prompt`. V is the mean verdict on a
    state (sure 1, likely 1/2, impossible 0), its share of votes among its siblings, or a verifier's score. A state whose
    verdicts cannot be read has the middle value 1/2. Equal states are one state and share one value.

    A state has ended when its turn has, or when it contains `answer_mark`. The search stops at the first goal: an ended
    state with a readable answer; or, with `goal`, any state whose answer that verifier accepts. It also stops when `nodes`
    states have been made. Without a goal the ended state with the highest value answers, or, if none has ended and the
    budget allows, the rest of the best state is written in one go.

    Args:
        search: bfs or dfs.
        generate: sample (the next step of the reply, `expand` times) or propose (ask once for a list).
        evaluate: value, vote, or verifier.
        verifier: with evaluate=verifier, its spec, or "likelihood" (of sampled thoughts).
        goal: the spec of a verifier that accepts an answer with a score of at least `accept`; empty: any answer that ends.
        accept: see goal.
        expand: how many thoughts a state gets.
        width: how many states a level keeps (bfs).
        steps: the depth; what is not finished there is written to its end.
        nodes: how many states are made at most.
        threshold: states with this value or less are pruned.
        evaluations: how many verdicts or votes are sampled.
        evaluation_tokens: the token limit of a verdict.
        propose_prompt: text or file with {question}, {steps} and {k}; empty: a general one.
        value_prompt: text or file with {question} and {steps}.
        vote_prompt: text or file with {question}, {choices} and {k}.
        answer_mark: a proposed thought that contains this ends its path.
        aggregate: how a verifier's step scores become one: last, min, product or mean.
        separator: what ends a sampled thought, and joins proposed ones; \\n is the end of a line.
        step_tokens: the token limit of a thought.
        temperature: above 0.
        top_p: the nucleus; 1 keeps all tokens.

    Source: Yao et al. 2023, "Tree of Thoughts: Deliberate Problem Solving with Large Language Models" (arXiv 2305.10601),
    algorithms 1 and 2.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"prefix"})
    measured: ClassVar[bool] = True
    paper: ClassVar[str] = "Yao et al. 2023, arXiv 2305.10601, algorithms 1 and 2"
    cost: ClassVar[str] = "at most nodes thoughts, their verdicts (× evaluations) or scores, and one rest of a reply"
    fails: ClassVar[str] = "the model cannot judge its own steps; small models cannot. A task without steps gains nothing"

    search: Literal["bfs", "dfs"] = "bfs"
    generate: Literal["sample", "propose"] = "sample"
    evaluate: Literal["value", "vote", "verifier"] = "value"
    verifier: str = ""
    goal: str = ""
    accept: float = 0.5
    expand: Annotated[int, Field(ge=1)] = 4
    width: Annotated[int, Field(ge=1)] = 3
    steps: Annotated[int, Field(ge=1)] = 8
    nodes: Annotated[int, Field(ge=1)] = 100
    threshold: float = 0.0
    evaluations: Annotated[int, Field(ge=1)] = 3
    evaluation_tokens: Annotated[int, Field(ge=1)] = 128
    propose_prompt: str = ""
    value_prompt: str = ""
    vote_prompt: str = ""
    answer_mark: str = "Answer:"
    aggregate: Aggregation = "last"
    separator: str = "\\n"
    step_tokens: Annotated[int, Field(ge=1)] = 128
    temperature: Annotated[float, Field(gt=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0

    @property
    def verifiers(self) -> tuple[str, ...]:
        """The specs that `Tools.verifiers` must hold."""
        return wanted(self.verifier if self.evaluate == "verifier" else "", self.goal)

    async def __call__(self, prompt: Prompt, example: Example, tools: Tools, *, seed: int) -> Answer:
        """Answer one example."""
        tree = _Tree(self, prompt, example, tools, seed)
        await (self._breadth_first(tree) if self.search == "bfs" else self._depth_first(tree, tree.root))
        if tree.goal is None and not any(node.answered for node in tree.ended):
            await tree.finish_best()
        best = tree.goal or max(tree.ended, key=lambda node: (node.answered, node.value), default=None)
        return await tree.search.answer(
            [node.path for node in tree.ended],
            [node.told for node in tree.ended],
            choose="best",
            pick=tree.ended.index(best) if best is not None else None,
            seed=seed,
            otherwise=tree.best_open.path if tree.best_open is not None else None,
            trace=tree.trace(best),
        )

    async def _breadth_first(self, tree: _Tree) -> None:
        level = [tree.root]
        while level and not tree.over:
            children = await tree.expand(level)
            if tree.goal is not None:
                return
            able = [child for child in children if child.path.open and child.value > self.threshold]
            level = sorted(able, key=lambda child: -child.value)[: self.width]
            tree.pruned += sum(child.path.open for child in children) - len(level)
            tree.tell("level", children[0] if children else None, states=len(children), kept=len(level))

    async def _depth_first(self, tree: _Tree, node: Node) -> None:
        children = await tree.expand([node])
        for child in sorted(children, key=lambda child: -child.value):
            if tree.goal is not None or tree.over:
                return
            if not child.path.open:
                tree.tell("dead end", child)
            elif child.value <= self.threshold:
                tree.pruned += 1
                tree.tell("prune", child)
            else:
                tree.tell("enter", child)
                await self._depth_first(tree, child)
                if tree.goal is None:
                    tree.backtracks += 1
                    tree.tell("backtrack", child)


class _Tree:
    """One example's tree: makes states, values them, knows the goal, and records what happened."""

    def __init__(self, method: TreeOfThoughts, prompt: Prompt, example: Example, tools: Tools, seed: int) -> None:
        if method.evaluate == "verifier" and not method.verifier:
            raise ConfigError("tree_of_thoughts:evaluate=verifier needs verifier=<spec>, or verifier=likelihood")
        if method.evaluate == "verifier" and method.verifier == "likelihood" and method.generate == "propose":
            raise ConfigError("tree_of_thoughts: proposed thoughts have no likelihood; use another verifier")
        if method.goal == "likelihood":
            raise ConfigError("tree_of_thoughts: goal=likelihood accepts nothing; use the spec of a verifier of answers")
        self.method, self.seed = method, seed
        scored = None if method.evaluate == "verifier" else ""
        self.search = Search(method, prompt, example, tools, verifier=scored, goal=method.goal)
        where = "tree_of_thoughts"
        question = next((m.content for m in reversed(prompt.messages) if m.role == "user"), example.question)
        self.proposer = Proposer(
            self.search,
            question,
            prompt=template(method.propose_prompt, PROPOSE, "question", "steps", "k", where=f"{where}:propose_prompt"),
            mark=method.answer_mark,
            seed=derive(seed, "propose"),
        )
        self.evaluator = Evaluator(
            self.search,
            question,
            value=template(method.value_prompt, VALUE, "question", "steps", where=f"{where}:value_prompt"),
            vote=template(method.vote_prompt, VOTE, "question", "choices", "k", where=f"{where}:vote_prompt"),
            n=method.evaluations,
            tokens=method.evaluation_tokens,
            seed=derive(seed, "evaluate"),
        )
        self.root = Node(path=Path())
        self.goal: Node | None = None
        self.best_open: Node | None = None
        self.ended: list[Node] = []
        self.made = self.pruned = self.backtracks = 0
        self.events: list[dict[str, Any]] = []

    @property
    def over(self) -> bool:
        """Whether no further state may be made (a first one is always tried)."""
        return self.made >= self.method.nodes or (self.made > 0 and self.search.spent)

    async def expand(self, nodes: Sequence[Node]) -> list[Node]:
        """Return the children of the nodes, equal ones merged, with their values; sets the goal if one of them is it."""
        room = self.method.nodes - self.made
        shares: list[int] = []
        for _ in nodes:
            shares.append(max(0, min(self.method.expand, room - sum(shares))))
        grown = await asyncio.gather(*(self._thoughts(node, k) for node, k in zip(nodes, shares, strict=True)))
        parents = {id(path): node for node, paths in zip(nodes, grown, strict=True) for path in paths}
        drawn = [path for paths in grown for path in paths]
        self.made += len(drawn)
        first = {(path.text, path.done): parents[id(path)] for path in reversed(drawn)}
        children = []
        for path in self.search.merged(drawn):
            parent = first[path.text, path.done]
            thought = path.completion.text[len(parent.path.completion.text) :].strip()
            children.append(Node(path=path, depth=parent.depth + 1, thoughts=(*parent.thoughts, thought)))
        await self._judge(children)
        return children

    async def finish_best(self) -> None:
        """Write the rest of the best open state in one go (the whole reply if no state was made), if the budget allows."""
        node = self.root if self.made == 0 else self.best_open
        if node is not None and node.path.open and not self.search.spent:
            for path in await self.search.grow(node.path, [0], seed=self.seed, last=True):
                rest = path.completion.text[len(node.path.completion.text) :].strip()
                whole = Node(path=path, depth=node.depth + 1, thoughts=(*node.thoughts, rest), value=node.value)
                self.goal = next(iter(await self._settle([whole])), None)
                self.best_open = whole

    async def _thoughts(self, node: Node, k: int) -> list[Path]:
        proposing, deepest = self.method.generate == "propose", self.method.steps
        if k == 0 or node.depth >= deepest + proposing:
            return []
        if not proposing:
            return await self.search.grow(node.path, range(k), seed=self.seed, last=node.depth == deepest - 1)
        if node.depth == deepest:  # proposals have led nowhere: the reply is written to its end
            return await self.search.grow(node.path, [0], seed=self.seed, last=True)
        return await self.proposer.next_steps(node.path, k)

    async def _judge(self, nodes: Sequence[Node]) -> None:
        """Settle which states have ended and which is the goal, the best of several; value the others."""
        reached = await self._settle(nodes)
        await self._value(reached if len(reached) > 1 else [] if reached else nodes)
        if reached:
            self.goal = max(reached, key=lambda node: node.value)
            self.tell("goal", self.goal)

    async def _settle(self, nodes: Sequence[Node]) -> list[Node]:
        """Return the states that are goals; the others that have ended are kept as such."""
        reads = await asyncio.gather(*(self.search.read(node.path, seed=self.seed) for node in nodes))
        texts: list[str] = []
        reached: list[Node] = []
        for node, read in zip(nodes, reads, strict=True):
            node.answered = read.answer is not None
            midway = self.method.goal and node.path.open and self.search.prompt.cue is None
            if node.answered or (midway and self.search.tools.extract(node.path.text) is not None):
                texts.append(read.text)
                reached.append(node)
        if self.method.goal:
            seen = [Path(completion=Completion(text=text)) for text in texts]
            scores = await self.search.score(seen, self.method.goal)
            reached = [n for n, s in zip(reached, scores, strict=True) if s is not None and s >= self.method.accept]
        for node in reached:
            node.path, node.answered = replace(node.path, done=True), True
        self.ended += [node for node in nodes if node.path.done]
        return reached

    async def _value(self, nodes: Sequence[Node]) -> None:
        paths = [node.path for node in nodes]
        if self.method.evaluate == "verifier":
            values = [float("-inf") if score is None else score for score in await self.search.score(paths)]
        elif self.method.evaluate == "vote":
            values = [0.5 if value is None else value for value in await self.evaluator.votes(paths)]
        else:
            verdicts = await asyncio.gather(*(self.evaluator.value(path) for path in paths))
            values = [0.5 if value is None else value for value in verdicts]
        for node, value in zip(nodes, values, strict=True):
            node.value = value
            if not node.path.done and (self.best_open is None or node.before(self.best_open)):
                self.best_open = node

    def tell(self, event: str, node: Node | None, **more: int) -> None:
        """Record an event."""
        if node is not None:
            what = {} if more else {"thought": node.thoughts[-1], "value": node.told}
            self.events.append({"event": event, "depth": node.depth} | what | more)

    def trace(self, best: Node | None) -> dict[str, Any]:
        """Return the search's own part of the trace."""
        judged = {"verdicts": self.evaluator.asked, "unparsed_verdicts": self.evaluator.unparsed}
        return {
            "search": self.method.search,
            "evaluate": self.method.evaluate,
            "states": self.made,
            "ended": len(self.ended),
            "pruned": self.pruned,
            "backtracks": self.backtracks,
            "goal": self.goal is not None,
            "thoughts": list(best.thoughts) if best is not None else [],
            "events": self.events,
        } | (judged if self.method.evaluate != "verifier" else {})
