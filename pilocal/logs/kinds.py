"""Kinds of what changes inside a prompt: dates, times, places on the map of languages, names, numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from pilocal.logs.units import most_have

SHORT = 6
"""Words of the longest value that may be a name or a number."""

TODAY = "today"

DAYS_AND_MONTHS = """\
monday tuesday wednesday thursday friday saturday sunday january february march april may june july august september
october november december mon tue tues wed thu thur thurs fri sat sun jan feb mar apr jun jul aug sep sept oct nov dec
montag dienstag mittwoch donnerstag freitag samstag sonntag januar februar m\u00e4rz mai juni juli oktober dezember
lundi mardi mercredi jeudi vendredi samedi dimanche janvier f\u00e9vrier mars avril juin juillet ao\u00fbt septembre
octobre novembre d\u00e9cembre lunes martes mi\u00e9rcoles jueves viernes s\u00e1bado domingo enero febrero marzo abril
mayo junio julio agosto septiembre octubre noviembre diciembre"""

CLOCK = r"am|pm|a\.m\.|p\.m\.|utc|gmt|cet|cest|est|edt|pst|pdt|[\u5e74\u6708\u65e5]"

NAMED = "|".join(DAYS_AND_MONTHS.split())
CALENDAR = rf"(?:{NAMED}|{CLOCK})"
"""Words of dates and times, whatever their case."""

DATE = re.compile(
    rf"\d{{4}}[-/.]\d{{1,2}}[-/.]\d{{1,2}}|\d{{1,2}}[-/.]\d{{1,2}}[-/.]\d{{2,4}}|\d+\s*\u6708|\b(?:{NAMED})\b",
    re.IGNORECASE,
)
DATED = re.compile(rf"(?:\d++(?:st|nd|rd|th)?|{CALENDAR}|of|the|de|at|der|den|t|z|[^\w])+", re.IGNORECASE)
"""What a date may have beside it."""

TIME = re.compile(
    r"\d{1,2}:\d{2}(?::\d{2})?(?:\.\d+)?\s*(?:[ap]\.?m\.?)?(?:\s*(?:utc|gmt|z|[+-]\d{2}:?\d{2}))?", re.IGNORECASE
)

LANGUAGES = """ar bg bn ca cs da de el en es et fa fi fr gu he hi hr hu id it ja ka kk km kn ko lt lv mk ml mr ms my
nb ne nl nn no pa pl pt ro ru si sk sl sq sr sv sw ta te th tl tr uk ur uz vi zh"""
LOCALE = re.compile(
    rf"(?:{'|'.join(LANGUAGES.split())})(?:[-_][A-Z]{{4}})?(?:[-_][A-Z]{{2}})?(?:\.utf-?8)?", re.IGNORECASE
)

EMAIL = re.compile(r"<?[\w.+-]+@[\w-]+(?:\.[\w-]+)+>?")
URL = re.compile(r"https?://\S+")


def kind_of(values: Sequence[str]) -> str:
    """Return what nearly all values are: today, time, locale, email, url, or nothing of these.

    >>> [kind_of([value]) for value in ("Monday, 2026-05-01", "3. Mai 2026", "10:30", "de-DE", "Ann", "May I?")]
    ['today', 'today', 'time', 'locale', '', '']
    """
    tests: Mapping[str, Callable[[str], object]] = {
        TODAY: _is_date,
        "time": TIME.fullmatch,
        "locale": LOCALE.fullmatch,
        "email": EMAIL.fullmatch,
        "url": URL.fullmatch,
    }
    return next((kind for kind, test in tests.items() if most_have(values, test)), "")


def is_data(values: Sequence[str]) -> bool:
    """Tell whether values are not wordings of a prompt: they are names, or dates, numbers and addresses of one form.

    >>> is_data(["Ann", "Bob Lee"]), is_data(["2026-05-01", "2026-05-02"]), is_data(["in a word", "briefly"])
    (True, True, False)
    """
    if kind_of(values) or all(map(_is_name, values)):
        return True
    return all(map(_is_number, values)) and len(set(map(_shape, values))) == 1


def are_beside(values: Sequence[str]) -> bool:
    """Tell whether values are several things, each on a line or in a word of its own, one of which is of a kind.

    >>> are_beside(["Ann Tuesday", "Bob Monday"]), are_beside(["Ann Lee", "Bob Roe"]), are_beside(["Monday, 1 May"])
    (True, False, False)
    """
    if kind_of(values):
        return False
    for parts in ([value.split("\n") for value in values], [value.split() for value in values]):
        columns = list(zip(*parts, strict=False))
        if len(columns) > 1 and len(set(map(len, parts))) == 1 and any(map(kind_of, columns)):
            return True
    return False


def are_names(values: Sequence[str]) -> bool:
    """Tell whether nearly all values look like names."""
    return most_have(values, _is_name)


def is_dated(value: str) -> bool:
    """Tell whether a value may be a part of a date or a time.

    >>> is_dated("21st of May"), is_dated("1" * 5000 + " x")
    (True, False)
    """
    return bool(re.search(r"\w", value)) and DATED.fullmatch(value) is not None


def _is_date(value: str) -> bool:
    return bool(DATE.search(value)) and is_dated(value)


def _is_name(text: str) -> bool:
    """Tell whether a few words look like a name, a language or a day."""
    words = text.split()
    named = [word[:1].isupper() for word in words if word[:1].isalpha()]
    return 0 < len(words) <= SHORT and bool(named) and all(named)


def _is_number(text: str) -> bool:
    """Tell whether a text looks like a date, a time, an identity or an address; a rule may have a number of its own."""
    return text.count(" ") < SHORT and (len(re.findall(r"\d+", text)) > 1 or bool(re.search(r"\d{4}|@|://", text)))


def _shape(text: str) -> str:
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "9", text))
