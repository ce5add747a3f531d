"""Secrets and e-mail addresses in texts: seen, and on demand taken out."""

from __future__ import annotations

import re
from collections.abc import Mapping

EMAIL = "an e-mail address"

SECRETS: Mapping[str, re.Pattern[str]] = {
    "a private key": re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.*?-----END [A-Z ]*PRIVATE KEY-----)?", re.DOTALL
    ),
    "a token": re.compile(
        r"""\b(?:
            sk-[A-Za-z0-9_-]{16,} | (?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}
            | gh[pousr]_[A-Za-z0-9]{30,} | github_pat_\w{30,} | glpat-[\w-]{16,} | hf_[A-Za-z0-9]{30,}
            | (?:AKIA|ASIA)[A-Z0-9]{16} | AIza[\w-]{35} | xox[abprs]-[\w-]{10,} | npm_[A-Za-z0-9]{36}
            | eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}
        )(?![\w-])""",
        re.VERBOSE,
    ),
    "a password": re.compile(
        r"""(?i)(?<![\w-])(?:password|passwd|pwd|api[_-]?key|secret[_-]?key|access[_-]?token|authorization:\s*bearer)
            ["']?\s*(?:[:=]|\s(?=\S{16,}))\s*["']?(?P<value>[^\s"',;\[]{6,})""",
        re.VERBOSE,
    ),
    EMAIL: re.compile(r"[\w.+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,24}\b"),
}
"""What is looked for, by its name."""

CARD = "a card number"
DIGITS = re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])")

NAMES = (*SECRETS, CARD)


def seen_in(text: str) -> list[str]:
    """Return the names of what is in a text, each once.

    >>> seen_in("mail ann@example.org, card 4111 1111 1111 1111")
    ['an e-mail address', 'a card number']
    """
    found = [name for name, pattern in SECRETS.items() if pattern.search(text)]
    return found + ([CARD] if any(_is_card(digits[0]) for digits in DIGITS.finditer(text)) else [])


def redacted(text: str) -> str:
    """Return a text with its kind in the place of each secret and address.

    >>> redacted("mail ann@example.org, password: hunter22")
    'mail [e-mail address], password: [password]'
    """
    for name, pattern in SECRETS.items():
        text = pattern.sub(lambda found, name=name: _without(found, name), text)  # type: ignore[misc]
    return DIGITS.sub(lambda found: _mark(CARD) if _is_card(found[0]) else found[0], text)


def _without(found: re.Match[str], name: str) -> str:
    value = found.groupdict().get("value")
    return found[0].removesuffix(value) + _mark(name) if value else _mark(name)


def _mark(name: str) -> str:
    return f"[{name.removeprefix('a ').removeprefix('an ')}]"


def _is_card(digits: str) -> bool:
    """Tell whether the last digit is the check digit of the others (Luhn)."""
    numbers = [int(digit) for digit in digits if digit.isdigit()][::-1]
    doubled = [sum(divmod(2 * number, 10)) for number in numbers[1::2]]
    return len(set(numbers)) > 1 and (sum(numbers[::2]) + sum(doubled)) % 10 == 0
