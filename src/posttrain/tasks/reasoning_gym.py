"""Procedurally generated tasks with their own graders, offline and endless: the generators of reasoning-gym.

`reasoning_gym/<generator>:parameter=value,…`, for example `reasoning_gym/chain_sum:min_terms=2,max_terms=3`.
Besides the generator's own parameters, `train=`, `validation=` and `test=` set how many examples a split has.

Source: Stojanovski et al. 2025, "Reasoning Gym: Reasoning Environments for Reinforcement Learning with Verifiable
Rewards" (arXiv 2505.24760).
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, DataError, did_you_mean
from ..core.progress import progress
from ..core.seeds import derive
from ..core.types import Example
from .equivalence import answer_key
from .extraction import Extractor, Kind, extractor
from .numerals import number
from .worked import worked

__all__ = ["ReasoningGym", "generators"]

SIZES = {"train": 2000, "validation": 100, "test": 200}
_ORDER = ("test", "validation", "train")  # a split leaves out the questions of those before it
_PAGE = 128  # entries made under one seed
_NONSENSE = "(no answer)"
_VERSION = 1  # raised when reading or grading changes
_NEEDS_DATASETS = "composite"  # a mixture of other generators, not a task of its own
# Their items depend on the order of Python sets, so on PYTHONHASHSEED: another process would see other questions.
_HASH_SEED = frozenset({"isomorphic_strings", "polynomial_multiplication", "ransom_note", "word_ladder"})


@lru_cache
def generators() -> dict[str, str]:
    """Return name -> one-line description of every generator, read from the sources without importing them."""
    found = importlib.util.find_spec("reasoning_gym")
    if found is None or not found.submodule_search_locations:
        raise ConfigError("reasoning_gym tasks need the package reasoning-gym: pip install reasoning-gym")
    names = {}
    for path in sorted(Path(found.submodule_search_locations[0]).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        registered = re.search(r"^register_dataset\(\s*(?:\"(\w+)\"|DATASET_NAME)", source, re.MULTILINE)
        if registered is None:
            continue
        named = re.search(r'^DATASET_NAME\s*=\s*"(\w+)"', source, re.MULTILINE)
        name = registered[1] or (named[1] if named else "")
        about = re.search(r'class \w+\(ProceduralDataset\):\s+"""\s*([^\n"]+)', source)
        if name and name != _NEEDS_DATASETS:
            names[name] = about[1].strip().rstrip(".:") if about else name.replace("_", " ")
    return dict(sorted(names.items()))


class ReasoningGym:
    """One generator with fixed parameters. Splits share no question: by seed, and by leaving out what an earlier split has.

    An entry whose given answer is not what working it out gives (where `worked` can) is left out.

    Args:
        generator: the generator's name.
        params: its parameters (unknown ones are refused).
        seed: makes other examples of the same kind.
        sizes: how many examples each split has; where a generator has fewer distinct questions, asking for more is an error.
    """

    max_tokens = 256
    instruction = 'Finish with a line "Answer: " followed by the final answer.'

    def __init__(
        self,
        generator: str,
        params: Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        names = generators()
        if generator not in names:
            raise ConfigError(f"unknown generator 'reasoning_gym/{generator}'{did_you_mean(generator, names)}")
        if generator in _HASH_SEED and os.environ.get("PYTHONHASHSEED", "random") == "random":
            raise ConfigError(
                f"reasoning_gym/{generator}: its questions depend on Python's hash seed and would differ from run to run; "
                "set the environment variable PYTHONHASHSEED=0 to use it"
            )
        self.generator = generator
        self.seed = seed
        self._asked = {key: value for key, value in (params or {}).items() if key in SIZES} | dict(sizes or {})
        for split, size in self._asked.items():
            if split not in SIZES:
                raise ConfigError(f"reasoning_gym/{generator}: unknown split '{split}'{did_you_mean(split, SIZES)}")
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ConfigError(f"reasoning_gym/{generator}: {split}={size!r}: give a number of examples from 1")
        self.sizes = SIZES | self._asked
        self._config = _config(generator, {key: value for key, value in (params or {}).items() if key not in SIZES})
        self._entries: dict[str, dict[str, Any]] = {}
        self._splits: dict[str, tuple[Example, ...]] = {}

    @cached_property
    def name(self) -> str:
        """`reasoning_gym/<generator>` with the parameters that are not the defaults."""
        default = type(self._config)()
        changed = {k: v for k, v in _values(self._config).items() if v != _values(default)[k]}
        shown = ",".join(f"{key}={json.dumps(value)}" for key, value in sorted(changed.items()))
        return f"reasoning_gym/{self.generator}" + (f":{shown}" if shown else "")

    @cached_property
    def version(self) -> str:
        """A hash of the parameters, seed, sizes, the generator package's version and this grader's version."""
        package = importlib.metadata.version("reasoning-gym")
        facts = [_VERSION, package, self.generator, _values(self._config), self.seed, self.sizes]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def examples(self, split: str) -> Sequence[Example]:
        """Return the examples of "train", "validation" or "test", made on first use."""
        if split not in SIZES:
            raise ConfigError(f"{self.name}: unknown split '{split}'{did_you_mean(split, SIZES)}")
        for earlier in _ORDER[: _ORDER.index(split) + 1]:
            if earlier not in self._splits:
                self._splits[earlier] = tuple(self._make(earlier))
        return self._splits[split]

    def extract(self, text: str) -> str | None:
        """Read the answer: a number where the generator's answers are numbers, else the marked line or block."""
        return self._reader(text)

    def key(self, answer: str) -> str:
        """Return equal strings for answers that differ only in spelling (spaces, quotes, number format)."""
        return answer_key(answer).replace('"', "'") if self._kind != "number" else answer_key(answer)

    def grade(self, example: Example, answer: str | None) -> float:
        """Return 1.0 where the generator's own scorer gives full marks (it also gives partial ones), else 0.0."""
        if answer is None:
            return 0.0
        entry = self._entries.get(example.id)
        if entry is None:
            if "metadata" not in example.gold:
                raise DataError(
                    f"{self.name}: example '{example.id}' has no metadata, which its scorer needs: the maker "
                    "`questions` writes rows that keep it"
                )
            entry = {"question": example.question, "answer": example.answer, "metadata": example.gold["metadata"]}
        if self._score(_NONSENSE, entry) >= 1.0:  # some scorers take whatever does not say "True" for "False"
            return float(self.key(answer).casefold() == self.key(str(entry["answer"])).casefold())
        return float(any(self._score(spelling, entry) >= 1.0 for spelling in _spellings(answer)))

    def _score(self, answer: str, entry: Mapping[str, Any]) -> float:
        try:
            score = self._scorer.score_answer(answer, dict(entry))
        except Exception:  # several scorers raise on text that is no answer at all
            return 0.0
        return float(score) if isinstance(score, int | float) else 0.0

    @cached_property
    def _kind(self) -> Kind:
        """What the answers look like, from the first entries of the test split."""
        source = self._source("test")
        answers = [str(next(source)["answer"]) for _ in range(8)]
        if all(number(answer) is not None and re.fullmatch(r"[-+]?[\d.,eE+-]+(?:/\d+)?", answer) for answer in answers):
            return "number"
        return "block" if any("\n" in answer or answer == "None" for answer in answers) else "line"

    @cached_property
    def _reader(self) -> Extractor:
        return extractor(self._kind)

    def _dataset(self, seed: int, size: int) -> Any:
        from reasoning_gym.factory import create_dataset

        values = {f.name: getattr(self._config, f.name) for f in dataclasses.fields(self._config)}
        return create_dataset(self.generator, **(values | {"seed": seed, "size": size}))

    @cached_property
    def _scorer(self) -> Any:
        return self._dataset(0, 1)

    def _source(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield entries without end, page after page: some generators make all entries of a data set at once."""
        for page in itertools.count():
            # 31 bits: some generators hand the seed to numpy
            seed = derive(self.seed, "reasoning_gym", self.generator, split, page) % 2**31
            dataset = self._dataset(seed, _PAGE)
            for index in range(_PAGE):
                yield dataset[index]

    def _make(self, split: str) -> Iterator[Example]:
        size = self.sizes[split]
        seen = {example.id for made in self._splits.values() for example in made}
        misses = made = 0
        source = self._source(split)
        with progress(f"making {self.generator} {split}", size, unit="examples") as advance:
            while made < size and misses < 500:
                entry = next(source)
                identity = f"{self.generator}-{hashlib.blake2b(entry['question'].encode(), digest_size=6).hexdigest()}"
                # basic_arithmetic:allow_parentheses=false answers two items in three against the rules of precedence.
                consistent, solution = self._solution(entry)
                if identity in seen or not consistent:
                    misses += 1
                    continue
                seen.add(identity)
                misses, made = 0, made + 1
                self._entries[identity] = entry
                answer = entry["answer"]
                yield Example(
                    id=identity,
                    question=entry["question"],
                    answer=None if answer is None else str(answer),
                    rationale=solution,
                    gold={"metadata": entry["metadata"]},
                )
                advance()
        if made < size and (split in self._asked or made == 0):
            raise ConfigError(
                f"{self.name}: only {made} distinct questions for split '{split}', {size} asked for: "
                f"ask for fewer ({split}={max(made, 1)}, or smaller earlier splits) or widen the generator's parameters"
            )

    def _solution(self, entry: Mapping[str, Any]) -> tuple[bool, str | None]:
        """Return (consistent, worked solution or None): whether the entry's own answer agrees with working it out."""
        try:
            solution = worked(self.generator, entry)
        except ZeroDivisionError:
            return False, None
        return solution is None or self._score(solution.rpartition("Answer: ")[2], entry) >= 1.0, solution


def _spellings(answer: str) -> Iterator[str]:
    """Yield ways of writing an answer: scorers compare text, and models add full stops, units and separators."""
    stripped = answer.strip()
    yield stripped
    yield stripped.rstrip(".")
    yield stripped.strip("\"'")
    value = number(stripped)
    if value is not None:
        yield str(value)
        yield str(float(value)) if abs(value) < 1e15 else str(value)


def _values(config: Any) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in ("seed", "size")}


def _config(generator: str, params: Mapping[str, Any]) -> Any:
    """Return the generator's validated configuration."""
    import reasoning_gym  # noqa: F401  (registers the generators)
    from pydantic import TypeAdapter, ValidationError
    from reasoning_gym.factory import DATASETS

    where = f"reasoning_gym/{generator}"
    config_class = DATASETS[generator][1]
    fields: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(config_class) if f.name not in ("seed", "size")}
    for key, value in params.items():
        if key not in fields:
            raise ConfigError(f"{where}: unknown parameter '{key}'{did_you_mean(key, fields)}")
        try:
            TypeAdapter(fields[key]).validate_python(value)
        except ValidationError as error:
            raise ConfigError(f"{where}: {key}: {error.errors()[0]['msg']} (got {value!r})") from None
        except Exception:  # an annotation that pydantic cannot read: the generator's own check decides
            continue
    try:
        config = config_class(**params)
        if hasattr(config, "validate"):
            config.validate()
    except Exception as error:
        raise ConfigError(f"{where}: {error or 'these parameters are refused by the generator'}") from None
    return config
