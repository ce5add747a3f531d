"""GGUF files, written one tensor at a time.

Source: the GGUF specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.gguf_writer import WriterState
from numpy.typing import NDArray

from pilocal.base.base import AGAIN, Base
from pilocal.base.rope import is_longrope
from pilocal.errors import ExportError, ModelError
from pilocal.export.numbers import add_numbers, check_settings, interleave, naming, rope_factors
from pilocal.export.vocabulary import add_vocabulary
from pilocal.export.weights import BaseWeights
from pilocal.prompt.pre_tokenizers import ascii_alone
from pilocal.prompt.probes import make_probes
from pilocal.run_folder.files import replacing
from pilocal.run_folder.tensors import Float32

NAMES_THAT_CUT = re.compile(r"(phi)-?(3)|(modern)-(bert)", re.IGNORECASE)
"""Names of models by which llama.cpp decides how it cuts text, whatever the tokenizer says."""

BASE_HASH = "pilocal.base.sha256"
"""The key under which every file of pilocal's has the fingerprint of its base."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file."""

    name: str
    shape: tuple[int, ...]
    """In numbers, rows first."""
    type: GGMLQuantizationType
    parts: Callable[[], Iterable[NDArray[Any]]]
    """Its bytes, in order, made when they are written."""


def whole(name: str, array: NDArray[Any]) -> Tensor:
    """Return a tensor that is in memory already, float16 or float32."""
    kind = GGMLQuantizationType.F16 if array.dtype == np.float16 else GGMLQuantizationType.F32
    return Tensor(name, array.shape, kind, lambda: [array])


def write_gguf(out: Path, writer: GGUFWriter, tensors: Sequence[Tensor]) -> None:
    """Write `writer`'s metadata and the tensors; whatever goes wrong, `out` is the old file or the new one.

    Raises RunError when the disk is full or cannot be written.
    """
    for tensor in tensors:
        numbers, size = GGML_QUANT_SIZES[tensor.type]
        count = math.prod(tensor.shape) // numbers * size
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float16), count, raw_dtype=tensor.type)
    with replacing(out, "wb") as file:
        writer.fout, writer.state = [cast(BufferedWriter, file)], WriterState.EMPTY
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.write_padding(file, file.tell())
        for tensor in tensors:
            size = 0
            for part in tensor.parts():
                # Not tofile(), whose OSError does not say that the disk is full.
                size += file.write(np.ascontiguousarray(part).data.cast("B"))
            writer.write_padding(file, size)


class ModelFile:
    """A base as a GGUF file, but for its numbers: metadata, and what each tensor is called."""

    def __init__(self, base: Base, weights: BaseWeights) -> None:
        """Raise ExportError for what llama.cpp could not run, ModelError for weights that are not config.json's."""
        self.base = base
        self._config = base.config
        self.architecture = base.architecture
        with naming(base.config_path):
            check_settings(self._config)
        self.names = {self.architecture.tensor(source): source for source in weights.shapes}
        """Hugging Face's name of every tensor, by GGUF's."""
        _check_shapes(base, weights)
        self._rows = weights.shapes["model.embed_tokens.weight"][0]
        with naming(base.config_path):
            self._factors = rope_factors(self._config)

    def writer(self, name: str, kind: LlamaFileType) -> GGUFWriter:
        """Return a writer that knows all metadata; `name` is general.name, `kind` the type of most tensors."""
        writer = GGUFWriter(None, self.architecture.gguf_name)
        writer.add_name(NAMES_THAT_CUT.sub(lambda found: " ".join(filter(None, found.groups())), name))
        writer.add_file_type(kind)
        writer.add_string(BASE_HASH, self.base.sha256)
        writer.add_context_length(self.base.context)
        add_numbers(writer, self._config)
        add_vocabulary(writer, self.base, self._rows)
        return writer

    def extra(self) -> list[Tensor]:
        """Return the tensors that the base does not store."""
        if self._factors is None:
            return []
        longrope = is_longrope(self._config)  # what llama.cpp takes for long contexts is what it takes for short ones
        names = ("rope_factors_long", "rope_factors_short") if longrope else ("rope_freqs",)
        return [whole(f"{name}.weight", self._factors) for name in names]

    def changes(self, target: str) -> bool:
        """Tell whether llama.cpp wants a tensor's rows in another order, or added to a number."""
        return self._heads(target) is not None or bool(self.architecture.offset(self.names[target]))

    def changed(self, target: str, rows: NDArray[Any]) -> NDArray[Any]:
        """Return a tensor's rows as llama.cpp wants them."""
        if offset := self.architecture.offset(self.names[target]):
            return rows + np.float32(offset)
        heads = self._heads(target)
        return rows if heads is None else interleave(rows, heads)

    def _heads(self, target: str) -> int | None:
        return self.architecture.permuted(self.names[target], self._config)


def _check_shapes(base: Base, weights: BaseWeights) -> None:
    """Raise ModelError unless the weights are the ones that config.json speaks of."""
    if weights.has_head and "tie_word_embeddings" not in base.config:
        what, fix = "there is an output matrix, and config.json does not say tie_word_embeddings", "write it there"
        raise ModelError(base.path, what, fix=fix)
    shapes, expected = weights.shapes, base.architecture.shapes(base.config)
    for name in [*expected, *shapes]:
        if shapes.get(name) != expected.get(name):
            said, found = (shape and " x ".join(map(str, shape)) for shape in (expected.get(name), shapes.get(name)))
            what = f"{name} is not what config.json says, {said or 'none'}"
            raise ModelError(base.path, what, got=found or "none", fix=AGAIN)


def check_exportable(base: Base) -> None:
    """Raise now what the export would raise after the training, ExportError, ModelError or InputError; write nothing.

    Headers, config.json and tokenizer are read as the export reads them, so the two cannot disagree.
    """
    model = ModelFile(base, BaseWeights(base))
    if base.gguf is None:  # else the file is served as it is
        model.writer("check", LlamaFileType.MOSTLY_F16)


def check_tokens(base: Base, texts: Iterable[tuple[str, str]] = ()) -> None:
    """Raise ModelError now where llama.cpp would cut chats into other tokens than training does.

    Asks llama.cpp itself, with the base's own GGUF file, or with one that holds the vocabulary alone. Where that cannot
    be written, nothing is checked before the export. Where llama.cpp follows the tokenizer for ASCII text alone, all
    `texts` are compared, each with where it is from.
    """
    from pilocal.llamacpp.chat import check_probes, check_texts

    def check(gguf: Path, template: str | None = None) -> None:
        check_probes(gguf, make_probes("x", base.tokenizer), template, where=base.path)
        if ascii_alone(base.tokenizer):
            check_texts(gguf, template, base.tokenizer, texts)

    if base.gguf:
        check(base.gguf, base.layout.template)
        return
    with suppress(OSError), TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        writer = ModelFile(base, BaseWeights(base)).writer("check", LlamaFileType.MOSTLY_F16)
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.close()
        check(path)


def to_float16(tensor: Float32, folder: Path, name: str) -> NDArray[np.float16]:
    """Round to float16; raises ExportError where a number is too large for it."""
    with np.errstate(over="ignore"):
        half = tensor.astype(np.float16)
    if not np.isfinite(half).all():
        largest = float(np.abs(tensor).max())
        fix = "look for a training that went astray; F16 ends at 65504"
        raise ExportError(folder, f"{name} does not fit F16", got=largest, fix=fix)
    return half
