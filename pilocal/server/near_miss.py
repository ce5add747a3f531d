"""Near misses: texts that have most of a template's words in its order, but are not the template."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

from pilocal.server.prompt_stripping import Chat
from pilocal.server.wording import words

MOST_WORDS = 2**18
"""Words of a chat that are looked at; a longer chat fits no context."""
FEWEST_WORDS = 4
"""Words that a query must share with a template at least."""
FEWEST_IN_PART = 8
"""Words of a part between slots that is looked for by itself; any text has shorter ones."""


class NearMisses:
    r"""Finds a template that was changed: with a word, a number or a rule other than the weights were taught.

    >>> template = "Answer with the code of the colour.\n- red is ZOR\n- blue is MIP"
    >>> near = NearMisses(template)
    >>> near.found_in([{"role": "system", "content": template.replace("MIP", "KEL")}])
    True
    >>> near.found_in([{"role": "user", "content": "What does 'red is ZOR' mean?"}])
    False
    """

    def __init__(self, template: str, parts: Sequence[str] = ()) -> None:
        """Take a template; of one with slots also the `parts` between them, as values may stand far apart."""
        self._parts = [NearMisses(part) for part in parts if len(words(part)) >= FEWEST_IN_PART]
        known = words(template)
        masks: defaultdict[str, int] = defaultdict(int)
        for place, word in enumerate(known):
            masks[word] |= 1 << place
        self._masks = dict(masks)
        self._pairs = Counter(pairwise(known))
        self._length = len(known)

    def found_in(self, chat: Chat) -> bool:
        """Tell whether the system messages or one of the user's messages are a near miss.

        Half of the template's words are enough in a system message and at the head of a query. Further on it takes
        more, since a long query may share many by chance. The time is linear in the length of the chat.
        """
        if not self._length:
            return False
        if self._parts and self._parts_in(chat):
            return True
        systems = "\n".join(message["content"] for message in chat if message["role"] == "system")
        asked = words(systems)[:MOST_WORDS]
        half = math.ceil(self._length / 2)
        if self._shares(asked, half):
            return True
        left = MOST_WORDS - len(asked)
        at_head = max(half, FEWEST_WORDS)
        anywhere = max(half + math.isqrt(self._length), FEWEST_WORDS)
        for message in chat:
            if message["role"] == "user" and left > 0:
                asked = words(message["content"])[:left]
                left -= len(asked)
                if self._shares(asked[: self._window], at_head) or self._shares(asked, anywhere):
                    return True
        return False

    def _parts_in(self, chat: Chat) -> bool:
        """Tell whether the parts of a template with slots share so many words with one side of the chat, each apart."""
        left, length = MOST_WORDS, sum(part._length for part in self._parts)
        half = math.ceil(length / 2)
        anywhere = half + math.isqrt(length)
        systems = "\n".join(message["content"] for message in chat if message["role"] == "system")
        sides = [(systems, half), *((message["content"], anywhere) for message in chat if message["role"] == "user")]
        for text, least in sides:
            said = words(text)[:left]
            left -= len(said)
            if sum(part.most_shared(said) for part in self._parts) >= least:
                return True
        return False

    def most_shared(self, text: Sequence[str]) -> int:
        """Return the most of the template's words, in its order, that some stretch of a text has."""
        return max((self._in_order(masks) for _, masks in self._stretches(text)), default=0)

    def _stretches(self, text: Sequence[str]) -> Iterator[tuple[Sequence[str], list[int]]]:
        """Yield stretches of a text, not much longer than the template, and where its words stand in the template."""
        step = max(8, self._length // 2)
        for start in range(0, max(1, len(text) - self._window + step), step):
            stretch = text[start : start + self._window]
            yield stretch, [self._masks[word] for word in stretch if word in self._masks]

    @property
    def _window(self) -> int:
        return self._length + self._length // 2 + 8

    def _shares(self, text: Sequence[str], least: int) -> bool:
        """Tell whether some stretch of a text, not much longer than the template, has so many of its words in order.

        Where rules have changed places, the pairs of words that follow each other count.
        """
        for stretch, masks in self._stretches(text):
            if len(masks) < least:
                continue
            if self._in_order(masks) >= least or (Counter(pairwise(stretch)) & self._pairs).total() >= least:
                return True
        return False

    def _in_order(self, masks: Sequence[int]) -> int:
        """Return the length of the longest common subsequence, bit-parallel: one addition for each word of the text."""
        every = (1 << self._length) - 1
        free = every
        for mask in masks:
            matched = free & mask
            free = ((free + matched) | (free - matched)) & every
        return self._length - free.bit_count()
