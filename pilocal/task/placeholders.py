"""Placeholders in a template: they stay as they stand, for the query comes in a turn of its own."""

from __future__ import annotations

import re
from pathlib import Path

NAMES = r"(?:user[ _-]?)?(?:query|question|input|prompt|message|request|text)"

PLACEHOLDER = re.compile(
    rf"""
    \{{{{1,2}}\s*{NAMES}\s*\}}{{1,2}}   # {{query}} and {{{{ query }}}}
    | \$\{{\s*{NAMES}\s*\}}           # ${{query}}
    | \$(?:user_)?(?:query|question|input)\b
    | %\({NAMES}\)s
    | (?<![\w%])%s(?!\w)
    """,
    re.IGNORECASE | re.VERBOSE,
)


def placeholder_warning(template: str, path: Path) -> str | None:
    r"""Return a warning of what looks like the place for the query in a template that is read from `path`, or None.

    >>> placeholder_warning("Answer briefly.\n{input}", Path("template.md"))
    'template.md:2: {input} in a template stays as it stands: the query comes after it, in a turn of its own'
    """
    found = list(PLACEHOLDER.finditer(template))
    if not found:
        return None
    line = template.count("\n", 0, found[0].start()) + 1
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    what = f"{found[0][0]}{more} in a template stays as it stands"
    return f"{path}:{line}: {what}: the query comes after it, in a turn of its own"
