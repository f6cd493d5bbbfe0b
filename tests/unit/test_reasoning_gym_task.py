"""Generated tasks: splits share no question, grading is the generator's own at full marks, user errors are one sentence."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from posttrain.core.errors import ConfigError
from posttrain.tasks import list_tasks, load_task
from posttrain.tasks.reasoning_gym import _HASH_SEED, ReasoningGym, generators
from posttrain.tasks.worked import WORKED, worked

EASY = "reasoning_gym/chain_sum:max_terms=3,max_digits=2"
# No solution is shipped with the puzzle (boxnet, rush_hour): there is nothing to grade as one's own answer.
NO_SOLUTION = {"boxnet", "rush_hour"}
SLOW = {"knight_swap", "sokoban", "zebra_puzzles", "futoshiki", "quantum_lock", "puzzle24"}


def test_splits_are_disjoint_by_content_and_deterministic() -> None:
    task = load_task(EASY)
    splits = {split: task.examples(split) for split in ("train", "validation", "test")}
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 2000, "validation": 100, "test": 200}
    questions = [example.question for examples in splits.values() for example in examples]
    assert len(set(questions)) == len(questions) == 2300
    assert len({example.id for examples in splits.values() for example in examples}) == 2300
    again = load_task(EASY)
    assert again.examples("test") == splits["test"]  # asked for first this time
    assert again.examples("train") == splits["train"]
    assert again.version == task.version


def test_few_questions_are_shared_out_without_overlap() -> None:
    # Two one-digit terms: 10 * 10 * 2 = 200 questions in all.
    task = load_task("reasoning_gym/chain_sum:max_terms=2,max_digits=1", sizes={"test": 50, "validation": 20, "train": 100})
    questions = [e.question for split in ("test", "validation", "train") for e in task.examples(split)]
    assert len(set(questions)) == len(questions) == 170
    with pytest.raises(ConfigError, match=r"only \d+ distinct questions for split 'train', 300 asked for"):
        load_task("reasoning_gym/chain_sum:max_terms=2,max_digits=1,train=300,test=50").examples("train")


def test_seed_sizes_and_parameters_change_the_version() -> None:
    base = load_task(EASY)
    others = [
        load_task(EASY, seed=1),
        load_task(EASY + ",min_terms=3"),
        load_task(EASY + ",test=10"),
        load_task("reasoning_gym/gcd"),
    ]
    assert len({task.version for task in [base, *others]}) == 5
    assert [e.id for e in base.examples("test")] != [e.id for e in others[0].examples("test")]
    assert len(others[2].examples("test")) == 10
    assert base.examples("test")[:10] == others[2].examples("test")


def test_same_examples_in_another_process() -> None:
    code = f"from posttrain.tasks import load_task; print(load_task({EASY + ',test=20'!r}).examples('test')[19].id)"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment).stdout
    assert found.split()[-1] == load_task(EASY + ",test=20").examples("test")[19].id


def test_grading_needs_full_marks() -> None:
    task = load_task(EASY)
    example = next(e for e in task.examples("test") if e.answer == "9")
    assert task.grade(example, "9") == task.grade(example, "9.0") == task.grade(example, "9 apples") == 1.0
    assert task.grade(example, "the number 9 it is") == 0.0  # the generator's scorer gives this a part
    assert task.grade(example, "8") == task.grade(example, None) == task.grade(example, "") == 0.0
    assert task.grade(example, "∞\x00") == 0.0
    assert (
        ReasoningGym("chain_sum", {"max_terms": 3, "max_digits": 2}).grade(example, "9") == 1.0
    )  # a task that never made it


def test_reading_fits_the_answers() -> None:
    assert load_task(EASY).extract("so we get 3 + 4 = 7") == "7"
    assert load_task("reasoning_gym/spell_backward").extract("I think\nAnswer: nus") == "nus"
    assert load_task("reasoning_gym/rotate_matrix").extract("Answer:\n1 2\n3 4") == "1 2\n3 4"
    assert load_task("reasoning_gym/number_sorting").key("['1', '2']") == load_task("reasoning_gym/number_sorting").key(
        '["1","2"]'
    )


def test_public_examples_hide_the_answer() -> None:
    example = load_task(EASY + ",test=5").examples("test")[0]
    public = example.public()
    assert public.answer is None
    assert public.rationale is None
    assert not public.gold
    assert not public.meta


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("reasoning_gym/chain_sm", r"unknown generator 'reasoning_gym/chain_sm'; did you mean 'chain_sum'\?"),
        ("reasoning_gym/chain_sum:max_term=3", r"unknown parameter 'max_term'; did you mean 'max_terms'\?"),
        ("reasoning_gym/chain_sum:max_terms=three", r"max_terms: .*valid integer"),
        ("reasoning_gym/chain_sum:min_terms=5,max_terms=2", r"max_terms must be >= min_terms"),
        ("reasoning_gym/chain_sum:test=0", r"test=0: give a number of examples from 1"),
        ("reasoning_gym/chain_sum:size=3", r"unknown parameter 'size'"),
        ("gsm9k", r"unknown task 'gsm9k'; choose gsm8k"),
        ("reasoning_gm/chain_sum", r"did you mean 'reasoning_gym/chain_sum'\?"),
        ("gsm8k:k=3", r"task 'gsm8k:k=3' takes no parameters"),
        ("no/such/task.yaml", r"no such file: no/such/task.yaml"),
    ],
)
def test_user_errors(ref: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_task(ref)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_unknown_split_and_refused_arguments() -> None:
    with pytest.raises(ConfigError, match="unknown split 'tst'; did you mean 'test'"):
        load_task(EASY).examples("tst")
    with pytest.raises(ConfigError, match="takes no data"):
        load_task(EASY, data="x.jsonl")
    with pytest.raises(ConfigError, match="unknown split 'dev'"):
        load_task(EASY, sizes={"dev": 3})


def test_generators_that_depend_on_the_hash_seed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(ConfigError, match="PYTHONHASHSEED=0"):
        load_task("reasoning_gym/word_ladder")
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert load_task("reasoning_gym/word_ladder:test=3").examples("test")


def test_the_list_of_names_is_that_of_the_package() -> None:
    from reasoning_gym.factory import DATASETS

    assert set(generators()) == set(DATASETS) - {"composite"}
    names = [name for name, _ in list_tasks()]
    assert "gsm8k" in names
    assert "reasoning_gym/chain_sum" in names
    assert all(about for _, about in list_tasks())


@pytest.mark.parametrize("name", sorted(WORKED))
def test_worked_solutions_end_in_the_right_answer(name: str) -> None:
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(name, seed=random.Random(name).randrange(10**6), size=200)
    for entry in dataset:
        solution = worked(name, entry)
        assert solution is not None
        answer = solution.rpartition("Answer: ")[2]
        assert "\n" not in answer
        assert dataset.score_answer(answer, entry) >= 1.0, (entry, solution)


def test_worked_steps_are_true_and_complete() -> None:
    from posttrain.verifiers.rule import equations

    task = load_task("reasoning_gym/chain_sum:min_terms=3,max_terms=5,test=100")
    for example in task.examples("test"):
        assert example.rationale is not None
        terms = example.gold["metadata"]["num_terms"]
        assert equations(example.rationale) == [True] * (terms - 1)
    entry = {"metadata": {"expression": "34 + 5 - 12"}}
    assert worked("chain_sum", entry) == "34 + 5 = 39\n39 - 12 = 27\nAnswer: 27"
    entry = {"metadata": {"expression": "-(2 + 3 * 4) / 2 - 7"}}
    assert worked("basic_arithmetic", entry) == "3 * 4 = 12\n2 + 12 = 14\n-14 / 2 = -7\n-7 - 7 = -14\nAnswer: -14"
    assert worked("maze", {}) is None


def test_entries_whose_answer_is_wrong_are_left_out() -> None:
    # Without brackets this generator computes from left to right and changes divisors after writing them: "4 / 9" is 2.
    import reasoning_gym

    dataset = reasoning_gym.create_dataset("basic_arithmetic", seed=3, size=100, allow_parentheses=False)
    task = load_task("reasoning_gym/basic_arithmetic:allow_parentheses=false,test=60")
    wrong = 0
    for entry in dataset:
        try:
            wrong += (worked("basic_arithmetic", entry) or "").rpartition(" ")[2] != entry["answer"]
        except ZeroDivisionError:
            wrong += 1
    assert wrong > 30
    for example in task.examples("test"):
        assert example.rationale is not None
        assert task.grade(example, task.extract(example.rationale)) == 1.0


def test_a_scorer_that_takes_anything_for_false_is_not_believed() -> None:
    task = load_task("reasoning_gym/game_of_life_halting:test=8")
    for example in task.examples("test"):
        assert task.grade(example, example.answer) == 1.0
        assert task.grade(example, "I cannot tell") == 0.0
        assert task.grade(example, "True" if example.answer == "False" else "False") == 0.0


def _grades_its_own_answers(name: str, size: int) -> None:
    task = load_task(f"reasoning_gym/{name}", sizes={"test": size})
    examples = task.examples("test")
    assert len(examples) == size
    for example in examples:
        facts = example.gold["metadata"]
        answer = example.answer
        if answer is None and name not in NO_SOLUTION:
            import json

            answer = (
                facts.get("example_answer") or facts.get("example_correct_answer") or json.dumps(facts["possible_answer"])
            )
        assert task.grade(example, None) == 0.0
        assert task.grade(example, "certainly not this") == 0.0
        if answer is not None:
            assert task.grade(example, answer) == 1.0, (name, example.question, answer)
            read = task.extract(f"Let me think.\n\nAnswer: {answer}")
            assert task.grade(example, read) == 1.0, (name, answer, read)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # arc_agi's data package leaves files open
@pytest.mark.parametrize("name", sorted(set(generators()) - _HASH_SEED - SLOW))
def test_every_generator_grades_its_own_answers(name: str) -> None:
    _grades_its_own_answers(name, 4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", sorted(set(generators()) - _HASH_SEED))
def test_every_generator_grades_its_own_answers_at_length(name: str) -> None:
    _grades_its_own_answers(name, 6 if name in SLOW else 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(_HASH_SEED))
def test_hash_seed_generators_grade_their_own_answers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    _grades_its_own_answers(name, 10)
