"""A process that compares mathematical expressions: one JSON request and one JSON reply a line, until its input closes.

It is a process of its own because math-verify times itself out with SIGALRM (main thread only) and can hang inside sympy
where no Python timeout reaches it; the parent kills the whole process then.
"""

from __future__ import annotations

import json
import logging
import sys


def equivalent(gold: str, answer: str) -> bool:
    """Return whether math-verify takes the two for equal in either order (its `verify` is not symmetric)."""
    from math_verify import parse, verify

    parsed = [parse(f"${text}$", parsing_timeout=None) for text in (gold, answer)]
    if not all(parsed):
        return False
    return bool(verify(parsed[0], parsed[1], timeout_seconds=None) or verify(parsed[1], parsed[0], timeout_seconds=None))


def main() -> None:
    """Say `"ready"` once everything is imported, then answer requests `[gold, answer]` with `true` or `false`."""
    logging.disable(logging.CRITICAL)
    replies, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not land among the replies
    equivalent("x+x", "2x")
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        gold, answer = json.loads(line)
        try:
            same = equivalent(gold, answer)
        except Exception:  # an expression that cannot be parsed is equal to nothing
            same = False
        print(json.dumps(same), file=replies, flush=True)


if __name__ == "__main__":
    main()
