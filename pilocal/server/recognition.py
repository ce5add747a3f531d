"""What callers still send of a task's prompt: the whole of it, what stays of it for good, or something like it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

from pilocal.run_folder.shipped import Shipped
from pilocal.server.near_miss import NearMisses
from pilocal.server.prompt_stripping import Chat, KnownPrompt
from pilocal.server.wording import words
from pilocal.task import Example


class Recognition:
    """Finds a task's prompt in a chat.

    A caller may send what stays of the prompt, too. It is taken out as well, so that it is there once when the server
    puts it back. What is left is then compared with the rest of the template: else a short template that stays, such as
    its first half, would look like a changed one.
    """

    def __init__(self, task: Shipped, examples: Iterable[Example]) -> None:
        examples, residue = tuple(examples), task.residue
        self._known = KnownPrompt(task.template, examples)
        self._like = NearMisses(task.template)
        self._residue = KnownPrompt(residue.template, examples, shots_alone=True) if residue else None
        self._like_rest = NearMisses(beyond(task.template, residue.template)) if residue else self._like

    def strip(self, chat: Chat) -> tuple[Chat, bool]:
        """Return the chat without the known prompt, and whether what is left has a changed one in it."""
        bare = self._known.strip(chat)
        rest = bare if self._residue is None else self._residue.strip(bare)
        like = self._like if rest is bare else self._like_rest
        return rest, like.found_in(rest)

    def is_near_miss(self, prompt: str) -> bool:
        """Tell whether a raw prompt holds the template, changed or not; what stays of it may stand there."""
        chat = [{"role": "user", "content": prompt}]
        return self._like.found_in(chat) and self._like_rest.found_in(chat)


def beyond(template: str, residue: str) -> str:
    """Return the words of a template, in order, that do not stay.

    >>> beyond("Answer with a code. Red is ZOR. Say no more.", "Answer with a code. Say no more.")
    'red is zor'
    """
    whole, left = words(template), words(residue)
    same = SequenceMatcher(None, whole, left, autojunk=False).get_matching_blocks()
    stays = {place for start, _, length in same for place in range(start, start + length)}
    return " ".join(word for place, word in enumerate(whole) if place not in stays)
