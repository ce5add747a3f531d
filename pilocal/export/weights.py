"""A base's tensors as they are stored and as they are computed with, one at a time."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pilocal.base.architecture import expert_of
from pilocal.base.base import AGAIN, Base
from pilocal.base.packed import AT_ONCE, Packed
from pilocal.errors import ExportError
from pilocal.run_folder.tensors import FLOATS, Float32, Stored, stored_in, widened

DTYPES: Mapping[str, str] = {**FLOATS, "U32": "<u4"}
"""What numpy reads safetensors' types as; bfloat16, which numpy lacks, as the 16 bits that it has."""

UNPACKED = "take a float base, or one that mlx-lm quantized with mode affine"
"""What to do about weights that are packed otherwise."""


class Place(NamedTuple):
    """Where a tensor lies."""

    parts: Sequence[Stored]
    """One, or each expert's."""
    shape: tuple[int, ...]
    """Of all parts together."""

    @property
    def dtype(self) -> str:
        """The type of its numbers."""
        return self.parts[0].dtype


class BaseWeights:
    """A base's tensors under their Hugging Face names; memory holds one at a time.

    Files are read, not mapped: mapped pages would count as memory. Raises ExportError when the base is quantized in
    another way than MLX's affine one.
    """

    shapes: Mapping[str, tuple[int, ...]]
    """The shape of every tensor, as dequantized: (out, in), or (experts, out, in)."""

    def __init__(self, base: Base) -> None:
        self.architecture = base.architecture
        self._folder, config = base.path, base.config
        self._gguf = base.gguf_weights if base.gguf else None
        self._quantization: Mapping[str, Any] = config.get("quantization") or {}
        self._stored: dict[str, Place] = {}
        if self._gguf:
            self.shapes = self._gguf.shapes
        else:
            self._read_headers(base)

    def _read_headers(self, base: Base) -> None:
        config = base.config
        self._check_method(config.get("quantization_config"))
        stored: dict[str, Stored] = {}
        for path in base.weight_files:
            try:
                stored |= stored_in(path)
            except ValueError as error:
                raise ExportError(path, f"cut short or damaged: {error}", fix=AGAIN) from None
        self._stored = dict(_together(base, stored))
        quantized = {name.removesuffix(".scales") for name in self._stored if name.endswith(".scales")}
        parts = {f"{module}.{part}" for module in quantized for part in ("scales", "biases")}
        tied = {"lm_head.weight"} if config.get("tie_word_embeddings", True) else set()
        unused = self.architecture.unused(config)
        names = [name for name in self._stored if name not in parts | tied and _is_used(name, unused)]
        self.shapes = {name: self._shape(name) for name in names}

    def read(self, name: str) -> Float32:
        """Return one tensor in float32: what the trainer computes with, bit for bit."""
        return self.part(name).reshape(self.shapes[name])

    def rows(self, name: str) -> int:
        """Return how many rows a tensor has; those of all experts lie one after the other."""
        return _rows(self.shapes[name])

    def part(self, name: str, start: int = 0, stop: int | None = None) -> Float32:
        """Return the rows of a tensor of the base from `start` up to `stop`, in float32."""
        if self._gguf:
            found = self._gguf.read(name)
            return found.reshape(self.rows(name), *found.shape[-1:] * (found.ndim > 1))[start:stop]
        return self.packed(name, start, stop).floats() if self.bits(name) else self._floats(name, start, stop)

    def packed(self, name: str, start: int = 0, stop: int | None = None) -> Packed:
        """Return a tensor that has `bits`, or its rows from `start` up to `stop`."""
        module = name.removesuffix(".weight")
        words = self._raw(name, start, stop)
        scales, biases = (self._floats(f"{module}.{part}", start, stop) for part in ("scales", "biases"))
        return Packed(words, scales, biases, *self._packing(module))

    def bits(self, name: str) -> int | None:
        """Return how many bits a number of a packed tensor takes, without its scales; None for floats."""
        module = name.removesuffix(".weight")
        return self._packing(module)[1] if self._is_quantized(module) else None

    def spans(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield the rows, from one up to another, in which a large tensor is read part by part."""
        rows = self.rows(name)
        step = max(1, AT_ONCE * rows // max(1, math.prod(self.shapes[name])))
        return ((start, min(start + step, rows)) for start in range(0, rows, step))

    def nbytes(self, name: str) -> int:
        """Return the bytes that a tensor takes in the base, with its scales and biases."""
        module = name.removesuffix(".weight")
        names = [name, *(f"{module}.{part}" for part in ("scales", "biases") if self._is_quantized(module))]
        return sum(part.nbytes for name in names for part in self._stored[name].parts)

    def scales(self, name: str) -> tuple[Float32, Float32]:
        """Return only the scales and biases of a packed tensor."""
        module = name.removesuffix(".weight")
        return self._floats(f"{module}.scales"), self._floats(f"{module}.biases")

    def dtype(self, name: str) -> str:
        """Return the type in which a tensor is stored: "F16", "BF16", "F32", "U32" for a packed one, or GGUF's name."""
        return self._gguf.type(name) if self._gguf else self._stored[name].dtype

    def _shape(self, name: str) -> tuple[int, ...]:
        module, stored = name.removesuffix(".weight"), self._stored[name]
        if self._is_quantized(module):
            return self._packed_shape(module, stored)
        if stored.dtype not in FLOATS:
            what = f"{name} is packed in an unknown way"
            raise ExportError(self._folder, what, got=stored.dtype, fix=UNPACKED)
        return stored.shape

    def _packed_shape(self, module: str, words: Place) -> tuple[int, ...]:
        size, bits = self._packing(module)
        parts = [self._stored.get(f"{module}.{part}") for part in ("scales", "biases")]
        scales, biases = (part.shape if part and part.dtype in FLOATS else () for part in parts)
        *rows, groups = scales if len(scales) > 1 else (0, 0)
        width = size * groups
        if scales != biases or words.dtype != "U32" or words.shape != (*rows, width * bits // 32):
            what = f"{module} does not hold groups of {size} weights of {bits} bits"
            raise ExportError(self._folder, what, got=" x ".join(map(str, words.shape)), fix=AGAIN)
        return *rows, width

    def _check_method(self, other: Any) -> None:
        """Refuse weights that another program than mlx-lm has packed."""
        method = other.get("quant_method") if isinstance(other, dict) else None
        if method and not self._quantization:
            raise ExportError(self._folder, "the weights are not packed as MLX packs them", got=method, fix=UNPACKED)

    @property
    def has_head(self) -> bool:
        """Whether an output matrix is stored, in use or not."""
        return "lm_head.weight" in (self.shapes if self._gguf else self._stored)

    def _is_quantized(self, module: str) -> bool:
        return f"{module}.scales" in self._stored

    def _packing(self, module: str) -> tuple[int, int]:
        """Return (group size, bits) of a quantized module; config.json may name exceptions to its general rule."""
        own = self._quantization.get(module)
        settings = {**self._quantization, **(own if isinstance(own, dict) else {})}
        mode = settings.get("mode", "affine")
        if mode != "affine":
            raise ExportError(self._folder, f"{module} is not in affine quantization", got=mode, fix=UNPACKED)
        size, bits = settings.get("group_size"), settings.get("bits")
        if not (isinstance(size, int) and isinstance(bits, int)):
            raise ExportError(self._folder, f"{module} is packed, and config.json does not say how", fix=AGAIN)
        return size, bits

    def _raw(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return a tensor as it is stored, or its rows from `start` up to `stop`."""
        parts = self._stored[name].parts
        rows, wide = _rows(parts[0].shape), parts[0].shape[1:] and parts[0].shape[-1:]
        stop = rows * len(parts) if stop is None else stop
        found = []
        for number in range(start // rows, -(-stop // rows)) if rows else range(1):
            first, last = max(start - number * rows, 0), min(stop - number * rows, rows)
            found.append(_read(name, parts[number], first * math.prod(wide), (last - first) * math.prod(wide)))
        return (found[0] if len(found) == 1 else np.concatenate(found)).reshape(stop - start, *wide)

    def _floats(self, name: str, start: int = 0, stop: int | None = None) -> Float32:
        """Return a stored float tensor, or some rows, in float32, which changes no number."""
        return widened(self._raw(name, start, stop), self._stored[name].dtype)


def _is_used(name: str, unused: Collection[str]) -> bool:
    module, _, kind = name.rpartition(".")
    return kind != "inv_freq" and module not in unused


def _rows(shape: Sequence[int]) -> int:
    return math.prod(shape[:-1]) if len(shape) > 1 else math.prod(shape)


def _read(name: str, stored: Stored, first: int, count: int) -> NDArray[Any]:
    """Return so many numbers of a stored tensor, from one on."""
    kind = np.dtype(DTYPES[stored.dtype])
    found = np.fromfile(stored.path, kind, count, offset=stored.begin + first * kind.itemsize)
    if found.size < count:
        raise ExportError(stored.path, f"{name} is cut short", fix=AGAIN)
    return found


def _together(base: Base, stored: Mapping[str, Stored]) -> Iterator[tuple[str, Place]]:
    """Yield where each tensor lies, by MLX's name; raises ExportError where experts do not fit together."""
    experts: dict[str, dict[int, Stored]] = {}
    for name, place in stored.items():
        if found := expert_of(name):
            experts.setdefault(found[0], {})[found[1]] = place
        else:
            yield name, Place([place], place.shape)
    for name, parts in experts.items():
        ordered = [parts[number] for number in sorted(parts)]
        if sorted(parts) != list(range(len(parts))) or len({(part.dtype, part.shape) for part in ordered}) > 1:
            raise ExportError(base.path, f"{name}: its experts are not alike, or one is missing", fix=AGAIN)
        yield name, Place(ordered, (len(ordered), *ordered[0].shape))
