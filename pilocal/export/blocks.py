"""MLX's affine groups as GGUF's blocks of 32 numbers, number for number or not at all.

MLX says `w = scale * number + bias`, and so do Q4_1 and Q5_1. Q5_0 and Q8_0 store no bias and count from the middle of
their range: they hold a group whose bias is a whole multiple of its scale (llama.cpp, ggml-common.h). The most frequent
case, 4 bits in Q4_1, is done many times faster in `q4_1.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from pilocal.base.packed import Packed
from pilocal.export.q4_1 import BLOCK
from pilocal.run_folder.tensors import Float32

Q4_1, Q5_0, Q5_1, Q8_0 = (GGMLQuantizationType[name] for name in ("Q4_1", "Q5_0", "Q5_1", "Q8_0"))

BY_BITS: Mapping[int, Sequence[GGMLQuantizationType]] = {
    2: (Q4_1,), 3: (Q4_1,), 4: (Q4_1,), 5: (Q5_0, Q5_1), 6: (Q8_0,), 8: (Q8_0,),
}  # fmt: skip
"""The types that may hold MLX's numbers of so many bits, the smallest first."""

BITS = {Q4_1: 4, Q5_0: 5, Q5_1: 5, Q8_0: 8}
WITH_BIAS = (Q4_1, Q5_1)

FAR = 1 << 10
"""A number that lies so far from 0 fits no type."""

Int16 = NDArray[np.int16]


def exact_blocks(kind: GGMLQuantizationType, packed: Packed) -> NDArray[np.uint8] | None:
    """Return rows as blocks of a type, (rows, bytes), or None if one number of theirs would not be what it was.

    >>> words = np.array([[0x817F80, 0, 0, 0, 0, 0, 0, 0]], dtype=np.uint32)
    >>> scale, bias = np.array([[0.5]], dtype=np.float32), np.array([[-64.0]], dtype=np.float32)
    >>> blocks = exact_blocks(Q8_0, Packed(words, scale, bias, 32, 8))
    >>> blocks[0, :2].view(np.float16).tolist(), blocks[0, 2:].view(np.int8).tolist()[:4]
    ([0.5], [0, -1, 1, -128])
    >>> exact_blocks(Q8_0, Packed(words, scale, bias - 0.25, 32, 8)) is None
    True
    """
    if packed.group_size % BLOCK:
        return None
    numbers = packed.numbers()
    scales, biases = packed.scales.reshape(-1, 1), packed.biases.reshape(-1, 1)
    # A scale that no number asks for may be one that float16 lacks, as in bfloat16's groups of zeros.
    scales = np.where(numbers.any(axis=1, keepdims=True), scales, 0)
    if kind not in WITH_BIAS:
        scales, numbers = _without_bias(scales, biases, numbers)
        numbers += 1 << BITS[kind] - 1
    if numbers.min() < 0 or numbers.max() >= 1 << BITS[kind]:
        return None
    per = packed.group_size // BLOCK
    with np.errstate(over="ignore", invalid="ignore"):
        halves = [np.repeat(part.astype(np.float16), per, axis=0) for part in (scales, biases)]
        blocks = _blocks(kind, halves, numbers.reshape(-1, BLOCK).astype(np.uint8))
        same = np.array_equal(dequantize(blocks, kind).reshape(len(packed.words), -1), packed.floats())
    return blocks.reshape(len(packed.words), -1) if same else None


def block_rows(
    kind: GGMLQuantizationType, read: Callable[[int, int], Packed], spans: Iterable[tuple[int, int]]
) -> Iterator[NDArray[np.uint8]]:
    """Yield rows as blocks of a type, span by span; raises ValueError when a number would not be what it was."""
    for start, stop in spans:
        blocks = exact_blocks(kind, read(start, stop))
        if blocks is None:
            raise ValueError("a number is not what it was")
        yield blocks


def _without_bias(scales: Float32, biases: Float32, numbers: Int16) -> tuple[Float32, Int16]:
    """Return scales and numbers whose products are the weights, if there are such; whoever asks has to compare."""
    alone = scales == 0  # every weight is the bias
    with np.errstate(over="ignore", invalid="ignore"):
        shift = np.clip(np.rint(biases / np.where(alone, 1, scales)), -FAR, FAR).astype(np.int16)
    return np.where(alone, biases, scales), np.where(alone, np.int16(1), numbers + shift)


def _blocks(
    kind: GGMLQuantizationType, halves: Sequence[NDArray[np.float16]], numbers: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Return blocks, one a row, of scales, biases where the type has them, and numbers that count from 0."""
    parts = [half.view(np.uint8) for half in halves[: 1 + (kind in WITH_BIAS)]]
    if BITS[kind] == 8:
        return np.concatenate([*parts, numbers ^ 0x80], axis=1)  # as signed bytes
    if BITS[kind] == 5:
        parts.append(np.packbits(numbers >> 4, axis=1, bitorder="little"))
    low, high = numbers[:, : BLOCK // 2], numbers[:, BLOCK // 2 :]
    return np.concatenate([*parts, low & 0x0F | high << 4], axis=1)
