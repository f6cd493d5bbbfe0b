"""Tree of thoughts: the game of 24 both ways, real backtracking, strict reading of verdicts, goals, prompts of one's own."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest
from step_worlds import PROMPT, Judge, Limited, Oracle, Recorded, answer, letters, metered, tools, written

from posttrain.core.errors import ConfigError
from posttrain.core.protocols import Tools
from posttrain.core.types import Answer, Completion, Message, Prompt
from posttrain.test_time._thoughts import fill, read_proposals, read_value, read_vote, template

# --- the game of 24: states are the expressions that are left -------------------------------------------------------


@cache
def worth(expression: str) -> Fraction:
    """The value of a bracketed expression of integers."""
    return Fraction(eval(_fractions(expression), {"F": Fraction}))


def _fractions(expression: str) -> str:
    out, number = "", ""
    for char in expression + " ":
        if char.isdigit():
            number += char
        else:
            out, number = out + (f"F({number})" if number else "") + char, ""
    return out


@cache
def solvable(values: tuple[Fraction, ...]) -> bool:
    if len(values) == 1:
        return values[0] == 24
    for i, j in itertools.permutations(range(len(values)), 2):
        rest = [value for k, value in enumerate(values) if k not in (i, j)]
        a, b = values[i], values[j]
        for made in [a + b, a - b, a * b, *([a / b] if b else [])]:
            if solvable(tuple(sorted([*rest, made]))):
                return True
    return False


def left(text: str) -> list[str]:
    """The expressions that the last line of a state, or the puzzle itself, leaves."""
    return next(line for line in reversed(text.strip().splitlines()) if line.startswith("left: "))[6:].split()


def can_win(text: str) -> bool:
    return solvable(tuple(sorted(map(worth, left(text)))))


def moves(expressions: list[str]) -> list[str]:
    if len(expressions) == 1:
        return [f"Answer: {expressions[0]}"]
    found = []
    for i, j in itertools.permutations(range(len(expressions)), 2):
        rest = [expression for k, expression in enumerate(expressions) if k not in (i, j)]
        a, b = expressions[i], expressions[j]
        operators = [*("+*" if i < j else ""), "-", *("/" if worth(b) else "")]
        found += ["left: " + " ".join([*rest, f"({a}{operator}{b})"]) for operator in operators]
    return found


def right(text: str, numbers: list[int]) -> bool:
    expression = text.rpartition("Answer: ")[2].strip()
    used = sorted(int(n) for n in "".join(c if c.isdigit() else " " for c in expression).split())
    return "Answer: " in text and used == sorted(numbers) and worth(expression) == 24


def puzzles(n: int) -> list[list[int]]:
    generator, found = random.Random(24), []
    while len(found) < n:
        numbers = [generator.randint(1, 13) for _ in range(4)]
        if solvable(tuple(sorted(map(Fraction, numbers)))) and sorted(numbers) not in found:
            found.append(sorted(numbers))
    return found


def player(order: Callable[[list[str]], None] | None = None) -> Recorded:
    """Enumerates all legal moves when asked to propose; says sure or impossible, rightly, when asked to judge."""

    def respond(prompt: Prompt, sample: int, seed: int) -> str:
        asked = prompt.messages[-1].content
        if asked.startswith("JUDGE"):
            reached = "Answer: " in asked
            return f"Let me see.\n{'sure' if reached or can_win(asked) else 'impossible'}"
        found = moves(left(asked))
        if order is not None:
            order(found)
        return "\n".join(found)

    return Recorded({}, respond=respond)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    (tmp_path / "propose.txt").write_text("PROPOSE {k}\n{question}\n{steps}\n", encoding="utf-8")
    judge = "value_prompt='JUDGE\n{question}\n{steps}\n'"
    return f"generate=propose,propose_prompt={tmp_path / 'propose.txt'},{judge},expand=40,steps=5,nodes=3000"


def play(numbers: list[int], spec: str, engine: Recorded, **verifiers: Judge) -> Answer:
    question = "left: " + " ".join(map(str, numbers))
    prompt = Prompt(messages=(Message(role="user", content=question),))
    return answer(spec, tools(engine, max_tokens=5000, **verifiers), prompt=prompt)


def goal_of(numbers: list[int]) -> Oracle:
    return Oracle(lambda text: float(right(text, numbers)))


def value_of(numbers: list[int]) -> Oracle:
    start = "left: " + " ".join(map(str, numbers)) + "\n"
    return Oracle(lambda text: float(right(text, numbers) if "Answer" in text else can_win(start + text)))


@pytest.mark.parametrize("search", ["bfs", "dfs"])
@pytest.mark.parametrize("evaluate", ["verifier,verifier=v", "value"])
def test_it_solves_the_game_of_24(search: str, evaluate: str, prompts: str) -> None:
    games = puzzles(30)
    solved = 0
    for numbers in games:
        found = play(
            numbers,
            f"tree_of_thoughts:search={search},evaluate={evaluate},goal=g,{prompts}",
            player(),
            v=value_of(numbers),
            g=goal_of(numbers),
        )
        solved += right(found.text, numbers)
        assert found.trace["goal"] == right(found.text, numbers)
        assert len(found.trace["thoughts"]) == 4
    assert solved >= 0.9 * len(games)


def test_depth_first_search_backtracks(prompts: str) -> None:
    """The value knows dead ends only when two numbers are left: wrong turns are taken, and taken back."""
    backtracks = 0
    for number, numbers in enumerate(puzzles(10)):
        start = "left: " + " ".join(map(str, numbers)) + "\n"

        def late(text: str, start: str = start) -> float:
            return 0.5 if "Answer" in text or len(left(start + text)) > 2 else float(can_win(start + text))

        found = play(
            numbers,
            f"tree_of_thoughts:search=dfs,evaluate=verifier,verifier=v,goal=g,{prompts}",
            player(random.Random(number).shuffle),
            v=Judge(late),
            g=goal_of(numbers),
        )
        assert right(found.text, numbers)
        backtracks += found.trace["backtracks"]
        stack: list[tuple[int, str]] = []
        for event in found.trace["events"]:
            here = (event["depth"], event["thought"])
            if event["event"] == "enter":
                assert event["value"] > 0
                assert here[0] == len(stack) + 1  # a child of where the search stands
                stack.append(here)
            elif event["event"] == "backtrack":
                assert stack.pop() == here  # the state entered last is the one that is left
            elif event["event"] == "prune":
                assert event["value"] == 0
        assert found.trace["thoughts"][: len(stack)] == [
            thought for _, thought in stack
        ]  # the goal lies below the open ones
        assert found.trace["events"][-1]["event"] == "goal"
        assert sum(event["event"] == "backtrack" for event in found.trace["events"]) == found.trace["backtracks"]
        assert sum(event["event"] == "prune" for event in found.trace["events"]) == found.trace["pruned"]
    assert backtracks >= 5


def test_the_node_budget_ends_the_search(prompts: str) -> None:
    for search in ("bfs", "dfs"):
        settings = prompts.replace("nodes=3000", "nodes=45")
        found = play([1, 1, 1, 1], f"tree_of_thoughts:search={search},goal=g,{settings}", player(), g=goal_of([1, 1, 1, 1]))
        assert found.trace["states"] <= 45
        assert found.trace["goal"] is False


# --- reading verdicts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("sure", 1.0),
        ("Sure.", 1.0),
        ("It is likely that it works, but 3 is left.\n**impossible**", 0.0),
        ("impossible? No.\nLIKELY!", 0.5),
        ("unlikely", None),
        ("surely an impossibility", None),
        ("", None),
    ],
)
def test_a_verdict_is_the_last_word_of_the_three(said: str, value: float | None) -> None:
    assert read_value(said) == value


@pytest.mark.parametrize(
    ("said", "index"),
    [
        ("The best choice is 10", 9),
        ("The best choice is 12.", 11),
        ("Choice 3 is good.\nThe best choice is: **2**.", 1),
        ("The best choice is 1? No: the best choice is choice (4)", 3),
        ("best choice is 13", None),
        ("The best choice is 0", None),
        ("I like 3", None),
        ("The best choice is clear.\n3 of them are bad", None),
    ],
)
def test_a_vote_is_a_whole_number(said: str, index: int | None) -> None:
    assert read_vote(said, 12) == index


def test_proposals_are_lines() -> None:
    text = "1. add 3\n- 4 + 8 = 12\n(2) add 3\n\n10 - 4 = 6\nStep 3: halve\nadd 3\n3.5 + 1 = 4.5"
    assert read_proposals(Completion(text=text)) == ["add 3", "4 + 8 = 12", "10 - 4 = 6", "halve", "3.5 + 1 = 4.5"]
    assert read_proposals(Completion(text="one\ntwo thr", finish="length")) == ["one"]
    assert read_proposals(Completion(text="", finish="length")) == []


def test_prompts_are_texts_or_files(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text("Q {question} S {steps}", encoding="utf-8")
    assert template(str(file), "d", "question", "steps", where="w") == "Q {question} S {steps}"
    assert template("", "{question}{steps}", "question", "steps", where="w") == "{question}{steps}"
    with pytest.raises(
        ConfigError, match=r"tree_of_thoughts:value_prompt: no such file 'nowhere.txt'; give a file, or a text"
    ):
        answer("tree_of_thoughts:value_prompt=nowhere.txt", tools(Recorded({"Q": "1"})))
    with pytest.raises(ConfigError, match=r"propose_prompt: the prompt does not contain \{k\}"):
        answer('tree_of_thoughts:propose_prompt="{question} {steps}"', tools(Recorded({"Q": "1"})))
    braces = fill("{question} {steps} {other}", question=r"\frac{1}{2} {steps}", steps="s")
    assert braces == r"\frac{1}{2} {steps} s {other}"


# --- sampled thoughts, judged by the model ----------------------------------------------------------------------------


def thinker(verdict: Callable[[str, int], str], *, depth: int = 2, width: int = 3) -> Recorded:
    """Writes one letter a line by turns, then the answer; asked to judge or to vote, it says what `verdict` says."""

    def respond(prompt: Prompt, sample: int, seed: int) -> str:
        asked = prompt.messages[-1].content
        if asked != "Q":
            return verdict(asked, sample)
        path = letters(written(prompt))
        said = "".join("abcdefgh"[sample % width] + "\n" for _ in range(depth - len(path)))
        whole = path + said.replace("\n", "")
        return said + "Answer: " + str(sum("abcdefgh".index(letter) * 10 ** (depth - i) for i, letter in enumerate(whole)))

    return Recorded({}, respond=respond)


def judged(asked: str) -> str:
    """The letters of the state that a judging prompt shows."""
    return letters(asked.partition("Steps so far:\n")[2].partition("\n\n")[0])


def test_verdicts_guide_a_search_over_sampled_thoughts() -> None:
    engine = thinker(lambda asked, sample: "sure" if "cab".startswith(judged(asked)) else "impossible", depth=3)
    for search in ("bfs", "dfs"):
        found = answer(f"tree_of_thoughts:search={search},expand=3,width=1,steps=4", tools(engine))
        assert letters(found.text) == "cab"
        assert found.trace["thoughts"][:3] == ["c", "a", "b"]
        assert found.trace["goal"] is True
        assert found.trace["unparsed_verdicts"] == 0


def test_unreadable_verdicts_are_counted_and_mean_the_middle() -> None:
    def verdict(asked: str, sample: int) -> str:
        if judged(asked) == "b":
            return "hm"
        return ["sure", "impossible", "hm"][sample] if judged(asked) == "a" else "impossible"

    found = answer("tree_of_thoughts:expand=3,width=3,steps=3,search=dfs", tools(thinker(verdict)))
    values = {event["thought"]: event["value"] for event in found.trace["events"] if event["depth"] == 1}
    assert (values["a"], values["c"]) == (0.5, 0.0) or (values["a"], values["b"]) == (0.5, 0.5)
    assert found.trace["unparsed_verdicts"] >= 4


def test_a_verdict_that_was_cut_is_none() -> None:
    engine = thinker(lambda asked, sample: "it is sure that we have to go on and on and on")
    found = answer("tree_of_thoughts:expand=2,evaluation_tokens=4", tools(engine))
    assert found.trace["verdicts"] == found.trace["unparsed_verdicts"] > 0


def test_many_likely_do_not_lose_to_one_sure() -> None:
    """Of three verdicts: sure, impossible, impossible is worth less than three times likely."""

    def verdict(asked: str, sample: int) -> str:
        return ("sure" if sample == 0 else "impossible") if judged(asked)[:1] == "a" else "likely"

    found = answer("tree_of_thoughts:expand=2,width=1,steps=3", tools(thinker(verdict)))
    assert letters(found.text)[0] == "b"


def test_votes_choose_among_the_states_of_a_level() -> None:
    """More than nine choices: the vote for number 10 counts for number 10."""

    def verdict(asked: str, sample: int) -> str:
        number = next((i for i in range(1, 13) if f"Choice {i}:\nh" in asked), None)
        return f"So, the best choice is {number}." if number else "The best choice is 1."

    def respond(prompt: Prompt, sample: int, seed: int) -> str:
        if prompt.messages[-1].content != "Q":
            return verdict(prompt.messages[-1].content, sample)
        return "abcdefgiklh"[sample] + "\nAnswer: 3" if prompt.prefix is None else "Answer: 3"

    engine = Recorded({}, respond=respond)
    found = answer("tree_of_thoughts:evaluate=vote,expand=11,width=1,evaluations=2", tools(engine))
    asked = next(prompt.messages[-1].content for prompt, _, _ in engine.asked if prompt.messages[-1].content != "Q")
    assert "Choice 11:\nh" in asked
    assert letters(found.text) == "h"


def test_equal_states_are_one_and_judged_once() -> None:
    engine = thinker(lambda asked, sample: "likely", width=1, depth=3)
    found = answer("tree_of_thoughts:expand=4,width=2,steps=5", tools(engine))
    asked = [prompt.messages[-1].content for prompt, _, _ in engine.asked if prompt.messages[-1].content != "Q"]
    assert len(asked) == len(set(asked)) == 3  # a, aa, aaa: the goal itself is not judged
    assert found.trace["duplicates"] == 4 * 3  # four levels of four equal draws
    assert found.trace["verdicts"] == 3 * 3
    assert found.trace["states"] == 4 * 4


def test_the_same_steps_open_and_ended_share_their_verdicts() -> None:
    """ "a 3" with the turn ended and "a 3" with a line to follow are two states, but one question."""

    def respond(prompt: Prompt, sample: int, seed: int) -> str:
        if prompt.messages[-1].content != "Q":
            return "likely"
        return "a 3" + "\nAnswer: 4" * (sample % 2) if prompt.prefix is None else "Answer: 4"

    engine = Recorded({}, respond=respond)
    found = answer("tree_of_thoughts:expand=2,goal=g,steps=3", tools(engine, g=Judge(lambda text: float("4" in text))))
    assert found.answer == "4"
    assert found.trace["verdicts"] == 3


def test_depth_first_search_goes_to_the_best_child_first() -> None:
    engine = thinker(lambda asked, sample: "sure" if "cb".startswith(judged(asked)) else "likely", depth=3)
    found = answer("tree_of_thoughts:search=dfs,expand=3,steps=5", tools(engine))
    entered = [event["thought"] for event in found.trace["events"] if event["event"] == "enter"]
    assert entered[:2] == ["c", "b"]


# --- goals ------------------------------------------------------------------------------------------------------------


def test_the_search_stops_at_the_goal() -> None:
    engine = thinker(lambda asked, sample: "likely", depth=1)
    found = answer("tree_of_thoughts:steps=9,expand=2,width=2", tools(engine))
    assert found.trace["goal"] is True
    assert max(event["depth"] for event in found.trace["events"]) == 2
    assert found.answer == "0"


def test_an_ended_state_that_the_goal_refuses_is_a_dead_end() -> None:
    engine = thinker(lambda asked, sample: "likely", depth=2)
    wanted = Judge(lambda text: float(text.startswith("b\nc")))
    for search in ("bfs", "dfs"):
        found = answer(f"tree_of_thoughts:search={search},expand=3,width=9,goal=g,steps=4", tools(engine, g=wanted))
        assert letters(found.text) == "bc"
        assert found.trace["ended"] > 1
        assert found.trace["goal"] is True
    nothing = answer("tree_of_thoughts:expand=3,width=2,goal=g,steps=4", tools(engine, g=Judge(lambda text: 0.2)))
    assert nothing.trace["goal"] is False
    assert nothing.answer is not None  # the best that has ended
    accepted = answer("tree_of_thoughts:expand=3,goal=g,accept=0.2,steps=4", tools(engine, g=Judge(lambda text: 0.2)))
    assert accepted.trace["goal"] is True


def test_a_goal_may_be_reached_before_the_turn_ends() -> None:
    def respond(prompt: Prompt, sample: int, seed: int) -> str:
        return f"So it is {sample + 4}.\nLet me check that again.\nAnswer: 1"

    accepts = Judge(lambda text: float(text == "So it is 6."))
    found = answer("tree_of_thoughts:expand=3,goal=g", tools(Recorded({}, respond=respond), g=accepts))
    assert (found.answer, found.text) == ("6", "So it is 6.\n")
    assert found.trace["states"] == 3


def test_without_a_finished_state_the_best_is_written_to_its_end() -> None:
    def verdict(asked: str, sample: int) -> str:
        return "likely" if judged(asked).startswith("b") else "impossible"

    engine = thinker(verdict, depth=5)
    found = answer("tree_of_thoughts:expand=2,width=1,steps=9,nodes=4", tools(engine))
    assert found.trace["states"] == 4
    assert found.answer is not None
    assert letters(found.text)[:2] in ("ba", "bb")
    assert found.trace["generations"] == 5
    everything = answer("tree_of_thoughts:expand=2,steps=9", tools(thinker(lambda asked, sample: "impossible", depth=5)))
    assert everything.trace["pruned"] == 2
    assert everything.answer is not None


def test_proposals_that_lead_nowhere_are_written_to_the_end() -> None:
    """Without an answer mark in any proposal the reply is continued from the thoughts, as text."""

    def respond(prompt: Prompt, sample: int, seed: int) -> str:
        if prompt.messages[-1].content == "Q":
            assert prompt.prefix == "first\nsecond\n"
            return "So: Answer: 8"
        steps = prompt.messages[-1].content
        return "sure" if "Judge" in steps else "1. second" if "first" in steps else "1. first"

    found = answer("tree_of_thoughts:generate=propose,steps=2", tools(Recorded({}, respond=respond)))
    assert (found.answer, found.text) == ("8", "first\nsecond\nSo: Answer: 8")
    assert found.trace["thoughts"] == ["first", "second", "So: Answer: 8"]


def test_the_second_stage_sees_proposals_that_were_written_to_the_end() -> None:
    """What is known as text alone is continued as text: nothing of it is lost for having no tokens."""
    asked: list[str] = []

    def respond(prompt: Prompt, sample: int, seed: int) -> str:
        if prompt.messages[-1].content == "Q":
            asked.append(prompt.begun)
            return " 8." if prompt.begun.endswith("so it is") else "third"
        steps = prompt.messages[-1].content
        return "sure" if "Judge" in steps else "1. second" if "first" in steps else "1. first"

    prompt = replace(PROMPT, opening="Think. ", cue="so it is")
    engine = Recorded({}, respond=respond)
    found = answer("tree_of_thoughts:generate=propose,steps=2", tools(engine), prompt=prompt)
    assert asked == ["Think. first\nsecond\n", "Think. first\nsecond\nthird\nso it is"]
    assert found.answer == "8"


def test_without_a_readable_proposal_the_whole_reply_is_written() -> None:
    engine = Recorded(
        {}, respond=lambda prompt, sample, seed: "Answer: 8" if prompt.messages[-1].content == "Q" else "\n \n"
    )
    found = answer("tree_of_thoughts:generate=propose", tools(engine))
    assert (found.answer, found.trace["states"], found.trace["goal"]) == ("8", 0, True)


@pytest.mark.parametrize("holds", [1, 2, 5, 9, 20])
@pytest.mark.parametrize("settings", ["search=bfs", "search=dfs", "generate=propose", "evaluate=vote"])
def test_a_spent_budget_gives_the_best_so_far(settings: str, holds: int) -> None:
    def respond(prompt: Prompt, sample: int, seed: int) -> str:
        asked = prompt.messages[-1].content
        if "Judge" in asked or "Decide" in asked:
            return "likely. The best choice is 1"
        if asked != "Q":
            return "go on\ngo back"
        return f"step {sample}\n" * (5 - written(prompt).count("\n")) + "Answer: 4"

    engine = Limited({}, respond=respond, holds=holds)
    found = answer(f"tree_of_thoughts:steps=12,{settings}", tools(engine))
    assert found.text
    assert bool(found.trace.get("budget_spent")) == engine.refused
    if holds == 1:
        assert found.answer is None


def test_settings_that_do_not_fit_are_named() -> None:
    given: Tools = tools(Recorded({"Q": "1"}))
    with pytest.raises(ConfigError, match="evaluate=verifier needs verifier="):
        answer("tree_of_thoughts:evaluate=verifier", given)
    with pytest.raises(ConfigError, match="proposed thoughts have no likelihood"):
        answer("tree_of_thoughts:evaluate=verifier,verifier=likelihood,generate=propose", given)
    with pytest.raises(ConfigError, match="goal=likelihood accepts nothing"):
        answer("tree_of_thoughts:goal=likelihood", given)
    with pytest.raises(ConfigError, match="verifier 'g' was not set up"):
        answer("tree_of_thoughts:goal=g", given)


def test_judging_is_metered_with_the_rest() -> None:
    engine = thinker(lambda asked, sample: "likely", depth=2)
    meter, account = metered(engine)
    answer("tree_of_thoughts:expand=3,width=2,steps=4", tools(meter))
    new = sum(len(completion.tokens) + (completion.stopped_by is None) for completion in engine.given)
    assert account.total.usage.generated == new
    assert account.total.usage.calls == len(engine.asked)
