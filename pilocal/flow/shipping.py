"""From a trained adapter to the served files, through the gate, and to the forms that other programs read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilocal.errors import ModelError, RunError
from pilocal.flow.answer_form import answer_grammar
from pilocal.flow.artefacts import Artefacts, float_notes, floats_line
from pilocal.flow.context import Context
from pilocal.flow.references import reference_loader
from pilocal.prompt.probes import make_probes
from pilocal.prompt.tokens import end_tokens
from pilocal.run_folder.calibration import forget_calibration
from pilocal.run_folder.files import MISSHAPEN, read_json, replacing, write_json
from pilocal.run_folder.folder import RunDir
from pilocal.run_folder.shipped import CHAT_TEMPLATE, FILE, Shipped, read_shipped, template_sha256
from pilocal.task import AUTO, Retrieval, load_task

if TYPE_CHECKING:
    from pilocal.export.card import Facts
    from pilocal.export.gate import Gate, Loss
    from pilocal.export.ship import Files

LLAMA_SERVER = "llama-server"
FORMS = ("mlx", "peft", "ollama", LLAMA_SERVER)
"""What other programs read: a fused model folder, PEFT's form of the adapter, a Modelfile, and a script."""


@contextmanager
def open_gate(context: Context) -> Iterator[Gate]:
    """Compute the trained adapter's predictions on held-out rows, which every form is compared with."""
    from pilocal.export import gate

    rows = context.rows(context.last_stage, "valid")[: context.task.export.gate_rows]
    with gate.open_gate(context.base, context.run.adapter, rows, context.progress, reference_loader(context)) as opened:
        yield opened


def ship(context: Context, gate: Gate, quant: str, *, accept_loss: bool) -> tuple[Files, Loss]:
    """Write one form of the model into RUN/export. If it is refused, leave nothing and raise ExportError."""
    from pilocal.export.gate import candidates, through
    from pilocal.export.ship import ship as write_form

    run = context.run

    def write(form: str) -> Files:
        name = context.task.name
        files = write_form(context.base, run.adapter, run.export, form, name=name, progress=context.progress)
        if files.floats:
            context.warn(f"{files.base}: {floats_line(files.floats)}; nothing smaller holds every number")
        return files

    tried = candidates(context.base, run.adapter) if quant == AUTO else [quant]
    files, loss = through(gate, tried, write, accept_loss=accept_loss and quant != AUTO)
    entry = loss.facts() | {"bytes": files.size, "floats": files.floats}
    Artefacts(run.export).add(files.quant, files.own, **entry)
    return files, loss


def serve(context: Context, files: Files) -> list[Path]:
    """Make these the served files from now on; return all files that serving needs.

    Raises ModelError when llama.cpp would ask them with other tokens than the training did.
    """
    from pilocal.llamacpp.chat import check_probes

    task, base = context.task, context.base
    probes = make_probes(task.test[0].query, base.tokenizer)
    template = base.layout.template if files.base_is_users else None
    check_probes(files.fused or files.base, probes, template)
    shipped = Shipped(
        folder=context.run.export,
        name=task.name,
        base=str(files.base.absolute()) if files.base_is_users else files.base.name,
        adapter=files.adapter.name if files.adapter else None,
        fused=files.fused.name if files.fused else None,
        base_sha256=base.sha256,
        base_files=base.file_hashes if files.base_is_users else None,
        chat_template=CHAT_TEMPLATE if template else None,
        template=task.template,
        slots=task.slots,
        template_sha256=template_sha256(task.template) if task.slots else None,
        shots=context.max_shots,
        residue_template=context.residue.template,
        residue_shots=context.residue.shots,
        grammar=answer_grammar(task),
        **metric_settings(context),
        retrieval=found_from(task.retrieval, task.folder, context.run.export),
        seed=task.training.seed,
        probes=probes,
    )
    if not _answers_alike(context.run, shipped):
        forget_calibration(context.run.export)
    return [*files.own, *_write_chat_template(shipped.folder, template), *shipped.save(task.train)]


def _answers_alike(run: RunDir, shipped: Shipped) -> bool:
    """Tell whether the files that were served until now are of the same form; they are of the same adapter."""
    try:
        before = read_shipped(run.path)
    except (ModelError, RunError):
        return False
    facts = [(each.base, each.adapter, each.fused, each.grammar) for each in (before, shipped)]
    return facts[0] == facts[1]


def _write_chat_template(folder: Path, template: str | None) -> list[Path]:
    """Write the chat template that training used beside a base that keeps its own; return the file."""
    if template is None:
        return []
    with replacing(folder / CHAT_TEMPLATE) as file:
        file.write(template)
    return [folder / CHAT_TEMPLATE]


def metric_settings(context: Context) -> dict[str, Any]:
    """Return what `Shipped` says of the metric; a database is named as it is found from RUN/export, not the task."""
    task = context.task
    scoring, export = task.scoring, context.run.export
    if scoring.database is not None and not Path(scoring.database).is_absolute():
        found = os.path.relpath((task.folder / scoring.database).resolve(), export.resolve())
        scoring = replace(scoring, database=found)
    return {"metric": task.metric, "scoring": scoring}


def found_from(retrieval: Retrieval, folder: Path, export: Path) -> Retrieval:
    """Return the settings with the embedding model's directory as it is found from RUN/export, not from the task."""
    named = Path(retrieval.embedding_model)
    if retrieval.similarity != "embedding" or named.is_absolute() or not (folder / named).is_dir():
        return retrieval
    return replace(retrieval, embedding_model=os.path.relpath((folder / named).resolve(), export.resolve()))


def copy_links(context: Context) -> None:
    """Put files of the folder's own in the place of links into RUN/export, and the user's base beside them.

    Raises RunError when a link leads nowhere, or the base is not there.
    """
    from pilocal.export.lossless import copy, links

    copies = {path: path for path in links(context.run.export)} | _users_base(context.run)
    for done, (path, target) in enumerate(copies.items(), 1):
        copy(path, target)
        context.progress("copy", done, len(copies))


def _users_base(run: RunDir) -> dict[Path, Path]:
    """Return the files of the user's base that is served, each with its place beside the adapter."""
    if not (run.export / FILE).is_file():
        return {}
    shipped = read_shipped(run.path)
    folder = shipped.base_path.parent
    return {folder / name: shipped.folder / name for name in shipped.base_files or () if folder != shipped.folder}


def tell_of_links(context: Context) -> None:
    """Warn of files that are left behind where RUN/export is copied to another disk."""
    for path in sorted(path for path in context.run.export.rglob("*") if path.is_symlink()):
        how = f"`pilocal export {context.run.path} --copy` puts the file there"
        context.warn(f"{path}: a link to {path.readlink()}; {how}")


def make_form(context: Context, form: str, beside: Sequence[Path] = ()) -> None:
    """Write the adapter for other programs, as one of FORMS, with a model card; `beside` are runs of the same base.

    Raises ExportError when the adapter does not fit, or the chat template cannot be expressed in Ollama's language.
    Raises RunError when nothing has been exported yet that Ollama or llama-server could run.
    """
    facts, run = _card_facts(context), context.run
    if form == LLAMA_SERVER:
        from pilocal.export.llama_server import write_llama_server
        from pilocal.flow.opening import task_file_of

        tasks = [read_shipped(folder) for folder in (run.path, *beside)]
        others = [load_task(task_file_of(folder)).generation.max_tokens for folder in beside]
        files = write_llama_server(tasks, [context.task.generation.max_tokens, *others])
    elif form == "ollama":
        from pilocal.export.ollama import write_ollama

        files = write_ollama(read_shipped(run.path), context.base.tokenizer, facts)
    elif form == "peft":
        from pilocal.export.peft import write_peft

        files = write_peft(context.base, run.adapter, run.export / form, facts)
    else:
        from pilocal.export.mlx_folder import write_mlx_folder

        files = write_mlx_folder(context.base, run.adapter, run.export / form, facts)
    Artefacts(run.export).add(form, files)


def score(context: Context, files: Files, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Answer the test set's prompts in llama.cpp, and record the score beside the gate's figures."""
    from pilocal.evaluate.asking import Asker
    from pilocal.evaluate.scoring.bootstrap import interval

    base, metric = context.base, context.metric
    how: dict[str, Any] = {"generation": context.task.generation, "progress": context.progress}
    asker = Asker(base=base, ends=end_tokens(base.tokenizer), **how)
    with asker.engine(files.fused or files.base, prompts, files.adapter) as engine:
        answers, _ = asker.in_llama(engine, prompts, f"score {files.quant}")
    marks = metric.marks(answers, context.task.test, context.progress)
    artefacts = Artefacts(context.run.export)
    entry = artefacts.entries[files.quant]
    entry |= {"score": metric.total(marks), "interval": list(interval(marks[None], metric.total))}
    write_json(artefacts.path, artefacts.entries)
    return entry


def _card_facts(context: Context) -> Facts:
    from pilocal.export.card import Facts

    gated = Artefacts(context.run.export).gated
    rows = [
        [name, f"{entry['bytes'] / 1e6:,.1f}", f"{entry['kl']:.2g}", f"{entry['kl_without']:.2g}"]
        for name, entry in gated.items()
    ]
    head = ["form", "MB", "KL from the trained adapter, nats per token", "without an adapter"]
    try:
        metrics = read_json(context.run.metrics)
    except MISSHAPEN:
        metrics = None
    return Facts(
        task=context.task.name,
        base=context.base.address,
        base_revision=context.base.revision,
        base_hashes=tuple(context.base.file_hashes.values()) if context.base.gguf else (),
        metrics=metrics,
        gate=(head, rows) if rows else None,
        notes=float_notes(gated),
        versions=context.run.state.get("versions", {}),
        residue=context.residue,
    )
