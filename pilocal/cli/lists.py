"""Options whose values stand between commas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def listed(name: str, kind: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str], tuple[Any, ...]]:
    """Return the callback of such an option: it turns the text into a tuple, or raises click.BadParameter."""

    def split(ctx: click.Context, param: click.Parameter, value: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(part.strip()) for part in value.split(",") if part.strip())
        except ValueError:
            raise click.BadParameter(f"{value!r} is not a list of {name}.", ctx, param) from None

    return split


NAMES, NUMBERS = listed("names", str), listed("numbers", int)
