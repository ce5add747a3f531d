"""A page that needs nothing else: its style sheet is in it, no script, and nothing from anywhere."""

from __future__ import annotations

from pilocal.report.markup import Html, join, tag
from pilocal.report.theme import style_sheet

LARGEST = 2_000_000
"""Bytes that a page may have."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""No script, and nothing from anywhere."""


def whole_page(title: str, body: Html) -> str:
    """Return a page as a file holds it."""
    head = join(
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        tag("title", title),
        Html('<link rel="icon" href="data:,">'),
        Html(f"<style>\n{style_sheet()}</style>"),
    )
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'
