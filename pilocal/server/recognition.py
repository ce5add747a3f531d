"""What callers still send of a task's prompt: the whole of it, what stays of it for good, or something like it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from pilocal.run_folder.shipped import Shipped
from pilocal.server.near_miss import NearMisses
from pilocal.server.prompt_stripping import Chat, KnownPrompt
from pilocal.server.slotted import shapes_of
from pilocal.server.stated_values import StatedValues
from pilocal.server.wording import words
from pilocal.task import Example
from pilocal.task.slots import literals, slot_names


@dataclass(frozen=True, slots=True)
class Seen:
    """A chat, as a task's prompt was looked for in it."""

    bare: Chat
    """Without the known prompt."""
    near_miss: bool
    """Whether what is left has a changed one in it."""
    values: Mapping[str, str] = field(default_factory=dict)
    """What the chat has for the slots of the template."""


class Recognition:
    """Finds a task's prompt in a chat.

    A caller may send what stays of the prompt, too. It is taken out as well, so that it is there once when the server
    puts it back. What is left is then compared with the rest of the template: else a short template that stays, such as
    its first half, would look like a changed one.
    """

    def __init__(self, task: Shipped, examples: Iterable[Example]) -> None:
        examples, residue = tuple(examples), task.residue
        shapes = shapes_of(task.slots, examples)
        self._stated = StatedValues(shapes)
        self._known = KnownPrompt(task.template, examples, shapes=shapes)
        self._like = _near_misses(task.template, task.slots)
        stays = {name: shapes[name] for name in slot_names(residue.template) if name in shapes}
        text = residue.template if stays else "".join(literals(residue.template, task.slots)[0])
        self._residue = KnownPrompt(text, examples, shots_alone=True, shapes=stays) if residue else None
        rest = beyond(_words_of(task.template, task.slots), _words_of(residue.template, task.slots))
        self._like_rest = NearMisses(rest) if residue else self._like

    def strip(self, chat: Chat) -> Seen:
        """Return what a chat is without the known prompt, and what it says of the slots."""
        bare, values = self._known.find(chat)
        rest, stays = (bare, {}) if self._residue is None else self._residue.find(bare)
        like = self._like if rest is bare else self._like_rest
        if like.found_in(rest):
            return Seen(rest, True)
        if any(values.get(name, value) != value for name, value in stays.items()):
            return Seen(chat, True)
        rest, said = self._stated.find(rest, [*values, *stays])
        return Seen(rest, False, {**values, **stays, **said})

    def is_near_miss(self, prompt: str) -> bool:
        """Tell whether a raw prompt holds the template, changed or not; what stays of it may stand there."""
        chat = [{"role": "user", "content": prompt}]
        return self._like.found_in(chat) and self._like_rest.found_in(chat)


def _words_of(template: str, slots: Sequence[str]) -> str:
    """Return a template without its slots."""
    return " ".join(literals(template, slots)[0])


def _near_misses(template: str, slots: Sequence[str]) -> NearMisses:
    return NearMisses(_words_of(template, slots), literals(template, slots)[0] if slots else ())


def beyond(template: str, residue: str) -> str:
    """Return the words of a template, in order, that do not stay.

    >>> beyond("Answer with a code. Red is ZOR. Say no more.", "Answer with a code. Say no more.")
    'red is zor'
    """
    whole, left = words(template), words(residue)
    same = SequenceMatcher(None, whole, left, autojunk=False).get_matching_blocks()
    stays = {place for start, _, length in same for place in range(start, start + length)}
    return " ".join(word for place, word in enumerate(whole) if place not in stays)
