"""The template at every tau of a schedule, cached on disk under a hash of everything that determined it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilocal.compress.compressor import Compressor, Tools
from pilocal.compress.ladder import Ladder
from pilocal.compress.llmlingua2 import LLMLingua2
from pilocal.compress.protect import check_texts, stay_text, with_slots_kept
from pilocal.compress.removal import TOLERANCE
from pilocal.compress.rules import Rules
from pilocal.compress.summary import Summary
from pilocal.compress.surprisal import Surprisal
from pilocal.run_folder.files import MISSHAPEN, read_json, replacing, write_json
from pilocal.run_folder.hashes import fingerprint
from pilocal.task import Compression
from pilocal.task.slots import slot_marks

COMPRESSORS: Mapping[str, Callable[[Compression, Tools], Compressor]] = {
    Rules.name: Rules,
    Ladder.name: Ladder,
    Surprisal.name: Surprisal,
    Summary.name: Summary,
    LLMLingua2.name: LLMLingua2,
}
"""Every compressor, by its name in `[compression]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedTemplate:
    """A template at one tau."""

    tau: float
    """The requested share of tokens."""
    compressor: str
    """Name of the compressor that made it."""
    text: str
    tokens: int
    """Tokens of `text`."""
    ratio: float
    """The realised share: `tokens` over the whole template's; never above tau, except for a ladder or what stays."""
    stays: float = 0.0
    """The share of what stays whatever tau is, the texts of `[compression] stay`."""

    @property
    def is_off(self) -> bool:
        """Whether the realised share differs from tau by more than TOLERANCE, and not because the user wrote it so."""
        return self.compressor != Ladder.name and abs(self.ratio - max(self.tau, self.stays)) > TOLERANCE + 1e-6


def compression_facts(taus: Sequence[float], config: Compression, tools: Tools) -> list[Any]:
    """Return everything that determines the texts, besides the template and a text's own tau, as JSON.

    Raises PilocalError when a file named in the settings cannot be read.
    """
    return _facts(COMPRESSORS[config.method](config, tools), taus, config, tools)


def _facts(compressor: Compressor, taus: Sequence[float], config: Compression, tools: Tools) -> list[Any]:
    settings = dataclasses.asdict(config)
    settings.pop("device")  # where it is computed, not what
    if not config.stay:
        del settings["stay"]  # so that runs from before there was this setting are known again
    return [settings, tools.base_id, compressor.inputs(taus)]


def compress_template(
    template: str, taus: Sequence[float], config: Compression, tools: Tools, folder: Path
) -> tuple[CompressedTemplate, ...]:
    """Return the template at each tau, in the given order; each is read from `folder` if it is there intact.

    Where tau allows no more than the texts of `stay` have, they are what is left.

    An entry is the text (`tau-0.6667.md`) and a sidecar (`tau-0.6667.json`) with the hash of everything that determined
    it: template, compressor and settings, the base, other inputs of the compressor, and tau. A damaged or stale entry
    is made again. Models that a compressor loaded are freed on return. Raises InputError when the settings do not fit
    the template or the taus, ModelError when a model cannot be used, and RunError when the folder cannot be written.
    """
    check_texts(template, config)
    marks = slot_marks(template)
    compressor = COMPRESSORS[config.method](with_slots_kept(template, config), tools)
    whole, stay = tools.count_tokens(template), stay_text(template, config)
    stays = tools.count_tokens(stay) / max(whole, 1)
    compressor.check(template, [tau for tau in taus if tau > stays])
    facts = _facts(compressor, taus, config, tools)
    digits = next(d for d in range(4, 20) if len({f"{tau:.{d}f}" for tau in taus}) == len(set(taus)))
    results = []
    try:
        for tau in taus:
            path = folder / f"tau-{tau:.{digits}f}.md"
            key = fingerprint(template, facts, tau, *([marks] if marks else []))
            result = _read(path, key)
            if result is None:
                text = template if tau >= 1 else compressor.compress(template, tau) if tau > stays else stay
                tokens = tools.count_tokens(text)
                ratio = tokens / max(whole, 1)
                result = CompressedTemplate(
                    tau=tau, compressor=config.method, text=text, tokens=tokens, ratio=ratio, stays=stays
                )
                _write(path, key, result)
            results.append(result)
    finally:
        compressor.close()
    return tuple(results)


def _write(path: Path, key: str, result: CompressedTemplate) -> None:
    data = result.text.encode()
    with replacing(path, "wb") as file:
        file.write(data)
    facts = dataclasses.asdict(result)
    del facts["text"]
    if not result.stays:
        del facts["stays"]
    write_json(path.with_suffix(".json"), {**facts, "key": key, "text_sha256": hashlib.sha256(data).hexdigest()})


def _read(path: Path, key: str) -> CompressedTemplate | None:
    """Return the entry at `path`, or None if it is missing, damaged or made from other inputs."""
    try:
        data = path.read_bytes()
        facts = read_json(path.with_suffix(".json"))
        if facts["key"] != key or facts["text_sha256"] != hashlib.sha256(data).hexdigest():
            return None
        return CompressedTemplate(
            tau=float(facts["tau"]),
            compressor=str(facts["compressor"]),
            text=data.decode(),
            tokens=int(facts["tokens"]),
            ratio=float(facts["ratio"]),
            stays=float(facts.get("stays", 0.0)),
        )
    except MISSHAPEN:
        return None
