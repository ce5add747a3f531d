"""What tokens cost: options of commands, and the table of what a request saves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pilocal.flow.saving import Prices, Saving


def price_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for what tokens cost."""
    price = click.FloatRange(min=0)
    for option in (
        click.option("--training-price", type=price, help="Money per million trained tokens; --price by default."),
        click.option("--price", type=price, help="Money per million prompt tokens, for the break-even."),
    ):
        command = option(command)
    return command


def take_prices(options: dict[str, Any]) -> Prices | None:
    """Take the prices out of a command's options; raises InputError for one for training alone."""
    from pilocal.errors import InputError
    from pilocal.flow.saving import Prices

    price, training = options.pop("price"), options.pop("training_price")
    if price is None and training is not None:
        raise InputError("--training-price", "needs --price", fix="give both")
    return None if price is None else Prices(prompt=price, training=price if training is None else training)


def saving_table(saving: Saving, prices: Prices | None) -> RenderableType:
    """Return what every request saves, and after how many requests that has paid for the training."""
    from pilocal.cli.tables import text_table

    rows = [
        [name, f"{before:,.1f}", f"{after:,.1f}", f"{1 - after / before:.0%}", "" if count is None else f"{count:,}"]
        for name, before, after, count in saving.lines(prices)
    ]
    notes = [
        f"the training reads {saving.trained:,} tokens; paid after: requests that save as much",
    ]
    return text_table("What a request saves", ("", "now", "then", "less", "paid after"), rows, notes)
