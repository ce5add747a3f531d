"""The template at the rates that a comparison asks a trained adapter with, to see what the last tokens buy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pilocal.compress import CompressedTemplate, compress_template
from pilocal.errors import InputError, raise_all
from pilocal.flow.context import Context

Template = CompressedTemplate
"""A template at one rate."""


def templates_at(context: Context, rates: Sequence[float], folder: Path) -> tuple[Template, ...]:
    """Return the template at some rates, kept in a folder; raises InputError, or Faults, for those not made."""
    if not rates:
        return ()
    task = context.task
    made = compress_template(task.template, rates, task.compression, context.compression_tools, folder)
    raise_all(unmade(made))
    return made


def unmade(templates: Sequence[CompressedTemplate]) -> list[InputError]:
    """Return a fault for each rate that the compressor did not make: nothing is left, too much, or as for a lower one.

    >>> made = [CompressedTemplate(tau=tau, compressor="rules", text="ab", tokens=2, ratio=0.2) for tau in (0.2, 0.25)]
    >>> print(*unmade(made))
    --residue: rules makes the same of 0.25 of the template as of 0.2; got 0.25; take another rate or compressor
    """
    return [
        InputError("--residue", what, got=template.tau, fix="take another rate or compressor")
        for template, what in _faults(templates)
    ]


def _faults(templates: Sequence[CompressedTemplate]) -> Iterator[tuple[CompressedTemplate, str]]:
    lower: CompressedTemplate | None = None
    for template in sorted(templates, key=lambda template: template.tau):
        rate = f"{template.tau:g} of the template"
        if template.tau and not template.tokens:
            yield template, f"{template.compressor} leaves nothing for {rate}"
        elif template.is_off:
            yield template, f"{template.compressor} cannot make {rate}: it leaves {template.ratio:.3f}"
        elif lower and template.text == lower.text:
            yield template, f"{template.compressor} makes the same of {rate} as of {lower.tau:g}"
        lower = template
