"""Searches over reasoning steps on the real local engine: exact seams, tokens billed once, equal alone or among others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from tiny_models import llama, model, tokenizer

from posttrain.core.protocols import Tools
from posttrain.core.specs import build
from posttrain.core.types import Completion, Example, Message, Prompt, Sampling, Score
from posttrain.engines.local import LocalEngine
from posttrain.engines.meter import Account, Metered
from posttrain.tasks.equivalence import answer_key
from posttrain.tasks.extraction import extractor

torch.set_num_threads(1)

EXAMPLE = Example(id="e", question="2 plus 2?")
MESSAGES = (Message(role="user", content="2 plus 2?"),)
PROMPTS = {
    "plain": Prompt(messages=MESSAGES),
    "opened": Prompt(messages=MESSAGES, opening="Let me think."),
    "begun": Prompt(messages=MESSAGES, opening="Let me", prefix=" think."),
    "cue": Prompt(messages=MESSAGES, opening="So:", cue="The answer is"),
}
# A random model seldom writes a line: any letter that it likes ends a step.
SHORT = "separator=e,step_tokens=6,temperature=1.0"
METHODS = {
    "beam_search": f"beam_search:width=2,expand=2,steps=5,{SHORT}",
    "beam_search by a verifier": f"beam_search:width=2,expand=3,steps=4,verifier=v,{SHORT}",
    "diverse_tree_search": f"diverse_tree_search:n=2,width=2,steps=4,{SHORT}",
    "particle_filtering": f"particle_filtering:n=4,steps=4,verifier=v,{SHORT}",
    "tree_of_thoughts": f"tree_of_thoughts:expand=2,width=2,steps=3,evaluation_tokens=8,evaluations=2,{SHORT}",
    "tree_of_thoughts, dfs": f"tree_of_thoughts:search=dfs,expand=2,steps=3,evaluate=verifier,verifier=v,nodes=9,{SHORT}",
    "tree_of_thoughts, proposed": f"tree_of_thoughts:generate=propose,steps=2,evaluation_tokens=8,{SHORT}",
    "mcts": f"mcts:simulations=6,expand=2,steps=4,{SHORT}",
    "mcts by value": f"mcts:simulations=8,expand=2,steps=4,leaf=value,policy=puct,verifier=v,{SHORT}",
}


class Spy(LocalEngine):
    """Keeps the token ids of every prompt, and what was written behind it."""

    def __init__(self) -> None:
        config = llama(max_position_embeddings=1024)  # verdicts are asked for in many words
        super().__init__(model(config, seed=3).eval(), tokenizer(), fingerprint="x", slots=8)
        self.prompts: list[tuple[int, ...]] = []
        self.given: list[list[Completion]] = []

    async def generate(self, prompt: Prompt, sampling: Sampling, **more: Any) -> list[Completion]:
        ids, drawn = self._render(prompt, 0), await super().generate(prompt, sampling, **more)
        self.prompts.append(ids)
        self.given.append(drawn)
        return drawn


class Spread:
    """Scores by the text, arbitrarily but always alike."""

    oracle: ClassVar[bool] = False

    async def __call__(self, example: Example, texts: Sequence[str]) -> list[Score]:
        return [Score(value=(sum(map(ord, text)) % 97 + 1) / 99) for text in texts]


def tools(engine: Any) -> Tools:
    sampling = Sampling(max_tokens=40)
    return Tools(engine=engine, extract=extractor("text"), key=answer_key, sampling=sampling, verifiers={"v": Spread()})


async def search(name: str, engine: Any, prompt: str = "plain", seed: int = 0) -> Any:
    return await build(METHODS[name], "posttrain.test_time", "strategy")(PROMPTS[prompt], EXAMPLE, tools(engine), seed=seed)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", [name for name in METHODS if "proposed" not in name])
def test_the_next_step_s_prompt_is_the_last_one_s_and_what_was_written(name: str, prompt: str) -> None:
    """Token for token, also behind a text that opens the turn; only what asks anew (verdicts, the cue) begins elsewhere."""
    engine = Spy()
    found = asyncio.run(search(name, engine, prompt))
    root = engine._render(PROMPTS[prompt], 0)
    cues = [tuple(tokenizer()(text)["input_ids"]) for text in ("The answer is", "\nThe answer is")]
    known, continued = {root}, 0
    for ids, drawn in sorted(zip(engine.prompts, engine.given, strict=True), key=lambda call: len(call[0])):
        if ids in known:
            continued += ids != root
            known |= {ids + completion.tokens for completion in drawn}
        else:
            text = tokenizer().decode(list(ids))
            asked = any(ids[-len(cue) :] == cue and ids[: -len(cue)] in known for cue in cues)
            assert asked or "Judge whether" in text, text
    assert continued >= 2
    if prompt == "plain":
        assert all(root + candidate.completion.tokens in known for candidate in found.candidates)
        for candidate in found.candidates:  # no step ends within a character of this text
            whole = tokenizer().decode(list(candidate.completion.tokens), skip_special_tokens=True)
            assert "\ufffd" in whole or candidate.text == whole


@pytest.mark.parametrize("name", METHODS)
def test_generated_tokens_are_billed_once(name: str) -> None:
    engine, account = Spy(), Account()
    asyncio.run(search(name, Metered(engine, account, "policy")))
    drawn = [completion for completions in engine.given for completion in completions]
    written = sum(len(completion.tokens) + (completion.end_logprob is not None) for completion in drawn)
    usage = account.total.usage
    assert usage.generated == written > 0
    assert usage.calls == len(engine.prompts)
    assert usage.prompt == sum(map(len, engine.prompts))
    assert usage.cached > 0  # stems are not computed again


@pytest.mark.parametrize("name", METHODS)
def test_a_search_is_a_function_of_its_seed(name: str) -> None:
    """Again, on another engine, and beside other searches."""
    alone = asyncio.run(search(name, Spy(), seed=1))
    engine = Spy()

    async def together() -> list[Any]:
        return await asyncio.gather(*(search(name, engine, seed=seed) for seed in (0, 1, 2)))

    among = asyncio.run(together())
    assert (among[1].text, among[1].answer, among[1].trace) == (alone.text, alone.answer, alone.trace)
    assert [c.completion.tokens for c in among[1].candidates] == [c.completion.tokens for c in alone.candidates]
    assert len({str(one.trace) + one.text for one in among}) > 1
