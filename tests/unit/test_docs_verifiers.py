"""The page on verifiers names every verifier with the settings that its class has."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.core.specs import available, format_value, lookup

TEXT = (Path(__file__).parents[2] / "docs" / "verifiers.md").read_text(encoding="utf-8")
VERIFIERS = [name for name in available("posttrain.verifiers") if name not in ("build", "pairwise")]
WORDS = ("required", "a sentence", "in the file", "the paper's")  # defaults that are described, not given


def test_the_table_names_every_verifier() -> None:
    table = TEXT[: TEXT.index("\n## ")]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == VERIFIERS
    for name in VERIFIERS:
        (row,) = re.findall(rf"^\| `{name}` \|.*", table, re.MULTILINE)
        oracle = lookup(name, "posttrain.verifiers", "verifier").oracle
        assert ("an oracle" in row) == (oracle is not False), "a property is for those that are one by a setting"


@pytest.mark.parametrize("name", [name for name in VERIFIERS if name not in ("exact", "rule")])
def test_the_settings(name: str) -> None:
    section = re.split(r"\n## ", TEXT[TEXT.index(f"\n## {name}\n") + 1 :])[0]
    settings = section[section.rindex("\n| setting |") :]
    written = re.findall(r"^\| `(\w+)` \| `?(.+?)`? \|", settings, re.MULTILINE)
    fields: list[Any] = [
        f
        for f in dataclasses.fields(lookup(name, "posttrain.verifiers", "verifier"))
        if f.init and f.name not in ("task", "engine", "golds", "parts")
    ]
    assert [key for key, _ in written] == [f.name for f in fields]
    for (key, value), f in zip(written, fields, strict=True):
        if f.default is dataclasses.MISSING:
            assert value == "required", key
        elif value not in WORDS:
            assert value.strip('"') == format_value(f.default).strip('"'), key
