"""The compressor `ladder`: the user's own shortened templates, one file per tau of the schedule.

A rung is named after its tau, `0.67.md`, to as many digits as the user likes. It serves the tau that rounds to it, so
`0.67.md` serves 2/3. The user's text is taken as it is: its realised ratio may be above its tau, but a text of a
smaller tau never has more tokens.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from pilocal.compress.compressor import Compressor, Tools
from pilocal.compress.protect import protected_texts
from pilocal.errors import InputError, PilocalError, did_you_mean, raise_all
from pilocal.task import Compression
from pilocal.task.slots import line_of_slot, slot_names
from pilocal.task.toml import read_text

NAME = re.compile(r"0\.(?P<digits>\d+)")


@dataclass(frozen=True, slots=True)
class Rung:
    """One file of the ladder."""

    path: Path
    tau: float
    digits: int
    """Digits after the decimal point in its name."""
    text: str

    def serves(self, tau: float) -> bool:
        """Tell whether a tau rounds to the one in the file name."""
        return abs(tau - self.tau) <= 0.5 * 0.1**self.digits + 1e-9


class Ladder(Compressor):
    """Reads the user's own file for every tau."""

    name: ClassVar[str] = "ladder"

    def __init__(self, config: Compression, tools: Tools) -> None:
        self.config = config
        self.tools = tools

    @functools.cached_property
    def rungs(self) -> tuple[Rung, ...]:
        """Every file, largest tau first; raises InputError, or Faults with everything that is wrong in the folder."""
        if self.config.ladder is None:
            fix = 'set ladder = "FOLDER" to the folder of your own shortened templates'
            raise InputError("[compression] ladder", 'method = "ladder" needs it', fix=fix)
        folder = self.tools.folder / self.config.ladder
        if not folder.is_dir():
            fix = "create it, with one file per tau of the schedule, such as 0.67.md"
            raise InputError(folder, "no such folder", fix=fix)
        faults: list[PilocalError] = []
        rungs: list[Rung] = []
        for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
            match = NAME.fullmatch(path.stem)
            if path.suffix != ".md" or match is None or not float(path.stem):
                fix = "name it after its tau, such as 0.67.md, or move it out of the ladder"
                faults.append(InputError(path, "its name is not a number between 0 and 1 with .md", fix=fix))
                continue
            try:
                rungs.append(Rung(path, float(path.stem), len(match["digits"]), read_text(path)))
            except PilocalError as fault:
                faults.append(fault)
        rungs.sort(key=lambda rung: -rung.tau)
        for above, rung in pairwise(rungs):
            if above.tau == rung.tau:
                faults.append(InputError(rung.path, f"the same tau as {above.path.name}", fix="keep one of the two"))
        raise_all(faults)
        return tuple(rungs)

    def inputs(self, taus: Sequence[float]) -> Any:
        """Return the name and the hash of every file."""
        return [(rung.path.name, hashlib.sha256(rung.text.encode()).hexdigest()) for rung in self.rungs]

    def check(self, template: str, taus: Sequence[float]) -> None:
        """Raise InputError or Faults for a tau without a file, a file that grows, or one that lacks a protected text.

        A file grows when it has more tokens than that of a larger tau, or than the template.
        """
        faults: list[PilocalError] = []
        there = ", ".join(rung.path.name for rung in self.rungs) or "nothing"
        for tau in sorted({tau for tau in taus if 0 < tau < 1}, reverse=True):
            if self._rung(tau) is None:
                folder = self.tools.folder / str(self.config.ladder)
                fix = f"write {round(tau, 2) or tau:g}.md, or change the schedule"
                faults.append(InputError(folder, f"a gap: no file for tau {tau:.4g}; there is {there}", fix=fix))
        largest, name = self.tools.count_tokens(template), "the template"
        for rung in self.rungs:
            tokens = self.tools.count_tokens(rung.text)
            if tokens > largest:
                what = f"grows: {tokens} tokens, but {name} has {largest}"
                faults.append(InputError(rung.path, what, fix="shorten it, or name it after a larger tau"))
            else:
                largest, name = tokens, rung.path.name
            faults += self._missing(template, rung)
        faults += self._unknown_slots(template)
        raise_all(faults)

    def _unknown_slots(self, template: str) -> list[InputError]:
        """Return a fault for each slot of a file that a template with slots has not."""
        known = slot_names(template)
        return [
            InputError(
                f"{rung.path}:{line_of_slot(rung.text, name)}",
                "the template has no slot of this name",
                got=name,
                fix=did_you_mean(name, known),
            )
            for rung in (self.rungs if known else ())
            for name in slot_names(rung.text)
            if name not in known
        ]

    def _missing(self, template: str, rung: Rung) -> list[InputError]:
        """Return a fault for each protected text that a file lacks."""
        what, fix = "a protected text is missing", "put it back, or take it out of [compression]"
        return [
            InputError(rung.path, what, got=text, fix=f"{fix} {key}")
            for key, texts in (("keep", self.config.keep), ("stay", self.config.stay))
            for text in protected_texts(template, texts)
            if text not in rung.text
        ]

    def compress(self, template: str, tau: float) -> str:
        """Return the text of the file for `tau`; raises InputError when there is none."""
        rung = self._rung(tau)
        if rung is None:
            self.check(template, (tau,))
        assert rung is not None
        return rung.text

    def _rung(self, tau: float) -> Rung | None:
        """Return the file whose tau is nearest, of those that serve a tau."""
        serving = [rung for rung in self.rungs if rung.serves(tau)]
        return min(serving, key=lambda rung: abs(rung.tau - tau), default=None)
