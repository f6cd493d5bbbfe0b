"""Environments by themselves, and the strategy that answers with one."""

import asyncio
from fractions import Fraction

import pytest

from posttrain.core.errors import ConfigError, DataError
from posttrain.core.protocols import Tools
from posttrain.core.types import Example, Message, Prompt, Score
from posttrain.engines.scripted import ScriptedEngine
from posttrain.environments.build import build_environment, check_environment, files_of, verifiers_of
from posttrain.environments.calculator import written
from posttrain.pipeline.methods import build_strategy
from posttrain.pipeline.verifying import scorers

EXAMPLE = Example(id="e1", question="How many?", answer="12")


def says(environment, *turns, example=EXAMPLE):
    """What the environment says to turns, the model's first."""
    roles = ("assistant", "user")
    messages = [Message(role=roles[i % 2], content=text) for i, text in enumerate(turns)]
    found = asyncio.run(environment(example, messages))
    return [message.content for message in found.messages], found.reward


@pytest.mark.parametrize(
    ("call", "value"),
    [
        ("34 * 5", "34 * 5 = 170"),
        ("1/8", "1/8 = 0.125"),
        ("2 / 3", "2 / 3 = 0.666667"),
        ("-(3 - 10) x 2", "-(3 - 10) x 2 = 14"),
        ("$1,200 + 1", "$1,200 + 1 = 1201"),
        ("0.1 + 0.2", "0.1 + 0.2 = 0.3"),
        ("-1/3", "-1/3 = -0.333333"),
        ("1/0", "1/0 = error: only numbers"),
        ("__import__('os')", "error: only numbers"),
        ("True + 1", "error: only numbers"),
        ("2 * (72 mod 57)", "30"),
        ("7 % 5", "error: only numbers"),
        ("9" * 150 + "*" + "9" * 150, "error: more than 200 digits"),
    ],
)
def test_the_calculator_is_exact_and_refuses_what_is_no_arithmetic(call, value):
    (text,), reward = says(build_environment("calculator"), f"I take <calculate>{call}</calculate>.")
    assert value in text
    assert reward == 0


def test_the_calculator_answers_every_call_of_the_last_turn_and_ends_without_one():
    calculator = build_environment("calculator:role=tool")
    turn = "<calculate>1+1</calculate> and <calculate>\n2*2\n</calculate>"
    found = asyncio.run(calculator(EXAMPLE, [Message(role="assistant", content=turn)]))
    assert found.messages == (Message(role="tool", content="1+1 = 2\n2*2 = 4"),)
    assert says(calculator, turn, "1+1 = 2", "Answer: 2") == ([], 0)


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(Fraction(5, 2), 0, "2"), (Fraction(1, 1000), 2, "0"), (Fraction(-1, 20), 1, "0"), (Fraction(-3, 20), 2, "-0.15")],
)
def test_numbers_are_written_without_needless_digits(value, decimals, text):
    assert written(value, decimals) == text


def test_retry_asks_again_until_the_verifier_agrees_and_fines_each_refused_turn():
    class Twelve:
        oracle = True

        async def __call__(self, example, texts):
            return [Score(value=float("12" in text)) for text in texts]

    assert verifiers_of("retry:verifier=(exact),fine=0.25") == ("exact",)
    retry = build_environment("retry:fine=0.25,say=No.", verifier={"exact": Twelve()}.__getitem__)
    assert says(retry, "Answer: 11") == (["No."], -0.25)
    assert says(retry, "Answer: 11", "No.", "Answer: 12") == ([], 0)


SCRIPT = """
def guess(example, turns):
    tries = sum(turn.role == "assistant" for turn in turns)
    if "12" in turns[-1].content:
        return None, 1.0 / tries
    return "higher"

async def silent(example, turns):
    return None

def seeing(example, turns):
    return example.answer

def number(example, turns):
    return 3

def endless(example, turns):
    return "x", float("nan")

def failing(example, turns):
    return turns[7]

def wrong(example, text):
    return None
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "game.py"
    path.write_text(SCRIPT)
    return f"function:call={path}"


def test_a_function_speaks_and_rewards(script):
    guess = build_environment(f"{script}:guess")
    assert says(guess, "10?") == (["higher"], 0)
    assert says(guess, "10?", "higher", "12!") == ([], 0.5)
    assert says(build_environment(f"{script}:silent"), "10?") == ([], 0)
    assert [path.name for path in files_of(f"{script}:guess")] == ["game.py"]


def test_a_function_sees_the_gold_answer_only_where_it_is_given(script):
    spec = f"{script}:seeing,gold=true"
    assert says(build_environment(spec, golds={"e1": EXAMPLE}), "?", example=EXAMPLE.public()) == (["12"], 0)
    with pytest.raises(ConfigError, match="needs gold answers"):
        build_environment(spec)
    assert says(build_environment(f"{script}:seeing", golds={"e1": EXAMPLE}), "?") == ([], 0)  # None: nothing to see
    with pytest.raises(DataError, match="example 'e1': there is no gold answer"):
        says(build_environment(spec, golds={}), "?")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "game.py:number, example 'e1': gave 3: return a text to say"),
        ("endless", "gave the reward nan: a reward must be a finite number"),
        ("failing", "raised IndexError: list index out of range"),
    ],
)
def test_a_function_that_goes_wrong_is_one_sentence(name, message, script):
    with pytest.raises(DataError, match=message):
        says(build_environment(f"{script}:{name}"), "?")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("calculater", "unknown environment 'calculater'; did you mean 'calculator'"),
        ("calculator:decimal=2", "unknown key 'decimal'; did you mean 'decimals'"),
        ("retry:verifier=exakt", "unknown verifier or judge 'exakt'"),
        ("retry:parts=1", "'parts' is no setting"),
        ("function:call=nowhere.py:f", "environment 'function': call=nowhere.py:f: no such file"),
    ],
)
def test_mistakes_in_the_spec(spec, message):
    with pytest.raises(ConfigError, match=message):
        check_environment(spec)


def test_a_function_with_another_shape(script):
    with pytest.raises(ConfigError, match=r"takes \(example, text\), but has to be \(example, turns\) -> a text"):
        check_environment(f"{script}:wrong")


# The strategy ------------------------------------------------------------------------------------------------------------


def answer(spec, respond, verifiers=None, **changes):
    engine = ScriptedEngine({}, respond=respond)
    extract = lambda text: text.rpartition("Answer: ")[2] if "Answer: " in text else None  # noqa: E731
    tools = Tools(engine=engine, extract=extract, key=str, verifiers=verifiers or {}, **changes)
    prompt = Prompt(messages=(Message(role="user", content="What is 34 * 5 + 1?"),))
    return asyncio.run(build_strategy(spec)(prompt, EXAMPLE, tools, seed=1)), engine


def test_an_episode_goes_on_from_what_the_tool_says():
    def respond(prompt, sample, seed):
        return {
            "What is 34 * 5 + 1?": "<calculate>34 * 5</calculate>",
            "34 * 5 = 170": "<calculate>170 + 1</calculate>",
            "170 + 1 = 171": "Answer: 171",
        }[prompt.messages[-1].content]

    found, engine = answer("episode:environment=calculator", respond)
    assert (found.answer, found.trace) == ("171", {"turns": 3, "ended": "environment"})
    assert [candidate.answer for candidate in found.candidates] == [None, None, "171"]
    assert engine.calls == 3
    found, _ = answer("episode:environment=calculator,turns=2", respond)
    assert (found.answer, found.trace["ended"]) == (None, "turns")


def test_a_prompt_of_two_stages_asks_behind_the_last_turn_alone():
    def respond(prompt, sample, seed):
        if prompt.begun.endswith("So the answer is"):
            return f" Answer: {len(prompt.messages)}"
        return "I see." if len(prompt.messages) > 1 else "<calculate>1+1</calculate>"

    engine = ScriptedEngine({}, respond=respond)
    tools = Tools(engine=engine, extract=lambda text: text.rpartition("Answer: ")[2] or None, key=str)
    prompt = Prompt(messages=(Message(role="user", content="1+1?"),), cue="So the answer is")
    found = asyncio.run(build_strategy("episode")(prompt, EXAMPLE, tools, seed=1))
    assert (found.answer, found.text) == ("3", "I see.\nSo the answer is Answer: 3")
    assert (engine.calls, found.trace["turns"]) == (3, 2)


def test_an_episode_with_a_checker_that_knows_is_marked():
    class Right:
        oracle = True

        async def __call__(self, example, texts):
            return [Score(value=float("12" in text)) for text in texts]

    def respond(prompt, sample, seed):
        return "Answer: 12" if len(prompt.messages) > 1 else "Answer: 11"

    spec = "episode:environment=(retry:fine=0.5)"
    found, _ = answer(spec, respond, {"exact": Right()})
    assert (found.answer, found.trace) == ("12", {"turns": 2, "ended": "environment", "reward": -0.5, "oracle": True})
    assert build_strategy(spec).verifiers == ("exact",)


def test_an_evaluation_is_known_by_its_functions_content(script, tmp_path):
    strategy = build_strategy(f"episode:environment=({script}:guess)")
    before = scorers(strategy)
    (tmp_path / "game.py").write_text(SCRIPT + "\n# another\n")
    assert set(before) == {"files"}
    assert scorers(strategy) != before
