"""The parts of a template: headings, sentences, list items, code fences and dialogue turns, down to words."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field

HEADING = re.compile(r"\s*(#{1,6})\s+\S")
FENCE = re.compile(r"\s*(```|~~~)")
ITEM = re.compile(r"\s*(?P<mark>[-*+•]|\(?(?:\d{1,3}|[A-Za-z])[.)])\s+(?=\S)")
SPEAKER = re.compile(
    r"\s*(?:[<\[]\w+[>\]]:?|\**(?:user|human|agent|assistant|ai|system|input|output)\**:\**)\s*$", re.I
)
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[<`{]?[A-Z0-9])")
WORD = re.compile(r"(?:`[^`\n]*`|\{[^{}\n]*\}|\S)+\s*")

RULE = re.compile(
    r"\b(must|never|always|only|not|no|nothing|cannot|exactly|except|exception|required?|forbidden|avoid|ensure"
    r"|should|have to|at (?:most|least)|format)\b|n't\b",
    re.I,
)
"""What marks a sentence that states a rule."""

SPECIFIC = re.compile(r"[\d`{}<>\[\]\"“”$#_=|\\]|'[^'\s][^']*'(?!\w)|\w\(|\b[A-Z]{2,}\b")
"""What marks a sentence that names something specific: digits, code, placeholders, quotations, capitals."""

ASIDE = re.compile(
    r"\b(please|kindly|thanks?|thank you|notes?|for example|for instance|e\.g\.|in other words|feel free|of course"
    r"|remember|keep in mind|as you know|we appreciate|good luck|great|happy to|don't worry|welcome|hope|helpful)\b",
    re.I,
)
"""What marks a courtesy or an aside."""

LONGEST_OPENING = 40
"""A first sentence with more words than this does not count as a statement of the task."""

LONGEST_LABEL = 8
"""A line that ends in a colon is a heading if it has at most this many words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A part that is removed as a whole unless it is long; `words` are indices into `Outline.words`."""

    number: int
    """Place in the template."""
    words: tuple[int, ...]
    owner: int | None
    """The heading that this unit belongs to."""
    is_heading: bool
    """A heading, a speaker's name or a short label such as "Rules:"."""
    is_core: bool
    """The first sentence, which states the task, or the lead-in to the query."""
    is_turn: bool
    """A turn of a worked dialogue."""
    is_bullet: bool
    """An entry of a bulleted list."""
    place_in_list: float
    """For an entry: from just above 0 (the first) to 1 (the last)."""
    is_decoration: bool
    is_aside: bool
    states_rule: bool
    names_something: bool


@dataclass(slots=True)
class _Draft:
    """A unit while the template is being read."""

    words: list[int]
    owner: int | None
    level: int = -1
    """Headings: 1 to 6 (0 for a speaker's label); -1 for everything else."""
    indent: int = 0
    list_mark: str = ""
    is_label: bool = False
    is_turn: bool = False
    loose: bool = False
    """A list item after a blank line: the lines directly below belong to it, even if they are not indented."""
    content: str = ""
    """What it contains so far: "", "items" or "prose"."""
    closed: bool = False
    """A blank line came after its content."""


@dataclass(slots=True)
class Outline:
    """A template in parts; if no word is removed, `text` differs from it only in blank lines and trailing spaces."""

    template: str
    words: list[str] = field(default_factory=list)
    units: tuple[Unit, ...] = ()
    _starts: list[int] = field(default_factory=list)
    _lines: list[tuple[str, list[int]]] = field(default_factory=list)
    """Per line: its indent and list mark, and its words; a blank line has none."""

    def __post_init__(self) -> None:
        drafts: list[_Draft] = []
        stack: list[int] = []
        blank_before = True
        lines = list(self._read_lines())
        speakers = [number for number, (text, _) in enumerate(lines) if SPEAKER.match(text)]
        if len(speakers) < 3 or len({lines[number][0].strip() for number in speakers}) == len(speakers):
            speakers = []  # a dialogue returns to its first speaker
        for number, (text, start) in enumerate(lines):
            if not text.strip():
                self._lines.append(("", []))
                blank_before = True
                for open_unit in stack:
                    drafts[open_unit].closed = bool(drafts[open_unit].content)
                continue
            in_dialogue = bool(speakers) and speakers[0] < number and speakers[1] <= number < speakers[-1]
            if in_dialogue and number not in speakers:
                words = self._add_line("", text, start)
                if drafts[-1].is_turn and drafts[-1].level < 0:
                    drafts[-1].words.extend(words)
                else:
                    drafts.append(_Draft(list(words), stack[-1] if stack else None, is_turn=True))
                blank_before = False
                continue
            self._read(text, start, drafts, stack, blank_before, is_speaker=number in speakers, is_turn=in_dialogue)
            blank_before = False
        self.units = self._finish(drafts)

    def _read(
        self,
        text: str,
        start: int,
        drafts: list[_Draft],
        stack: list[int],
        blank_before: bool,
        *,
        is_speaker: bool,
        is_turn: bool,
    ) -> None:
        """Add the units of a line that is not blank, and find their heading."""
        draft = _Draft([], None, indent=len(text) - len(text.lstrip()), is_turn=is_turn)
        item = None if FENCE.match(text) else ITEM.match(text)
        heading = HEADING.match(text)
        if is_speaker:
            draft.level = 0
        elif heading:
            draft.level = len(heading[1])
        elif item:
            draft.list_mark, draft.loose = item["mark"], blank_before
        draft.is_label = draft.level < 0 and text.rstrip().endswith(":")
        while stack and not _accepts(drafts[stack[-1]], draft):
            stack.pop()
        draft.owner = stack[-1] if stack else None
        for above in stack:
            drafts[above].content = drafts[above].content or ("items" if item else "prose")
        body = item.end() if item else draft.indent
        whole = draft.level >= 0 or item is not None or draft.is_label or FENCE.match(text)
        line: list[int] = []
        self._lines.append((text[:body], line))
        for piece, offset in [(text[body:], body)] if whole else _sentences(text, body):
            words = self._add_words(piece, start + offset)
            line += words
            drafts.append(_Draft(words, draft.owner, is_turn=is_turn))
        if draft.level >= 0 or item is not None or draft.is_label:
            draft.words = line
            drafts[-1] = draft
            stack.append(len(drafts) - 1)

    def _read_lines(self) -> Iterator[tuple[str, int]]:
        """Yield each line, or a whole code fence, and where it starts in the template."""
        lines = self.template.split("\n")
        start = number = 0
        while number < len(lines):
            text, following = lines[number], number + 1
            if fence := FENCE.match(text):
                end = next((n for n in range(following, len(lines)) if lines[n].strip() == fence[1]), None)
                if end is not None:
                    text, following = "\n".join(lines[number : end + 1]), end + 1
            yield text, start
            start += len(text) + 1
            number = following

    def _add_line(self, prefix: str, text: str, start: int) -> list[int]:
        words = self._add_words(text, start)
        self._lines.append((prefix, words))
        return words

    def _add_words(self, text: str, start: int) -> list[int]:
        first = len(self.words)
        if FENCE.match(text) and "\n" in text:
            self.words.append(text)
            self._starts.append(start)
        else:
            lead = len(text) - len(text.lstrip())
            for match in WORD.finditer(text):
                begin = 0 if match.start() == lead else match.start()
                self.words.append(text[begin : match.end()])
                self._starts.append(start + begin)
        return list(range(first, len(self.words)))

    def _finish(self, drafts: Sequence[_Draft]) -> tuple[Unit, ...]:
        texts = ["".join(self.words[word] for word in draft.words).strip() for draft in drafts]
        decoration = [not any(char.isalnum() for char in text) for text in texts]
        plain = [n for n, draft in enumerate(drafts) if draft.level < 0 and not decoration[n]]
        core = {n for n in plain[:1] if not drafts[n].is_turn and len(drafts[n].words) <= LONGEST_OPENING}
        if texts and texts[-1].endswith(":"):
            core.add(len(texts) - 1)
        lists: dict[tuple[int | None, int], list[int]] = {}
        for number, draft in enumerate(drafts):
            if draft.list_mark in ("-", "*", "+", "•"):
                lists.setdefault((draft.owner, draft.indent), []).append(number)
        place = {n: (i + 1) / len(entries) for entries in lists.values() for i, n in enumerate(entries)}
        units = []
        for number, (draft, text) in enumerate(zip(drafts, texts, strict=True)):
            states_rule, names_something = bool(RULE.search(text)), bool(SPECIFIC.search(text))
            is_plain = not (states_rule or names_something or draft.list_mark)
            units.append(
                Unit(
                    number=number,
                    words=tuple(draft.words),
                    owner=draft.owner,
                    is_heading=draft.level >= 0
                    or (draft.is_label and not draft.list_mark and len(draft.words) <= LONGEST_LABEL),
                    is_core=number in core,
                    is_turn=draft.is_turn,
                    is_bullet=number in place,
                    place_in_list=place.get(number, 0.0),
                    is_decoration=decoration[number],
                    is_aside=is_plain and bool(ASIDE.search(text)),
                    states_rule=states_rule,
                    names_something=names_something or bool(draft.list_mark),
                )
            )
        return tuple(units)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The position of each word in the template, without the spaces around it."""
        return [
            (end - len(word.strip()), end)
            for start, word in zip(self._starts, self.words, strict=True)
            for end in [start + len(word.rstrip())]
        ]

    def overlapping(self, texts: Sequence[str]) -> set[int]:
        """Return the words that share a character with an occurrence of one of `texts`."""
        found: set[int] = set()
        for text in texts:
            for match in re.finditer(re.escape(text), self.template):
                found.update(
                    number
                    for number, (begin, word) in enumerate(zip(self._starts, self.words, strict=True))
                    if begin < match.end() and match.start() < begin + len(word.rstrip())
                )
        return found

    def text(self, gone: Set[int], cuts: Sequence[tuple[int, int]] = ()) -> str:
        """Return the template without the words in `gone`, the lines that they leave empty, and doubled blank lines.

        `cuts` are places in the template that are left out, too, each inside a word.
        """
        words = self._without(cuts) if cuts else self.words
        lines: list[str] = []
        blank = False
        for prefix, numbers in self._lines:
            left = [words[number] for number in numbers if number not in gone and words[number].strip()]
            if left:
                lines += [""] if blank and lines else []
                lines.append((prefix + "".join(left)).rstrip())
            blank = not numbers or (blank and not left)
        return "\n".join(lines)

    def _without(self, cuts: Sequence[tuple[int, int]]) -> list[str]:
        """Return the words with parts cut out."""
        words = list(self.words)
        for start, end in sorted(cuts, reverse=True):  # from the end, so that what comes before stays in place
            number = bisect_right(self._starts, start) - 1
            begin = self._starts[number]
            words[number] = words[number][: start - begin] + words[number][end - begin :]
        return words


def _sentences(text: str, body: int) -> Iterator[tuple[str, int]]:
    """Yield each sentence of a line from offset `body` on, with the spaces after it, and its offset."""
    start = body
    for end in [match.end() for match in SENTENCE_END.finditer(text, body)] + [len(text)]:
        if text[start:end].strip():
            yield text[start:end], start
        start = end


def _accepts(above: _Draft, below: _Draft) -> bool:
    """Tell whether a line may belong to an open heading, label or list item."""
    if below.level >= 0:
        return 0 <= above.level < below.level
    if above.level >= 0:
        return True
    if below.indent > above.indent:
        return True
    is_item = bool(below.list_mark)
    if above.list_mark:
        paragraph = above.loose and not above.closed
        return not is_item and not below.is_label and (paragraph or (above.is_label and not above.content))
    if above.closed and above.content == "prose":
        return False
    return (
        not above.content
        or (is_item and above.content == "items")
        or (not is_item and not below.is_label and above.content == "prose")
    )
