"""Names for slots: by what their values are, and by the words before them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, count

from pilocal.logs.kinds import TODAY, kind_of
from pilocal.task.slots import QUERY

LONGEST = 4
"""Words of the longest label that is a name as a whole."""

EMPTY = """a an the this that these those it he she they there here we i you my your our their its his her and or of for
in on to with from by as is are was be current currently following follows below above given now some any all
der die das ein eine ist le la les un une est el los las es"""
"""Words that name nothing."""

PLAIN_DATES = "date today time now datum heute today_date date_today date_time time_date"
"""Labels that say no more than that it is a date."""

FENCE = re.compile(r"\n[ \t]*[-=*`~\"']{3,}\w*\s*$")

COLON = re.compile(r"(?:^|[\n.!?;,(\[{<>|])[ \t]*([^\n.!?;,(\[{<>|]*?)[\"'`*_ \t]*[:=\uff1a][\"'`*_\s\[(<]*$")
TAG = re.compile(r"<([A-Za-z][\w.-]*)[^<>]*>[\"'`\s]*$")
HEADING = re.compile(r"(?:^|\n)[ \t]*#+[ \t]*([^\n]+?)[ \t#]*\n\s*$")
IS = re.compile(
    r"([^\W\d_][\w\u2019'-]*)\s+(?:is|are|was|ist|est|es)(?:\s+(?:called|named|now|currently))?\s+(?:the\s+)?[\"'`*_(\[]*$",
    re.IGNORECASE,
)
CALLED = re.compile(r"([^\W\d_][\w\u2019'-]*)\s+(?:called|named)\s+[\"'`*_(\[]*$", re.IGNORECASE)


def slot_name(before: str, values: Sequence[str]) -> str:
    r"""Return a name for the slot behind a text, by its values or by that text; empty where both say nothing.

    >>> slot_name("Be kind.\n- Customer name: ", ["Ann"]), slot_name("Today is ", ["2026-05-01"])
    ('customer_name', 'today')
    >>> slot_name("Birthday: ", ["2001-05-01"]), slot_name("You talk to ", ["Ann"]), slot_name("Message: ", ["x"])
    ('birthday', '', 'message_value')
    """
    kind, label = kind_of(values), label_of(before)
    if kind == TODAY and (not label or label in PLAIN_DATES.split()):
        return TODAY
    name = label or kind
    return f"{name}_value" if QUERY.fullmatch(name) else name


def label_of(before: str) -> str:
    r"""Return what a text says of what follows it, as a name; empty where it says nothing.

    >>> [label_of(text) for text in ("User: ", "<user>", "## Search results\n", "The user is called ", '"locale": "')]
    ['user', 'user', 'search_results', 'user', 'locale']
    >>> label_of("Answer with the help of the following passages:\n"), label_of("and speaks ")
    ('passages', '')
    """
    before = FENCE.sub("\n", before)
    for pattern in (COLON, TAG, HEADING, IS, CALLED):
        if found := pattern.search(before):
            return _name(found[1])
    return ""


def _name(label: str) -> str:
    """Return a label as a name: all of its words that name something, or of a long one the last."""
    words = [re.sub(r"['\u2019]s$", "", word) for word in re.findall(r"[^\W_][\w\u2019'-]*", label.lower())]
    telling = [re.sub(r"[^\w-]", "", word).strip("-_") for word in words if word not in EMPTY.split()]
    name = "_".join(filter(None, telling if len(words) <= LONGEST else telling[-1:]))
    return name if re.match(r"[^\W\d_]", name) and len(name) <= 40 else ""


def unlike(names: Sequence[str]) -> list[str]:
    """Return names of which each is there once; those that are empty become value_1 and so on.

    >>> unlike(["user", "", "user", ""])
    ['user', 'value_1', 'user_2', 'value_2']
    """
    found: list[str] = []
    for name in names:
        numbers = (f"{name or 'value'}_{number}" for number in count(2 if name else 1))
        found.append(next(each for each in chain([name] if name else [], numbers) if each not in found))
    return found
