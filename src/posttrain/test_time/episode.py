"""Episode: the model and an environment take turns until the environment has nothing more to say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ..core.protocols import Tools
from ..core.seeds import derive
from ..core.types import Answer, Candidate, Example, Message, Prompt
from ..environments.build import build_environment, check_environment, files_of, verifiers_of
from ._vote import draw

__all__ = ["Episode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """Answer in turns with an environment: a tool that is called, a checker that asks for another try, another speaker.

    y_t ~ p(· | x, y_1, o_1, …, y_{t−1}, o_{t−1}); o_t = environment(x, y_1, o_1, …, y_t), until it has nothing to say.

    The answer is read from the last turn; a prompt of two stages asks for it behind that one. Candidates are the turns in
    order, each with the answer read from it alone. A turn that the token limit cut ends the episode. What the environment
    says costs nothing; that later turns read it does.

    Args:
        environment: its spec: `calculator`, `retry:verifier=…`, `function:call=FILE.py:name`.
        turns: the most that the model writes.
        temperature: of each turn.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    paper: ClassVar[str] = "tools as in Schick et al. 2023, arXiv 2302.04761; turns as in Yao et al. 2022, arXiv 2210.03629"
    cost: ClassVar[str] = (
        "up to `turns` replies, each reads all before it again (an engine that keeps prefixes reads it once)"
    )
    fails: ClassVar[str] = (
        "a model that was never taught the tool's form does not call it, or calls it and ignores the answer"
    )

    environment: str = "calculator"
    turns: Annotated[int, Field(ge=1)] = 4
    temperature: Annotated[float, Field(ge=0)] = 0.0

    def __post_init__(self) -> None:
        check_environment(self.environment)

    @property
    def verifiers(self) -> tuple[str, ...]:
        """The specs that `Tools.verifiers` must hold."""
        return verifiers_of(self.environment)

    @property
    def files(self) -> tuple[Path, ...]:
        """The Python files whose content decides what the environment says."""
        return tuple(files_of(self.environment))

    async def __call__(self, prompt: Prompt, example: Example, tools: Tools, *, seed: int) -> Answer:
        """Answer one example."""
        environment = build_environment(self.environment, verifier=tools.verifiers.__getitem__)
        sampling = replace(tools.sampling, temperature=self.temperature)
        turns: list[Candidate] = []
        said: tuple[Message, ...] = ()
        reward, ended, asked = 0.0, "turns", prompt
        while len(turns) < self.turns:
            following = prompt if not said else Prompt(messages=(*prompt.messages, *said), cue=prompt.cue)
            drawn = await draw(
                tools, replace(following, cue=None), sampling, seed=derive(seed, "turn", len(turns)), have=turns
            )
            if not drawn:
                ended = "budget"
                break
            turns, asked = [*turns, *drawn], following
            begun = prompt.begun if not said else ""
            said += (Message(role="assistant", content=begun + turns[-1].text),)
            if turns[-1].completion.finish == "length":
                ended = "length"
                break
            observation = await environment(example, said)
            reward += observation.reward
            if not observation.messages:
                ended = "environment"
                break
            said += observation.messages
        if prompt.cue is not None:  # the second stage, behind the last turn alone
            turns[-1] = await tools.read(asked, turns[-1].completion, sampling, seed=derive(seed, "cue"))
        trace: dict[str, Any] = {"turns": len(turns), "ended": ended}
        trace |= {"reward": round(reward, 6)} if reward else {}
        if any(tools.verifiers[spec].oracle for spec in self.verifiers):
            trace["oracle"] = True
        return Answer(text=turns[-1].text, answer=turns[-1].answer, candidates=tuple(turns), trace=trace)
