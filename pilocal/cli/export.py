"""export: a trained adapter in other forms; each is measured before it is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pilocal.cli.lists import FOLDER, Word


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=FOLDER)
@click.option(
    "--format",
    "forms",
    multiple=True,
    type=Word(["lossless", "fused", "mlx", "peft", "ollama", "llama-server"]),
    help="What to make. May be repeated. By default lossless, or fused with --quant.",
)
@click.option("--quant", "quants", multiple=True, help="Type of a fused file: q8_0, q4_k_m, f16, ..., or auto.")
@click.option("--copy", is_flag=True, help="Put files into RUN/export in the place of links.")
@click.option("--accept-loss", is_flag=True, help="Keep what a gate refuses.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON on stdout.")
def export(
    runs: Sequence[Path], forms: Sequence[str], quants: Sequence[str], copy: bool, accept_loss: bool, as_json: bool
) -> None:
    """Export a finished run in other forms. The first GGUF form is served from now on.

    lossless is the base, number for number, with the adapter beside it; fused is both in one file of a llama.cpp type.
    Each is compared with the trained adapter on held-out rows, and refused if it loses too much; --quant auto takes the
    smallest type that passes. mlx is a fused folder for mlx-lm and LM Studio, peft the adapter for transformers and
    vLLM, ollama a Modelfile for the served files. llama-server is a script in the first RUN's export that starts
    llama.cpp's own server with the base and the adapter of every RUN; only this form takes several.

    The base lies in the user's cache, and RUN/export holds a link to it. With --copy it holds the file, so that the
    folder can be copied elsewhere; alone, --copy makes no other form.
    """
    from pilocal.cli.display import listening
    from pilocal.cli.tables import artefacts_table, show
    from pilocal.flow.run import export_run
    from pilocal.flow.shipping import FORMS

    forms = forms or (("fused",) if quants else () if copy else ("lossless",))
    _check_usage(runs, forms, quants)
    by_form = {"lossless": ("lossless",), "fused": quants or ("auto",)}
    shipped = [quant for form in forms for quant in by_form.get(form, ())]
    others = [form for form in forms if form in FORMS]
    with listening() as listeners:
        how: dict[str, Any] = {"forms": others, "quants": shipped, "accept_loss": accept_loss, "copy": copy}
        artefacts = export_run(runs[0], **how, beside=runs[1:], listeners=listeners)
    if as_json:
        click.echo(json.dumps(artefacts, indent=2))
    else:
        show(artefacts_table(artefacts))


def _check_usage(runs: Sequence[Path], forms: Sequence[str], quants: Sequence[str]) -> None:
    from pilocal.flow.shipping import LLAMA_SERVER

    if len(runs) > 1 and set(forms) != {LLAMA_SERVER}:
        raise click.UsageError(f"several runs are exported together with --format {LLAMA_SERVER} alone")
    if quants and "fused" not in forms:
        raise click.UsageError("--quant is the type of a fused file; add --format fused")
