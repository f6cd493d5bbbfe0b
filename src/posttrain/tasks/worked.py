"""Worked solutions for generated items: the demonstrations of few-shot chain of thought and of supervised fine-tuning.

A function takes the generator's entry and returns the steps, one a line; `worked` adds the line "Answer: …".
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["WORKED", "worked"]

Steps = Callable[[Mapping[str, Any]], tuple[list[str], str]]


def worked(name: str, entry: Mapping[str, Any]) -> str | None:
    """Return the worked solution of an entry of generator `name`, ending "Answer: X"; None where none is known.

    Raises `ZeroDivisionError` for an expression that has no value: `basic_arithmetic` without brackets can write "7 / 0".
    """
    if name not in WORKED:
        return None
    steps, answer = WORKED[name](entry)
    return "\n".join([*steps, f"Answer: {answer}"])


def chain_sum(entry: Mapping[str, Any]) -> tuple[list[str], str]:
    """Keep a running total: one line per operation."""
    first, *rest = entry["metadata"]["expression"].split()
    total, steps = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        result = total + int(term) if sign == "+" else total - int(term)
        steps.append(f"{total} {sign} {term} = {result}")
        total = result
    return steps, str(total)


_OPERATORS: dict[type[ast.operator], tuple[str, Callable[[int, int], int]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.floordiv),  # the generator divides exactly or rounds down
}


def basic_arithmetic(entry: Mapping[str, Any]) -> tuple[list[str], str]:
    """Evaluate by precedence and brackets: one line per operation, in the order of evaluation."""
    expression = entry["metadata"]["expression"]
    steps: list[str] = []

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            inner = value(node.operand)
            return -inner if isinstance(node.op, ast.USub) else inner
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = value(node.left), value(node.right)
            sign, apply = _OPERATORS[type(node.op)]
            result = apply(left, right)
            shown = f"({right})" if right < 0 else str(right)
            rounded = " (rounded down)" if isinstance(node.op, ast.Div) and result * right != left else ""
            steps.append(f"{left} {sign} {shown} = {result}{rounded}")
            return result
        raise ValueError(f"not arithmetic: {ast.unparse(node)} in {expression!r}")

    total = value(ast.parse(expression.replace(" ", ""), mode="eval").body)
    return steps, str(total)


def products(entry: Mapping[str, Any]) -> tuple[list[str], str]:
    """Multiply from left to right: one line per operation."""
    return basic_arithmetic(entry)


def gcd(entry: Mapping[str, Any]) -> tuple[list[str], str]:
    """Euclid's algorithm, number after number."""
    current, *others = entry["metadata"]["numbers"]
    steps = []
    for other in others:
        a, b = current, other
        while b:
            steps.append(f"{a} mod {b} = {a % b}")
            a, b = b, a % b
        steps.append(f"gcd({current}, {other}) = {a}")
        current = a
    return steps, str(current)


def lcm(entry: Mapping[str, Any]) -> tuple[list[str], str]:
    """Combine number after number by lcm(a, b) = a / gcd(a, b) * b."""
    current, *others = entry["metadata"]["numbers"]
    steps = []
    for other in others:
        divisor = math.gcd(current, other)
        result = current // divisor * other
        steps.append(f"gcd({current}, {other}) = {divisor}")
        steps.append(f"{current} / {divisor} * {other} = {result}")
        current = result
    return steps, str(current)


def letter_counting(entry: Mapping[str, Any]) -> tuple[list[str], str]:
    """Go through the words with a running count."""
    letter, total, steps = entry["metadata"]["target_letter"], 0, []
    for word in entry["metadata"]["span"]:
        count = word.lower().count(letter)
        total += count
        steps.append(f"{word}: {count}, total {total}")
    return steps, str(total)


def spell_backward(entry: Mapping[str, Any]) -> tuple[list[str], str]:
    """Take the letters apart, then turn them round."""
    word = entry["metadata"]["word"]
    return [" ".join(word), " ".join(reversed(word))], word[::-1]


def number_sorting(entry: Mapping[str, Any]) -> tuple[list[str], str]:
    """Take the smallest (or largest) of what is left, again and again."""
    left = list(entry["metadata"]["original_numbers"])
    ascending = entry["metadata"]["direction"] == "ascending"
    ordered, steps = [], []
    while left:
        chosen = (min if ascending else max)(left, key=float)
        left.remove(chosen)
        ordered.append(chosen)
        steps.append(f"{'smallest' if ascending else 'largest'}: {chosen}" + (f", left: {', '.join(left)}" if left else ""))
    return steps, str(ordered)


_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def base_conversion(entry: Mapping[str, Any]) -> tuple[list[str], str]:
    """Read the digits into a decimal number, then divide it by the target base until nothing is left."""
    facts = entry["metadata"]
    source, target, written = facts["source_base"], facts["target_base"], facts["source_repr"]
    value, steps = 0, []
    for digit in written:
        result = value * source + _DIGITS.index(digit)
        steps.append(f"{value} * {source} + {_DIGITS.index(digit)} = {result}")
        value = result
    digits = "" if value else "0"
    while value:
        rest = value % target
        steps.append(
            f"{value} / {target} = {value // target} remainder {rest}" + (f" ({_DIGITS[rest]})" if rest > 9 else "")
        )
        digits = _DIGITS[rest] + digits
        value //= target
    return steps, digits


def leg_counting(entry: Mapping[str, Any]) -> tuple[list[str], str]:
    """Multiply each animal's legs by how many there are, with a running total."""
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    total, steps = 0, []
    for animal, count in entry["metadata"]["animals"].items():
        legs = count * ANIMALS[animal]
        total += legs
        steps.append(f"{animal}: {count} * {ANIMALS[animal]} = {legs}, total {total}")
    return steps, str(total)


def word_sequence_reversal(entry: Mapping[str, Any]) -> tuple[list[str], str]:
    """Number the words, then read them from the last to the first."""
    words = entry["metadata"]["words"]
    return [f"{i}. {word}" for i, word in enumerate(words, 1)], ", ".join(reversed(words))


WORKED: dict[str, Steps] = {
    "base_conversion": base_conversion,
    "basic_arithmetic": basic_arithmetic,
    "chain_sum": chain_sum,
    "gcd": gcd,
    "lcm": lcm,
    "leg_counting": leg_counting,
    "letter_counting": letter_counting,
    "number_sorting": number_sorting,
    "products": products,
    "spell_backward": spell_backward,
    "word_sequence_reversal": word_sequence_reversal,
}
