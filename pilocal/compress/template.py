"""The template at every tau of a schedule, cached on disk by what decided it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pilocal.compress.rules import Rules
from pilocal.rundir import fingerprint, replacing, write_json
from pilocal.task import Compression


class Compressor(Protocol):
    """A way of shortening a template; the token counter is given at construction."""

    @property
    def name(self) -> str:
        """The value of `method` in `[compression]`."""

    def compress(self, template: str, tau: float) -> str:
        """Return the template with at most `tau` (0 to 1) of its tokens; the whole at 1, nothing at 0."""


COMPRESSORS: Mapping[str, Callable[[Compression, Callable[[str], int]], Compressor]] = {Rules.name: Rules}
"""Every compressor, by its name in `[compression]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedTemplate:
    """A template at one tau."""

    tau: float
    """The share of tokens that was asked for."""
    text: str
    tokens: int
    """Tokens of `text`."""
    ratio: float
    """The realised share: `tokens` over the whole template's; never above tau."""


def compress_template(
    template: str,
    taus: Sequence[float],
    config: Compression,
    count_tokens: Callable[[str], int],
    tokenizer_id: str,
    folder: Path,
) -> tuple[CompressedTemplate, ...]:
    """Return the template at each tau, in the order given; each is read from `folder` if it lies there intact.

    A folder entry is the text (`tau-0.6667.md`) and a sidecar (`tau-0.6667.json`) with the hash of everything that
    decided it: template, compressor and settings, `tokenizer_id` (which must change when the counts do) and tau. A
    damaged or stale entry is made again. Raises InputError when a text of the settings is not in the template, and
    RunError when the folder cannot be written.
    """
    compressor = COMPRESSORS[config.method](config, count_tokens)
    whole = count_tokens(template)
    digits = next(d for d in range(4, 20) if len({f"{tau:.{d}f}" for tau in taus}) == len(set(taus)))
    results = []
    for tau in taus:
        path = folder / f"tau-{tau:.{digits}f}.md"
        key = fingerprint(template, compressor.name, dataclasses.asdict(config), tokenizer_id, tau)
        result = _read(path, key)
        if result is None:
            text = compressor.compress(template, tau)
            tokens = count_tokens(text)
            result = CompressedTemplate(tau=tau, text=text, tokens=tokens, ratio=tokens / max(whole, 1))
            _write(path, key, result)
        results.append(result)
    return tuple(results)


def _write(path: Path, key: str, result: CompressedTemplate) -> None:
    data = result.text.encode()
    with replacing(path, "wb") as file:
        file.write(data)
    facts = {"tau": result.tau, "tokens": result.tokens, "ratio": result.ratio, "key": key}
    write_json(path.with_suffix(".json"), {**facts, "text_sha256": hashlib.sha256(data).hexdigest()})


def _read(path: Path, key: str) -> CompressedTemplate | None:
    """Return the entry at `path`, or None when it is missing, damaged or was made from something else."""
    try:
        data = path.read_bytes()
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if facts["key"] != key or facts["text_sha256"] != hashlib.sha256(data).hexdigest():
            return None
        return CompressedTemplate(
            tau=float(facts["tau"]), text=data.decode(), tokens=int(facts["tokens"]), ratio=float(facts["ratio"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
