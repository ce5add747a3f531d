"""Texts by their words: found in other texts up to white space, invisible characters and Unicode form."""

from __future__ import annotations

import re
import unicodedata

_MARKS = "".join(chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code))[0] == "M")
"""Accents and the like; those of rare scripts beyond 0xFFFF would make the patterns slow."""
INVISIBLE = "\u00ad\u180e\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
"""Soft hyphen, zero-width characters, direction marks and the byte order mark: they neither are words nor part them."""
_NO_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\u2e80-\u312f\u3190-\ua4cf\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff"
)
"""Scripts that put no spaces between words, such as Chinese, Japanese, Thai and Khmer."""
BLANK = "".join(chr(code) for code in range(0x3001) if chr(code).isspace()) + "\0" + INVISIBLE
BREAKS = "\n\r\x0b\x0c\x85\u2028\u2029"

# A character of a script without spaces, a word, or any other character; each with the marks that follow.
TOKEN = re.compile(
    rf"(?=\w)[{_NO_SPACES}][{_MARKS}{INVISIBLE}]*+"
    rf"|[^\W{_NO_SPACES}]++(?:[{_MARKS}{INVISIBLE}]++[^\W{_NO_SPACES}]*+)*+"
    rf"|[^\s\0{INVISIBLE}][{_MARKS}{INVISIBLE}]*+"
)
_JOINED = re.compile(rf"[^\W{_NO_SPACES}]")
_IGNORED = re.compile(f"[{INVISIBLE}]+")
_SEPARATOR = re.compile(rf"[\s\0{INVISIBLE}]*[{BREAKS}]|[^\S{BREAKS}]+")

_SENTENCE_ENDS = ".!?…。！？"  # noqa: RUF001
PREFIX_ENDS = f"{_SENTENCE_ENDS}>"
TEXT_ENDS = f"{_SENTENCE_ENDS}:：;；`\"'”’」』）】》}}])>*"  # noqa: RUF001
_GLUED_ENDS = "。！？：；」』）】》}])>"  # noqa: RUF001
"""What may end a text that another follows without white space."""
_OPENERS = "{[(<\"'“‘「『（【《#"  # noqa: RUF001


def squeeze(text: str) -> str:
    r"""Return the words and other characters of a text, NUL around each: equal for texts that differ in form alone.

    White space counts only where it parts two words.

    >>> squeeze("Add \r\n\t1, 2") == squeeze("\ufeffAdd\u00a01,2") == "\0Add\0" "1\0,\0" "2\0"
    True
    >>> squeeze("caf\u00e9") == squeeze("cafe\u0301"), squeeze("no where") == squeeze("nowhere")
    (True, False)
    """
    tokens = TOKEN.findall(text)
    return unicodedata.normalize("NFC", _IGNORED.sub("", "\0".join(["", *tokens, ""]))) if tokens else ""


def is_word(char: str) -> bool:
    """Tell whether a character is part of a word that others may be joined to, as no character of Chinese is.

    >>> is_word("a"), is_word("-"), is_word("\u65e5")
    (True, False, False)
    """
    return _JOINED.fullmatch(char) is not None


def words(text: str) -> list[str]:
    """Return a text's words for a lenient comparison: no punctuation, no case, compatible forms as one.

    >>> words("Say: DON'T!")
    ['say', 'don', 't']
    """
    tokens = unicodedata.normalize("NFKC", squeeze(text)).casefold().split("\0")
    return [token for token in tokens if token[:1].isalnum()]


class Wording:
    """A text that is to be found in others."""

    __slots__ = ("_first", "_last", "_length", "_squeezed")

    def __init__(self, text: str) -> None:
        self._squeezed = squeeze(text)
        self._length = self._squeezed.count("\0") - 1
        self._first, self._last = self._squeezed[1:2], self._squeezed[-2:-1]

    def around(self, text: str) -> list[str] | None:
        r"""Return what stands before, between and after the copies in a text; None when there is no copy.

        The blank lines around a copy are left out, or else the spaces. An indented line after it stays indented.

        A copy ends where its line or sentence ends: with a word more in the same line it would be another text.

        >>> Wording("Add the numbers.").around("Hello.\nAdd  the\r\nnumbers. \n\n  1 2\n")
        ['Hello.', '  1 2\n']
        >>> Wording("Add the numbers").around("Never add the numbers"), Wording("add the").around("add the numbers")
        (None, None)
        """
        pieces, done = [], 0
        for start, end in self._copies(text):
            pieces.append(text[done:start].rstrip(BLANK))
            done = end
        pieces.append(text[done:])
        rest = [piece[blank_length(piece) :] for piece in pieces[1:]]
        return [pieces[0], *rest] if rest else None

    def _copies(self, text: str) -> list[tuple[int, int]]:
        numbers = self._token_numbers(squeeze(text))
        if not numbers:
            return []
        wanted = {number + offset for number in numbers for offset in (-1, 0, self._length - 1, self._length)}
        spans: dict[int, tuple[int, int]] = {}
        for number, token in enumerate(TOKEN.finditer(text)):
            if number in wanted:
                spans[number] = token.span()
            if number > numbers[-1] + self._length:
                break
        found = []
        for number in numbers:
            start, end = spans[number][0], spans[number + self._length - 1][1]
            before, after = spans.get(number - 1), spans.get(number + self._length)
            if before is not None:
                gap = text[before[1] : start].rstrip(INVISIBLE)
                start = before[1] + len(gap)
                if not parted(gap, text[slice(*before)].rstrip(INVISIBLE)[-1], self._first, PREFIX_ENDS):
                    continue
            if after is None or parted(text[end : after[0]], self._last, text[after[0]], TEXT_ENDS):
                found.append((start, end))
        return found

    def _token_numbers(self, squeezed: str) -> list[int]:
        """Return the number of the first token of every copy; copies do not overlap."""
        numbers: list[int] = []
        counted = number = 0
        at = squeezed.find(self._squeezed) if self._squeezed else -1
        while at >= 0:
            number += squeezed.count("\0", counted, at)
            counted = at
            numbers.append(number)
            at = squeezed.find(self._squeezed, at + len(self._squeezed) - 1)
        return numbers


def blank_length(text: str) -> int:
    """Return the length of the blank lines that a text begins with, or else of the spaces."""
    found = _SEPARATOR.match(text)
    return found.end() if found else 0


def parted(gap: str, last: str, first: str, ends: str) -> bool:
    """Tell whether one text ends with the character `last`, and another begins with `first`, after the gap."""
    if any(char in gap for char in BREAKS):
        return True
    if gap.strip(INVISIBLE):
        return last in ends
    return last in _GLUED_ENDS and last in ends and (first.isalnum() or first in _OPENERS)
