"""What a task protects: the texts of `keep`, with the code or placeholder that they are part of.

Every compressor protects the same texts. Code fences, `inline code` and {placeholders} are single words for all of
them, kept or removed as a whole. One that contains a text of `keep` is protected as a whole, so `keep = ["{"]` protects
every placeholder, and a text of three backticks every fence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pilocal.compress.outline import FENCE, Outline
from pilocal.errors import InputError, raise_all
from pilocal.task import Compression

ATOM = re.compile(r"`[^`\n]*`|\{+[^{}\n]*\}+")
"""Inline code and placeholders."""


def check_texts(template: str, config: Compression) -> None:
    """Raise InputError for every text of `keep` and `drop_first` that is not in the template."""
    raise_all(
        [
            InputError(f"[compression] {key}", "this text is not in the template", got=text, fix="correct it")
            for key, texts in (("keep", config.keep), ("drop_first", config.drop_first))
            for text in texts
            if text not in template
        ]
    )


def protected_texts(template: str, keep: Sequence[str]) -> tuple[str, ...]:
    r"""Return the texts that a shortened template must contain, each once, in the template's order.

    >>> protected_texts("Greet {user name}.\nRun `ls -l` for {user name}, then stop.", ("{", "ls", "stop"))
    ('{user name}', '`ls -l`', 'stop')
    """
    outline = Outline(template)
    words = zip(outline.spans, outline.words, strict=True)
    atoms = [span for span, word in words if FENCE.match(word) and "\n" in word]
    atoms += [match.span() for match in ATOM.finditer(template)]
    found: list[tuple[int, int]] = []
    for text in keep:
        for match in re.finditer(re.escape(text), template):
            start, end = match.span()
            touching = [(a, b) for a, b in atoms if a < end and start < b]
            found.append((min([start, *(a for a, _ in touching)]), max([end, *(b for _, b in touching)])))
    return tuple(dict.fromkeys(template[start:end] for start, end in sorted(found)))
