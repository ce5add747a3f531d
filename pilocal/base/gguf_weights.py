"""The numbers of a GGUF file: in float32, as llama.cpp dequantizes them, or packed as MLX packs them, where it can.

Blocks are laid out as in llama.cpp's ggml-common.h; the gguf package's dequantization is llama.cpp's, bit for bit. MLX
holds what has one scale and one bias for 32 numbers: `w = scale * q + bias`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import Q4_K, dequantize
from numpy.typing import NDArray

from pilocal.base.architectures import architecture_of
from pilocal.base.gguf_config import FACTORS
from pilocal.base.gguf_file import GgufFile
from pilocal.base.packed import Packed
from pilocal.errors import ModelError
from pilocal.run_folder.gguf_header import AGAIN, TensorInfo
from pilocal.run_folder.tensors import Float32

Octets = NDArray[np.uint8]

GROUP = 32
"""Numbers that have a scale and a bias in MLX, as in llama.cpp."""

AT_ONCE = 1 << 22
"""Numbers that are dequantized at once, which bounds the memory."""

WIDE = 1 << 12
"""Numbers of a row that the gguf package is fast at."""

FLOAT_BYTES: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2}
"""Bytes of a number, by the type."""

FOUR = np.uint8(4)
"""Bits of a nibble."""

HALVES: Mapping[str, tuple[int, ...]] = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}
"""Where a block's float16 numbers begin, in bytes: its weights are finite exactly if these are."""


class GgufWeights:
    """A model's tensors under their Hugging Face names, with rows in Hugging Face's order; one is read at a time."""

    def __init__(self, file: GgufFile, config: Mapping[str, Any]) -> None:
        """Raise ModelError unless the file's tensors are those of such a model."""
        architecture = architecture_of(config)
        self._config, self._architecture = config, architecture
        self.shapes: Mapping[str, tuple[int, ...]] = architecture.shapes(config)
        names = {architecture.tensor(name): name for name in self.shapes}
        left = {FACTORS, *(architecture.tensor(f"{module}.weight") for module in architecture.unused(config))}
        for name in [*names, *file.tensors]:
            expected = self.shapes.get(names.get(name, ""))
            found = getattr(file.tensors.get(name), "shape", None)
            if found != expected and name not in left:
                said, got = (shape and " x ".join(map(str, shape)) for shape in (expected, found))
                what = f"{name} is not what the metadata says, {said or 'none'}"
                raise ModelError(file.path, what, got=got or "none", fix=AGAIN)
        self._tensors = {names[name]: tensor for name, tensor in file.tensors.items() if name in names}

    def type(self, name: str) -> str:
        """Return llama.cpp's name of a tensor's type."""
        return self._tensors[name].type_name

    def nbytes(self, name: str) -> int:
        """Return how many bytes a tensor takes in the file."""
        return self._tensors[name].nbytes

    def read(self, name: str) -> Float32:
        """Return one tensor in float32."""
        stored, shape = self._tensors[name], self.shapes[name]
        kind = GGMLQuantizationType(stored.type)
        rows = _mapped(stored)
        found = np.empty((len(rows), shape[-1]), dtype=np.float32)
        step = max(1, AT_ONCE // shape[-1])
        with np.errstate(invalid="ignore", over="ignore"):
            for start in range(0, len(rows), step):
                part = slice(start, start + step)
                found[part] = _dequantized(rows[part], kind).reshape(-1, shape[-1])
        if offset := self._architecture.offset(name):
            found -= np.float32(offset)
        return self._ordered(name, found.reshape(shape))

    def packed_bits(self, name: str) -> int:
        """Return in how many bits a number MLX can hold a tensor exactly; 0 where it holds it as floats."""
        return AFFINE[self.type(name)][0] if len(self.shapes[name]) > 1 and self.type(name) in AFFINE else 0

    def packed(self, name: str) -> Packed:
        """Return a tensor that has `packed_bits`: the numbers of `read`, but that a zero may have lost its sign."""
        stored = self._tensors[name]
        bits, take = AFFINE[stored.type_name]
        *lead, width = self.shapes[name]
        rows, mapped = math.prod(lead), _mapped(stored)
        words = np.empty((rows, width * bits // 32), dtype=np.uint32)
        scales, biases = (np.empty((rows, width // GROUP), dtype=np.float32) for _ in range(2))
        step = max(1, AT_ONCE // width)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            size = GGML_QUANT_SIZES[GGMLQuantizationType(stored.type)][1]
            numbers, scale, bias = take(np.array(mapped[part]).reshape(-1, size))
            words[part] = _pack(numbers.reshape(-1, GROUP), bits).reshape(-1, words.shape[1])
            scales[part], biases[part] = (each.reshape(-1, width // GROUP) for each in (scale, bias))
        words, scales, biases = (
            self._ordered(name, each.reshape(*lead, each.shape[-1])) for each in (words, scales, biases)
        )
        return Packed(words, scales, biases, GROUP, bits)

    def is_finite(self, name: str) -> bool:
        """Tell whether none of a tensor's numbers is infinite or NaN."""
        stored = self._tensors[name]
        rows = _mapped(stored)
        step = max(1, AT_ONCE // rows.shape[1])
        return all(
            bool(np.isfinite(part).all())
            for start in range(0, len(rows), step)
            for part in _floats(np.array(rows[start : start + step]), GGMLQuantizationType(stored.type))
        )

    def _ordered(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        heads = self._architecture.permuted(name, self._config)
        return rows if heads is None else deinterleave(rows, heads)


def deinterleave(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Reorder the rows of q_proj or k_proj, (heads * head_dim, ...), from llama.cpp's order to Hugging Face's.

    llama.cpp rotates neighbours; Hugging Face rotates row i of a head with row i + head_dim / 2.

    >>> deinterleave(np.array([0, 2, 1, 3, 4, 6, 5, 7]), heads=2).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _mapped(stored: TensorInfo) -> Octets:
    """Return the bytes of a tensor's rows, mapped; the mapping ends with the array, so that few pages are held."""
    rows = int(np.prod(stored.shape[:-1]))
    return np.memmap(stored.path, np.uint8, "r", offset=stored.begin, shape=(rows, stored.nbytes // rows))


def _dequantized(rows: Octets, kind: GGMLQuantizationType) -> Float32:
    """Return the numbers of some rows, in order; the package works on 16 rows at once, which are better long."""
    block, size = GGML_QUANT_SIZES[kind]
    together = math.gcd(rows.size // size, WIDE // block)
    found: Float32 = dequantize(np.array(rows).reshape(-1, together * size), kind)
    return found


def _floats(rows: Octets, kind: GGMLQuantizationType) -> Iterator[NDArray[Any]]:
    """Yield the floats that decide whether all numbers of some rows are finite."""
    if kind.name in FLOAT_BYTES:
        yield dequantize(rows, kind)
        return
    blocks = rows.reshape(-1, GGML_QUANT_SIZES[kind][1])
    for start in HALVES[kind.name]:
        yield _half(blocks, start)


def _half(blocks: Octets, start: int) -> Float32:
    """Return the float16 that begins at a byte of each block, (blocks, 1), in float32."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32)


def _nibbles(octets: Octets) -> Octets:
    """Return numbers of 4 bits: the low halves of some bytes (..., n), then the high ones, (..., 2 n)."""
    return np.concatenate([octets & 0x0F, octets >> 4], axis=-1)


def _high_bits(octets: Octets) -> Octets:
    """Return the fifth bits (blocks, 32) of numbers whose bits lie in 4 bytes (blocks, 4), the first in the lowest."""
    return np.unpackbits(octets, axis=-1, bitorder="little")


Taken = tuple[Octets, Float32, Float32]
"""Numbers q, scales and biases of some blocks, group by group."""


def _from_q4(blocks: Octets, *, minimum: bool) -> Taken:
    scale = _half(blocks, 0)
    return _nibbles(blocks[:, -16:]), scale, _half(blocks, 2) if minimum else -8 * scale


def _from_q5(blocks: Octets, *, minimum: bool) -> Taken:
    scale = _half(blocks, 0)
    numbers = _nibbles(blocks[:, -16:]) | _high_bits(blocks[:, -20:-16]) << FOUR
    return numbers, scale, _half(blocks, 2) if minimum else -16 * scale


def _from_q8_0(blocks: Octets) -> Taken:
    scale = _half(blocks, 0)
    return blocks[:, 2:] ^ np.uint8(0x80), scale, -128 * scale


def _from_q4_k(blocks: Octets) -> Taken:
    # 32 bytes hold two groups: one in the low halves, the next in the high ones.
    return _nibbles(blocks[:, 16:].reshape(len(blocks), 4, 32)), *_k_scales(blocks)


def _from_q5_k(blocks: Octets) -> Taken:
    # Byte i of `high` has the fifth bits of number i of all eight groups.
    high = _high_bits(blocks[:, 16:48].reshape(len(blocks), 32, 1)).swapaxes(1, 2)
    low = _nibbles(blocks[:, 48:].reshape(len(blocks), 4, 32)).reshape(len(blocks), 8, 32)
    return low | high << FOUR, *_k_scales(blocks)


def _k_scales(blocks: Octets) -> tuple[Float32, Float32]:
    scales, minima = Q4_K.get_scale_min(np.ascontiguousarray(blocks[:, 4:16]))
    return _half(blocks, 0) * scales.astype(np.float32), -(_half(blocks, 2) * minima.astype(np.float32))


AFFINE: Mapping[str, tuple[int, Callable[[Octets], Taken]]] = {
    "Q4_0": (4, partial(_from_q4, minimum=False)),
    "Q4_1": (4, partial(_from_q4, minimum=True)),
    "Q5_0": (5, partial(_from_q5, minimum=False)),
    "Q5_1": (5, partial(_from_q5, minimum=True)),
    "Q8_0": (8, _from_q8_0),
    "Q4_K": (4, _from_q4_k),
    "Q5_K": (5, _from_q5_k),
}
"""Types that MLX holds exactly: the bits of a number, and what takes blocks apart.

Scales and biases are float32. The product of a scale and a number fits float32, so only the sum is rounded, as in
llama.cpp.
"""


def _pack(numbers: Octets, bits: int) -> NDArray[np.uint32]:
    """Return groups of 32 numbers (groups, 32) as words (groups, bits), without gaps, the first in the lowest bits.

    >>> _pack(np.arange(32, dtype=np.uint8)[None] % 16, 4).tolist()[0] == [0x76543210, 0xFEDCBA98] * 2
    True
    """
    if bits == 8:
        packed = numbers
    elif bits == 4:
        packed = numbers[:, ::2] | numbers[:, 1::2] << FOUR
    else:
        each = np.unpackbits(numbers[:, :, None], axis=-1, count=bits, bitorder="little")
        packed = np.packbits(each.reshape(len(numbers), -1), axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view("<u4")
