"""A model in GGUF, in one file or in several parts: its metadata and where its tensors lie."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilocal.base.architectures import ARCHITECTURES
from pilocal.base.unsupported import check_parts, gguf_refusal
from pilocal.errors import ModelError
from pilocal.run_folder.gguf_header import AGAIN, Header, TensorInfo, check_whole, read_gguf

FLOATS = ("F32", "F16", "BF16")
TYPES = frozenset(
    {*FLOATS, "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"}
)
"""Types of tensors whose numbers can be read."""

PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
"""How the file of a part ends, as llama.cpp names it."""

KINDS = tuple(dict.fromkeys(architecture.gguf_name for architecture in ARCHITECTURES.values()))
"""The architectures that are read; Mistral's files say "llama"."""


@dataclass(frozen=True, slots=True)
class GgufFile:
    """One model; make it with `open_gguf`."""

    path: Path
    """The file, or the first part."""
    parts: tuple[Path, ...]
    metadata: Mapping[str, Any]
    """Of the first part."""
    tensors: Mapping[str, TensorInfo]
    """By GGUF's names."""

    @property
    def architecture(self) -> str:
        """One of KINDS."""
        return str(self.metadata["general.architecture"])

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value of the metadata below the architecture's name."""
        return self.metadata.get(f"{self.architecture}.{key}", default)


def open_gguf(path: Path) -> GgufFile:
    """Return the model that a file holds, or begins with the other parts beside it.

    Raises ModelError when it is no GGUF file, is cut off, lacks a part, is of another architecture or no model at all,
    or has a tensor of a type that cannot be read.
    """
    first = read_gguf(path)
    paths = _parts(path, first.metadata)  # the others may say nothing but their number
    _check_kind(path, first.metadata)
    headers = [first, *map(read_gguf, paths[1:])]
    tensors: dict[str, TensorInfo] = {}
    for part, header in zip(paths, headers, strict=True):
        _check_types(part, header)
        check_whole(part, header)
        tensors |= {tensor.name: tensor for tensor in header.tensors}
    check_parts(path, tensors)
    if not tensors:
        raise ModelError(path, "a vocabulary without weights", fix="take the model's own file")
    said = first.metadata.get("split.tensors.count", len(tensors))
    if said != len(tensors):
        raise ModelError(path, f"its parts should hold {said} tensors", got=len(tensors), fix=AGAIN)
    return GgufFile(path, paths, first.metadata, tensors)


def _check_kind(path: Path, metadata: Mapping[str, Any]) -> None:
    """Raise ModelError for what is no language model of a known architecture."""
    kind, architecture = metadata.get("general.type", "model"), metadata.get("general.architecture")
    if kind == "adapter":
        fix = "give the base that it was made for, and train on that"
        raise ModelError(path, "an adapter, not a base", got=metadata.get("adapter.type"), fix=fix)
    if kind != "model":
        raise ModelError(path, "not a language model", got=kind, fix="give the model's own file")
    if architecture not in KINDS:
        fix = f"take a base of one of these: {', '.join(KINDS)} (Mistral's files say llama)"
        raise gguf_refusal(path, architecture, metadata, fix)


def _parts(path: Path, metadata: Mapping[str, Any]) -> tuple[Path, ...]:
    """Return all files of a model, by the number of parts that the first one says."""
    count, number = metadata.get("split.count", 1), metadata.get("split.no", 0)
    if not isinstance(count, int) or not isinstance(number, int):
        raise ModelError(path, "split.count and split.no must be whole numbers", got=[count, number], fix=AGAIN)
    if count <= 1:
        return (path,)
    name = PART.search(path.name)
    if name is None:
        fix = f"give it its name back, such as model-00001-of-{count:05d}.gguf"
        raise ModelError(path, f"part {number + 1} of {count}, and the name does not say so", fix=fix)
    if not 0 <= number < count == int(name[2]):
        raise ModelError(path, f"part {number + 1} of {count}, and the name says otherwise", fix=AGAIN)
    stem = path.name[: name.start()]
    paths = tuple(path.with_name(f"{stem}-{part:05d}-of-{count:05d}.gguf") for part in range(1, count + 1))
    if number:
        raise ModelError(path, f"part {number + 1} of {count}", fix=f"give the first, {paths[0].name}")
    missing = [each.name for each in paths if not each.is_file()]
    if missing:
        fix = "put all parts into one folder"
        raise ModelError(path, f"the model has {count} parts, of which some are missing", got=missing, fix=fix)
    return paths


def _check_types(path: Path, header: Header) -> None:
    """Raise ModelError for the first tensor whose numbers cannot be read."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for tensor in header.tensors:
        kind = tensor.type_name
        if kind not in TYPES:
            fix = f"take a file of these types: {', '.join(sorted(TYPES))}"
            raise ModelError(path, f"{tensor.name} is of a type that cannot be read", got=kind, fix=fix)
        block = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]
        if not tensor.shape or tensor.shape[-1] % block:
            what = f"{tensor.name} is damaged: rows of {kind} have a multiple of {block} numbers"
            raise ModelError(path, what, got=list(tensor.shape), fix=AGAIN)
