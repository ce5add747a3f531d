"""The values of a template's slots in a request: those of its own field, and those that its prompt carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pilocal.errors import did_you_mean
from pilocal.run_folder.shipped import BARE_BASE as BASE
from pilocal.server.refusal import Refusal
from pilocal.server.request import SLOTS
from pilocal.task.slots import clean


def check_slots(model: str, given: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise Refusal for values of slots that a model does not have; `names` are those it has.

    >>> check_slots("diary", {"tody": "Monday"}, ["today"])
    Traceback (most recent call last):
    pilocal.server.refusal.Refusal: pilocal_slots: diary has no slot 'tody'; did you mean today?
    """
    for name in given:
        if name not in names:
            none = "the base takes none" if model == BASE else "its template has none"
            message = f"{SLOTS}: {model} has no slot {name!r}; {did_you_mean(name, names) if names else none}"
            raise Refusal(400, message, param=SLOTS, code="unknown_slot")


def all_slots(given: Mapping[str, str], found: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Return the value of every slot, in the template's order: as it was given, or found in the prompt.

    Raises Refusal for a slot without a value, and for one that has two.

    >>> all_slots({"today": " Monday"}, {"user": "Ann"}, ["user", "today"])
    {'user': 'Ann', 'today': 'Monday'}
    """
    values = dict(found)
    for name, value in given.items():
        if values.setdefault(name, clean(value)) != clean(value):
            message = f"{SLOTS}: the prompt has another value of {name}; send one of the two."
            raise Refusal(400, message, param=SLOTS, code="invalid_value")
    if missing := [name for name in names if name not in values]:
        field = ", ".join(f'"{name}": "..."' for name in missing)
        lines = ", ".join(f'"{name}: ..."' for name in names)
        message = f"{SLOTS}: no value for {', '.join(missing)}. Send {{{field}}} there, or begin the query with the "
        message += f"lines {lines} and a blank line."
        raise Refusal(400, message, param=SLOTS, code="missing_slots")
    return {name: values[name] for name in names}
