"""MLX's affine 4 bits as GGUF's Q4_1, bit for bit.

Both say `w = scale * number + bias` with numbers of 4 bits. Q4_1 has blocks of 32 weights: scale and bias in float16,
then 16 bytes, of which each holds one number of the block's first half (low bits) and one of its second (llama.cpp,
ggml-common.h, block_q4_1). MLX's groups are one or more such blocks long, and its numbers stand in order.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilocal.base.packed import Packed

BLOCK, BLOCK_BYTES = 32, 20
CHUNK = 1 << 20
"""Bytes of packed numbers that are read at once."""
AHEAD = 6
"""How many parts may be ready before they are taken."""
CACHED = 1 << 13
"""Blocks that are worked on at once: they stay in the processor's cache."""
EVEN = np.uint16(0x0F0F)
"""The even ones of four numbers."""


def fits_float16(values: NDArray[Any]) -> bool:
    """Tell whether float16 holds every one of these numbers exactly.

    >>> fits_float16(np.array([0.5, 65504.0])), fits_float16(np.array([2.0**-26])), fits_float16(np.array([1e9]))
    (True, False, False)
    """
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(np.float16).astype(values.dtype), values))


def q4_1_rows(read: Callable[[int, int], Packed], rows: int, width: int) -> Iterator[NDArray[np.uint8]]:
    """Yield a matrix of `rows` rows of `width` numbers as Q4_1, (some rows, width / 32 * 20) bytes at a time.

    A part is overwritten once the next ones are asked for. `read` returns the rows from one number up to another; parts
    are read and worked on side by side. Scales and biases must fit float16, and groups be whole blocks. What was packed
    is unpacked again and compared: raises ValueError when a number is not what it was.
    """
    step = max(1, 2 * CHUNK // width)
    places = [np.empty((min(step, rows) * width // BLOCK, BLOCK_BYTES), dtype=np.uint8) for _ in range(AHEAD + 2)]
    room = threading.local()

    def part(start: int, place: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if not hasattr(room, "packer"):
            room.packer = Packer()
        packed = read(start, min(start + step, rows))
        blocks = place[: len(packed.words) * width // BLOCK]
        room.packer.pack(packed, blocks)
        if not room.packer.holds(blocks, packed):
            raise ValueError("a number is not what it was")
        return blocks.reshape(len(packed.words), -1)

    with ThreadPoolExecutor(2) as workers:
        waiting = deque[Future[NDArray[np.uint8]]]()
        for number, start in enumerate(range(0, rows, step)):
            waiting.append(workers.submit(part, start, places[number % len(places)]))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Packer:
    """Packs and unpacks, with room of its own for what is in between.

    >>> words = np.array([[0x76543210, 0xFEDCBA98, 0x00000000, 0x11111111]], dtype=np.uint32)
    >>> packed = Packed(words, np.array([[0.5]], dtype=np.float32), np.array([[-1.0]], dtype=np.float32), 32)
    >>> blocks = np.empty((1, 20), dtype=np.uint8)
    >>> Packer().pack(packed, blocks)
    >>> blocks[0, :4].view(np.float16).tolist(), blocks[0, 4:].tolist()[:10]
    ([0.5, -1.0], [0, 1, 2, 3, 4, 5, 6, 7, 24, 25])
    >>> Packer().holds(blocks, packed)
    True
    """

    def __init__(self) -> None:
        self._wide, self._more = (np.empty((CACHED, BLOCK // 2), dtype=np.uint16) for _ in range(2))
        self._bytes = np.empty((CACHED, BLOCK // 2), dtype=np.uint8)

    def pack(self, packed: Packed, blocks: NDArray[np.uint8]) -> None:
        """Write rows of MLX's 4-bit words as Q4_1 into `blocks`, (blocks, 20)."""
        numbers = packed.words.view(np.uint8).reshape(-1, BLOCK // 2)
        for some in _slices(len(blocks)):
            self._pack(numbers[some], blocks[some])
        both = np.stack([packed.scales.reshape(-1), packed.biases.reshape(-1)], axis=1).astype(np.float16)
        for column in _groups(blocks, packed.group_size):
            column[...] = both.view(np.uint32)[:, 0]

    def holds(self, blocks: NDArray[np.uint8], packed: Packed) -> bool:
        """Tell whether `blocks`, unpacked, are these rows exactly."""
        words = packed.words.view(np.uint64).reshape(-1, 2)
        for some in _slices(len(blocks)):
            if not all(map(np.array_equal, self._unpack(blocks[some]), words[some].T)):
                return False
        for column in _groups(blocks, packed.group_size):
            both = np.ascontiguousarray(column).view(np.float16).astype(np.float32).reshape(-1, 2)
            if not all(map(np.array_equal, both.T, (packed.scales.reshape(-1), packed.biases.reshape(-1)))):
                return False
        return True

    def _pack(self, numbers: NDArray[np.uint8], blocks: NDArray[np.uint8]) -> None:
        wide, more = self._wide[: len(blocks)], self._more[: len(blocks)]
        wide[...] = numbers  # 16 bits for two numbers: one byte for each
        np.left_shift(wide, 4, out=more)
        np.bitwise_or(wide, more, out=wide)
        np.bitwise_and(wide, EVEN, out=wide)
        # Now 32 bytes of one number each; the second half goes into the high bits of the first.
        np.left_shift(wide, 4, out=more)
        first, second = wide.view(np.uint64), more.view(np.uint64)
        for i in range(2):
            np.bitwise_or(first[:, i], second[:, 2 + i], out=first[:, i])
        _numbers(blocks)[...] = np.ndarray(len(blocks), "V16", wide, strides=BLOCK)

    def _unpack(self, blocks: NDArray[np.uint8]) -> Iterator[NDArray[np.uint64]]:
        """Yield each block's first and second 16 numbers as MLX packs them, 64 bits for every block."""
        count = len(blocks)
        halves, more = (room.reshape(-1)[: count * 8] for room in (self._wide, self._more))
        narrow = self._bytes.reshape(-1)[: count * 8]
        halves.view("V16")[...] = _numbers(blocks)
        for shift in (0, 4):
            np.right_shift(halves, shift, out=halves)
            np.bitwise_and(halves, EVEN, out=more)
            np.bitwise_or(more, np.right_shift(more, 4), out=more)
            narrow[...] = more  # the low byte
            yield narrow.view(np.uint64)


def _slices(blocks: int) -> Iterator[slice]:
    return (slice(start, start + CACHED) for start in range(0, blocks, CACHED))


def _numbers(blocks: NDArray[np.uint8]) -> NDArray[Any]:
    """Return the 16 bytes of numbers in each block, as one element."""
    return np.ndarray(len(blocks), "V16", blocks, offset=BLOCK_BYTES - BLOCK // 2, strides=BLOCK_BYTES)


def _groups(blocks: NDArray[np.uint8], group_size: int) -> Iterator[NDArray[np.uint32]]:
    """Yield the scale and bias, as one element, of every group's first block, then of its second, and so on."""
    per = group_size // BLOCK
    return (blocks.view(np.uint32)[i::per, 0] for i in range(per))
