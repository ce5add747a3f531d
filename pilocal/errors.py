"""The errors that pilocal raises. Every message is one line: where, what is wrong, what was got, what to do.

PilocalError
├── InputError      a file or setting that the user wrote is missing, broken or contradictory
│   └── Faults      several of these, found in one pass
├── ModelError      a model folder that cannot be used
├── RunError        a run folder that is locked, foreign, incomplete or on a full disk
├── TrainingError   training cannot continue, for example because the loss is not a number
├── ExportError     a file for another program cannot be written, or loses too much
├── ParityError     two programs that should compute the same do not
└── SandboxError    this machine cannot isolate a program
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

LEAST_BEGINNING = 3
"""Letters of a beginning that is taken for a word."""


class PilocalError(Exception):
    """Something that the user can fix; `str()` is one line for stderr."""

    def __init__(self, where: object, problem: str, *, got: object = None, fix: str | None = None) -> None:
        self.where = str(where)
        self.problem = problem
        self.got = got
        self.fix = fix
        parts = [f"{self.where}: {problem}"]
        if got is not None:
            parts.append(f"got {_shorten(repr(got))}")
        if fix is not None:
            parts.append(fix)
        super().__init__("; ".join(" ".join(part.split()) for part in parts))


class InputError(PilocalError):
    """A file or setting that the user wrote is missing, broken or contradictory."""


class Faults(InputError):
    """Several faults found in one pass; `str()` has one line per fault, `faults` holds them."""

    def __init__(self, faults: Sequence[PilocalError]) -> None:
        self.faults = tuple(faults)
        Exception.__init__(self, "\n".join(str(fault) for fault in faults))


class ModelError(PilocalError):
    """A model folder that cannot be used."""


class RunError(PilocalError):
    """A run folder that is locked, foreign, incomplete or on a full disk."""


class TrainingError(PilocalError):
    """Training cannot continue."""


class ExportError(PilocalError):
    """A file for another program cannot be written, or loses too much."""


class ParityError(PilocalError):
    """Two programs that should compute the same do not."""


class SandboxError(PilocalError):
    """This machine cannot isolate a program."""


def raise_all(faults: Sequence[PilocalError]) -> None:
    """Raise a single fault as it is and several as one `Faults`, each once; do nothing if there are none."""
    faults = list({str(fault): fault for fault in faults}.values())
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise Faults(faults)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return advice on an unknown word: the nearest known word, or all of them.

    >>> did_you_mean("tamplate", ["name", "template"])
    'did you mean template?'
    >>> did_you_mean("x", ["name", "template"])
    'known: name, template'
    """
    known = sorted(known)
    near = nearest(word, known)
    return f"did you mean {near}?" if near else f"known: {', '.join(known)}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most like a word, or that alone begins with it; None where there is none.

    Capitals do not count, nor which of space, hyphen and underscore stands between words.

    >>> nearest("Exact Match", ["bleu", "exact_match"]), nearest("exp", ["linear", "exponential"]), nearest("x", ["y"])
    ('exact_match', 'exponential', None)
    """
    plain = {_plain(each): each for each in sorted(known, reverse=True)}
    if near := difflib.get_close_matches(_plain(word), plain, n=1):
        return plain[near[0]]
    begun = [each for key, each in plain.items() if len(word) >= LEAST_BEGINNING and key.startswith(_plain(word))]
    return begun[0] if len(begun) == 1 else None


def _plain(word: str) -> str:
    return word.casefold().replace("-", "_").replace(" ", "_")


def _shorten(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
