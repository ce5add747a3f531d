"""What a run ships: the files that are served, and the prompt that they do without."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unicodedata import category

from pilocal.errors import InputError, ModelError, RunError
from pilocal.prompt.preamble import Preamble
from pilocal.run_folder.files import MISSHAPEN, read_json, replacing, write_json
from pilocal.run_folder.hashes import remembered_sha256
from pilocal.run_folder.typed import made
from pilocal.task import Example, Retrieval, Scoring, load_examples
from pilocal.task.slots import KEY as SLOTS
from pilocal.task.text import holds

BARE_BASE = "base"
"""The name under which the server's bare base answers."""

FILE = "shipped.json"
EXAMPLES = "examples.jsonl"
CHAT_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """RUN/export/shipped.json; the files that it names lie beside it, so that the folder can be moved.

    A base that was a GGUF file before is served where it lies, or beside the others if it is put there.
    """

    folder: Path
    """RUN/export."""
    name: str
    """The task's."""
    base: str
    """The base's GGUF; the whole path of the user's own."""
    adapter: str | None
    """The adapter's GGUF, to be applied to the base; None when `fused` is served."""
    fused: str | None = None
    """A GGUF of base and adapter in one; None when the base is served with `adapter`."""
    base_sha256: str
    """The base's fingerprint, which every file that pilocal wrote has as pilocal.base.sha256."""
    base_files: Mapping[str, str] | None = None
    """The SHA-256 of the user's own file, or of each of its parts, by name; None where pilocal wrote the base."""
    chat_template: str | None = None
    """The file of the chat template that `base` is asked with; None for its own."""
    template: str
    """The template, whole."""
    slots: Sequence[str] = ()
    """The names of its slots, in its order."""
    template_sha256: str | None = None
    """Its SHA-256, by which other programs know whether they fill in the same; None where it has no slots."""
    shots: int
    """How many shots the full prompt has."""
    residue_template: str = ""
    """What stays of the template in every request; empty where nothing does."""
    residue_shots: int = 0
    """How many shots stay before every query."""
    grammar: str | None = None
    """What every answer to a bare query must be, in GBNF; None where it may be any text."""
    metric: str | None = None
    """What scores an answer; None for an export of an earlier version."""
    scoring: Scoring = field(default_factory=Scoring)
    """The metric's settings; a database is named as it is found from `folder`."""
    retrieval: Retrieval = field(default_factory=Retrieval)
    """How shots are chosen."""
    seed: int = 0
    """Draws the bank that shots come from."""
    probes: Sequence[Mapping[str, Any]] = ()
    """Chats and the tokens that training makes of them, as `prompt.probes` has them; a served file makes the same."""

    @property
    def base_path(self) -> Path:
        """Where the base is."""
        return self.folder / self.base

    @property
    def served_path(self) -> Path:
        """The file that answers: the base, or both in one."""
        return self.folder / (self.fused or self.base)

    @property
    def adapter_path(self) -> Path | None:
        """The adapter that is applied to the base, if one is."""
        return self.folder / self.adapter if self.adapter else None

    @property
    def full(self) -> Preamble:
        """What stands before a query in the full prompt."""
        return Preamble(self.template, self.shots, self.slots)

    @property
    def residue(self) -> Preamble:
        """What stands before every query for good; false where that is nothing."""
        return Preamble(self.residue_template, self.residue_shots, self.slots)

    @property
    def served_template(self) -> str | None:
        """The chat template that the file which answers is asked with; None for its own."""
        if self.chat_template is None or self.fused:
            return None
        return (self.folder / self.chat_template).read_text(encoding="utf-8")

    def examples(self) -> tuple[Example, ...]:
        """Return the examples that may be shots."""
        return load_examples(self.folder / EXAMPLES)

    def save(self, examples: Sequence[Example]) -> list[Path]:
        """Write it and the training examples; return the two files."""
        path = self.folder / EXAMPLES
        with replacing(path) as file:
            for each in examples:
                turns = [*each.history, ("user", each.query), ("assistant", each.answer)]
                messages = [{"role": role, "content": content} for role, content in turns]
                slots = {SLOTS: dict(each.slots)} if each.slots else {}
                file.write(json.dumps({"id": each.id, "messages": messages, **slots}, ensure_ascii=False) + "\n")
        return [self.save_alone(), path]

    def save_alone(self) -> Path:
        """Write it without the examples; return the file."""
        values = asdict(self)
        del values["folder"]
        if not self.residue:
            del values["residue_template"], values["residue_shots"]
        if not self.slots:
            del values["slots"], values["template_sha256"]
        if self.grammar is None:
            del values["grammar"]
        if self.metric is None:
            del values["metric"], values["scoring"]
        write_json(self.folder / FILE, values)
        return self.folder / FILE


def check_name(name: str, where: object) -> None:
    """Raise InputError for a task's name that clients of the server could not ask for."""
    fix = "give the task another name in task.toml, and export it again if it is exported already"
    if name == BARE_BASE:
        raise InputError(where, "the bare base answers to this name", got=name, fix=fix)
    if any(category(letter) == "Cc" for letter in name):
        raise InputError(where, "a name is one line without control characters", got=name, fix=fix)


def read_shipped(run: Path) -> Shipped:
    """Return what a finished run ships; raises RunError when nothing was exported, or a file is gone.

    Raises ModelError when the base was the user's own file, and that is gone or has changed.
    """
    folder = run / "export"
    path = folder / FILE
    if not path.is_file():
        raise RunError(run, "nothing was exported here yet", fix="`pilocal run TASK --run DIR` first")
    try:
        values: dict[str, Any] = read_json(path)
        values["slots"] = tuple(values.get("slots", ()))
        values |= {"retrieval": made(Retrieval, values["retrieval"]), "scoring": _scoring(values.get("scoring", {}))}
        shipped = made(Shipped, {"folder": folder, **values})
        if shipped.template_sha256 not in (None, template_sha256(shipped.template)):
            raise ValueError("template and template_sha256 do not fit")
        if shipped.base_files == {}:
            raise ValueError("base_files names no file")
    except (*MISSHAPEN, InputError) as error:
        raise RunError(path, f"damaged: {error}", fix="delete this file and run `pilocal export`") from None
    own = shipped.base if shipped.base_files is None else None
    for name in (own, shipped.adapter, shipped.fused, shipped.chat_template, EXAMPLES):
        if name is not None and not holds((folder / name).is_file):
            raise RunError(folder / name, "the file is gone", fix="`pilocal export` makes it again")
    return shipped if shipped.base_files is None else _with_base(shipped, shipped.base_files)


def template_sha256(template: str) -> str:
    """Return the SHA-256 of a template's text in UTF-8."""
    return hashlib.sha256(template.encode()).hexdigest()


def _scoring(values: Mapping[str, Any]) -> Scoring:
    return made(Scoring, {**values, "command": tuple(values.get("command", ()))})


def _with_base(shipped: Shipped, files: Mapping[str, str]) -> Shipped:
    """Return it with the place where the user's base is now; raises ModelError when it is not there as it was."""
    named, first = shipped.base_path, next(iter(files.items()))
    fix = f"put the file with the SHA-256 {first[1]} back there or into {shipped.folder}, or run `pilocal run` again"
    for folder in (shipped.folder, named.parent):
        paths = {folder / name: sha256 for name, sha256 in files.items()}
        if not all(holds(path.is_file) for path in paths):
            continue
        for path, sha256 in paths.items():
            if (got := remembered_sha256(path)) != sha256:
                what = "the base has changed since the adapter was trained on it: another SHA-256"
                raise ModelError(path, what, got=got, fix=fix)
        return replace(shipped, base=named.name if folder == shipped.folder else str(named))
    raise ModelError(named, "the base that the adapter belongs to is not there any more", fix=fix)
