"""MLX's affine 4 bits as GGUF's Q4_1, bit for bit.

Both say `w = scale * number + bias` with numbers of 4 bits. Q4_1 has blocks of 32 weights: scale and bias in float16,
then 16 bytes, of which each holds one number of the block's first half (low bits) and one of its second (llama.cpp,
ggml-common.h, block_q4_1). MLX's groups are one or more such blocks long, and its numbers stand in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilocal.export.weights import Float32, Packed

BLOCK, BLOCK_BYTES = 32, 20
CHUNK = 1 << 20
"""Bytes of packed numbers that are worked on at once: they stay in the processor's cache."""
AHEAD = 8
"""How many parts may be ready before they are taken."""
LOW, HIGH, FOUR = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0xF0F0F0F0F0F0F0F0), np.uint64(4)


def fits_float16(values: NDArray[Any]) -> bool:
    """Tell whether float16 holds every one of these numbers exactly.

    >>> fits_float16(np.array([0.5, 65504.0])), fits_float16(np.array([2.0**-26])), fits_float16(np.array([1e9]))
    (True, False, False)
    """
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(np.float16).astype(values.dtype), values))


def q4_1_rows(read: Callable[[int, int], Packed], rows: int, width: int) -> Iterator[NDArray[np.uint8]]:
    """Yield a matrix of `rows` rows of `width` numbers as Q4_1, (some rows, width / 32 * 20) bytes at a time.

    `read` returns the rows from one number up to another; parts are read and worked on side by side. Scales and biases
    must fit float16, and groups be whole blocks. What was packed is unpacked again and compared: raises ValueError when
    a number is not what it was.
    """
    step = max(1, 2 * CHUNK // width)

    def part(start: int) -> NDArray[np.uint8]:
        return checked(read(start, min(start + step, rows)))

    with ThreadPoolExecutor(2) as workers:
        waiting = deque[Future[NDArray[np.uint8]]]()
        for start in range(0, rows, step):
            waiting.append(workers.submit(part, start))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def checked(packed: Packed) -> NDArray[np.uint8]:
    """Return rows as Q4_1; raises ValueError when unpacking them does not give what was packed."""
    blocks = pack(packed.words, packed.scales, packed.biases, packed.group_size)
    numbers, scales, biases = unpack(blocks)
    per = packed.group_size // BLOCK
    same = (
        np.array_equal(numbers, packed.words.view(np.uint64).reshape(-1, 2))
        and bool((scales.reshape(-1, per) == packed.scales.reshape(-1, 1)).all())
        and bool((biases.reshape(-1, per) == packed.biases.reshape(-1, 1)).all())
    )
    if not same:
        raise ValueError("a number is not what it was")
    return blocks.reshape(len(packed.words), -1)


def pack(words: NDArray[np.uint32], scales: Float32, biases: Float32, group_size: int) -> NDArray[np.uint8]:
    """Return rows of MLX's 4-bit words as Q4_1 blocks, (blocks, 20).

    >>> words = np.array([[0x76543210, 0xFEDCBA98, 0x00000000, 0x11111111]], dtype=np.uint32)
    >>> block = pack(words, np.array([[0.5]], dtype=np.float32), np.array([[-1.0]], dtype=np.float32), 32)
    >>> block[0, :4].view(np.float16).tolist(), block[0, 4:].tolist()[:10]
    ([0.5, -1.0], [0, 1, 2, 3, 4, 5, 6, 7, 24, 25])
    """
    pairs = words.view(np.uint64).reshape(-1, 2)
    first, second = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
    blocks = np.empty((len(pairs), BLOCK_BYTES), dtype=np.uint8)
    blocks[:, 4::2] = ((first & LOW) | ((second & LOW) << FOUR)).view(np.uint8).reshape(-1, 8)
    blocks[:, 5::2] = (((first >> FOUR) & LOW) | (second & HIGH)).view(np.uint8).reshape(-1, 8)
    both = np.stack([scales.reshape(-1), biases.reshape(-1)], axis=1).astype(np.float16)
    blocks[:, :4] = np.repeat(both, group_size // BLOCK, axis=0).view(np.uint8)
    return blocks


def unpack(blocks: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], Float32, Float32]:
    """Return what `pack` was given: pairs of 64 bits of numbers, (blocks, 2), and each block's scale and bias."""
    even, odd = (np.ascontiguousarray(blocks[:, 4 + i :: 2]).view(np.uint64).reshape(-1) for i in (0, 1))
    first = (even & LOW) | ((odd & LOW) << FOUR)
    second = ((even >> FOUR) & LOW) | (odd & HIGH)
    both = np.ascontiguousarray(blocks[:, :4]).view(np.float16).astype(np.float32)
    return np.stack([first, second], axis=1), both[:, 0], both[:, 1]
