"""A matrix in the way that MLX packs it: a scale and a bias for each group of numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilocal.run_folder.tensors import Float32

AT_ONCE = 1 << 22
"""Numbers that are unpacked at once, which bounds the memory."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix in MLX's affine quantization: `w = scale * q + bias`, a scale and a bias for every group."""

    words: NDArray[np.uint32]
    """(out, in * bits / 32): the numbers q one after the other, the first in the lowest bits."""
    scales: Float32
    """(out, in / group_size)."""
    biases: Float32
    """(out, in / group_size)."""
    group_size: int
    bits: int = 4
    """Of a number."""

    def reordered(self, order: Callable[[NDArray[Any]], NDArray[Any]]) -> Packed:
        """Return it with its rows in another order."""
        return Packed(order(self.words), order(self.scales), order(self.biases), self.group_size, self.bits)

    def rows(self, start: int, stop: int) -> Packed:
        """Return some of its rows."""
        part = slice(start, stop)
        return Packed(self.words[part], self.scales[part], self.biases[part], self.group_size, self.bits)

    def numbers(self) -> NDArray[np.int16]:
        """Return its numbers q, a group in a row."""
        return _numbers(self.words.view(np.uint8), self.bits).astype(np.int16).reshape(-1, self.group_size)

    def floats(self) -> Float32:
        """Return its weights, (out, in)."""
        return unpack(self.words, self.scales, self.biases, self.group_size, self.bits)


def unpack(words: NDArray[np.uint32], scales: Float32, biases: Float32, group_size: int, bits: int) -> Float32:
    """Return a matrix that MLX packed, (out, in), as `scale * q + bias` in float32: MLX's own numbers, bit for bit.

    Bit for bit if scales and biases are 16 bits wide. Of each row's numbers q the first is in the lowest bits.
    """
    rows, groups = scales.shape
    found = np.empty((rows, groups, group_size), dtype=np.float32)
    step = max(1, AT_ONCE // (groups * group_size))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        numbers = _numbers(words[part].view(np.uint8), bits).reshape(-1, groups, group_size)
        np.multiply(numbers, scales[part, :, None], out=found[part])
        found[part] += biases[part, :, None]
    return found.reshape(rows, -1)


def _numbers(octets: NDArray[np.uint8], bits: int) -> Float32:
    """Return the numbers of `bits` bits each that lie in some bytes one after the other, the lowest bits first.

    >>> _numbers(np.array([0x21, 0x43], dtype=np.uint8), 4)
    array([1., 2., 3., 4.], dtype=float32)
    """
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits)
        table = (np.arange(256)[:, None] >> shifts & (1 << bits) - 1).astype(np.float32)
        found: Float32 = table.take(octets.ravel(), axis=0).ravel()
        return found
    digits = np.unpackbits(octets.ravel(), bitorder="little").reshape(-1, bits)
    weighted: Float32 = digits.astype(np.float32) @ (1 << np.arange(bits)).astype(np.float32)
    return weighted
