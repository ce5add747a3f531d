"""From a trained adapter to what is served, through the gate, and to what other programs read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilocal.prompt.tokens import Row, end_tokens
from pilocal.run.files import write_json
from pilocal.run.folder import RunDir
from pilocal.run.shipped import Shipped, read_shipped
from pilocal.task import AUTO, STARTER, Task

if TYPE_CHECKING:
    from pilocal.evaluate.scoring.metrics import Metric
    from pilocal.export.card import Facts
    from pilocal.export.gate import Gate, Loss
    from pilocal.export.ship import Files
    from pilocal.progress import Progress


FORMS = ("mlx", "peft", "ollama")
"""What other programs read: a fused model folder, PEFT's form of the adapter, and a Modelfile."""


class Artefacts:
    """RUN/export/artefacts.json: what was made of the adapter, and what it lost."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "artefacts.json"
        try:
            self.entries: dict[str, dict[str, Any]] = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.entries = {}

    def add(self, name: str, files: Sequence[Path], **facts: Any) -> None:
        """Note an artefact and its files, which lie in the same folder."""
        folder = self.path.parent
        sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
        self.entries[name] = {"files": sizes, **facts}
        write_json(self.path, self.entries)

    def clear(self) -> None:
        """Delete all of them: they were made of another adapter."""
        for entry in self.entries.values():
            for name in entry["files"]:
                (self.path.parent / name).unlink(missing_ok=True)
        self.entries = {}
        self.path.unlink(missing_ok=True)

    @property
    def gated(self) -> dict[str, dict[str, Any]]:
        """Those that went through the gate."""
        return {name: entry for name, entry in self.entries.items() if "kl" in entry}


class Shipper:
    """Ships one run's adapter."""

    def __init__(
        self,
        task: Task,
        run: RunDir,
        base: Path,
        base_sha256: str,
        shots: int,
        progress: Progress,
        warn: Callable[[str], None],
    ) -> None:
        self.task = task
        self.run = run
        self.base = base
        self.base_sha256 = base_sha256
        self.shots = shots
        self.progress = progress
        self.warn = warn

    @contextmanager
    def gate(self, rows: Sequence[Row]) -> Iterator[Gate]:
        """Compute what the trained adapter says to held-out rows, with which everything is compared."""
        from pilocal.export.gate import open_gate

        with open_gate(self.base, self.run.adapter, rows[: self.task.export.gate_rows], self.progress) as gate:
            yield gate

    def ship(self, gate: Gate, quant: str, *, accept_loss: bool) -> tuple[Files, Loss]:
        """Write one form of the model into RUN/export; raises ExportError, and leaves nothing, when it is refused."""
        from pilocal.export.gate import candidates, through
        from pilocal.export.ship import ship

        def write(form: str) -> Files:
            facts = {"name": self.task.name, "base_sha256": self.base_sha256}
            files = ship(self.base, self.run.adapter, self.run.export, form, progress=self.progress, **facts)
            if files.inexact:
                what = f"{len(files.inexact)} of the base's tensors had to be rounded to F16"
                self.warn(f"{files.base}: {what}, such as {files.inexact[0]}")
            return files

        tried = candidates(self.base, self.run.adapter) if quant == AUTO else [quant]
        files, loss = through(gate, tried, write, accept_loss=accept_loss and quant != AUTO)
        entry = loss.facts() | {"bytes": files.size, "inexact": files.inexact}
        Artefacts(self.run.export).add(files.quant, files.own, **entry)
        return files, loss

    def serve(self, files: Files) -> list[Path]:
        """Have these files served from now on; return everything that belongs to that."""
        shipped = Shipped(
            folder=self.run.export,
            name=self.task.name,
            base=files.base.name,
            adapter=files.adapter.name if files.adapter else None,
            fused=files.fused.name if files.fused else None,
            base_sha256=self.base_sha256,
            template=self.task.template,
            shots=self.shots,
            retrieval=self.task.retrieval,
            seed=self.task.training.seed,
        )
        return [*files.own, *shipped.save(self.task.train)]

    def make(self, form: str, tokenizer: Any) -> None:
        """Write the adapter for other programs: one of FORMS, each with a card that says how to call it.

        Raises ExportError when the adapter does not fit, or the chat template cannot be said in Ollama's language;
        RunError when nothing that Ollama could run was exported yet.
        """
        facts, folder = self._facts(), self.run.export
        if form == "ollama":
            from pilocal.export.ollama import write_ollama

            files = write_ollama(read_shipped(self.run.path), tokenizer, facts)
        elif form == "peft":
            from pilocal.export.peft import write_peft

            files = write_peft(self.base, self.run.adapter, folder / form, facts)
        else:
            from pilocal.export.mlx_folder import write_mlx_folder

            files = write_mlx_folder(self.base, self.run.adapter, folder / form, facts)
        Artefacts(folder).add(form, files)

    def _facts(self) -> Facts:
        from pilocal.export.card import Facts

        local = self.task.model == STARTER or (self.task.folder / self.task.model).is_dir()
        gated = Artefacts(self.run.export).gated
        rows = [
            [name, f"{entry['bytes'] / 1e6:,.1f}", f"{entry['kl']:.2g}", f"{entry['kl_without']:.2g}"]
            for name, entry in gated.items()
        ]
        head = ["form", "MB", "KL from the trained adapter, nats a token", "without an adapter"]
        try:
            metrics = json.loads(self.run.metrics.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            metrics = None
        return Facts(
            task=self.task.name,
            base=str(self.base.resolve()) if local else self.task.model,
            metrics=metrics,
            gate=(head, rows) if rows else None,
            versions=self.run.state.get("versions", {}),
        )

    def score(self, files: Files, prompts: Sequence[Sequence[int]], tokenizer: Any, metric: Metric) -> dict[str, Any]:
        """Answer the test set in llama.cpp and note the score beside the gate's figures."""
        from pilocal.evaluate.scoring.bootstrap import interval
        from pilocal.llamacpp.engine import Engine

        most = self.task.generation.max_tokens
        limits: dict[str, Any] = {"ends": end_tokens(tokenizer), "max_tokens": most, "progress": self.progress}
        with Engine(files.fused or files.base, max(map(len, prompts)) + most + 1, files.adapter) as engine:
            answered = engine.answer(prompts, warm=False, name=f"score {files.quant}", **limits)
        answers = [tokenizer.decode(answer, skip_special_tokens=True) for answer in answered.answers]
        marks = metric.marks(answers, self.task.test, self.progress)
        artefacts = Artefacts(self.run.export)
        entry = artefacts.entries[files.quant]
        entry |= {"score": metric.total(marks), "interval": list(interval(marks[None], metric.total))}
        write_json(artefacts.path, artefacts.entries)
        return entry
