"""The working: the reasoning that a training example writes before its answer, and that a schedule may fade."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from pilocal.task.examples import Example

KEY = "working"
"""The field of a record that holds it."""

SENTENCE_END = re.compile(r"(?<=[.!?\u2026])\s+|(?<=[.!?\u2026][\"')\]])\s+|(?<=[\u3002\uff01\uff1f])")


def working_of(example: Example) -> str:
    """Return the working of an example; empty where it carries none.

    >>> working_of(Example(id="1", query="2+2", answer="4", extra={"working": "2+1 is 3."}))
    '2+1 is 3.'
    """
    return str(example.extra.get(KEY, "")).strip()


def shortened(working: str, rate: float) -> str:
    r"""Return what is left of a working at a rate between 1 (all of it) and 0 (nothing).

    Its steps are its lines; where it has a single line, its sentences. They go from the front, as whole steps: the last
    ones, those next to the answer, stay longest. Of n steps, rate * n are left, rounded half up.

    >>> shortened("a is 1.\nb is 2.\nc is 3.", 0.67)
    'b is 2.\nc is 3.'
    >>> shortened("a is 1. b is 2.", 0.33), shortened("a is 1. b is 2.", 0)
    ('b is 2.', '')
    """
    steps = [line.rstrip() for line in working.splitlines() if line.strip()]
    between = "\n"
    if len(steps) == 1:
        steps, between = [step.strip() for step in SENTENCE_END.split(steps[0]) if step.strip()], " "
    left = min(len(steps), math.floor(rate * len(steps) + 0.5 + 1e-9))
    return between.join(steps[len(steps) - left :])


def faded(example: Example, rate: float) -> Example:
    r"""Return an example as a stage trains it: its working at a rate, a line break, and its answer.

    Without a working, or where nothing is left of it, that is the example as it is: the answer alone.

    >>> example = Example(id="1", query="2+2", answer="4", extra={"working": "2+1 is 3. 3+1 is 4."})
    >>> faded(example, 0.5).answer, faded(example, 0).answer
    ('3+1 is 4.\n4', '4')
    """
    left = shortened(working_of(example), rate) if rate else ""
    return replace(example, answer=f"{left}\n{example.answer}") if left else example
