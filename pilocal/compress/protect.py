"""What a task protects: the texts of `keep` and `stay`, with the code or placeholder that they are part of.

Every compressor protects the same texts. Code fences, `inline code` and {placeholders} are single words for all of
them, kept or removed as a whole. One that contains a text of `keep` is protected as a whole, so `keep = ["{"]` protects
every placeholder, and a text of three backticks every fence. Texts of `stay` are protected in the same way; they are
what is left of the template where nothing else is. A slot is protected as a text of `keep` is, so that it goes only
with the last words around it; a ladder's own texts may leave it out, and its value is stated before the query then.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from pilocal.compress.outline import FENCE, Outline
from pilocal.errors import InputError, raise_all
from pilocal.task import Compression
from pilocal.task.slots import slot_marks

Place = tuple[int, int]
"""Where a part of a template begins and ends."""

ATOM = re.compile(r"`[^`\n]*`|\{+[^{}\n]*\}+")
"""Inline code and placeholders."""


def check_texts(template: str, config: Compression) -> None:
    """Raise InputError for every text of `keep`, `stay` and `drop_first` that is not in the template."""
    raise_all(
        [
            InputError(f"[compression] {key}", "this text is not in the template", got=text, fix="correct it")
            for key, texts in (("keep", config.keep), ("stay", config.stay), ("drop_first", config.drop_first))
            for text in texts
            if text not in template
        ]
    )


def with_slots_kept(template: str, config: Compression) -> Compression:
    """Return the settings with the slots of a template among the texts to keep, but for those to drop first.

    >>> with_slots_kept("Today is {{today}}.", Compression(keep=("is",))).keep
    ('is', '{{today}}')
    """
    marks = [mark for mark in slot_marks(template) if not any(mark in text for text in config.drop_first)]
    return replace(config, keep=(*config.keep, *marks)) if marks and config.method != "ladder" else config


def staying(outline: Outline, config: Compression) -> set[int]:
    """Return the words of a template that are never dropped."""
    return outline.overlapping(config.stay)


def stay_text(template: str, config: Compression) -> str:
    r"""Return what is left of a template where nothing but the texts of `stay` is; empty where there are none.

    >>> stay_text("Codes.\n- lamp NIZ\n- door VOL\nBe brief.", Compression(stay=("door VOL", "Be brief.")))
    '- door VOL\nBe brief.'
    """
    if not config.stay:
        return ""
    outline = Outline(template)
    return outline.text(set(range(len(outline.words))) - staying(outline, config))


def protected_texts(template: str, keep: Sequence[str]) -> tuple[str, ...]:
    r"""Return the texts that a shortened template must contain, each once, in the template's order.

    >>> protected_texts("Greet {user name}.\nRun `ls -l` for {user name}, then stop.", ("{", "ls", "stop"))
    ('{user name}', '`ls -l`', 'stop')
    """
    places = protected_places(Outline(template), keep)
    return tuple(dict.fromkeys(template[start:end] for start, end in places))


def protected_places(outline: Outline, keep: Sequence[str]) -> list[Place]:
    """Return where the texts of `keep` stand in a template, each with the code or placeholder that it is part of."""
    atoms = [*fences(outline), *(match.span() for match in ATOM.finditer(outline.template))]
    found: list[Place] = []
    for start, end in occurrences(outline.template, keep):
        touching = [(a, b) for a, b in atoms if a < end and start < b]
        found.append((min([start, *(a for a, _ in touching)]), max([end, *(b for _, b in touching)])))
    return sorted(found)


def occurrences(template: str, texts: Sequence[str]) -> list[Place]:
    """Return where each of `texts` stands in a template."""
    return [match.span() for text in texts for match in re.finditer(re.escape(text), template)]


def fences(outline: Outline) -> list[Place]:
    """Return where the code fences of a template stand."""
    words = zip(outline.spans, outline.words, strict=True)
    return [place for place, word in words if FENCE.match(word) and "\n" in word]
