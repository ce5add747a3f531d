"""What the last tokens buy: the score of one trained adapter over the part of the template that it is asked with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pilocal.compress import CompressedTemplate
from pilocal.errors import InputError


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
